"""Safetensors files, read by byte range and written array by array.

The `safetensors` package maps files into memory and, when writing, holds every array at once; this reads and
writes the same format (8 bytes header length, JSON header, row-major data) with one array in memory.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import LazyArray, check_name, check_shape, raw
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import parse_json, shown

MAX_HEADER = 16 * 2**20  # bytes, for 100,000 arrays; the safetensors package allows 100 MB
MOST_ARRAYS = 50_000
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
    where = folder.where(name)
    start = folder.start(name, 24)[:8]
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER:
        raise UserError(f"{where} is not a safetensors file: it starts with {start!r}.")
    header = parse_json(folder.read(name, 8, 8 + length), f"{where} is not a safetensors file: its header")
    if not isinstance(header, dict):
        raise UserError(f"{where} is not a safetensors file: its header is a JSON {type(header).__name__}, not an object.")
    return header, 8 + length


def read(folder: Folder, name: str) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The arrays of a safetensors file by name, not read yet, and its metadata. Raises UserError if it is damaged
    or cut short."""
    header, data = read_header(folder, name)
    where = folder.where(name)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise UserError(f"{where}: its metadata is {shown(metadata)}, not texts by name; the header is damaged.")
    if len(header) > MOST_ARRAYS:
        raise UserError(f"{where} names {len(header):,} arrays; at most {MOST_ARRAYS:,} are read.")
    arrays, spans = {}, []
    for key, row in header.items():
        source = f"{where}: {check_name(key, where)}"
        kind, shape, start, stop = _entry(row, source)
        arrays[key] = raw(folder, name, data + start, TYPES[kind], shape, source)
        spans.append((start, stop, source))
    end = 0
    for start, stop, source in sorted(spans):  # the format allows neither gaps nor arrays that share bytes
        if start != end:
            raise UserError(f"{source} starts at byte {start} of the data, the array before it ends at {end}; the header is damaged.")
        end = stop
    _check_end(folder, name, data + end)
    return arrays, metadata


def _entry(row: Any, source: str) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte after the last) of a header's entry."""
    row = row if isinstance(row, dict) else {}
    kind, offsets = row.get("dtype"), row.get("data_offsets")
    if not isinstance(kind, str) or not isinstance(offsets, list) or [type(offset) for offset in offsets] != [int, int]:
        raise UserError(f"{source}: its header entry {shown(row)} is damaged.")
    if kind not in TYPES:
        raise UserError(f"{source} has type {shown(kind)}; known types: {', '.join(TYPES)}.")
    shape, (start, stop) = check_shape(row.get("shape"), source), offsets
    if not 0 <= start <= stop < 2**62 or stop - start != math.prod(shape) * TYPES[kind].itemsize:
        raise UserError(
            f"{source}: shape {shape} of {kind} does not fill bytes {shown(start)} to {shown(stop)}; the header is damaged."
        )
    return kind, shape, start, stop


def _check_end(folder: Folder, name: str, end: int) -> None:
    """Raises UserError unless the file ends where its header says: found before the first array is read."""
    if folder.remote:
        folder.read(name, end - 1, end)
    elif folder.size(name) != end:
        what = "truncated" if folder.size(name) < end else "damaged"
        message = f"its header promises {end} bytes, it has {folder.size(name)}"
        raise UserError(f"{folder.where(name)} is {what}: {message}. Copy or download it again.")


def write(path: str, arrays: Mapping[str, LazyArray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the arrays to a safetensors file, one in memory at a time, in the order given."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, lazy in arrays.items():
        if lazy.dtype not in NAMES:
            raise UserError(f"{lazy.source} ({name}) has type {lazy.dtype}; safetensors files written here hold {', '.join(TYPES)}.")
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
