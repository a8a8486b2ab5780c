"""Numbers of training on their way out: metrics.jsonl, TensorBoard events, and progress on the terminal."""

import functools
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpt_jax.distributed import is_first

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to TensorBoard events of a run folder.

    A line is ``{"step": …, "split": "train"|"dev", "task": …, "run": n, name: value}``. Lines after ``start_step`` are dropped on opening:
    a continued run writes them again. With several processes the first one writes.
    """

    def __init__(self, run_dir: str | Path, start_step: int = 0):
        self._writes = is_first()
        if not self._writes:
            return
        self._path = Path(run_dir) / METRICS_FILE
        kept = [line for line in read_metrics(run_dir) if 0 < line["step"] <= start_step or 0 == line["step"] < start_step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self._path)
        self._file = self._path.open("a")
        self._run_dir, self._start_step = str(run_dir), start_step

    @functools.cached_property
    def _events(self):
        # the writer of clu needs TensorFlow, which training must not; this one takes a second to import, after the first steps
        from tensorboardX import SummaryWriter

        return SummaryWriter(self._run_dir, purge_step=self._start_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float], task: str | None = None, run: int | None = None) -> None:
        """Writes one line and its scalars."""
        if not self._writes:
            return
        line = {"step": step, "split": split, "task": task, "run": run, **values}
        self._file.write(json.dumps(line) + "\n")
        tag = "/".join(str(part) for part in (split, task, run) if part is not None)
        for name, value in values.items():
            self._events.add_scalar(f"{tag}/{name}", value, step)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        if not self._writes:
            return
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if not self._writes:
            return
        self.flush()
        self._file.close()
        self._events.close()


def read_metrics(run_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl; a last line cut by a kill is left out."""
    path = Path(run_dir) / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


class ProgressLine:
    """Progress of long work with rate and time left: a bar on a terminal, otherwise a plain line every few seconds.

    With several processes the first one shows it.
    """

    def __init__(self, title: str, total: int, start: int = 0, unit: str = "steps", seconds_between_lines: float = 10.0):
        self.title, self.total, self.done, self.unit = title, total, start, unit
        self._start, self._began, self._last = start, time.monotonic(), time.monotonic()
        self._between = seconds_between_lines
        self._bar = None
        self._shows = is_first()
        if self._shows and sys.stderr.isatty():
            count = TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}")
            note = TextColumn("{task.fields[note]}")
            columns = (TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn(), note)
            self._bar = Progress(*columns, console=Console(stderr=True), transient=False)
            self._bar_task = self._bar.add_task(title, total=total, completed=start, unit=unit, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Tells that ``done`` of the total are finished."""
        self.done = done
        if self._bar:
            self._bar.update(self._bar_task, completed=done, note=note)
        elif self._shows and (time.monotonic() - self._last >= self._between or done >= self.total):
            self._last = time.monotonic()
            rate = (done - self._start) / max(self._last - self._began, 1e-9)
            left = (self.total - done) / max(rate, 1e-9)
            print(f"{self.title}: {done}/{self.total} {self.unit}, {rate:.2f}/s, {left:.0f} s left  {note}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar:
            self._bar.stop()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
