"""Torch's .bin and .pt files, read without torch and without running anything they hold.

Such a file describes its tensors by a stack program. Python's own reader of that program imports and calls
what the file names. Here `pickletools.genops` only splits it into opcodes (it executes nothing), and a small
machine knows just the opcodes and the few names that a dict of tensors needs. Anything else raises UserError.

A small program can describe a huge value: a tuple of twice the same tuple, thirty times over. So no value is ever walked, hashed
or printed as a whole: keys are texts, what is not needed is dropped, and a program has at most MAX_OPCODES steps.
"""

import dataclasses
import io
import math
import pickletools
import threading
import zipfile
import zlib
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.archive import Archive
from mpt_jax.model.formats.arrays import FLOAT_TYPES, Index, LazyArray, check_name, check_shape, raw
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

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
MAX_OPCODES = 150_000  # a tensor takes 30; T5-11B has 1,400 tensors
MAX_TABLE = 16 * 2**20  # bytes of the program
SUMMED_BYTES = 2**20  # read at once to check a storage


@dataclasses.dataclass(frozen=True, eq=False)
class _Global:
    """A name that the file asks for; never imported."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """Numbers of one type under a key of the file."""

    dtype: np.dtype
    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Span:
    """Where a storage lies in the file; its check sum where the file has one."""

    start: int
    length: int
    crc: int | None = None


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


def _is_key(value: Any) -> bool:
    """Whether a value may stand for something: a text, or a number that is hashed and printed in no time."""
    return type(value) is str or (type(value) is int and -(2**63) <= value < 2**63)


class _Machine:
    """Works out the value that the stack program describes: dicts, lists, tuples, numbers, text and tensors
    only. `storages`: the types of the storages that it names, by key."""

    def __init__(self, where: str):
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, np.dtype] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Reads one program from the stream, up to and with its STOP."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if opcode.name == "STOP":
                    return self.stack.pop()
                if count > MAX_OPCODES:
                    raise UserError(f"{self.where} has more than {MAX_OPCODES} opcodes: it is not a file of weights.")
                self._step(opcode.name, argument)
        except UserError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
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
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "SETITEM":
            self._set(self._pop(2))
        elif name == "SETITEMS":
            self._set(self._to_mark())
        elif name == "APPEND":
            self._extend([stack.pop()])
        elif name == "APPENDS":
            self._extend(self._to_mark())
        elif name == "BUILD":  # attributes of an OrderedDict, as state_dict()'s _metadata: not wanted
            state = stack.pop()
            if type(stack[-1]) is not dict or type(state) is not dict:
                raise UserError(f"{self.where} sets the state of an object; refused. Save it as safetensors.")
        else:
            raise UserError(f"{self.where} uses the opcode {name}, which no file of weights needs; refused.")

    def _set(self, items: list[Any]) -> None:
        """Puts keys and values, in turns, into the dict on top of the stack. Keys that are not texts or numbers of 64 bits are refused."""
        if type(self.stack[-1]) is not dict or len(items) % 2 or any(not _is_key(key) for key in items[::2]):
            raise UserError(f"{self.where} is damaged, or not a file of weights: a dict there has other keys than texts.")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise UserError(f"{self.where} is damaged: it appends to a {type(self.stack[-1]).__name__}.")
        self.stack[-1].extend(values)

    def _pop(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count:
            raise IndexError("the stack is empty")
        del self.stack[-count:]
        return values

    def _to_mark(self) -> list[Any]:
        mark = len(self.stack) - 1
        while mark >= 0 and self.stack[mark] is not _MARK:
            mark -= 1
        if mark < 0:
            raise IndexError("no mark on the stack")
        values = self.stack[mark + 1 :]
        del self.stack[mark:]
        return values

    def _global(self, name: str) -> _Global:
        if name not in ALLOWED:
            raise UserError(
                f"{self.where} asks to run {shown(name.replace(' ', '.'))[1:-1]}; refused, nothing was run. A file of weights "
                "needs only tensors: save it as safetensors where you trust it."
            )
        return _Global(name)

    def _call(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else type(function).__name__
        if type(arguments) is tuple:
            if name == "collections OrderedDict" and not arguments:
                return {}
            if name == "torch._utils _rebuild_parameter" and arguments and isinstance(arguments[0], _Tensor):
                return arguments[0]
            if name == "torch._utils _rebuild_tensor_v2" and len(arguments) >= 4 and isinstance(arguments[0], _Storage):
                return self._tensor(*arguments[:4])
        raise UserError(f"{self.where} calls {name} with something else than torch does; refused.")

    def _tensor(self, storage: _Storage, offset: Any, shape: Any, strides: Any) -> _Tensor:
        sizes, steps = check_shape(shape, self.where), check_shape(strides, self.where)
        if type(offset) is not int or not 0 <= offset < 2**62 or len(sizes) != len(steps):
            raise UserError(
                f"{self.where} is damaged: a tensor starts at {shown(offset)} of its storage, with strides {steps} for {sizes}."
            )
        return _Tensor(storage, offset, sizes, steps)

    def _storage(self, identity: Any) -> _Storage:
        right = type(identity) is tuple and len(identity) in (5, 6) and type(identity[0]) is str and isinstance(identity[1], _Global)
        right = right and identity[0] == "storage" and (len(identity) == 5 or identity[5] is None)  # 6: a view, before torch 0.4
        kind = identity[1].name.removeprefix("torch ") if right else ""
        key = identity[2] if right else None
        if kind not in STORAGES or not _is_key(key):
            raise UserError(f"{self.where} refers to {shown(kind or type(identity).__name__)}, which is not a tensor storage; refused.")
        dtype, key = STORAGES[kind], check_name(str(key), self.where)
        if self.storages.setdefault(key, dtype) != dtype:
            raise UserError(f"{self.where} is damaged: it gives storage {key} two types.")
        return _Storage(dtype, key)


def read(folder: Folder, name: str) -> dict[str, LazyArray]:
    """The tensors of a torch file by name, not read yet. Raises UserError for anything that is more than
    tensors."""
    where = folder.where(name)
    if folder.remote:
        raise UserError(f"{where}: torch files are read from local folders only. Copy the folder here first.")
    start = folder.start(name, 64)
    table, spans = _read_zip(where) if start[:2] == b"PK" else _read_old(folder, name)
    if type(table) is dict and type(table.get("state_dict")) is dict:
        table = table["state_dict"]
    if type(table) is not dict:
        raise UserError(f"{where} holds a {type(table).__name__}, not a dict of tensors.")
    tensors = {key: value for key, value in table.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise UserError(f"{where} holds no tensors.")
    sums = _Sums(folder, name)
    return {check_name(key, where): _lazy(folder, name, key, tensor, spans, sums) for key, tensor in tensors.items()}


def _read_zip(where: str) -> tuple[Any, dict[str, _Span]]:
    """The table of a zip file, and where each storage lies."""
    with Archive(where, (zipfile.ZIP_STORED,)) as archive:
        tables = [member for member in archive.members if member.endswith("/data.pkl") or member == "data.pkl"]
        if len(tables) != 1:
            raise UserError(f"{where} is a zip file with {len(tables)} data.pkl; a torch file has one.")
        root = tables[0][: -len("data.pkl")]
        if f"{root}byteorder" in archive.members and archive.read(f"{root}byteorder", 16) != b"little":
            raise UserError(f"{where} was written on a big-endian machine; save it again on a little-endian one.")
        machine = _Machine(where)
        table = machine.run(io.BytesIO(archive.read(tables[0], MAX_TABLE)))
        spans = {}
        for key in machine.storages:
            info = archive.members.get(f"{root}data/{key}")
            if info is not None:
                spans[key] = _Span(archive.start(info.filename), info.file_size, info.CRC)
    return table, spans


def _read_old(folder: Folder, name: str) -> tuple[Any, dict[str, _Span]]:
    """The table and storages of a file older than torch 1.6: magic, version, system, table, keys, then the
    numbers."""
    where, size = folder.where(name), folder.size(name)
    with folder.open(name) as file:
        head = io.BytesIO(file.read(min(size, MAX_TABLE)))
        if head.getvalue()[:1] != b"\x80" or _Machine(where).run(head) != OLD_MAGIC:
            raise UserError(f"{where} is not a torch file: its first number is another.")
        _Machine(where).run(head)
        _Machine(where).run(head)
        machine = _Machine(where)
        table, keys = machine.run(head), _Machine(where).run(head)
        if type(keys) is not list or not all(map(_is_key, keys)):
            raise UserError(f"{where} is damaged: it does not list its storages.")
        spans: dict[str, _Span] = {}
        file.seek(head.tell())
        for key in map(str, keys):
            count, start = int.from_bytes(file.read(8), "little"), file.tell()
            length = count * machine.storages[key].itemsize if key in machine.storages else size
            if start + length > size:
                raise UserError(f"{where} is truncated: storage {shown(key)} ends at byte {start + length} of {size}.")
            spans[key] = _Span(start, length)
            file.seek(start + length)
    return table, spans


class _Sums:
    """Checks each storage of a file against its check sum, once."""

    def __init__(self, folder: Folder, name: str):
        self.folder, self.name = folder, name
        self.lock, self.locks, self.checked = threading.Lock(), {}, set()

    def check(self, key: str, span: _Span) -> None:
        """UserError if the storage's bytes are not those that were written."""
        with self.lock:
            lock = self.locks.setdefault(key, threading.Lock())
        with lock:
            if span.crc is None or key in self.checked:
                return
            if self._sum(span) != span.crc:
                raise UserError(
                    f"{self.folder.where(self.name)} is damaged: storage {key} is not what was written (another check sum). Copy or "
                    "download it again; where it was saved with torch.serialization.set_crc32_options(False), save it without that."
                )
            self.checked.add(key)

    def _sum(self, span: _Span) -> int:
        buffer, total = np.empty(SUMMED_BYTES, np.uint8), 0
        for start in range(span.start, span.start + span.length, SUMMED_BYTES):
            part = buffer[: min(SUMMED_BYTES, span.start + span.length - start)]
            self.folder.read_into(self.name, start, part)
            total = zlib.crc32(part, total)
        return total


