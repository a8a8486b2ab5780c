"""Paths that a user gives: `~` is expanded, and what would become another folder than the one that is meant is refused."""

import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.errors import UserError
from mpt_jax.regular_files import shown

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
MOST_BYTES, MOST_NAME, MOST_FOLDERS = 4095, 255, 200  # of a path and of a name in it, as Linux has it; folders in one another [ours]
GLOB = "[]*?\\"  # Orbax looks for the parts of a checkpoint by a pattern made from the folder's own path


def expanded(setting: str, path: str) -> str:
    """The path with `~` expanded; an empty one stays. Raises UserError for one that no file system holds."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{setting} = {path!r} is not UTF-8; rename the folder.") from error
    if "\0" in path:
        raise UserError(f"{setting} = {path!r} has a zero byte, which no path can have.")
    found = os.path.expanduser(path)
    if found.startswith("~"):
        user = found.partition("/")[0]
        raise UserError(f"{setting} = {path!r}: there is no user {user[1:]!r}; for a folder of that name write './{path}'.")
    names = found.encode().split(b"/")
    if len(found.encode()) > MOST_BYTES or max(map(len, names)) > MOST_NAME or len(names) > MOST_FOLDERS:
        limits = f"{MOST_BYTES:,} bytes, {MOST_NAME} in each name, {MOST_FOLDERS} folders in one another"
        raise UserError(f"{setting} = {shown(path)} is longer than a path can be ({limits}); give a shorter one.")
    return found


def local(setting: str, path: str, remote: tuple[str, ...] = ()) -> str:
    """As ``expanded``. Raises UserError for an address (`s3://…`), which would become a folder `s3:`, but for those in ``remote``."""
    scheme = SCHEME.match(path)
    if scheme and not path.startswith(remote or "\0"):
        also = f" or {', '.join(remote)}" if remote else ""
        advice = "copy it here, or mount the bucket, and give that path"
        raise UserError(f"{setting} = {path!r}: {scheme[0]}/… cannot be used, only a local path{also}; {advice}.")
    return path if scheme else expanded(setting, path)


def absolute(path: str | Sequence[str]) -> str | list[str]:
    """A path, or several, as T5X's Orbax takes them: absolute, with `~` expanded; addresses as they are."""
    if not isinstance(path, str):
        return [str(absolute(each)) for each in path]
    return path if SCHEME.match(path) else str(Path(expanded("path", path)).absolute())


def writable_run(setting: str, path: str) -> Path:
    """The absolute folder in which Orbax is to write. Raises UserError for one whose checkpoints could not be read again."""
    if not path:
        raise UserError(f"{setting} is empty; give a folder.")
    folder = Path(local(setting, path)).absolute()
    wrong = sorted(set(GLOB) & set(str(folder)))
    if wrong:
        message = f"{setting} = {str(folder)!r} holds {' '.join(wrong)}, a pattern for Orbax: its checkpoints could not be read again"
        raise UserError(f"{message}. Give a path without any of {' '.join(GLOB)}.")
    return folder


def readable_run(setting: str, path: str | os.PathLike) -> Path:
    """The absolute folder of a run that is to be read. Raises UserError for one in which Orbax finds no checkpoint."""
    folder = Path(path).absolute()
    wrong = [pattern for pattern in ("\\", "**") if pattern in str(folder)]
    if wrong:
        raise UserError(f"{setting} = {str(folder)!r} holds {wrong[0]}, and Orbax reads no checkpoint in such a path; rename the folder.")
    return folder


class Opened:
    """A folder that this process goes on writing into. It is held open, so that another one at its path never counts as it."""

    def __init__(self, folder: str | os.PathLike):
        self._folder = folder
        self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # held: a file system gives the number of a deleted folder to the next
        self.close = weakref.finalize(self, os.close, self._handle)

    def is_there(self) -> bool:
        """Whether the path still leads to the folder that was opened."""
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self._folder))
        except OSError:
            return False
