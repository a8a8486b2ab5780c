"""Arrays of a checkpoint that are not read yet, and restoring them one by one."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.files import Folder

DIGEST_PARTS = 4  # of an array that is converted while its values are taken in
BLOCK_BYTES = 4 * 2**20  # read and converted at once, above the array itself
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

    def load(self, dtype: Any = None, index: Index | None = None) -> np.ndarray:
        """The array, or its part `index`, in the wanted dtype; reads at most BLOCK_BYTES beyond it."""
        index = whole(self.shape) if index is None else index
        index = tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, self.shape, strict=True))
        out = np.empty([part.stop - part.start for part in index], self.dtype if dtype is None else dtype)
        self.fill(out, index)
        return out

    def transposed(self) -> "LazyArray":
        """The same array with its axes reversed."""
        return LazyArray(self.shape[::-1], self.dtype, self.source, lambda out, index: self.fill(out.T, index[::-1]))


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
    rows_at_once = max(1, BLOCK_BYTES // max(row_bytes, 1))

    def fill(out: np.ndarray, index: Index) -> None:
        rows = index[0] if index else slice(0, 1)
        for start in range(rows.start, rows.stop, rows_at_once):
            stop = min(start + rows_at_once, rows.stop)
            data = folder.read(name, offset + start * row_bytes, offset + stop * row_bytes)
            block = np.frombuffer(data, dtype).reshape((stop - start, *row_shape))
            if index:
                out[start - rows.start : stop - rows.start] = block[(slice(None), *index[1:])]
            else:
                out[...] = block.reshape(())

    return LazyArray(shape, dtype, source, fill)


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
    digest: Any = None,
) -> dict[str, Any]:
    """The nested dict of all arrays, read one after the other straight into `dtype` (None keeps the file's).

    place(path, array) puts an array where it belongs; without it arrays stay numpy. sharding(path, shape) gives a
    jax Sharding instead: each process then reads only the parts that its devices hold. digest (of hashlib) takes in
    names, shapes and values as they are in the file, in the order of the sorted names; it makes every process read
    every array. Above the arrays themselves, at most one of them is in host memory.
    """
    placed = {}
    for path in sorted(arrays):
        lazy = arrays[path]
        if sharding is None:
            array = _load(path, lazy, dtype, digest)
            placed[path] = array if place is None else place(path, array)
        else:
            placed[path] = _sharded(path, lazy, dtype, sharding(path, lazy.shape), digest)
    return unflatten((path, placed[path]) for path in arrays)


def _load(path: str, lazy: LazyArray, dtype: Any, digest: Any) -> np.ndarray:
    """An array in the wanted dtype; digest takes it in as it is in the file, in parts that need little more memory."""
    if digest is None:
        return lazy.load(dtype)
    digest.update(f"{path}{lazy.shape}{lazy.dtype}".encode())
    if dtype is None or lazy.dtype == dtype:
        array = lazy.load()
        digest.update(array.reshape(-1).view(np.uint8).data)
        return array
    out = np.empty(lazy.shape, dtype)
    rows = -(-lazy.shape[0] // DIGEST_PARTS) if lazy.shape else 0
    for start in range(0, lazy.shape[0], rows):
        part = lazy.load(index=(slice(start, start + rows), *whole(lazy.shape[1:])))
        digest.update(part.reshape(-1).view(np.uint8).data)
        out[start : start + rows] = part
    return out


def _sharded(path: str, lazy: LazyArray, dtype: Any, target: Any, digest: Any) -> Any:
    """A jax array with the given sharding; ready on return, or the host copies of several arrays would live at once."""
    import jax

    if digest is not None or target.is_fully_addressable:
        array = _load(path, lazy, dtype, digest)
        placed = jax.make_array_from_callback(lazy.shape, target, lambda index: array[index])
    else:
        placed = jax.make_array_from_callback(lazy.shape, target, lambda index: lazy.load(dtype, index))
    return jax.block_until_ready(placed)
