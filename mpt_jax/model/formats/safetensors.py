"""Safetensors files, read by byte range and written array by array.

The `safetensors` package maps files into memory and, when writing, holds every array at once; this reads and
writes the same format (8 bytes header length, JSON header, row-major data) with one array in memory.
"""

import json
import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import LazyArray, raw
from mpt_jax.model.formats.files import Folder

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
NAMES = {dtype: name for name, dtype in TYPES.items()}


def read_header(folder: Folder, name: str) -> tuple[dict, int]:
    """The JSON header of a safetensors file and the byte at which its data starts."""
    start = folder.start(name, 24)[:8]
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER:
        raise UserError(f"{folder.where(name)} is no safetensors file: it starts with {start!r}.")
    try:
        header = json.loads(folder.read(name, 8, 8 + length))
    except ValueError as error:
        raise UserError(f"{folder.where(name)} is no safetensors file: its header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise UserError(f"{folder.where(name)} is no safetensors file: its header is no JSON object.")
    return header, 8 + length


def read(folder: Folder, name: str) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The arrays of a safetensors file by name, not read yet, and its metadata. Raises UserError if it is cut
    short."""
    header, data = read_header(folder, name)
    metadata = header.pop("__metadata__", None) or {}
    arrays, last = {}, data
    for key, row in header.items():
        source = f"{folder.where(name)}: {key}"
        try:
            kind, shape, (start, stop) = (
                row["dtype"],
                tuple(int(size) for size in row["shape"]),
                row["data_offsets"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{source}: its header entry {row!r} is damaged.") from error
        if kind not in TYPES:
            raise UserError(f"{source} has type {kind}; known types: {', '.join(TYPES)}.")
        if min(shape, default=0) < 0 or start < 0 or stop - start != math.prod(shape) * TYPES[kind].itemsize:
            raise UserError(
                f"{source}: shape {shape} of {kind} does not fill bytes {start} to {stop}; the header is damaged."
            )
        arrays[key] = raw(folder, name, data + start, TYPES[kind], shape, source)
        last = max(last, data + stop)
    if last > data:
        _check_end(folder, name, last)
    return arrays, metadata


def _check_end(folder: Folder, name: str, end: int) -> None:
    """Raises UserError unless the file has its last byte: found before the first array is read."""
    try:
        folder.read(name, end - 1, end)
    except UserError as error:
        raise UserError(
            f"{folder.where(name)} is truncated: its header promises {end} bytes. Copy or download it again."
        ) from error


def write(path: str, arrays: Mapping[str, LazyArray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the arrays to a safetensors file, one in memory at a time, in the order given."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, lazy in arrays.items():
        if lazy.dtype not in NAMES:
            raise UserError(f"{name} has type {lazy.dtype}; safetensors files written here hold {', '.join(TYPES)}.")
        stop = offset + math.prod(lazy.shape) * lazy.dtype.itemsize
        header[name] = {"dtype": NAMES[lazy.dtype], "shape": list(lazy.shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8, as the format asks
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for lazy in arrays.values():
            file.write(np.ascontiguousarray(lazy.load()).reshape(-1).view(np.uint8).data)
