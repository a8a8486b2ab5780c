"""python -m benchmarks.study: runs what is missing of the study's cells, several at a time, and its final evaluation (docs/study.md)."""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.study import data, lines, page, plan
from benchmarks.study.pool import run


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(os.environ.get("STUDY_DIR", "study")), help="where run folders go (%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=lines.FOLDER, help="where lines of results go (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="cells done at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no cell begins after so many")
    parser.add_argument("--only", default="", help="cells whose names hold this text alone")
    parser.add_argument("--no_peft", action="store_true", help="without PEFT's multitask prompt tuning, which needs torch")
    parser.add_argument("--final", action="store_true", help="the final evaluation of what is done, on test rows: once, at the end")
    parser.add_argument("--page", action="store_true", help="only the tables and the picture of docs/study.md, from the results")
    options = parser.parse_args()
    if options.page:
        page.write(options.results)
        return 0
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
