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
from typing import NamedTuple

from mpt_jax import buckets, distributed, paths
from mpt_jax.errors import UserError
from mpt_jax.folder_lock import NAME as LOCAL_LOCK
from mpt_jax.folder_lock import locked
from mpt_jax.run_folder import ASIDE, CHECKPOINTS

IDENTITY = "bucket_run.json"  # which run the folder holds: in the bucket and here
LOCK = "training_lock.json"  # in the bucket: who trains there, and when it last said so
NOT_PUT = (CHECKPOINTS, ASIDE, LOCAL_LOCK, LOCK, IDENTITY)
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
            distributed.say(str(error))
        raise
    error = run.end()
    if error:
        raise error


class _Lost(UserError):
    """Another start trains in the address now."""


class _Held(NamedTuple):
    """What the lock in the bucket says: the host and process of a start, its token, and when it last said so (s since 1970)."""

    host: str
    pid: int
    token: str
    at: float

    @classmethod
    def read(cls, address: str) -> "_Held | None":
        """The lock of an address; None where there is none, or none that can be read."""
        content = buckets.read(f"{address}/{LOCK}")
        try:
            held = json.loads(content) if content else {}
            return cls(str(held["host"]), int(held["pid"]), str(held.get("token")), float(held["at"]))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            return None

    def lives(self) -> bool:
        """Whether that start may still run: it said so lately, by a clock near ours, and where it was on this host its process is there."""
        if not abs(time.time() - self.at) < STALE_S:
            return False
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            return True
        return self.pid != os.getpid()  # else it is one before this one that had the same number

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which said so {max(time.time() - self.at, 0.0):.0f} s ago"


