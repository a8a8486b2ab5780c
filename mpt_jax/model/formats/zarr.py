"""Zarr arrays through TensorStore: a folder of chunks, plain or inside an OCDBT database."""

import collections
import itertools
import math
import os
from typing import Any

import numpy as np
import tensorstore as ts

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, Index, LazyArray
from mpt_jax.model.formats.files import REMOTE_SECONDS, is_remote, kvstore_spec

AT_ONCE_BYTES = 16 * 2**20  # chunks of an array read at once: each lives twice (compressed, decoded) beside the array it is copied to
CHUNK_BYTES = 8 * 2**20  # of what is written here; T5X: 64 MiB, but smaller chunks need less memory to read


def _open(spec: dict, source: str, **options: Any) -> ts.TensorStore:
    try:
        return ts.open(spec, **options).result(timeout=REMOTE_SECONDS)
    except (ValueError, OSError, TimeoutError) as error:
        if "NOT_FOUND" in str(error):
            raise UserError(
                f"{source} is missing: the checkpoint names it, but it has no files. Copy the checkpoint again."
            ) from error
        raise UserError(f"{source} cannot be opened: {error}") from error


def spec(folder: str, name: str, ocdbt: bool = False, zarr3: bool = False) -> dict:
    """TensorStore's description of the array `name` ('target.encoder...') of a checkpoint folder."""
    store = kvstore_spec(folder)
    if ocdbt:
        base = folder if is_remote(folder) else "file://" + os.path.abspath(folder)
        store = {"driver": "ocdbt", "base": base.rstrip("/") + "/", "path": name + "/"}
    else:
        store["path"] += name + "/"
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def lazy(array_spec: dict, source: str) -> LazyArray:
    """An array of a checkpoint, not read yet. Raises UserError if it is missing.

    A chunk that is missing would be read as zeros, so all are looked for before the array is read.
    """
    store = _open(array_spec, source, open=True, read=True)
    name = store.dtype.name
    dtype = FLOAT_TYPES.get(name, None) or np.dtype(store.dtype.numpy_dtype)

    chunk = store.chunk_layout.read_chunk.shape
    chunk_bytes = math.prod(map(min, chunk, store.shape)) * dtype.itemsize
    at_once = max(1, AT_ONCE_BYTES // max(chunk_bytes, 1))

    def fill(out: np.ndarray, index: Index) -> None:
        _check_chunks(store, source)
        part = store if out.dtype == dtype else ts.cast(store, _type(out.dtype))
        waiting: collections.deque[ts.Future] = collections.deque()
        try:
            for box in itertools.product(*map(_cuts, index, chunk)):
                if len(waiting) == at_once:
                    waiting.popleft().result()
                where = tuple(slice(cut.start - whole.start, cut.stop - whole.start) for cut, whole in zip(box, index, strict=True))
                waiting.append(ts.array(out[where] if box else out).write(part[box] if box else part))
            while waiting:
                waiting.popleft().result()
        except (ValueError, OSError) as error:
            raise UserError(f"{source} is damaged or cannot be read: {error}") from error

    return LazyArray(tuple(store.shape), dtype, source, fill, beside=2 * at_once * chunk_bytes)


def _cuts(index: slice, size: int) -> list[slice]:
    """A range cut where chunks of so many elements end."""
    starts = [index.start, *range((index.start // size + 1) * size, index.stop, size)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], index.stop], strict=True)]


def _type(dtype: np.dtype) -> ts.dtype:
    return ts.dtype("bfloat16" if dtype == FLOAT_TYPES["bfloat16"] else dtype.name)


def _check_chunks(store: ts.TensorStore, source: str) -> None:
    chunk = store.chunk_layout.write_chunk.shape
    wanted = math.prod(-(-size // part) for size, part in zip(store.shape, chunk, strict=True))
    keys = store.kvstore.list().result()
    found = sum(not key.decode().split("/")[-1].startswith((".z", "zarr.json")) for key in keys)
    if found < wanted:
        raise UserError(
            f"{source} lacks {wanted - found} of its {wanted} chunk files, which would be read as zeros. Copy the "
            "checkpoint again."
        )


def chunk_shape(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """A divisor of each size, largest axes cut first, so that a chunk has at most so many bytes (as T5X
    chooses)."""
    chunk = list(shape)
    while math.prod(chunk) * itemsize > most_bytes:
        axis = int(np.argmax(chunk))
        size = chunk[axis]
        chunk[axis] = next(part for part in range(size - 1, 0, -1) if shape[axis] % part == 0)
    return chunk


def write(folder: str, name: str, array: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> dict:
    """Writes one array as gzip'ed zarr chunks of at most so many bytes; returns the row that T5X's index holds for it."""
    metadata = {
        "chunks": chunk_shape(array.shape, array.dtype.itemsize, chunk_bytes),
        "compressor": {"id": "gzip", "level": 1},
        "dtype": "bfloat16" if array.dtype == FLOAT_TYPES["bfloat16"] else array.dtype.str,
        "shape": list(array.shape),
    }
    full = {**spec(folder, name), "metadata": metadata, "store_data_equal_to_fill_value": True}
    store = _open(full, f"{folder}/{name}", create=True, open=False)
    store.write(array).result()
    return {
        "driver": "zarr",
        "dtype": _type(array.dtype).name,
        "kvstore": {"driver": "file", "path": name},
        "metadata": metadata,
    }
