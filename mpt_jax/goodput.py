"""What the time of a training went to: computing, compiling, waiting for data, scoring, saving, starting, and what restarts cost.

Each start of the command is a session. It appends lines to time.jsonl of the run folder whenever metrics are written: seconds by kind so
far. What a later session did again is found from the step it went on from, so a killed process needs to have said nothing at its end.
"""

import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from mpt_jax.distributed import is_first
from mpt_jax.errors import UserError
from mpt_jax.regular_files import numbered_lines, parse_json, shown
from mpt_jax.run_folder import is_number, read_run_json, write_json, write_text, writes

TIME_FILE = "time.jsonl"
# starting: until the first step (weights, token caches, cached teachers); computing: the steps, with what the host does between them
KINDS = ("computing", "compiling", "waiting_for_data", "scoring", "saving", "starting")
COMPILING = "/jax/core/compile/"  # events of JAX: tracing, lowering, compiling or reading a compiled program


class Clock:
    """Seconds by kind since it was made, in the thread that made it; one kind at a time. ``open`` before ``write``."""

    def __init__(self):
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.began = time.time()
        self._kind, self._since = "starting", time.monotonic()
        self._compiled: list[tuple[float, float]] = []  # spans that count, none within another
        self._thread = threading.get_ident()
        self._file: IO[str] | None = None
        _running.add(self)

    def turn_to(self, kind: str) -> str:
        """From now on seconds are of this kind; returns the one before."""
        now, before = time.monotonic(), self._kind
        self.seconds[before] += now - self._since
        self._kind, self._since = kind, now
        return before

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """The block's seconds are of this kind."""
        before = self.turn_to(kind)
        try:
            yield
        finally:
            self.turn_to(before)

    def heard(self, seconds: float) -> None:
        """Counts what JAX has just compiled, which is within the present kind. Of spans within one another the outer one counts."""
        if threading.get_ident() != self._thread:
            return
        end = time.monotonic()
        start = end - seconds
        while self._compiled and self._compiled[-1][0] >= start:
            first, last = self._compiled.pop()
            seconds -= last - first
        self._compiled.append((start, end))
        self.seconds["compiling"] += seconds
        self.seconds[self._kind] -= seconds

    def open(self, run_dir: Path, start_step: int) -> None:
        """Goes on with time.jsonl of a run folder, from the first process. Raises UserError where it cannot be written."""
        self._run_dir, self._start_step = run_dir, start_step
        if not is_first():
            return
        path = run_dir / TIME_FILE
        with writes(run_dir, "MODEL_DIR"):
            write_text(path, "".join(json.dumps(line) + "\n" for line in read_time(run_dir)))  # without a line that a kill cut
            self._file = path.open("a")
        self.write(start_step)

    def write(self, step: int) -> None:
        """A line: what the session has spent by a step."""
        if self._file is None:
            return
        self.turn_to(self._kind)
        place = {"began": self.began, "at": time.time(), "from": self._start_step, "step": step}
        devices = {"processes": jax.process_count(), "devices": jax.device_count()}
        with writes(self._run_dir, "MODEL_DIR"):
            self._file.write(json.dumps({**place, **devices, "seconds": {kind: round(s, 3) for kind, s in self.seconds.items()}}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Writes no more."""
        if self._file is not None:
            self._file.close()
            self._file = None


_running: weakref.WeakSet[Clock] = weakref.WeakSet()


def _hear(event: str, seconds: float, **_) -> None:
    if event.startswith(COMPILING):
        for clock in list(_running):
            clock.heard(seconds)


jax.monitoring.register_event_duration_secs_listener(_hear)


def read_time(run_dir: str | Path) -> list[dict]:
    """The lines of time.jsonl, empty where there is none; a last line cut by a kill is left out. Raises UserError naming a damaged one."""
    path, lines = Path(run_dir) / TIME_FILE, []
    if not os.path.lexists(path):
        return lines
    for number, text in numbered_lines(path):
        if text.endswith(b"\n") and text.strip():
            lines.append(_checked(parse_json(text.strip(), f"{path}:{number}"), f"{path}:{number}"))
    return lines


def _checked(line: object, where: str) -> dict:
    names = ("began", "at", "from", "step")
    whole = isinstance(line, dict) and all(is_number(line.get(name)) for name in names) and isinstance(line.get("seconds"), dict)
    seconds = line["seconds"] if whole else {}
    if not whole or not set(KINDS) <= seconds.keys() or not all(map(is_number, seconds.values())):
        raise UserError(f"{where} is damaged: it is {shown(line)}; delete this line.")
    return line


def keep_in_run_json(run_dir: Path) -> None:
    """Writes what the time went to as ``time`` of run.json, from the first process."""
    if is_first():
        with writes(run_dir, "MODEL_DIR"):
            write_json(run_dir / "run.json", {**read_run_json(run_dir), "time": spent(run_dir)})


def spent(run_dir: str | Path) -> dict[str, float]:
    """Seconds by kind of the steps that count, ``lost_to_restarts``, ``not_running``, and the number of ``restarts``; empty for no lines.

    Lost to restarts: steps that a later session did again, and all starting but the first. Not running: between a session's last
    line and the next one's beginning.
    """
    sessions: list[list[dict]] = []
    for line in read_time(run_dir):
        if not sessions or sessions[-1][0]["began"] != line["began"]:
            sessions.append([])
        sessions[-1].append(line)
    if not sessions:
        return {}
    found = dict.fromkeys((*KINDS, "lost_to_restarts", "not_running"), 0.0)
    for number, session in enumerate(sessions):
        last = kept = session[-1]
        if number + 1 < len(sessions):
            again_from = min(later[0]["from"] for later in sessions[number + 1 :])  # a later one may have gone back further
            kept = next((line for line in reversed(session) if line["step"] <= again_from), session[0])
            found["lost_to_restarts"] += sum(last["seconds"].values()) - sum(kept["seconds"].values())
            found["not_running"] += max(sessions[number + 1][0]["began"] - last["at"], 0.0)
        for kind in KINDS:
            again = number > 0 and kind == "starting"
            found["lost_to_restarts" if again else kind] += kept["seconds"][kind]
    return {**{kind: round(seconds, 3) for kind, seconds in found.items()}, "restarts": len(sessions) - 1}
