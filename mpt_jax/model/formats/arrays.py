"""Arrays of a checkpoint that are not read yet, and restoring them one by one."""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import mmap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.files import Folder

READERS = 4  # arrays read at once, within the memory of the largest
DIGEST_PARTS = 4  # of an array that is converted while its values are taken in
BLOCK_BYTES = 2**18  # turned or converted at once: what fits a core's cache; 4 MiB took 1.5 times the CPU
REMOTE_BLOCK_BYTES = 2**24  # asked of a bucket at once
OWN_PAGES_BYTES = 2**20
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
    index)` reads the part `index` into `out`, converting to the type of `out`. `source` names file and array
    in messages.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    fill: Callable[[np.ndarray, Index], None]
    place: tuple[str, int] | None = None

    def load(self, dtype: Any = None, index: Index | None = None) -> np.ndarray:
        """The array, or its part `index`, in the wanted dtype; holds no more than a block beyond it."""
        index = whole(self.shape) if index is None else index
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        out = _empty(tuple(part.stop - part.start for part in index), self.dtype if dtype is None else dtype)
        self.fill(out, index)
        return out

    def transposed(self) -> "LazyArray":
        """The same array with its axes reversed."""
        return LazyArray(self.shape[::-1], self.dtype, self.source, lambda out, index: self.fill(out.T, index[::-1]))


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory for an array; large ones get pages of their own.

    Those go back to the system at once when the array is gone, where malloc would keep them, and being aligned they
    become jax arrays on CPU without a copy.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < OWN_PAGES_BYTES:
        return np.empty(shape, dtype)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


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
        buffer = _empty((min(rows_at_once, max(rows.stop - rows.start, 0)), *row_shape), dtype)
        for start in range(rows.start, rows.stop, rows_at_once):
            block = buffer[: min(rows_at_once, rows.stop - start)]
            folder.read_into(name, offset + start * row_bytes, block)
            where = slice(start - rows.start, start - rows.start + len(block)) if index else ...
            out[where] = block[(slice(None), *columns)] if index else block[0]

    return LazyArray(shape, dtype, source, fill, (folder.where(name), offset))


def check_float(dtype_name: str, source: str) -> np.dtype:
    """The numpy dtype of a floating-point type's name; UserError for any other type."""
    if dtype_name not in FLOAT_TYPES:
        raise UserError(f"{source} has type {dtype_name}; weights may be {', '.join(FLOAT_TYPES)}.")
    return FLOAT_TYPES[dtype_name]


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
    array. Above the arrays themselves, host memory holds no more than the largest one: small arrays are read ahead.
    """
    sizes = {path: _bytes(lazy, dtype) for path, lazy in arrays.items()}
    limit = max(sizes.values(), default=0)
    if digests is not None:  # an array that is converted is in memory as it is in the file, too
        sizes = {
            path: size + (_bytes(arrays[path]) if _converted(arrays[path], dtype) else 0)
            for path, size in sizes.items()
        }
    parts = {path: 1 if size <= limit else DIGEST_PARTS for path, size in sizes.items()}
    fetch = functools.partial(_fetch, dtype=dtype, sharding=sharding, digests=digests)
    waiting: collections.deque[tuple[str, concurrent.futures.Future]] = collections.deque()
    placed = {}

    def take() -> None:
        path, future = waiting.popleft()
        placed[path] = _place(path, future.result(), place)

    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        # the largest first: what reading them needs beside them is there while the others are not yet
        for path, lazy in sorted(arrays.items(), key=lambda item: -sizes[item[0]]):
            while waiting and sizes[path] + sum(sizes[name] for name, _ in waiting) > limit:
                take()
            waiting.append((path, readers.submit(fetch, path, lazy, parts[path])))
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
    if not _converted(lazy, dtype):
        array = lazy.load()
        digest.update(array.reshape(-1).view(np.uint8).data)
    else:
        array = _empty(lazy.shape, dtype)
        rows = -(-lazy.shape[0] // parts) if lazy.shape else 1
        for start in range(0, lazy.shape[0] if lazy.shape else 1, max(rows, 1)):
            index = (slice(start, start + rows), *whole(lazy.shape[1:])) if lazy.shape else ()
            part = lazy.load(index=index)
            digest.update(part.reshape(-1).view(np.uint8).data)
            array[index] = part
    digests[path] = digest.digest()
    return array
