"""Measurements beside what users would otherwise run; one JSON line per result, ``benchmarks.table`` makes docs/performance.md of them.

Every benchmark: ``python -m benchmarks.NAME --json FILE [--repeats N] [--small]``. ``--append`` adds repeats to the file's last line of the
same case, so that long ones can be measured in several short calls.
"""
