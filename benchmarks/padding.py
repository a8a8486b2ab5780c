"""Positions that a step computes, by the smallest micro-batch: counted, nothing is timed.

    python -m benchmarks.padding

Prints a Markdown table over 40 steps of the benchmarks' rows: encoder positions, 100 prompt vectors included, per real one; micro-batches
of a step; and how many programs their shapes make.
"""

import tempfile
from pathlib import Path

from benchmarks import rows
from mpt_jax.data.batches import BatchSpec, make_batch

STEPS, PROMPT, LARGEST, TARGETS = 40, 100, 8, 8


def counted(folder: Path, name: str, batch: int, smallest: int) -> tuple[float, float, int]:
    """(positions per real one, micro-batches of a step, programs)."""
    stream = rows.stream([rows.token_cache(folder, name, "task0")], batch)
    spec = BatchSpec(rows.SETS[name][1], TARGETS, LARGEST, smallest_micro_batch=smallest)
    micro = [part for step in range(STEPS) for part in make_batch([stream], step, spec, 1).micro]
    shapes = [part["inputs_BL"].shape for part in micro]
    computed = sum(size * (PROMPT + length) for size, length in shapes)
    real = sum(int(part["input_length_B"].sum()) + PROMPT * int((part["input_length_B"] > 0).sum()) for part in micro)
    return computed / real, len(micro) / STEPS, len(set(shapes))


def main() -> None:
    print("| rows, batch | smallest micro-batch | positions per real one | micro-batches | programs |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("short", "long"):
            for batch in (16, 32):
                for smallest in (8, 4, 2):
                    share, parts, programs = counted(Path(folder), name, batch, smallest)
                    print(f"| {name}, {batch} | {smallest} | {share:.3f} | {parts:.1f} | {programs} |")


if __name__ == "__main__":
    main()
