"""Torch's .bin and .pt files, read without torch and without running anything they hold.

Such a file describes its tensors by a stack program. Python's own reader of that program imports and calls
what the file names. Here `pickletools.genops` only splits it into opcodes (it executes nothing), and a small
machine knows just the opcodes and the few names that a dict of tensors needs. Anything else raises UserError.
"""

import dataclasses
import io
import math
import os
import pickletools
import zipfile
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, LazyArray, raw
from mpt_jax.model.formats.files import Folder

STORAGES = {
    "DoubleStorage": FLOAT_TYPES["float64"],
    "FloatStorage": FLOAT_TYPES["float32"],
    "HalfStorage": FLOAT_TYPES["float16"],
    "BFloat16Storage": FLOAT_TYPES["bfloat16"],
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}
ALLOWED = {
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    *(f"torch {name}" for name in STORAGES),
}
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # first number of files before torch 1.6
MAX_OPCODES = 5_000_000


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the file asks for; never imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers of one type under a key of the file."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = _Global("mark")
_IGNORED = {"PROTO", "FRAME"}
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "LONG4",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINSTRING",
    "SHORT_BINSTRING",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Works out the value that the stack program describes: dicts, lists, tuples, numbers, text and tensors
    only."""

    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BufferedIOBase) -> Any:
        """Reads one program from the stream, up to and with its STOP."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if opcode.name == "STOP":
                    return self.stack.pop()
                if count > MAX_OPCODES:
                    raise UserError(f"{self.where} has more than {MAX_OPCODES} opcodes: it is no file of weights.")
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.where} is damaged: its table of tensors cannot be read ({error}).") from error
        raise UserError(f"{self.where} is damaged: its table of tensors does not end.")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _IGNORED:
            return
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self._global(argument if name == "GLOBAL" else " ".join(self._pop(2))))
        else:
            self._build(name)

    def _build(self, name: str) -> None:
        stack = self.stack
        if name == "BINPERSID":
            stack.append(_storage(stack.pop(), self.where))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "SETITEM":
            key, value = self._pop(2)
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = self._to_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            values = self._to_mark()
            stack[-1].extend(values)
        elif name == "BUILD":  # attributes of an OrderedDict, as state_dict()'s _metadata: not wanted
            state = stack.pop()
            if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                raise UserError(f"{self.where} sets the state of an object; refused. Save it as safetensors.")
        else:
            raise UserError(f"{self.where} uses the opcode {name}, which no file of weights needs; refused.")

    def _pop(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _to_mark(self) -> list[Any]:
        place = len(self.stack) - 1 - next(i for i, value in enumerate(reversed(self.stack)) if value is _MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _global(self, name: str) -> _Global:
        if name not in ALLOWED:
            raise UserError(
                f"{self.where} asks to run {name.replace(' ', '.')}; refused, nothing was run. A file of weights "
                "needs only tensors: save it as safetensors where you trust it."
            )
        return _Global(name)

    def _call(self, function: Any, arguments: tuple) -> Any:
        match function:
            case _Global("collections OrderedDict"):
                return dict(*arguments)
            case _Global("torch._utils _rebuild_parameter") if isinstance(arguments[0], _Tensor):
                return arguments[0]
            case _Global("torch._utils _rebuild_tensor_v2") if isinstance(arguments[0], _Storage):
                storage, offset, shape, strides = arguments[:4]
                return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
        raise UserError(f"{self.where} calls {function!r} with {type(arguments).__name__}; refused.")


def _storage(identity: Any, where: str) -> _Storage:
    kind, storage, key, _, count = identity[:5]
    if kind != "storage" or not isinstance(storage, _Global) or not storage.name.startswith("torch "):
        raise UserError(f"{where} refers to {identity!r}, which is no tensor storage; refused.")
    return _Storage(STORAGES[storage.name.split()[1]], str(key), int(count))


def read(folder: Folder, name: str) -> dict[str, LazyArray]:
    """The tensors of a torch file by name, not read yet. Raises UserError for anything that is more than
    tensors."""
    where = folder.where(name)
    if folder.path.startswith("gs://"):
        raise UserError(f"{where}: torch files are read from local folders only. Copy the folder here first.")
    start = folder.start(name, 64)
    table, offsets = _read_zip(folder, name) if start[:2] == b"PK" else _read_old(folder, name)
    if isinstance(table, dict) and isinstance(table.get("state_dict"), dict):
        table = table["state_dict"]
    if not isinstance(table, dict):
        raise UserError(f"{where} holds a {type(table).__name__}, not a dict of tensors.")
    tensors = {key: value for key, value in table.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise UserError(f"{where} holds no tensors.")
    return {key: _lazy(folder, name, key, tensor, offsets) for key, tensor in tensors.items()}


def _read_zip(folder: Folder, name: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The table of a zip file, and where each storage lies: key -> (first byte, bytes)."""
    where = folder.where(name)
    try:
        with zipfile.ZipFile(where) as archive:
            infos = archive.infolist()
            tables = [info for info in infos if info.filename.endswith("/data.pkl") or info.filename == "data.pkl"]
            if len(tables) != 1:
                raise UserError(f"{where} is a zip file with {len(tables)} data.pkl; a torch file has one.")
            root = tables[0].filename[: -len("data.pkl")]
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise UserError(f"{where} was written on a big-endian machine; save it again on a little-endian one.")
            table = _Machine(where).run(io.BytesIO(archive.read(tables[0])))
    except zipfile.BadZipFile as error:
        raise UserError(f"{where} is truncated or damaged ({error}). Copy or download it again.") from error
    offsets = {}
    with open(where, "rb") as file:
        for info in infos:
            if info.filename.startswith(root + "data/"):
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"{where}: {info.filename} is compressed; torch never writes that.")
                file.seek(info.header_offset + 26)  # lengths of name and extra field in the local header
                lengths = file.read(4)
                skip = 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                offsets[info.filename[len(root + "data/") :]] = (info.header_offset + skip, info.file_size)
    return table, offsets


def _read_old(folder: Folder, name: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The table and storages of a file older than torch 1.6: magic, version, system, table, keys, then the
    numbers."""
    where = folder.where(name)
    with open(where, "rb") as file:
        if file.read(1) != b"\x80":
            raise UserError(f"{where} is no torch file.")
        file.seek(0)
        if _Machine(where).run(file) != OLD_MAGIC:
            raise UserError(f"{where} is no torch file: its first number is another.")
        _Machine(where).run(file)
        _Machine(where).run(file)
        table = _Machine(where).run(file)
        keys = _Machine(where).run(file)
        itemsizes = {value.storage.key: value.storage.dtype.itemsize for value in _tensors(table)}
        offsets, end = {}, os.path.getsize(where)
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            start, length = file.tell(), count * itemsizes.get(str(key), 4)
            if start + length > end:
                raise UserError(f"{where} is truncated: storage {key} ends at byte {start + length} of {end}.")
            offsets[str(key)] = (start, length)
            file.seek(start + length)
    return table, offsets


def _tensors(value: Any):
    if isinstance(value, _Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)


def _lazy(folder: Folder, name: str, key: str, tensor: _Tensor, offsets: dict[str, tuple[int, int]]) -> LazyArray:
    """A tensor as a LazyArray; row-major or transposed (as converted from Flax), the only layouts weights
    have."""
    source = f"{folder.where(name)}: {key}"
    if tensor.storage.key not in offsets:
        raise UserError(f"{source}: its storage {tensor.storage.key} is missing from the file.")
    start, length = offsets[tensor.storage.key]
    itemsize = tensor.storage.dtype.itemsize
    if (tensor.offset + math.prod(tensor.shape)) * itemsize > length:
        raise UserError(f"{source} needs {math.prod(tensor.shape)} numbers, its storage has {length // itemsize}.")
    offset = start + tensor.offset * itemsize
    if _same_layout(tensor.shape, tensor.strides):
        return raw(folder, name, offset, tensor.storage.dtype, tensor.shape, source)
    if _same_layout(tensor.shape[::-1], tensor.strides[::-1]):
        return raw(folder, name, offset, tensor.storage.dtype, tensor.shape[::-1], source).transposed()
    raise UserError(f"{source} has strides {tensor.strides} for shape {tensor.shape}; save it with .contiguous().")


def _same_layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
