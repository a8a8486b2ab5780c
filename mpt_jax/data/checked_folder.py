"""Folders of files with sums in their `meta.json`: what is opened is what was written, or the damaged file is named."""

from __future__ import annotations

import hashlib
import json
import tokenize
import zlib
from pathlib import Path

import numpy as np

from mpt_jax.errors import UserError

META = "meta.json"
META_LIMIT = 2**24  # bytes of a meta.json [ours]
ENTRIES = {"key": dict, "rows": int, "files": dict, "fingerprint": str, "sum": str}


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
