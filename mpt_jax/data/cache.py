"""The token cache: one task split as flat token arrays, written once by SeqIO, read without TensorFlow.

CACHE_DIR/<task>/<split>/<key>/ holds `meta.json`, `inputs.npy`, `targets.npy` (int32 token ids, uncut) with
`input_offsets.npy`, `target_offsets.npy` (int64 [rows + 1]), `extra.bin` with `extra_offsets.npy` (one JSON
object a row) and, if rows have one, `embedding.npy` (float16 [rows, E]). The key is a hash of everything that
went into the rows, so a changed task or vocabulary is another folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import tasks
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError

FORMAT = 1  # raise when files or their meaning change: older caches are then written anew
ARRAYS = ("inputs", "input_offsets", "targets", "target_offsets", "extra_offsets")
Progress = Callable[[int], None]
log = logging.getLogger(__name__)


class Extras(Protocol):
    """What else is known of rows, for the arrays of a micro-batch."""

    layout: Any  # whose shapes(B, L, T) gives shape and dtype of each array by name

    def fill(self, micro: dict[str, np.ndarray], place: int, row: int) -> None:
        """Writes what is known of a row into line ``place`` of a micro-batch's arrays."""


class TokenCache:
    """One task split, memory-mapped, read-only; safe to read from several threads."""

    def __init__(self, folder: Path, meta: dict, arrays: dict[str, np.ndarray], extra: np.ndarray):
        self.folder, self.meta = folder, meta
        self.name: str = meta["key"]["task"]
        self.split: str = meta["key"]["split"]
        self.rows: int = meta["rows"]
        self.fingerprint: str = meta["fingerprint"]
        self.embedding: np.ndarray | None = arrays.get("embedding")
        self.teacher: Extras | None = None  # what a teacher made of the rows (data/teacher_cache.py)
        self._arrays, self._extra = arrays, extra
        self.input_lengths = np.diff(arrays["input_offsets"]).astype(np.int32)
        self.target_lengths = np.diff(arrays["target_offsets"]).astype(np.int32)

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"TokenCache({self.name!r}, {self.split!r}, rows={self.rows}, folder={str(self.folder)!r})"

    def inputs(self, row: int) -> np.ndarray:
        """Input token ids of a row, int32, uncut."""
        offsets = self._arrays["input_offsets"]
        return self._arrays["inputs"][offsets[row] : offsets[row + 1]]

    def targets(self, row: int) -> np.ndarray:
        """Target token ids of a row, int32, uncut."""
        offsets = self._arrays["target_offsets"]
        return self._arrays["targets"][offsets[row] : offsets[row + 1]]

    def extra(self, row: int) -> dict:
        """The row's own fields and, where the task kept them, the texts `inputs` and `targets`."""
        offsets = self._arrays["extra_offsets"]
        return json.loads(self._extra[offsets[row] : offsets[row + 1]].tobytes())


def cache_folder(setting: str = "") -> Path:
    """Folder of the token caches: setting CACHE_DIR, else the variable MPT_CACHE_DIR, or ~/.cache/mpt_jax."""
    return Path(setting or os.environ.get("MPT_CACHE_DIR") or Path.home() / ".cache" / "mpt_jax")


