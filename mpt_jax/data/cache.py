"""The token cache: one task split as flat token arrays, written once by SeqIO, read without TensorFlow.

CACHE_DIR/<task>/<split>/<key>/ holds `meta.json`, `inputs.npy`, `targets.npy` (int32 token ids, uncut) with
`input_offsets.npy`, `target_offsets.npy` (int64 [rows + 1]), `extra.bin` with `extra_offsets.npy` (one JSON
object a row) and, if rows have one, `embedding.npy` (float16 [rows, E]). The key is a hash of everything that
went into the rows, so a changed task or vocabulary is another folder.
"""

import copy
import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpt_jax import buckets, tasks
from mpt_jax.data import cache_writer
from mpt_jax.data.cache_writer import Progress
from mpt_jax.data.checked_folder import META, checked_meta, clear_left_overs, damaged, key_name, map_array, read_meta
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError

FORMAT = 2  # raise when files or their meaning change: older caches are then written anew
TOKENS = {"inputs": "input_offsets", "targets": "target_offsets"}  # array -> where its rows start
CACHES = f"*/*/[0-9a-f]*/{META}"  # of all tasks, below a cache folder
REPLACED_S = 0.05  # to wait while another process puts a new cache where one is being opened
log = logging.getLogger(__name__)


class Extras(Protocol):
    """What else is known of rows, for the arrays of a micro-batch."""

    layout: Any  # whose shapes(B, L, T) gives shape and dtype of each array by name

    def fill(self, micro: dict[str, np.ndarray], slot: int, row: int) -> None:
        """Writes what is known of a row into line ``slot`` of a micro-batch's arrays."""


class RowSource(Protocol):
    """Rows that batches are made of: a TokenCache, or what waits for an answer (infer/requests.py). Lengths in tokens, uncut."""

    rows: int
    input_lengths: np.ndarray
    target_lengths: np.ndarray
    embedding: np.ndarray | None  # (rows, E)
    teacher: Extras | None

    def inputs(self, row: int) -> np.ndarray:
        """Input tokens of a row."""

    def targets(self, row: int) -> np.ndarray:
        """Target tokens of a row."""


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

    def with_teacher(self, outputs: Extras) -> "TokenCache":
        """The same rows, whose micro-batches bring what a teacher made of them."""
        taught = copy.copy(self)
        taught.teacher = outputs
        return taught


def open_cache(
    name: str,
    split: str,
    vocabulary: Vocabulary,
    cache_dir: str | Path,
    build: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    trust: bool = False,
) -> TokenCache:
    """The cache of a task split, written first where there is none for this task, source and vocabulary.

    An existing cache opens without TensorFlow or SeqIO. A task that nobody has registered opens as it was written last, and stands in
    the table of tasks with what its cache knows of it. ``trust``: any task opens so, without a look at its source. Raises UserError
    if the cache is damaged, or missing and not `build`, or cannot be written; TaskError for a source that is missing.
    """
    tasks.check_one_meaning(name)
    cache_dir, known = Path(cache_dir), _registered(name)
    latest, address = trust or not known, buckets.address_of(cache_dir)
    if address and latest:  # which is the latest, the bucket tells
        buckets.here("CACHE_DIR", f"{address}/{name}/{split}")
    folder = _latest(name, split, vocabulary, cache_dir) if latest else _current(name, split, vocabulary, cache_dir)
    try:
        there = folder is not None and (folder.exists() or bool(address and buckets.fetch_folder(buckets.address_of(folder), folder)))
    except OSError as error:
        raise UserError(f"the cache {str(folder)!r} cannot be read ({error.strerror}): name another by --cache_dir") from error
    if there and not overwrite:
        clear_left_overs(folder.parent)
        cache = read_cache(folder)
        if latest:
            _tell_taken_as_written(cache, known)
        return cache
    if not build or (latest and not known):
        raise UserError(
            f"no token cache of task {name!r}, split {split!r}, vocabulary {vocabulary.path!r} in "
            f"{str(cache_dir)!r}: write it with `mpt-jax cache`{'' if known else ' and MIXTURE_OR_TASK_MODULE, which registers the task'}, "
            "or name another cache folder"
        )
    return write_cache(name, split, vocabulary, cache_dir, progress)


def write_cache(
    name: str, split: str, vocabulary: Vocabulary, cache_dir: str | Path, progress: Progress | None = None
) -> TokenCache:
    """Tokenises a task split and writes its cache; an equal one that is there stays, another one with the same key is replaced.

    `progress` is told the rows done. Atomic: a kill at any moment leaves the old cache or none. Raises
    UserError for rows that cannot be trained on.
    """
    key = cache_key(name, split, vocabulary)
    folder = _split_folder(name, split, Path(cache_dir)) / key_name(key)
    cache_writer.write(
        key, cache_writer.examples_of(name, split, vocabulary), vocabulary, folder, progress
    )
    address = buckets.address_of(folder)
    if address:
        buckets.put_folder(folder, address)
    return read_cache(folder)


def cached_names(cache_dir: str | Path) -> Set[str]:
    """Names of the tasks with a cache, whatever its key; for `tasks.expand`, where nobody has registered them. Looks when asked."""
    return _CachedNames(cache_dir)


