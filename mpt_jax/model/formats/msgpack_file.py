"""Flax's msgpack files, walked without reading their arrays.

A legacy T5X checkpoint is one msgpack map with the weights and, several times as large, the optimiser state.
The walk reads headers and steps over payloads, so an array costs its bytes only when it is loaded, and the
optimiser state is never read. Format: github.com/msgpack/msgpack/blob/master/spec.md; arrays:
flax/serialization.py.
"""

import io
import math
from typing import Any, BinaryIO

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, LazyArray, raw
from mpt_jax.model.formats.files import Folder

EXT_ARRAY = 1  # flax/serialization.py: _MsgpackExtType.ndarray
CHUNKED = "__msgpack_chunked_array__"  # arrays beyond 1 GiB: flax/serialization.py
INTEGER_TYPES = {name: np.dtype(name) for name in ("int32", "int64", "uint8", "uint16", "uint32", "bool")}
_NUMBERS = {
    0xCA: ">f4",
    0xCB: ">f8",
    0xCC: ">u1",
    0xCD: ">u2",
    0xCE: ">u4",
    0xCF: ">u8",
    0xD0: ">i1",
    0xD1: ">i2",
    0xD2: ">i4",
    0xD3: ">i8",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {  # first byte -> (kind, bytes of length)
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xDC: ("array", 2),
    0xDD: ("array", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


class _Walk:
    """A position in a msgpack file."""

    def __init__(self, folder: Folder, name: str, file: BinaryIO, size: int):
        self.folder, self.name, self.file, self.size = folder, name, file, size

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(
                f"{self.folder.where(self.name)} is truncated at byte {self.size}. Copy or download it again."
            )
        return data

    def step_over(self, count: int) -> int:
        """Steps over a payload; returns where it starts."""
        start = self.file.tell()
        if start + count > self.size:
            raise UserError(
                f"{self.folder.where(self.name)} is truncated: it ends at byte {self.size}, an array in it at byte "
                f"{start + count}. Copy or download it again."
            )
        self.file.seek(start + count)
        return start

    def header(self) -> tuple[str, Any]:
        """(kind, length or value) of the next thing."""
        first = self.take(1)[0]
        if first <= 0x7F or first >= 0xE0:
            return "value", first if first <= 0x7F else first - 256
        if first <= 0x8F:
            return "map", first & 0x0F
        if first <= 0x9F:
            return "array", first & 0x0F
        if first <= 0xBF:
            return "str", first & 0x1F
        if first in _CONSTANTS:
            return "value", _CONSTANTS[first]
        if first in _NUMBERS:
            dtype = np.dtype(_NUMBERS[first])
            return "value", np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if first in _FIXED_EXT:
            return "ext", _FIXED_EXT[first]
        if first in _LENGTHS:
            kind, width = _LENGTHS[first]
            return kind, int.from_bytes(self.take(width), "big")
        raise UserError(
            f"{self.folder.where(self.name)} is no msgpack file: byte {first:#x} at {self.file.tell() - 1}."
        )

    def value(self, path: str) -> Any:
        """The next thing: maps as dicts, arrays of numbers as LazyArray, other binary data as None."""
        kind, length = self.header()
        if kind == "value":
            return length
        if kind == "str":
            return self.take(length).decode()
        if kind == "map":
            return self._map(path, length)
        if kind == "array":
            return [self.value(f"{path}/{i}") for i in range(length)]
        if kind == "bin":
            self.step_over(length)
            return None
        return self._extension(path, length)

    def _map(self, path: str, length: int) -> Any:
        result = {}
        for _ in range(length):
            kind, size = self.header()
            key = self.take(size).decode() if kind in ("str", "bin") else str(size)
            result[key] = self.value(f"{path}/{key}" if path else key)
        return _join_chunks(path, result) if CHUNKED in result else result

    def _extension(self, path: str, length: int) -> LazyArray | None:
        code = int.from_bytes(self.take(1), "big", signed=True)
        start = self.file.tell()
        if code != EXT_ARRAY:
            self.step_over(length)
            return None
        if self.header() != ("array", 3):
            raise UserError(f"{self.folder.where(self.name)}: {path} is no array as Flax writes them.")
        shape = tuple(self.value(path))
        dtype = self._dtype(path)
        kind, count = self.header()
        offset = self.step_over(count)
        source = f"{self.folder.where(self.name)}: {path}"
        if kind != "bin" or count != math.prod(shape) * dtype.itemsize or self.file.tell() != start + length:
            raise UserError(f"{source}: shape {shape} of {dtype} does not fill its {count} bytes; the file is damaged.")
        return raw(self.folder, self.name, offset, dtype, shape, source)

    def _dtype(self, path: str) -> np.dtype:
        kind, length = self.header()
        name = self.take(length).decode() if kind in ("str", "bin") else str(length)
        known = {**FLOAT_TYPES, **INTEGER_TYPES}
        if name not in known:
            raise UserError(f"{self.folder.where(self.name)}: {path} has type {name}; known: {', '.join(known)}.")
        return known[name]


def _join_chunks(path: str, node: dict[str, Any]) -> LazyArray:
    """An array that Flax cut into flat pieces."""
    shape = tuple(node["shape"].values()) if isinstance(node["shape"], dict) else tuple(node["shape"])
    pieces = [node["chunks"][str(i)] for i in range(len(node["chunks"]))]

    def fill(out: np.ndarray, index: tuple[slice, ...]) -> None:
        flat = np.empty(math.prod(shape), out.dtype)
        start = 0
        for piece in pieces:
            piece.fill(flat[start : start + piece.shape[0]], (slice(0, piece.shape[0]),))
            start += piece.shape[0]
        out[...] = flat.reshape(shape)[index]

    if sum(piece.shape[0] for piece in pieces) != math.prod(shape):
        raise UserError(f"{pieces[0].source}: the pieces of {path} do not make up shape {shape}; the file is damaged.")
    return LazyArray(shape, pieces[0].dtype, pieces[0].source, fill)


def read(folder: Folder, name: str) -> dict[str, Any]:
    """The tree of a Flax msgpack file: dicts, numbers, text, and LazyArray for arrays. Raises UserError if
    damaged."""
    folder.start(name, 64)
    if folder.path.startswith("gs://"):
        data = folder.read(name)
        walk = _Walk(folder, name, io.BytesIO(data), len(data))
        tree = walk.value("")
    else:
        with open(folder.where(name), "rb") as file:
            tree = _Walk(folder, name, file, folder.size(name)).value("")
    if not isinstance(tree, dict):
        raise UserError(f"{folder.where(name)} is no checkpoint: it holds a {type(tree).__name__}, not a map.")
    return tree
