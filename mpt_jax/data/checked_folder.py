"""Folders of files with sums in their `meta.json`, there whole or not at all: what is opened is what was written, or a message names it."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpt_jax import buckets
from mpt_jax.errors import UserError

META = "meta.json"
META_LIMIT = 2**24  # bytes of a meta.json [ours]
ENTRIES = {"key": dict, "rows": int, "files": dict, "fingerprint": str, "sum": str}
WRITING, RETIRED = ".writing-", ".retired-"  # names of folders on their way in and out
ATTEMPTS = 20  # at putting a folder where other processes put theirs


def cache_folder(setting: str = "") -> Path:
    """Folder of the token caches: setting CACHE_DIR, else the variable MPT_CACHE_DIR, or ~/.cache/mpt_jax."""
    given = setting or os.environ.get("MPT_CACHE_DIR") or "~/.cache/mpt_jax"
    if "\0" in given:
        raise UserError(f"CACHE_DIR = {given!r} holds a zero byte, which no name may have.")
    if buckets.is_address(given):
        return buckets.place_of(given)
    try:
        return Path(given).expanduser()
    except RuntimeError as error:  # neither HOME nor an entry of the user
        raise UserError("there is no home folder for token caches: name a folder by --cache_dir or the variable MPT_CACHE_DIR") from error


def key_name(key: dict) -> str:
    """The folder name of a key: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def sum_of(meta: dict) -> str:
    """The checksum of a meta.json's other entries, which it holds as `sum`."""
    return key_name({name: value for name, value in meta.items() if name != "sum"})


def damaged(path: Path, what: str) -> UserError:
    """The error for a cache file that is not as it was written."""
    return UserError(f"cache file {str(path)!r} {what}: delete {str(path.parent)!r} (`mpt-jax cache --overwrite` writes it anew)")


def file_checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hexadecimal digits, read in pieces."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def file_sums(folder: Path) -> dict[str, list]:
    """Size in bytes and checksum of each file of a folder, as `meta.json` holds them."""
    return {path.name: [path.stat().st_size, file_checksum(path)] for path in sorted(folder.iterdir())}


def read_meta(folder: Path) -> dict:
    """The content of `meta.json`. Raises UserError naming it if it is missing, damaged or not of this form."""
    path = folder / META
    if path.exists() and not path.is_file():
        raise damaged(path, "is not a file")
    try:
        with open(path, "rb") as file:
            meta = json.loads(file.read(META_LIMIT))
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"is not JSON ({error})") from error
    if not isinstance(meta, dict) or any(type(meta.get(name)) is not kind for name, kind in ENTRIES.items()):
        raise damaged(path, f"lacks one of its entries {', '.join(ENTRIES)}")
    if meta["sum"] != sum_of(meta):
        raise damaged(path, "does not match its checksum")
    for file, entry in meta["files"].items():
        if "/" in file or not isinstance(entry, list) or len(entry) != 2:
            raise damaged(path, f"has a wrong entry of the file {file!r}")
    return meta


def checked_meta(folder: Path, needed: tuple[str, ...] = ()) -> dict:
    """`meta.json` of a folder, after checking size and checksum of each file. UserError names a file that is damaged or missing."""
    meta = read_meta(folder)
    for file in needed:
        if file not in meta["files"]:
            raise damaged(folder / META, f"has no entry of the file {file!r}")
    for file, (size, checksum) in meta["files"].items():
        path = folder / file
        try:
            if not path.is_file():
                raise damaged(path, "is missing")
            if path.stat().st_size != size:
                raise damaged(path, f"has {path.stat().st_size} bytes, {size} were written")
            if file_checksum(path) != checksum:
                raise damaged(path, "does not match its checksum")
        except OSError as error:
            raise damaged(path, f"cannot be read ({error.strerror})") from error
    return meta


def map_array(path: Path, dtype: str, dims: int = 1) -> np.ndarray:
    """A memory-mapped array as a plain ndarray, whose slices cost a third of a memmap's. UserError names one of another kind."""
    try:
        array = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
    except (ValueError, OSError, EOFError, TypeError, OverflowError, tokenize.TokenError) as error:
        raise damaged(path, f"is not an array ({error})") from error
    if array.dtype != np.dtype(dtype) or array.ndim != dims:
        raise damaged(path, f"holds {array.ndim}-dimensional {array.dtype}, not {dims}-dimensional {dtype}")
    return array


@contextlib.contextmanager
def whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it when the block ends without an error; an equal one there stays.

    Raises UserError where it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_left_overs(folder.parent)
        temporary, lock = _claim(folder.parent)
        try:
            yield temporary
            _install(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)
    except OSError as error:
        raise UserError(
            f"the cache folder {str(folder.parent)!r} cannot be written ({error.strerror or error}): free space there, or name another "
            "by --cache_dir or the variable MPT_CACHE_DIR"
        ) from error


def _claim(parent: Path) -> tuple[Path, int]:
    """A new temporary folder and its lock, which ends with the process, however it ends."""
    while True:
        temporary = parent / f"{WRITING}{os.getpid()}-{secrets.token_hex(4)}"
        temporary.mkdir()
        with contextlib.suppress(FileNotFoundError):  # another process may clear it until it is locked
            lock = os.open(temporary, os.O_RDONLY)
            if _locked(lock) is not False and temporary.exists():
                return temporary, lock
            os.close(lock)


def _locked(handle: int) -> bool | None:
    """Whether the lock could be taken; None where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def clear_left_overs(parent: Path) -> None:
    """Removes what killed processes were writing in a folder; what a live one is writing stays."""
    for path in [*parent.glob(f"{WRITING}*"), *parent.glob(f"{RETIRED}*")]:
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        if _locked(handle):
            shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def write_meta(folder: Path, meta: dict) -> None:
    """Writes `meta.json` with its own checksum; the folder's files are on disk when it returns."""
    (folder / META).write_text(json.dumps({**meta, "sum": sum_of(meta)}, indent=1, sort_keys=True))
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _install(temporary: Path, folder: Path) -> None:
    """Renames a finished folder. An equal one that is there stays: another process may be reading it."""
    for _ in range(ATTEMPTS):
        try:
            os.rename(temporary, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            _sync(folder.parent)
            return
        if _equal(temporary, folder):
            return
        retired = temporary.with_name(f"{RETIRED}{secrets.token_hex(8)}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, retired)
        shutil.rmtree(retired, ignore_errors=True)
    raise UserError(f"{str(folder)!r} is written by other processes all the time: let one process write the caches first")


def _equal(temporary: Path, folder: Path) -> bool:
    try:
        return checked_meta(folder) == read_meta(temporary)
    except UserError:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
