"""The parts of a GGUF file (llama.cpp): what it says of itself, and where its arrays are.

The library `gguf` knows the types and turns quantised blocks into numbers (model/formats/gguf_file.py); its reader takes a minute for a
large vocabulary and believes every count in a file, so the head is parsed here, within the file's size and MOST_HEAD.
Format: ggml-org/ggml docs/gguf.md.
"""

import functools
import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.regular_files import check_regular, open_regular, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_HEAD = 64 * 2**20  # bytes before the first array; Gemma's 256,000 tokens take 10 MB
MOST_AXES = 4  # of an array (ggml)
ALIGNMENT = 32  # of arrays in the file, where general.alignment does not say another
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Tensor(NamedTuple):
    """An array in the file: its type's name, its sizes, the last one those of neighbours, its first byte and its bytes."""

    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def parts(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(metadata by key, arrays by name). Numbers in a list come as a numpy array, texts as a list.

    Raises UserError for what is not a whole GGUF file.
    """
    size = check_regular(path)
    return _parts_once(os.path.abspath(path), size, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=1)  # weights and vocabulary are asked for one after the other
def _parts_once(path: str, size: int, modified: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with open_regular(path) as file:
        head = _Head(path, file.read(min(size, MOST_HEAD)), size)
    if head.take(4) != MAGIC:
        raise UserError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}.")
    version = head.number("I")
    if version not in VERSIONS:
        swapped = " (its bytes are in big-endian order)" if version and version % 2**16 == 0 else ""
        raise UserError(f"{path} is GGUF of version {version}{swapped}; {' and '.join(map(str, VERSIONS))} are read.")
    tensor_count, key_count = head.count("Q", 24), head.count("Q", 13)
    fields: dict[str, Any] = {}
    for _ in range(key_count):
        key = head.text()
        if key in fields:
            raise head.damaged(f"it says {shown(key)} twice")
        fields[key] = head.value(head.number("I"), key)
    tensors: dict[str, Tensor] = {}
    for _ in range(tensor_count):
        name, tensor = head.text(), head.tensor()
        if name in tensors or not name.isprintable():
            raise head.damaged(f"it names an array {shown(name)}, or names it twice")
        tensors[name] = tensor
    return fields, _in_file(head, fields, tensors)


def _in_file(head: "_Head", fields: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays with their offset in the file instead of among the arrays."""
    alignment = fields.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= 2**16:
        raise head.damaged(f"general.alignment = {shown(alignment)}")
    first = -(-head.at // alignment) * alignment
    moved = {name: tensor._replace(start=first + tensor.start) for name, tensor in tensors.items()}
    name, last = max(moved.items(), key=lambda item: item[1].start + item[1].bytes, default=("", Tensor("", (), 0, 0)))
    if last.start + last.bytes > head.size:
        raise head.short(f"{name} ends at byte {last.start + last.bytes:,}")
    return moved


class _Head:
    """Reads the head of a file from front to back; everything it takes is there."""

    def __init__(self, path: str, content: bytes, size: int):
        self.path, self.size, self.at, self._content = path, size, 0, content

    def damaged(self, what: str) -> UserError:
        return UserError(f"{self.path} is damaged: {what}. Copy it again.")

    def short(self, what: str) -> UserError:
        return UserError(f"{self.path} is cut short or damaged: {what}, the file has {self.size:,} bytes. Copy it again.")

    def take(self, count: int) -> bytes:
        if count > len(self._content) - self.at:
            if self.at + count > self.size:
                raise self.short(f"byte {self.at:,} says that {count:,} follow")
            raise UserError(f"{self.path} has more than {MOST_HEAD:,} bytes before its arrays; such a file is not read.")
        self.at += count
        return self._content[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, code: str, each: int) -> int:
        """A number of things of at least so many bytes each, which all have to be in the file."""
        found = self.number(code)
        if found > (self.size - self.at) // each:
            raise self.short(f"byte {self.at:,} says that {found:,} parts follow")
        return found

    def text(self) -> str:
        try:
            return self.take(self.count("Q", 1)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"a text at byte {self.at:,} is not UTF-8") from error

    def value(self, kind: int, key: str) -> Any:
        """A value of a type by its number."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise self.damaged(f"{shown(key)} has the unknown type {kind}")
        kind = self.number("I")
        if kind == STRING:
            return [self.text() for _ in range(self.count("Q", 8))]
        if kind not in SCALARS:
            raise self.damaged(f"{shown(key)} is a list of the type {kind}")
        code = "<" + SCALARS[kind]
        return np.frombuffer(self.take(self.count("Q", struct.calcsize(code)) * struct.calcsize(code)), code)

    def tensor(self) -> Tensor:
        """An array's type, sizes and offset among the arrays."""
        import gguf

        axes = self.number("I")
        if not 1 <= axes <= MOST_AXES:
            raise self.damaged(f"an array has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        number, start = self.number("I"), self.number("Q")
        if max(shape) >= 2**40 or start >= 2**62:
            raise self.damaged(f"an array has the sizes {shown(shape)}, or starts at byte {start:,}")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            return Tensor(f"number {number}", shape, start, 0)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise self.damaged(f"an array of type {kind.name} has rows of {shape[-1]:,}, not a multiple of {block}")
        return Tensor(kind.name, shape, start, math.prod(shape) // block * block_bytes)
