"""Numbers of training on their way out: metrics.jsonl, TensorBoard events, and progress on the terminal."""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mpt_jax.distributed import is_first, say
from mpt_jax.errors import UserError
from mpt_jax.regular_files import numbered_lines, parse_json, shown
from mpt_jax.run_folder import is_number, write_text, writes

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to TensorBoard events of a run folder.

    A line is ``{"step": …, "split": "train"|"dev", "task": …, "run": n, name: value}``. Lines after ``start_step`` are dropped on opening:
    a continued run writes them again. With several processes the first one writes. Raises UserError where the folder takes no more.
    """

    def __init__(self, run_dir: str | Path, start_step: int = 0):
        self._writes = is_first()
        if not self._writes:
            return
        self._run_dir, self._start_step = Path(run_dir), start_step
        path = self._run_dir / METRICS_FILE
        # a run that starts anew scores its start again
        kept = [line for line in read_metrics(run_dir) if line["step"] <= start_step] if start_step else []
        with self._errors():
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a")

    def _errors(self):
        return writes(self._run_dir, "MODEL_DIR")

    @functools.cached_property
    def _events(self) -> "Events":
        return Events(self._run_dir, self._start_step + 1)

    def write(self, step: int, split: str, values: Mapping[str, float | str], task: str | None = None, run: int | None = None) -> None:
        """Writes one line and its scalars; a text, a digest for one, is in the line alone."""
        if not self._writes:
            return
        line = {"step": step, "split": split, "task": task, "run": run, **values}
        tag = "/".join(str(part) for part in (split, task, run) if part is not None)
        with self._errors():
            self._file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                if not isinstance(value, str):
                    self._events.add(f"{tag}/{name}", value, step)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        if not self._writes:
            return
        with self._errors():
            self._file.flush()
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if not self._writes:
            return
        with self._errors():
            self._file.close()
            self._events.close()


class Events:
    """A TensorBoard event file of a folder. From ``purge_step`` on it replaces earlier files there."""

    def __init__(self, folder: Path, purge_step: int):
        # the writer of clu needs TensorFlow, which training must not; this one takes a second to import, after the first steps
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._scalar = event_pb2.Event, summary.scalar
        # not SummaryWriter: its thread ends with a traceback on a full disk, and training would not know
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._file.write_event(self._event(step=purge_step, wall_time=time.time(), session_log=started))

    def add(self, tag: str, value: float, step: int) -> None:
        """A scalar of a step."""
        self._file.write_event(self._event(step=step, wall_time=time.time(), summary=self._scalar(tag, value)))

    def flush(self) -> None:
        """Onto the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()


def read_metrics(run_dir: str | Path) -> list[dict]:
    """The lines of metrics.jsonl, empty where there is none; a last line cut by a kill is left out.

    Raises UserError naming any other line that is damaged.
    """
    path = Path(run_dir) / METRICS_FILE
    lines: list[dict] = []
    if not os.path.lexists(path):
        return lines
    for number, text in numbered_lines(path):
        is_cut = not text.endswith(b"\n")
        with contextlib.suppress(UserError) if is_cut else contextlib.nullcontext():
            lines += [_line(text, f"{path}:{number}")] if text.strip() else []
    return lines


def _line(text: bytes, where: str) -> dict:
    line = parse_json(text.strip(), where)
    wrong = _wrong(line)
    if wrong:
        raise UserError(f"{where} is damaged ({wrong}); delete this line.")
    return {"task": None, "run": None, **line}


def _wrong(line: object) -> str:
    """What a line says that no line can; empty if it is whole."""
    if not isinstance(line, dict):
        return "it is not an object"
    kinds = {"step": int, "split": str, "task": str | None, "run": int | None}
    for name, kind in kinds.items():
        value = line.get(name)
        needed = name in line or name in ("step", "split")
        if needed and (not isinstance(value, kind) or isinstance(value, bool)):
            return f"{name} is {shown(value)}"
    large = [name for name, value in line.items() if isinstance(value, int) and not isinstance(value, bool) and not is_number(value)]
    return f"{large[0]} is {shown(line[large[0]])}" if large else ""


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
            say(f"{self.title}: {done}/{self.total} {self.unit}, {rate:.2f}/s, {left:.0f} s left  {note}")

    def close(self) -> None:
        """Ends the bar."""
        if self._bar:
            self._bar.stop()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
