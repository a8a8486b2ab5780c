"""Flax's msgpack files, walked without reading their arrays.

A legacy T5X checkpoint is one msgpack map with the weights and, several times as large, the optimiser state.
The walk reads headers and steps over payloads, so an array costs its bytes only when it is loaded, and the
optimiser state is never read. Whatever the file says, the walk takes a bounded number of steps and little memory.
Format: github.com/msgpack/msgpack/blob/master/spec.md; arrays: flax/serialization.py.
"""

import io
import math
from typing import Any, BinaryIO

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, MOST_AXES, LazyArray, check_name, check_shape, raw
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

EXT_ARRAY = 1  # flax/serialization.py: _MsgpackExtType.ndarray
CHUNKED = "__msgpack_chunked_array__"  # arrays beyond 1 GiB: flax/serialization.py
MOST_VALUES, MOST_DEPTH = 200_000, 32  # T5-XXL with its optimiser state has 20,000, 8 deep
MOST_TEXT = 10_000  # bytes of a name or a text
MOST_REMOTE_BYTES = 2**37
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

    def __init__(self, where: str, folder: Folder, name: str, file: BinaryIO, size: int):
        self.where, self.folder, self.name, self.file, self.size = where, folder, name, file, size
        self.values = self.depth = 0

    def damaged(self, what: str) -> UserError:
        at = f"before byte {self.file.tell()}"
        return UserError(f"{self.where} is damaged, or not a checkpoint: {what} ({at}). Copy or download it again.")

    def take(self, count: int) -> bytes:
        if count > MOST_TEXT:
            raise self.damaged(f"a text of {count:,} bytes")
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(f"{self.where} is truncated at byte {self.size}. Copy or download it again.")
        return data

    def step_over(self, count: int) -> int:
        """Steps over a payload; returns where it starts."""
        start = self.file.tell()
        if start + count > self.size:
            raise UserError(
                f"{self.where} is truncated: it ends at byte {self.size}, an array in it at byte {start + count}. Copy or "
                "download it again."
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
        raise UserError(f"{self.where} is not a msgpack file: byte {first:#x} at {self.file.tell() - 1}.")

    def text(self, kinds: tuple[str, ...] = ("str", "bin")) -> str:
        """The next thing, which must be a text."""
        kind, length = self.header()
        if kind not in kinds:
            raise self.damaged(f"a {kind} where a text is needed")
        return self.decoded(length)

    def decoded(self, length: int) -> str:
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text is not UTF-8: {error.reason}") from error

    def value(self, path: str) -> Any:
        """The next thing: maps as dicts, arrays of numbers as LazyArray, other binary data as None."""
        self.values += 1
        if self.values > MOST_VALUES or self.depth > MOST_DEPTH:
            raise self.damaged(f"more than {MOST_VALUES:,} values, or more than {MOST_DEPTH} maps in one another")
        kind, length = self.header()
        if kind == "value":
            return length
        if kind == "str":
            return self.decoded(length)
        self.depth += 1
        try:
            if kind == "map":
                return self._map(path, length)
            if kind == "array":
                return [self.value(f"{path}/{i}") for i in range(length)]
            if kind == "ext":
                return self._extension(path, length)
        finally:
            self.depth -= 1
        self.step_over(length)  # binary data

    def _map(self, path: str, length: int) -> Any:
        result: dict[str, Any] = {}
        for _ in range(length):
            kind, size = self.header()
            key = check_name(self.decoded(size) if kind in ("str", "bin") else str(size), self.where)
            if kind not in ("str", "bin", "value") or key in result:
                raise self.damaged(f"the map {path} has {key!r} twice, or a {kind} for a name")
            result[key] = self.value(f"{path}/{key}" if path else key)
        return self._joined(path, result) if CHUNKED in result else result

    def _extension(self, path: str, length: int) -> LazyArray | None:
        code = int.from_bytes(self.take(1), "big", signed=True)
        start = self.file.tell()
        if code != EXT_ARRAY:
            self.step_over(length)
            return None
        if self.header() != ("array", 3):
            raise self.damaged(f"{path} is not an array as Flax writes them")
        source = f"{self.where}: {path}"
        kind, axes = self.header()
        if kind != "array" or axes > MOST_AXES:
            raise self.damaged(f"{path} has no shape")
        shape = check_shape([self.value(path) for _ in range(axes)], source)
        dtype = self._dtype(path)
        kind, count = self.header()
        offset = self.step_over(count) if kind == "bin" else 0
        if kind != "bin" or count != math.prod(shape) * dtype.itemsize or self.file.tell() != start + length:
            raise UserError(f"{source}: shape {shape} of {dtype} does not fill its {shown(count)} bytes; the file is damaged.")
        return raw(self.folder, self.name, offset, dtype, shape, source)

    def _dtype(self, path: str) -> np.dtype:
        name = self.text()
        known = {**FLOAT_TYPES, **INTEGER_TYPES}
        if name not in known:
            raise UserError(f"{self.where}: {path} has type {shown(name)}; known: {', '.join(known)}.")
        return known[name]

    def _joined(self, path: str, node: dict[str, Any]) -> LazyArray:
        """An array that Flax cut into flat pieces."""
        source = f"{self.where}: {path}"
        sizes, chunks = node.get("shape"), node.get("chunks")
        shape = check_shape(list(sizes.values()) if isinstance(sizes, dict) else sizes, source)
        pieces = [chunks.get(str(i)) for i in range(len(chunks))] if isinstance(chunks, dict) else []
        right = pieces and all(isinstance(piece, LazyArray) and len(piece.shape) == 1 for piece in pieces)
        if not right or len({piece.dtype for piece in pieces}) > 1 or sum(piece.shape[0] for piece in pieces) != math.prod(shape):
            raise UserError(f"{source}: its pieces do not make up shape {shape}; the file is damaged.")

        def fill(out: np.ndarray, index: tuple[slice, ...]) -> None:
            flat = np.empty(math.prod(shape), out.dtype)
            start = 0
            for piece in pieces:
                piece.fill(flat[start : start + piece.shape[0]], (slice(0, piece.shape[0]),))
                start += piece.shape[0]
            out[...] = flat.reshape(shape)[index]

        return LazyArray(shape, pieces[0].dtype, source, fill, beside=math.prod(shape) * pieces[0].dtype.itemsize)


def read(folder: Folder, name: str) -> dict[str, Any]:
    """The tree of a Flax msgpack file: dicts, numbers, text, and LazyArray for arrays. Raises UserError if
    damaged."""
    where = folder.where(name)
    folder.start(name, 64)
    if folder.remote:
        data = folder.read_whole(name, MOST_REMOTE_BYTES)
        tree = _Walk(where, folder, name, io.BytesIO(data), len(data)).value("")
    else:
        with folder.open(name) as file:
            tree = _Walk(where, folder, name, file, folder.size(name)).value("")
    if not isinstance(tree, dict):
        raise UserError(f"{where} is not a checkpoint: it holds a {type(tree).__name__}, not a map.")
    return tree
