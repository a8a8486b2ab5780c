"""Arrays of a checkpoint that are not read yet, and restoring them one by one."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats import memory
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

READERS = max(4, os.cpu_count() or 1)  # arrays read at once, where memory allows
PARTS = (1, 2, 4, 8)  # in so many an array that is converted is read for its digest, the fewest that memory allows
MAX_NAMES_IN_MESSAGE = 12
MOST_NAME, MOST_AXES = 500, 8  # letters of an array's name, axes of an array
CHECKED_BYTES = 2**20  # digested, converted and looked through for NaN at once: what fits a core's cache
BLOCK_BYTES = 2**18  # turned or converted at once: what fits a core's cache; 4 MiB took 1.5 times the CPU
REMOTE_BLOCK_BYTES = 2**24  # asked of a bucket at once
Index = tuple[slice, ...]
FLOAT_TYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file.

    shape and dtype are those in the file, after a transposition that the name rules ask for. `fill(out,
    index)` reads the part `index` into `out`, converting to the type of `out`; meanwhile it holds at most `beside` bytes
    of its own. `source` names file and array in messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    fill: Callable[[np.ndarray, Index], None]
    origin: tuple[str, int] | None = None  # file, and byte in it, where its bytes are as they are
    beside: int = BLOCK_BYTES

    def load(self, dtype: Any = None, index: Index | None = None) -> np.ndarray:
        """The array, or its part `index`, in the wanted dtype. Raises UserError if it holds NaN or infinity then."""
        out = self.read(dtype, index)
        check_finite(out, self.source, self.dtype)
        return out

    def read(self, dtype: Any = None, index: Index | None = None) -> np.ndarray:
        """As load, whatever the numbers are."""
        index = whole(self.shape) if index is None else index
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        shape = tuple(max(part.stop - part.start, 0) for part in index)
        out = memory.empty(shape, self.dtype if dtype is None else dtype, self.source)
        with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is found by check_finite
            self.fill(out, index)
        return out

    def transposed(self) -> "LazyArray":
        """The same array with its axes reversed."""

        def fill(out: np.ndarray, index: Index) -> None:
            self.fill(out.T, index[::-1])

        return dataclasses.replace(self, shape=self.shape[::-1], fill=fill, origin=None)


def check_finite(array: np.ndarray, source: str, stored: np.dtype | None = None, row: int = 0) -> None:
    """UserError naming `source` if an array of floating-point numbers holds NaN or infinity.

    stored: its type in the file; row: where the part that is given starts in the whole array.

    Read as integers, NaN and infinity are the largest of each sign: two maxima of a block in the cache cost a third of
    np.isfinite for float32, and work for bfloat16, too.
    """
    if array.dtype not in FLOAT_TYPES.values():
        return
    bits = 8 * array.dtype.itemsize
    flat = array.reshape(-1)
    infinity = np.array(np.inf, array.dtype).view(f"i{bits // 8}").item()  # of the negative: with the highest bit set
    block = CHECKED_BYTES // array.dtype.itemsize
    for start in range(0, flat.size, block):
        part = flat[start : start + block]
        if part.view(f"i{bits // 8}").max() >= infinity or part.view(f"u{bits // 8}").max() >= infinity + (1 << bits - 1):
            raise _not_finite(array, source, stored or array.dtype, row)


def _not_finite(array: np.ndarray, source: str, stored: np.dtype, row: int) -> UserError:
    wrong = ~np.isfinite(array)
    first = tuple(int(index[0]) for index in np.nonzero(wrong)) if array.ndim else ()
    what = "NaN" if np.isnan(array[first]) else "infinity"
    if what == "infinity" and stored != array.dtype:
        what = f"infinity, or a {stored} beyond {array.dtype},"
    at = f" at {(first[0] + row, *first[1:])} (counted from 0)" if first else ""
    count = int(wrong.sum())
    message = f"{source} holds {what}{at}; {count:,} of its {array.size:,} numbers are not finite"
    return UserError(f"{message}. Training that wrote it diverged, or the file is damaged: use another copy or checkpoint.")


def whole(shape: tuple[int, ...]) -> Index:
    """The index of all of an array."""
    return tuple(slice(0, size) for size in shape)


def in_memory(array: Any, source: str = "memory") -> LazyArray:
    """An array that is there already (numpy or jax) as a LazyArray."""

    def fill(out: np.ndarray, index: Index) -> None:
        out[...] = np.asarray(array[index])

    return LazyArray(tuple(array.shape), np.dtype(array.dtype), source, fill)


def raw(folder: Folder, name: str, offset: int, dtype: np.dtype, shape: tuple[int, ...], source: str) -> LazyArray:
    """Row-major numbers at a byte offset of a file, read in blocks of rows."""
    row_shape = shape[1:]
    row_bytes = math.prod(row_shape) * dtype.itemsize
    block_bytes = REMOTE_BLOCK_BYTES if folder.remote else BLOCK_BYTES
    rows_at_once = max(1, block_bytes // max(row_bytes, 1))

    def fill(out: np.ndarray, index: Index) -> None:
        rows = index[0] if index else slice(0, 1)
        columns = index[1:]
        if out.dtype == dtype and out.flags.c_contiguous and out.shape[1:] == row_shape:
            folder.read_into(name, offset + rows.start * row_bytes, out)
            return
        buffer = memory.empty((min(rows_at_once, max(rows.stop - rows.start, 0)), *row_shape), dtype, source)
        for start in range(rows.start, rows.stop, rows_at_once):
            block = buffer[: min(rows_at_once, rows.stop - start)]
            folder.read_into(name, offset + start * row_bytes, block)
            where = slice(start - rows.start, start - rows.start + len(block)) if index else ...
            _copy(block[(slice(None), *columns)] if index else block.reshape(()), out[where])

    return LazyArray(shape, dtype, source, fill, (folder.where(name), offset), min(rows_at_once, shape[0] if shape else 1) * row_bytes)


def _copy(values: np.ndarray, out: np.ndarray) -> None:
    """out[...] = values. Converts first and then turns whole words: 3 times as fast for bfloat16, which NumPy copies one by one."""
    if values.dtype != out.dtype and out.ndim == 2 and not out.flags.c_contiguous:
        values = values.astype(out.dtype)
    if values.dtype == out.dtype:
        word = np.dtype(f"u{out.dtype.itemsize}")
        values, out = values.view(word), out.view(word)
    out[...] = values


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first dozen and how many more."""
    names = sorted(name if name.isprintable() and len(name) < 200 else shown(name) for name in map(str, names))
    more = len(names) - MAX_NAMES_IN_MESSAGE
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def check_name(name: Any, where: str) -> str:
    """The name that a file gives an array. UserError unless it is a short text that can be printed on a line."""
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MOST_NAME:
        raise UserError(f"{where} names an array {shown(name)}; a name has 1 to {MOST_NAME} letters. The file is damaged.")
    return name