def _lazy(folder: Folder, name: str, key: str, tensor: _Tensor, spans: dict[str, _Span], sums: _Sums) -> LazyArray:
    """A tensor as a LazyArray; row-major or transposed (as converted from Flax), the only layouts weights
    have."""
    source = f"{folder.where(name)}: {key}"
    storage = tensor.storage
    if storage.key not in spans:
        raise UserError(f"{source}: its storage {storage.key} is missing from the file.")
    span, itemsize = spans[storage.key], storage.dtype.itemsize
    if (tensor.offset + math.prod(tensor.shape)) * itemsize > span.length:
        raise UserError(f"{source} needs {math.prod(tensor.shape)} numbers, its storage has {span.length // itemsize}.")
    turned = not _same_layout(tensor.shape, tensor.strides)
    shape, strides = (tensor.shape[::-1], tensor.strides[::-1]) if turned else (tensor.shape, tensor.strides)
    if not _same_layout(shape, strides):
        raise UserError(f"{source} has strides {tensor.strides} for shape {tensor.shape}; save it with .contiguous().")
    plain = raw(folder, name, span.start + tensor.offset * itemsize, storage.dtype, shape, source)

    def fill(out: np.ndarray, index: Index) -> None:
        sums.check(storage.key, span)
        plain.fill(out, index)

    checked = dataclasses.replace(plain, fill=fill)
    return checked.transposed() if turned else checked


def _same_layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
