"""Cells of the study done by processes beside one another, each when what it needs is done."""

import multiprocessing
import os
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from benchmarks.study import lines, plan


def _work(folder: Path, cell: plan.Cell, results: Path) -> dict[str, list[dict]]:
    # JAX starts in the process that works
    from benchmarks.study import work

    return work.work(folder, cell, results)


def _end_with(parent: int) -> None:
    """Ends this process when the one that started it is gone: else a cell goes on for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Worker:
    """A process that does one cell at a time and keeps what it loaded and compiled; a new one takes the place of one that died."""

    def __init__(self):
        self._start()

    def _start(self):
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with, (os.getpid(),))

    def submit(self, *arguments) -> Future:
        """Begins a cell."""
        try:
            return self._pool.submit(_work, *arguments)
        except BrokenProcessPool:
            self._start()
            return self._pool.submit(_work, *arguments)

    def close(self):
        """Ends the process."""
        self._pool.shutdown(cancel_futures=True)


def run(folder: Path, results: Path, cells: list[plan.Cell], workers: int, until: float) -> list[plan.Cell]:
    """Does the cells that are not done, the first ones first. Returns those that are done.

    A cell that fails is told of and left out. No cell begins after ``until`` (time.monotonic).
    """
    done = {line["cell"] for line in lines.noted("cells", results)}
    failed: set[str] = set()
    free, running = [Worker() for _ in range(workers)], {}
    while True:
        busy = {cell.name for cell, _ in running.values()}
        ready = [cell for cell in cells if cell.name not in done | failed | busy and set(cell.needs) <= done]
        while ready and free and time.monotonic() < until:
            cell, worker = ready.pop(0), free.pop()
            running[worker.submit(folder, cell, results)] = cell, worker
        if not running:
            break
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            cell, worker = running.pop(future)
            free.append(worker)
            error = future.exception()
            if error is not None:
                traceback.print_exception(error)
                print(f"failed: {cell.name}", flush=True)
                failed.add(cell.name)
                continue
            found = future.result()
            for name in sorted(found, key=lambda name: name == "cells"):  # the line that says that it is done comes last
                lines.note(name, found[name], results)
            done.add(cell.name)
            print(f"{time.strftime('%H:%M:%S')} {cell.name}: {found['cells'][0]['seconds']} s", flush=True)
    for worker in free:
        worker.close()
    return [cell for cell in cells if cell.name in done]