def open_cache(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    cache_dir: str | Path,
    build: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenCache:
    """The cache of a task split, written first where there is none for this task, source and vocabulary.

    An existing cache opens without TensorFlow or SeqIO. A task that only SeqIO knows, while SeqIO is not
    loaded, and a task whose source is not on this machine open as they were written last. Raises UserError if
    the cache is damaged, or missing and not `build`.
    """
    folder = _find(name, split, vocabulary, Path(cache_dir))
    if folder is not None and folder.exists() and not overwrite:
        return read_cache(folder)
    if not build:
        raise UserError(
            f"no token cache of task {name!r}, split {split!r}, vocabulary {vocabulary.path!r} in "
            f"{str(cache_dir)!r}: write it with `mpt-jax cache`, or name another cache folder"
        )
    return write_cache(name, split, vocabulary, cache_dir, progress)


def write_cache(
    name: str, split: str, vocabulary: Vocabulary, cache_dir: str | Path, progress: Progress | None = None
) -> TokenCache:
    """Tokenises a task split and writes its cache, replacing one with the same key.

    `progress` is told the rows done. Atomic: a kill at any moment leaves the old cache or none. Raises
    UserError for rows that cannot be trained on.
    """
    from mpt_jax.data import cache_writer

    key = cache_key(name, split, vocabulary)
    folder = _split_folder(name, split, Path(cache_dir)) / key_name(key)
    cache_writer.write(
        key, cache_writer.examples_of(name, split, vocabulary), vocabulary, folder, progress
    )
    return read_cache(folder)


def cached_names(cache_dir: str | Path) -> set[str]:
    """Names of the tasks with a cache, whatever its key; for `tasks.expand` where SeqIO is not at hand."""
    return {_read_meta(path.parent)["key"]["task"] for path in Path(cache_dir).rglob("[0-9a-f]*/meta.json")}


def cache_key(name: str, split: str, vocabulary: Vocabulary) -> dict:
    """Everything the rows depend on, as JSON-able values."""
    return {
        "format": FORMAT,
        "task": name,
        "split": split,
        "vocabulary": vocabulary.fingerprint,
        "ingredients": tasks.ingredients(name, split),
    }


def key_name(key: dict) -> str:
    """The folder name of a key: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def read_cache(folder: Path) -> TokenCache:
    """Opens a cache folder after checking each file's size and checksum; UserError names a damaged file."""
    meta = checked_meta(folder)
    names = [*ARRAYS, "embedding"] if "embedding.npy" in meta["files"] else ARRAYS
    arrays = {name: map_array(folder / f"{name}.npy") for name in names}
    extra = np.memmap(folder / "extra.bin", np.uint8, "r").view(np.ndarray)
    for tokens, offsets in (("inputs", "input_offsets"), ("targets", "target_offsets")):
        if len(arrays[offsets]) != meta["rows"] + 1 or arrays[offsets][-1] != len(arrays[tokens]):
            raise damaged(folder / f"{offsets}.npy", f"does not fit {tokens}.npy")
    return TokenCache(folder, meta, arrays, extra)


def checked_meta(folder: Path) -> dict:
    """`meta.json` of a cache folder, after checking each file's size and checksum; UserError names a damaged file."""
    meta = _read_meta(folder)
    for file, (size, checksum) in meta["files"].items():
        path = folder / file
        if not path.is_file():
            raise damaged(path, "is missing")
        if path.stat().st_size != size:
            raise damaged(path, f"has {path.stat().st_size} bytes, {size} were written")
        if file_checksum(path) != checksum:
            raise damaged(path, "does not match its checksum")
    return meta


def damaged(path: Path, what: str) -> UserError:
    """The error for a cache file that is not as it was written."""
    return UserError(
        f"cache file {str(path)!r} {what}: delete {str(path.parent)!r} or set overwrite = True"
    )


def file_checksum(path: Path) -> str:
    """CRC-32 of a file as 8 hexadecimal digits, read in pieces."""
    value = 0
    with open(path, "rb") as file:
        while piece := file.read(1 << 22):
            value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _find(name: str, split: str, vocabulary: Vocabulary, cache_dir: Path) -> Path | None:
    """The folder that must hold the cache, or the latest one where the task's source cannot be looked at."""
    parent = _split_folder(name, split, cache_dir)
    if name not in tasks.TABLE and "seqio" not in sys.modules:
        return _latest(parent, vocabulary)
    try:
        return parent / key_name(cache_key(name, split, vocabulary))
    except (tasks.TaskError, OSError) as error:
        folder = _latest(parent, vocabulary)
        if folder is None:
            raise
        log.warning(
            "Task %s, split %s: source not readable (%s); cache %s is used unchecked",
            name,
            split,
            error,
            folder,
        )
        return folder


def _latest(parent: Path, vocabulary: Vocabulary) -> Path | None:
    """The cache written last for this vocabulary and format."""
    folders = sorted(parent.glob("[0-9a-f]*/meta.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in folders:
        key = _read_meta(path.parent)["key"]
        if key["format"] == FORMAT and key["vocabulary"] == vocabulary.fingerprint:
            return path.parent
    return None


def _split_folder(name: str, split: str, cache_dir: Path) -> Path:
    relative = Path(name) / split
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"task {name!r}, split {split!r}: '..' and absolute names cannot be cached")
    return cache_dir / relative


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text())
    except OSError as error:
        raise damaged(path, f"cannot be read ({error})") from error
    except ValueError as error:
        raise damaged(path, f"is no JSON ({error})") from error
    if not isinstance(meta, dict) or not {"key", "rows", "files", "fingerprint"} <= meta.keys():
        raise damaged(path, "lacks entries")
    return meta


def map_array(path: Path) -> np.ndarray:
    """A memory-mapped array as a plain ndarray, whose slices cost a third of a memmap's."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except ValueError as error:
        raise damaged(path, f"is no array ({error})") from error
