"""One training at a time in a folder: a lock that the operating system lets go of when its process ends, however it ends.

``flock`` on the file `training.lock`: between processes of one host, and between hosts on file systems that carry locks (NFS with its lock
service, Lustre with -o flock). Of several processes of one run the first one locks. Readers (eval, infer, report) never ask.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mpt_jax.distributed import at_leaving, is_first, say
from mpt_jax.errors import UserError
from mpt_jax.run_folder import writes

NAME = "training.lock"


@contextlib.contextmanager
def locked(folder: str | Path, setting: str = "MODEL_DIR") -> Iterator[None]:
    """Holds the folder, which is made if it is not there and removed again if nothing came into it.

    Raises UserError at once where another process holds it, naming that process, or where the folder cannot be written.
    """
    folder = Path(folder).absolute()
    if not is_first():
        yield
        return
    made = [parent for parent in (folder, *folder.parents) if not os.path.exists(parent)]
    with writes(folder, setting):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(folder, setting)

    def let_go() -> None:
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / NAME).unlink()
        for parent in made:
            with contextlib.suppress(OSError):  # not empty: something came into it
                parent.rmdir()

    at_leaving.append(let_go)
    try:
        yield
    finally:
        at_leaving.remove(let_go)
        let_go()
        os.close(handle)


def _take(folder: Path, setting: str) -> int:
    """The open, locked file; it holds who locked it."""
    path = folder / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _holder(handle)
            os.close(handle)
            message = f"{setting} = {str(folder)!r} is being trained in by {holder}"
            raise UserError(f"{message}. Wait for it, or give another {setting}.") from error
        except OSError as error:
            say(f"{setting} = {str(folder)!r} cannot be locked ({error.strerror}): do not start a second training in it")
        if _is_still(handle, path):
            break
        os.close(handle)  # the one before took its file away as it ended
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.truncate(handle, 0)
    os.pwrite(handle, json.dumps(me).encode(), 0)
    return handle


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 1000, 0))
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (ValueError, LookupError, TypeError):
        return "another process"  # which has not written yet who it is
