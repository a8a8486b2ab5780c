"""NumPy's .npy and .npz files of numbers and texts, read within bounds and without Python objects.

`numpy.load` takes memory for the shape that a header promises before it looks for the numbers. Here a file's size must be
that of its shape, and a packed member may not be far larger than the file.
"""

import os
import re
import struct
import zipfile

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats.archive import Archive
from mpt_jax.model.formats.arrays import check_name, check_shape
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

MAGIC = b"\x93NUMPY"
LENGTHS = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}  # version: how the header's length is written (numpy/lib/format.py)
MOST_HEADER = 10_000
# the dict that NumPy writes; a structured type is written otherwise. Python 2 wrote sizes as 100L
HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[A-Za-z][0-9]{1,9})', 'fortran_order': (True|False), 'shape': \(([0-9L, ]*)\),? ?\}\s*", re.ASCII
)
MOST_BYTES = 2**30  # of the arrays of a file: 1,000 tasks' prompts of 100 vectors of width 2,048 have 0.8 GB
PACKED_BYTES, PACKED_TIMES = 2**26, 100  # a packed file's arrays have at most so many bytes, and so many times the file's


def read_npy(path: str) -> np.ndarray:
    """The array of a .npy file. Raises UserError if it is damaged, too large, or holds objects."""
    folder, name = os.path.split(os.path.abspath(path))
    Folder(folder).start(name, 64)
    size = Folder(folder).size(name)
    if size > MOST_BYTES:
        raise UserError(f"{path} holds {size:,} bytes; prompts have at most {MOST_BYTES:,}.")
    return _array(Folder(folder).read(name, 0, size), path)


def read_npz(path: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Raises UserError if it is damaged, too large, or holds objects."""
    folder, name = os.path.split(os.path.abspath(path))
    Folder(folder).start(name, 64)
    with Archive(path, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)) as archive:
        total, size = sum(info.file_size for info in archive.members.values()), os.path.getsize(path)
        if total > min(MOST_BYTES, max(PACKED_BYTES, PACKED_TIMES * size)):
            raise UserError(f"{path} has {size:,} bytes and unpacks to {total:,}; that is not a file of prompts.")
        arrays = {}
        for member in archive.members:
            key = check_name(member.removesuffix(".npy"), path)
            if key in arrays:
                raise UserError(f"{path} holds two arrays {shown(key)}.")
            arrays[key] = _array(archive.read(member, MOST_BYTES), f"{path}: {key}")
    return arrays


def _array(content: bytes, source: str) -> np.ndarray:
    """The array of a .npy file's bytes."""
    version = tuple(content[6:8])
    if content[:6] != MAGIC or version not in LENGTHS:
        raise UserError(f"{source} is not an array as NumPy writes it: it starts with {content[:8]!r}.")
    width = struct.calcsize(LENGTHS[version])
    length = int.from_bytes(content[8 : 8 + width], "little")
    start = 8 + width + length
    found = HEADER.fullmatch(content, 8 + width, start) if length <= MOST_HEADER and start <= len(content) else None
    if not found:
        raise UserError(f"{source} is not an array of numbers: its header is {shown(content[8 + width : 8 + width + 60])}.")
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError as error:
        raise UserError(f"{source} has numbers of type {shown(found[1].decode())}, which NumPy does not know.") from error
    if dtype.kind not in "fiubU":
        raise UserError(f"{source} holds values of type {found[1].decode()}, not an array of numbers.")
    sizes = [int(size) for size in found[3].replace(b"L", b"").replace(b" ", b"").split(b",") if size]
    shape = check_shape(sizes, source)
    values = np.frombuffer(content, np.uint8, offset=start)
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != len(values):
        raise UserError(
            f"{source} is truncated or damaged: shape {shape} of {dtype} needs {count * dtype.itemsize:,} bytes, it has {len(values):,}."
        )
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    flat = values.view(dtype) if len(values) else np.empty(0, dtype)
    return flat.reshape(shape[::-1]).T if found[2] == b"True" else flat.reshape(shape)
