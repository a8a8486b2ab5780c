"""Files that commands write: whole, or kept in part under a name that says so, never over a link or a device, one for a task."""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mpt_jax import distributed
from mpt_jax.errors import UserError

PARTIAL = ".partial"  # suffix of an output that is not complete
DESCRIPTOR = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")


def file_name(name: str) -> str:
    """A task's name as a file name; no two names share one, whatever a file system cannot hold."""
    safe = "".join(letter if letter.isalnum() or letter in "-_.#" else "_" for letter in name)
    if safe == name and len(name.encode()) < 200 and name.strip("."):
        return name
    return f"{safe.encode()[:150].decode(errors='ignore').strip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def descriptor(path: str | Path) -> int | None:
    """The open file of this process that a path names (/dev/stdout, /dev/fd/63), or None."""
    if not DESCRIPTOR.fullmatch(str(path)):
        return None
    name = str(path).rpartition("/")[2]
    return {"stdout": 1, "stderr": 2}.get(name) or int(name)


def replaceable(path: str | Path, given_as: str) -> Path:
    """The regular file, there or not, that writing a path replaces: links are followed. Raises UserError for a folder or a device."""
    target = Path(os.path.realpath(path))
    kind = stat.S_IFDIR if str(path).endswith("/") else _kind(target)
    if kind is not None and not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a device or pipe"
        raise UserError(f"{given_as} {str(path)!r} is {what}, and would be replaced: give the name of a file")
    return target


@contextlib.contextmanager
def kept_in_part(path: str | Path, given_as: str) -> Iterator[BinaryIO]:
    """A file to write whose content is at ``path`` when the block ends without an error, and beside it in NAME.partial until then.

    What was written before an error, or before the process was killed, stays there. An open file of the process, a pipe or a
    terminal is written as it comes. Raises UserError where it cannot be written, or another command is writing it.
    """
    try:
        number, kind = descriptor(path), _kind(Path(path))
        if number is not None:
            sys.stdout.flush()
            with os.fdopen(os.dup(number), "wb") as file:
                yield file
        elif kind is not None and (stat.S_ISCHR(kind) or stat.S_ISFIFO(kind)):
            with open(path, "wb") as file:
                yield file
        else:
            yield from _partial(replaceable(path, given_as), given_as)
    except OSError as error:
        raise UserError(f"{given_as} {str(path)!r} cannot be written: {error.strerror or error}.") from error


def _kind(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _partial(target: Path, given_as: str) -> Iterator[BinaryIO]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with os.fdopen(handle, "wb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UserError(f"{str(partial)!r} is in the way: {given_as} needs this name until the file is complete")
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{given_as} {str(target)!r} is being written by another command: give another name") from error
        os.ftruncate(handle, 0)
        try:
            yield file
            file.flush()
        except BaseException:
            with contextlib.suppress(OSError):
                file.flush()
            if os.fstat(handle).st_size:
                distributed.say(f"what was written before is kept in {str(partial)!r}")
            else:
                partial.unlink()
            raise
        os.replace(partial, target)