class _CachedNames(Set):
    def __init__(self, cache_dir: str | Path):
        self._folder = Path(cache_dir)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(tasks.NAME.fullmatch(name)) and any(self._folder.glob(CACHES.replace("*", name, 1)))
        except OSError:  # a name that no folder can have
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({path.relative_to(self._folder).parts[0] for path in self._folder.glob(CACHES)}))

    def __len__(self) -> int:
        return len(list(iter(self)))


def cache_key(name: str, split: str, vocabulary: Vocabulary) -> dict:
    """Everything the rows depend on, as JSON-able values."""
    return {
        "format": FORMAT,
        "task": name,
        "split": split,
        "vocabulary": vocabulary.fingerprint,
        "ingredients": tasks.ingredients(name, split),
    }


def read_cache(folder: Path) -> TokenCache:
    """Opens a cache folder after checking each file's size and checksum; UserError names a damaged file."""
    for last in (False, False, True):
        before = _identity(folder)
        try:
            cache = _opened(folder)
            if _identity(folder) == before:
                return cache
        except UserError:
            if last or before is not None and _identity(folder) == before:
                raise
        time.sleep(REPLACED_S)
    raise UserError(f"cache {str(folder)!r} is replaced by another process all the time: let one process write the caches first")


def _identity(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _opened(folder: Path) -> TokenCache:
    meta = checked_meta(folder, (*(f"{name}.npy" for pair in TOKENS.items() for name in pair), "extra_offsets.npy", "extra.bin"))
    if not isinstance(meta["key"].get("task"), str) or not isinstance(meta["key"].get("split"), str):
        raise damaged(folder / META, "names no task and split")
    arrays = {name: map_array(folder / f"{name}.npy", "int32") for name in TOKENS}
    arrays |= {name: map_array(folder / f"{name}.npy", "int64") for name in (*TOKENS.values(), "extra_offsets")}
    if "embedding.npy" in meta["files"]:
        arrays["embedding"] = map_array(folder / "embedding.npy", "float16", 2)
        if len(arrays["embedding"]) != meta["rows"]:
            raise damaged(folder / "embedding.npy", "does not fit meta.json")
    try:
        extra = np.memmap(folder / "extra.bin", np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError) as error:
        raise damaged(folder / "extra.bin", f"cannot be read ({error})") from error
    for tokens, offsets in TOKENS.items():
        _check_offsets(folder, offsets, arrays[offsets], meta["rows"], len(arrays[tokens]))
    _check_offsets(folder, "extra_offsets", arrays["extra_offsets"], meta["rows"], len(extra))
    return TokenCache(folder, meta, arrays, extra)


def _check_offsets(folder: Path, name: str, offsets: np.ndarray, rows: int, end: int) -> None:
    if len(offsets) != rows + 1 or offsets[0] != 0 or offsets[-1] != end or np.any(np.diff(offsets) < 0):
        raise damaged(folder / f"{name}.npy", "does not fit the other files")


def _registered(name: str) -> bool:
    """Whether somebody has registered the task, so that its rows and scores are known."""
    task = tasks.TABLE.get(name)
    return task.kind != "cached" if task is not None else name in tasks.seqio_tasks.names()[0]


def _current(name: str, split: str, vocabulary: Vocabulary, cache_dir: Path) -> Path:
    """The folder that must hold the cache."""
    try:
        return _split_folder(name, split, cache_dir) / key_name(cache_key(name, split, vocabulary))
    except tasks.TaskError as error:
        known = tasks.TABLE[name].splits if _registered(name) and name in tasks.TABLE else ()
        if known and split not in known:  # a cache of it would be of rows that the task has no more
            raise
        if _latest(name, split, vocabulary, cache_dir) is None:
            raise
        hint = "it was cached before: --trust_caches takes the cache as it is"
        raise tasks.TaskError(f"{error}; {hint}") from error


def _latest(name: str, split: str, vocabulary: Vocabulary, cache_dir: Path) -> Path | None:
    """The cache of a task split written last for this vocabulary and format."""
    found = []
    for path in _split_folder(name, split, cache_dir).glob(f"[0-9a-f]*/{META}"):
        try:
            key, written = read_meta(path.parent)["key"], path.stat().st_mtime
        except (UserError, OSError):
            continue  # of another version, or replaced just now
        if key.get("format") == FORMAT and key.get("vocabulary") == vocabulary.fingerprint:
            found.append((written, path.parent))
    return max(found)[1] if found else None


def _tell_taken_as_written(cache: TokenCache, known: bool) -> None:
    """Says which cache is used unchecked; puts a task that nobody has registered into the table as its cache describes it."""
    log.warning("Task %s, split %s: token cache %s is used as it was written last", cache.name, cache.split, cache.folder)
    if known:
        return
    old = tasks.TABLE.get(cache.name)
    task = tasks.stand_in(cache.name, cache.split, cache.meta.get("outline"))
    splits = tuple(dict.fromkeys((*(old.splits if old else ()), cache.split)))
    tasks.add(dataclasses.replace(task, splits=splits), replace=True)
    if old is None:
        scored = "not scored" if task.tokens else f"scored by {', '.join(task.scores)}"
        log.warning("Task %s is known from its cache alone (%s): MIXTURE_OR_TASK_MODULE is not given", cache.name, scored)


def _split_folder(name: str, split: str, cache_dir: Path) -> Path:
    relative = Path(name) / split
    if relative.is_absolute() or ".." in relative.parts or "\0" in f"{relative}":
        raise UserError(f"task {name!r}, split {split!r}: '..' and absolute names cannot be cached")
    return cache_dir / relative
