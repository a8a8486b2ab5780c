"""python -m benchmarks.study: runs what is missing of the study's cells, several at a time, and its final evaluation (docs/study.md)."""

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

from benchmarks.study import data, lines, plan


def _work(folder: Path, cell: plan.Cell, results: Path) -> dict[str, list[dict]]:
    # in a process of its own: JAX starts there
    from benchmarks.study import work

    return work.work(folder, cell, results)


def run(folder: Path, results: Path, cells: list[plan.Cell], workers: int, until: float) -> list[plan.Cell]:
    """Does the cells that are not done, the first ones first, each when what it needs is done. Returns those that are done.

    A cell that fails is told of and left out. No cell begins after ``until`` (time.monotonic).
    """
    done = {line["cell"] for line in lines.noted("cells", results)}
    failed: set[str] = set()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        running: dict[concurrent.futures.Future, plan.Cell] = {}
        while True:
            busy = {cell.name for cell in running.values()}
            ready = [c for c in cells if c.name not in done | failed | busy and set(c.needs) <= done]
            while ready and len(running) < workers and time.monotonic() < until:
                cell = ready.pop(0)
                running[pool.submit(_work, folder, cell, results)] = cell
            if not running:
                break
            finished, _ = concurrent.futures.wait(running, timeout=5, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in finished:
                cell = running.pop(future)
                try:
                    found = future.result()
                except Exception:  # noqa: BLE001 one cell's fault must not cost the others
                    traceback.print_exc()
                    failed.add(cell.name)
                    continue
                for name in sorted(found, key=lambda name: name == "cells"):
                    lines.note(name, found[name], results)
                done.add(cell.name)
                print(f"{time.strftime('%H:%M:%S')} {cell.name}: {found['cells'][0]['seconds']} s; {len(done)} of {len(cells)}", flush=True)
    return [cell for cell in cells if cell.name in done]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("STUDY_DIR", "study")), help="where run folders go (%(default)s)")
    parser.add_argument("--results", type=Path, default=lines.FOLDER, help="where lines of results go (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="cells done at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no cell begins after so many")
    parser.add_argument("--only", default="", help="cells whose names hold this text alone")
    parser.add_argument("--no_peft", action="store_true", help="without PEFT's multitask prompt tuning, which needs torch")
    parser.add_argument("--final", action="store_true", help="the final evaluation of what is done, on test rows: once, at the end")
    options = parser.parse_args()
    folder = options.folder.absolute()
    data.prepare(folder / "data")
    until = time.monotonic() + options.seconds
    cells = plan.cells(not options.no_peft)
    if options.final:
        done = {line["cell"] for line in lines.noted("cells", options.results)}
        cells = plan.test_cells([cell for cell in cells if cell.name in done])
        # nothing is chosen after this: the needs of a cell that is done are done
        cells = [cell._replace(needs=()) for cell in cells]
    cells = [cell for cell in cells if options.only in cell.name]
    done = run(folder, options.results, cells, options.workers, until)
    print(f"{len(done)} of {len(cells)} cells are done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