class _Run:
    def __init__(self, address: str, local: Path):
        self.address, self.local = address, local
        self._steps: set[str] = set()  # that are whole in the bucket
        self._stamps: dict[str, tuple[int, int]] = {}  # of files as they went up
        self._token = secrets.token_hex(8)  # of this start, in the lock
        self._stop, self._ended = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._keep_up, self._live)]
        self._files, self._told = -FILES_S, False
        self._wait_s = _last_s()

    def begin(self) -> None:
        """Makes the folder here what the bucket holds, says that it is trained, and starts putting up."""
        there = buckets.listed(self.address)
        buckets.check_names("MODEL_DIR", self.address, there)
        self._check_lock()
        self._say_alive()
        try:
            self._make_equal(there)
            self._check_own()  # what had to come may have taken longer than a lock lives
            self._say_alive()
        except BaseException as error:
            if not isinstance(error, _Lost):
                with contextlib.suppress(UserError):
                    buckets.remove(self.address, [LOCK])
            raise
        for thread in self._threads:
            thread.start()

    def _make_equal(self, there: dict[str, buckets.Object]) -> None:
        name = _identity(buckets.read(f"{self.address}/{IDENTITY}")) if IDENTITY in there else None
        own = self.local / IDENTITY
        mine = _identity(own.read_bytes()) if own.is_file() else None
        if mine is not None and mine != name:
            self._set_aside()
            mine = None
        if name is None:
            name = secrets.token_hex(8)
            if there.keys() - {LOCK}:  # somebody put a run there by other means
                found, lock = buckets.here("MODEL_DIR", self.address), shutil.ignore_patterns(LOCK)
                shutil.copytree(found, self.local, ignore=lock, dirs_exist_ok=True)
            buckets.write(f"{self.address}/{IDENTITY}", json.dumps({"id": name}).encode())
        else:
            self._steps = {found[1] for path in there if (found := re.fullmatch(rf"{CHECKPOINTS}/(\d+)/{buckets.MARKER}", path))}
            self._bring(there)
        own.write_text(json.dumps({"id": name}))

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
            if name.partition("/")[0] not in NOT_PUT and not name.endswith(buckets.MARKER):
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
        held = _Held.read(self.address)
        if held is not None and held.lives():
            advice = f"Wait {STALE_S:.0f} s after its end, or give another MODEL_DIR"
            raise UserError(f"MODEL_DIR = {self.address!r} is being trained in by {held}. {advice}.")

    def _check_own(self) -> None:
        """Raises _Lost where another start has the bucket's folder now."""
        held = _Held.read(self.address)
        if held is None or held.token != self._token:
            who = f"{held} trains there" if held else f"its {LOCK} is gone"
            raise _Lost(f"MODEL_DIR = {self.address!r} is no longer this process's: {who}, so nothing more goes up.")

    def _say_alive(self) -> None:
        me = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.time(), "token": self._token}
        buckets.write(f"{self.address}/{LOCK}", json.dumps(me).encode())

    def _live(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._check_own()
                self._say_alive()
            except _Lost:  # which _keep_up says
                return
            except UserError:  # which _keep_up says; the bucket may answer the next time
                continue

    def _keep_up(self) -> None:
        wait = LOOK_S
        while not self._stop.wait(wait):
            try:
                new = any(str(step) not in self._steps for step in _steps_of(self.local))
                if new or time.monotonic() - self._files > FILES_S:
                    self._check_own()
                    self.put_up()
                wait = LOOK_S
            except _Lost as error:
                distributed.say(f"{error} Training goes on in {str(self.local)!r}.")
                return
            except (UserError, OSError) as error:
                wait = min(2 * wait, 30.0)
                if not self._told:
                    distributed.say(f"{self._sentence(error)} Training goes on; what it saves goes up when that is over.")
                self._told = True

    def _sentence(self, error: UserError | OSError) -> UserError:
        if isinstance(error, UserError):
            return error
        return UserError(f"{error.filename or str(self.local)!r} cannot be read: {error.strerror or type(error).__name__}.")

    def put_up(self) -> None:
        """Whatever is finished here and not in the bucket goes up; checkpoints that are gone here go there."""
        self._files = time.monotonic()
        steps = _steps_of(self.local)  # before the files: a checkpoint never goes up without the metrics before it
        for folder, folders, files in os.walk(self.local):
            if folder == str(self.local):  # Orbax moves and removes folders in some of them meanwhile
                folders[:], files = (sorted(set(names) - set(NOT_PUT)) for names in (folders, files))
            for path in (Path(folder, name) for name in files if not name.endswith(".tmp")):
                with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
                    if path.is_file():
                        self._put_changed(path, path.relative_to(self.local).as_posix())
        for step in steps:
            if str(step) not in self._steps:
                self._put_step(str(step))
        here = _steps_of(self.local)
        for step in sorted(self._steps - _damaged(self.local), key=int):
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
        address = f"{self.address}/{CHECKPOINTS}/{step}"
        try:
            buckets.put_folder(self.local / CHECKPOINTS / step, address)
        except FileNotFoundError:  # of a file here: training removes the folder meanwhile
            buckets.remove_folder(address)
            return
        self._steps.add(step)

    def end(self) -> UserError | None:
        """Puts up the rest, trying again for a while, and takes the lock away; the error where that failed."""
        self._stop.set()
        self._threads[0].join()
        try:
            return self._put_rest()
        finally:
            self._ended.set()

    def _put_rest(self) -> UserError | None:
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                self._check_own()
                self.put_up()
                self._ended.set()
                self._threads[1].join()  # or it writes the lock again
                self._check_own()
                buckets.remove(self.address, [LOCK])
                return None
            except _Lost as error:
                return UserError(f"{error} What this one saved is in {str(self.local)!r}.")
            except (UserError, OSError) as error:
                if time.monotonic() > deadline:
                    where = f"Everything is in {str(self.local)!r}; the same command on this host puts it up."
                    return UserError(f"{self._sentence(error)} {where}")
                time.sleep(LOOK_S)


def _damaged(local: Path) -> set[str]:
    """Steps whose checkpoints here were put aside as damaged; those in the bucket may be whole."""
    folder = local / ASIDE
    return {name.rstrip("_") for name in os.listdir(folder)} if folder.is_dir() else set()


def _last_s() -> float:
    """Seconds that the end of a training waits for a bucket. Raises UserError for a variable that is not a number."""
    given = os.environ.get("MPT_BUCKET_WAIT_S", str(LAST_S))
    if not re.fullmatch(r"\d{1,5}(\.\d+)?", given):
        raise UserError(f"MPT_BUCKET_WAIT_S = {given!r} is not a number of seconds, 0 .. 99999; type MPT_BUCKET_WAIT_S=60.")
    return float(given)


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
