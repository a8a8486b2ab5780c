"""Zarr arrays through TensorStore: a folder of chunks, plain or inside an OCDBT database."""

import math
import os
from typing import Any

import numpy as np
import tensorstore as ts

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, Index, LazyArray
from mpt_jax.model.formats.files import REMOTE_SECONDS, is_remote, kvstore_spec

# Few chunks at once: each lives twice (compressed, decoded) above the array it is copied into.
CONTEXT = ts.Context(
    {
        "file_io_concurrency": {"limit": 2},
        "gcs_request_concurrency": {"limit": 16},
        "data_copy_concurrency": {"limit": 2},
        "cache_pool": {"total_bytes_limit": 0},
    }
)
CHUNK_BYTES = 8 * 2**20  # of what is written here; T5X: 64 MiB, but smaller chunks need less memory to read


def _open(spec: dict, source: str, **options: Any) -> ts.TensorStore:
    try:
        return ts.open(spec, context=CONTEXT, **options).result(timeout=REMOTE_SECONDS)
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

    def fill(out: np.ndarray, index: Index) -> None:
        _check_chunks(store, source)
        part = store if out.dtype == dtype else ts.cast(store, _type(out.dtype))
        try:
            ts.array(out).write(part[index] if index else part).result()
        except (ValueError, OSError) as error:
            raise UserError(f"{source} is damaged or cannot be read: {error}") from error

    return LazyArray(tuple(store.shape), dtype, source, fill)


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


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """A divisor of each size, largest axes cut first, so that a chunk has at most CHUNK_BYTES (as T5X
    chooses)."""
    chunk = list(shape)
    while math.prod(chunk) * itemsize > CHUNK_BYTES:
        axis = int(np.argmax(chunk))
        size = chunk[axis]
        chunk[axis] = next(part for part in range(size - 1, 0, -1) if shape[axis] % part == 0)
    return chunk


def write(folder: str, name: str, array: np.ndarray) -> dict:
    """Writes one array as gzip'ed zarr chunks; returns the row that T5X's index holds for it."""
    metadata = {
        "chunks": chunk_shape(array.shape, array.dtype.itemsize),
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
