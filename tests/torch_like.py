"""Torch files without torch: the stack programs that torch.save writes, and hostile ones, put together by hand."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

KINDS = {"float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}
NONE = b"N"


def text(value: str) -> bytes:
    """A text as a program holds it."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _number(value: int) -> bytes:
    """An integer as pickle writes it, without the frame around it."""
    return pickle.dumps(value, 2)[2:-1]


def _sizes(sizes: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, sizes)) + b"t"


def tensor(
    key: str, shape: tuple[int, ...], kind: str = "FloatStorage", offset: int = 0, strides: tuple[int, ...] | None = None, view: bytes = b""
) -> bytes:
    """The part of a program that makes one tensor of a storage; view: what files before torch 1.6 say of a view."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + _number(int(np.prod(shape))) + view + b"tQ"
    rest = _number(offset) + _sizes(shape) + _sizes(strides) + b"\x89" + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def program(tensors: Mapping[str, bytes]) -> bytes:
    """The program of a state dict."""
    return b"\x80\x02}(" + b"".join(text(name) + made for name, made in tensors.items()) + b"u."


def write(path: Path, arrays: Mapping[str, np.ndarray], table: bytes | None = None, method: int = zipfile.ZIP_STORED) -> None:
    """A torch file of arrays, each in a storage of its own; `table`: another program than the one that describes them."""
    names = list(arrays)
    made = {name: tensor(str(n), arrays[name].shape, KINDS[arrays[name].dtype.name]) for n, name in enumerate(names)}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program(made) if table is None else table)
        archive.writestr("archive/byteorder", "little")
        for n, name in enumerate(names):
            archive.writestr(f"archive/data/{n}", np.ascontiguousarray(arrays[name]).tobytes())
        archive.writestr("archive/version", "3\n")


def write_old(path: Path, arrays: Mapping[str, np.ndarray], keys: list | None = None) -> None:
    """The same as torch before 1.6 wrote it; `keys`: others of its storages than it has."""
    made = {name: tensor(str(n), array.shape, KINDS[array.dtype.name], view=NONE) for n, (name, array) in enumerate(arrays.items())}
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    keys = pickle.dumps([str(n) for n in range(len(arrays))] if keys is None else keys, 2)
    numbers = b"".join(struct.pack("<q", array.size) + np.ascontiguousarray(array).tobytes() for array in arrays.values())
    path.write_bytes(b"".join(head) + program(made) + keys + numbers)