def check_shape(shape: Any, source: str) -> tuple[int, ...]:
    """The shape that a file gives an array. UserError unless it is a short list of sizes."""
    right = isinstance(shape, list | tuple) and len(shape) <= MOST_AXES and all(type(size) is int and 0 <= size < 2**40 for size in shape)
    if not right:
        raise UserError(f"{source} has the shape {shown(shape)}; at most {MOST_AXES} sizes below 2^40 are needed. The file is damaged.")
    return tuple(shape)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {'a/b/c': leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return flat


def unflatten(flat: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The nested dict of ('a/b/c', leaf) pairs."""
    tree: dict[str, Any] = {}
    for path, value in flat:
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = value
    return tree


def restore(
    arrays: Mapping[str, LazyArray],
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
    sharding: Callable[[str, tuple[int, ...]], Any] | None = None,
    digests: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    """The nested dict of all arrays, read straight into `dtype` (None keeps the file's).

    place(path, array) puts an array where it belongs; without it arrays stay numpy. sharding(path, shape) gives a
    jax Sharding instead: each process then reads only the parts that its devices hold. digests: filled with a SHA-256
    of each array's name, shape and values as they are in the file, for `fingerprint`; every process then reads every
    array. Host memory holds no more than all arrays and, once again, the largest. Raises UserError for what is damaged or not finite.

    >>> _, arrays, _ = formats.read_backbone(mpt_jax.__path__[0] + "/backbones/nano")
    >>> restore(arrays, np.float32)["token_embedder"]["embedding"].shape
    (8192, 192)
    """
    sizes = {path: _bytes(lazy, dtype) for path, lazy in arrays.items()}
    held = {path: _held(path, lazy, dtype, sharding) for path, lazy in arrays.items()}
    room = sum(held.values()) + max(sizes.values(), default=0)  # less what is placed or being read
    fetch = functools.partial(_fetch, dtype=dtype, sharding=sharding, digests=digests)
    waiting: collections.deque[tuple[str, int, concurrent.futures.Future]] = collections.deque()
    placed = {}

    def needed(path: str, parts: int) -> int:
        lazy = arrays[path]
        twice = held[path] if sharding is not None else 0
        read = -(-_bytes(lazy) // parts) if digests is not None and _converted(lazy, dtype) else 0
        return sizes[path] + twice + read + lazy.beside

    def take() -> int:
        path, need, future = waiting.popleft()
        placed[path] = _place(path, future.result(), place)
        return need - held[path]

    with memory.given_back(), concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        # the largest first: what reading them needs beside them is there while the others are not yet
        for path, lazy in sorted(arrays.items(), key=lambda item: -sizes[item[0]]):
            while waiting and (len(waiting) == READERS or needed(path, 1) > room):
                room += take()
            parts = next((parts for parts in PARTS if needed(path, parts) <= room), PARTS[-1])
            waiting.append((path, needed(path, parts), readers.submit(fetch, path, lazy, parts)))
            room -= needed(path, parts)
        while waiting:
            take()
    return unflatten((path, placed[path]) for path in arrays)


def fingerprint(digests: Mapping[str, bytes]) -> str:
    """16 hexadecimal digits that stand for all arrays of a backbone, the same in every format."""
    return hashlib.sha256(b"".join(digests[path] for path in sorted(digests))).hexdigest()[:16]


def _place(path: str, array: Any, place: Callable[[str, np.ndarray], Any] | None) -> Any:
    """Calls place and waits for a jax array to be there, so that the host's copy is given back before the next."""
    placed = array if place is None else place(path, array)
    return placed.block_until_ready() if hasattr(placed, "block_until_ready") else placed


def _converted(lazy: LazyArray, dtype: Any) -> bool:
    return dtype is not None and lazy.dtype != dtype


def _bytes(lazy: LazyArray, dtype: Any = None) -> int:
    return math.prod(lazy.shape) * np.dtype(lazy.dtype if dtype is None else dtype).itemsize


def _held(path: str, lazy: LazyArray, dtype: Any, sharding: Any) -> int:
    """Bytes of an array that stay in this process."""
    if sharding is None:
        return _bytes(lazy, dtype)
    target = sharding(path, lazy.shape)
    shard = dataclasses.replace(lazy, shape=target.shard_shape(lazy.shape))
    return len(target.addressable_devices) * _bytes(shard, dtype)


def _fetch(path: str, lazy: LazyArray, parts: int, dtype: Any, sharding: Any, digests: dict[str, bytes] | None) -> Any:
    """An array in the wanted dtype: numpy, or a jax array with the given sharding."""
    if sharding is None:
        return _load(path, lazy, parts, dtype, digests)
    import jax

    target = sharding(path, lazy.shape)
    if digests is None and not target.is_fully_addressable:
        return jax.make_array_from_callback(lazy.shape, target, lambda index: lazy.load(dtype, index))
    array = _load(path, lazy, parts, dtype, digests)
    return jax.make_array_from_callback(lazy.shape, target, lambda index: array[index])


def _load(path: str, lazy: LazyArray, parts: int, dtype: Any, digests: dict[str, bytes] | None) -> np.ndarray:
    """An array in the wanted dtype; for its digest, one that is converted is read in so many parts as it is in the file."""
    if digests is None:
        return lazy.load(dtype)
    digest = hashlib.sha256(f"{path}{lazy.shape}{lazy.dtype}".encode())
    if not _converted(lazy, dtype) or not lazy.shape:
        array = lazy.read()
        _take_in(array, array, lazy, 0, digest)
        array = array if dtype is None else array.astype(dtype, copy=False)
    else:
        array = memory.empty(lazy.shape, dtype, lazy.source)
        rows = max(1, -(-lazy.shape[0] // parts))
        for start in range(0, lazy.shape[0], rows):
            part = lazy.read(index=(slice(start, start + rows), *whole(lazy.shape[1:])))
            _take_in(part, array[start : start + rows], lazy, start, digest)
    digests[path] = digest.digest()
    return array


def _take_in(part: np.ndarray, out: np.ndarray, lazy: LazyArray, row: int, digest: Any) -> None:
    """Digests a part of an array as it is in the file, converts it into `out` and looks for NaN, block by block in the cache."""
    part, out = np.atleast_1d(part), np.atleast_1d(out)
    rows = max(1, CHECKED_BYTES // max(1, part[:1].nbytes))
    for start in range(0, len(part), rows):
        block, wanted = part[start : start + rows], out[start : start + rows]
        digest.update(block.reshape(-1).view(np.uint8).data)
        if out is not part:
            with np.errstate(over="ignore", invalid="ignore"):
                wanted[...] = block
        check_finite(wanted, lazy.source, lazy.dtype, row + start)
