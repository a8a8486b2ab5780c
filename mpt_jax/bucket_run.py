"""A run folder in a bucket: training works in a folder of this host, and everything finished goes up while it works.

Each checkpoint goes up as a folder with a marker, written last; run.json, config.gin, metrics and events as whole objects. A start brings
the newest checkpoint here that is whole in the bucket, unless this host is ahead of it. While the bucket does not answer, training goes on.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpt_jax import buckets, distributed, paths
from mpt_jax.errors import UserError
from mpt_jax.folder_lock import NAME as LOCAL_LOCK
from mpt_jax.folder_lock import locked

IDENTITY = "bucket_run.json"  # which run the folder holds: in the bucket and here
LOCK = "training_lock.json"  # in the bucket: who trains there, and when it last said so
CHECKPOINTS = "checkpoints"
NOT_PUT = (CHECKPOINTS, "damaged_checkpoints", LOCAL_LOCK, IDENTITY)
LOOK_S, FILES_S = 1.0, 30.0  # between looks for new checkpoints, and for files that have grown [ours]
BEAT_S, STALE_S = 20.0, 120.0  # between signs of life; after which there is none [ours]
LAST_S = 60.0  # that the end of a training waits for a bucket that does not answer, or MPT_BUCKET_WAIT_S [ours]
SMALL_BYTES = 2**26  # of a file that may grow while it goes up: what is there by then
_turn = itertools.count()


def brought(setting: str, path: str) -> str:
    """As ``buckets.here``, by the first process before the others."""
    if not buckets.is_address(path):
        return path
    with distributed.first_before_others(f"{next(_turn)} from the bucket"):
        return buckets.here(setting, path)


@contextlib.contextmanager
def made_in(path: str) -> Iterator[Path]:
    """A folder to write into: the given one, or one whose files go to an address in a bucket when the block ends without an error."""
    if not buckets.is_address(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        put_results(path, Path(temporary), sorted(each for each in Path(temporary).rglob("*") if each.is_file()))


def put_results(address: str, local: Path, paths: Sequence[Path]) -> None:
    """Files below the place ``local`` of an address go up there, from the first process."""
    if distributed.is_first():
        for path in paths:
            buckets.put_file(path, f"{address.rstrip('/')}/{path.relative_to(local).as_posix()}")


@contextlib.contextmanager
def training_folder(setting: str, path: str) -> Iterator[str]:
    """The folder in which to train, locked: the given one, or a folder of this host that is kept in a bucket.

    Raises UserError where another process trains there, where it cannot be written, and as ``kept_in``.
    """
    if not buckets.is_address(path):
        with locked(paths.writable_run(setting, path), setting):
            yield path
        return
    folder = paths.writable_run(setting, str(buckets.place_of(path, buckets.TRAINED)))
    with locked(folder, setting), kept_in(path, folder):
        yield str(folder)


@contextlib.contextmanager
def kept_in(address: str, local: Path) -> Iterator[None]:
    """Within the block the folder ``local``, which is locked, holds the run of the address, and what is finished there goes up.

    Raises UserError before the block where the bucket cannot be used or another machine trains there, and after it where what is
    finished could not go up.
    """
    run = _Run(address.rstrip("/"), local)
    with distributed.first_before_others(f"{next(_turn)} run from the bucket"):
        if distributed.is_first():
            run.begin()
    if not distributed.is_first():
        if not (local / LOCAL_LOCK).exists():
            advice = "mount the bucket on all of them, as python -m mpt_jax.launch does, and give that path"
            raise UserError(f"MODEL_DIR = {address!r}: the processes are on several hosts; {advice}.")
        yield
        return
    try:
        yield
    except BaseException:
        error = run.end()
        if error:
            distributed.say(f"{error} What is saved is in {str(local)!r}; the same command on this host puts it up.")
        raise
    error = run.end()
    if error:
        raise UserError(f"{error} Everything is in {str(local)!r}; the same command on this host puts it up.")


class _Run:
    def __init__(self, address: str, local: Path):
        self.address, self.local = address, local
        self._steps: set[str] = set()  # that are whole in the bucket
        self._stamps: dict[str, tuple[int, int]] = {}  # of files as they went up
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._beat, self._files, self._told = 0.0, -FILES_S, False

    def begin(self) -> None:
        """Makes the folder here what the bucket holds, says that it is trained, and starts putting up."""
        there = buckets.listed(self.address)
        self._check_lock()
        name = _identity(buckets.read(f"{self.address}/{IDENTITY}")) if IDENTITY in there else None
        own = self.local / IDENTITY
        mine = _identity(own.read_bytes()) if own.is_file() else None
        if mine is not None and mine != name:
            self._set_aside()
            mine = None
        if name is None:
            name = secrets.token_hex(8)
            if there:  # somebody put a run there by other means
                shutil.copytree(buckets.here("MODEL_DIR", self.address), self.local, dirs_exist_ok=True)
            buckets.write(f"{self.address}/{IDENTITY}", json.dumps({"id": name}).encode())
        else:
            self._steps = {found[1] for path in there if (found := re.fullmatch(rf"{CHECKPOINTS}/(\d+)/{buckets.MARKER}", path))}
            self._bring(there)
        own.write_text(json.dumps({"id": name}))
        self._say_alive()
        self._thread.start()

    def _bring(self, there: dict[str, buckets.Object]) -> None:
        """What the bucket has and this host lacks. Where this host is ahead, its files are the newer ones."""
        here, newest = _steps_of(self.local), max(map(int, self._steps), default=-1)
        ahead = bool(here) and max(here) >= newest
        for step in sorted(self._steps, key=int):
            if int(step) not in here and not (ahead and int(step) < max(here)):
                target = self.local / CHECKPOINTS / step
                target.parent.mkdir(exist_ok=True)
                buckets.fetch_folder(f"{self.address}/{CHECKPOINTS}/{step}", target)
        if ahead or (newest < 0 and (self.local / "run.json").exists()):
            return
        for name in there:
            if name.partition("/")[0] not in (*NOT_PUT, LOCK) and not name.endswith(buckets.MARKER):
                target = self.local / name
                target.parent.mkdir(parents=True, exist_ok=True)
                buckets.get_file(f"{self.address}/{name}", target)

    def _set_aside(self) -> None:
        aside = self.local.with_name(f"{self.local.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
        aside.mkdir()
        for path in self.local.iterdir():
            if path.name != LOCAL_LOCK:
                os.replace(path, aside / path.name)
        distributed.say(f"{self.address} no longer holds the run that this host had of it, which is now in {str(aside)!r}")

    def _check_lock(self) -> None:
        content = buckets.read(f"{self.address}/{LOCK}")
        try:
            held = json.loads(content) if content else {}
            host, age = str(held["host"]), time.time() - float(held["at"])
        except (ValueError, LookupError, TypeError):
            return
        if host != socket.gethostname() and age < STALE_S:
            who = f"process {held.get('pid')} on {host}, which said so {max(age, 0.0):.0f} s ago"
            advice = f"Wait {STALE_S:.0f} s after its end, or give another MODEL_DIR"
            raise UserError(f"MODEL_DIR = {self.address!r} is being trained in by {who}. {advice}.")

    def _say_alive(self) -> None:
        me = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
        buckets.write(f"{self.address}/{LOCK}", json.dumps(me).encode())
        self._beat = time.monotonic()

    def _keep_up(self) -> None:
        wait = LOOK_S
        while not self._stop.wait(wait):
            try:
                if time.monotonic() - self._beat > BEAT_S:
                    self._say_alive()
                new = any(str(step) not in self._steps for step in _steps_of(self.local))
                if new or time.monotonic() - self._files > FILES_S:
                    self.put_up()
                wait = LOOK_S
            except UserError as error:
                wait = min(2 * wait, 30.0)
                if not self._told:
                    distributed.say(f"{error} Training goes on; what it saves goes up when the bucket answers.")
                self._told = True

    def put_up(self) -> None:
        """Whatever is finished here and not in the bucket goes up; checkpoints that are gone here go there."""
        self._files = time.monotonic()
        for path in sorted(self.local.rglob("*")):
            name = path.relative_to(self.local).as_posix()
            if name.partition("/")[0] in NOT_PUT or path.suffix == ".tmp":
                continue
            with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
                if path.is_file():
                    self._put_changed(path, name)
        for step in _steps_of(self.local):
            if str(step) not in self._steps:
                self._put_step(str(step))
        here = _steps_of(self.local)
        for step in sorted(self._steps, key=int):
            if here and int(step) not in here:
                buckets.remove_folder(f"{self.address}/{CHECKPOINTS}/{step}")
                self._steps.discard(step)

    def _put_changed(self, path: Path, name: str) -> None:
        found = path.stat()
        stamp = (found.st_mtime_ns, found.st_size)
        if self._stamps.get(name) == stamp:
            return
        if found.st_size < SMALL_BYTES:
            buckets.write(f"{self.address}/{name}", path.read_bytes())
        else:
            buckets.put_file(path, f"{self.address}/{name}")
        self._stamps[name] = stamp

    def _put_step(self, step: str) -> None:
        folder = self.local / CHECKPOINTS / step
        try:
            buckets.put_folder(folder, f"{self.address}/{CHECKPOINTS}/{step}")
        except (UserError, OSError):
            if folder.is_dir():
                raise
            buckets.remove_folder(f"{self.address}/{CHECKPOINTS}/{step}")  # training removed it meanwhile
            return
        self._steps.add(step)

    def end(self) -> UserError | None:
        """Puts up the rest, trying again for a while, and takes the lock away; the error where that failed."""
        self._stop.set()
        self._thread.join()
        given = os.environ.get("MPT_BUCKET_WAIT_S", "")
        deadline = time.monotonic() + (float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else LAST_S)
        while True:
            try:
                self.put_up()
                buckets.remove(self.address, [LOCK])
                return None
            except UserError as error:
                if time.monotonic() > deadline:
                    return error
                time.sleep(LOOK_S)


def _steps_of(local: Path) -> list[int]:
    """Steps of the checkpoints here that are whole: Orbax gives them their names at the end."""
    folder = local / CHECKPOINTS
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _identity(content: bytes | None) -> str | None:
    try:
        return str(json.loads(content)["id"]) if content else None
    except (ValueError, LookupError, TypeError):
        return None
