"""Zip files (torch's .bin, NumPy's .npz), opened so that no member unpacks to more than it may."""

import io
import os
import zipfile
import zlib
from typing import BinaryIO

from mpt_jax.errors import UserError
from mpt_jax.regular_files import open_regular, shown

MOST_DIRECTORY = 8 * 2**20  # bytes, for 100,000 members; zipfile reads it at once, and makes 10 times as much of it
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
# what Python's zipfile raises for damaged, encrypted and unknown archives
ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)


class _Bounded(io.RawIOBase):
    """A file of which no read takes more than `most` bytes, so that a directory of gigabytes is refused."""

    def __init__(self, file: BinaryIO, path: str):
        self.file, self.path, self.most = file, path, MOST_DIRECTORY

    def read(self, size: int = -1) -> bytes:
        left = os.fstat(self.file.fileno()).st_size - self.file.tell()
        size = left if size < 0 else min(size, left)
        if size > self.most:
            raise UserError(f"{self.path} is damaged, or not a file of arrays: its directory takes {size:,} bytes.")
        return self.file.read(max(size, 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()


class Archive:
    """The members of a zip file by name. Raises UserError if it is damaged, or has a name twice."""

    def __init__(self, path: str, methods: tuple[int, ...]):
        self.path = path
        self._file = _Bounded(open_regular(path), path)
        try:
            self._zip = zipfile.ZipFile(self._file)
        except ERRORS as error:
            self._file.close()
            raise self._damaged(error) from error
        self._file.most = os.fstat(self._file.file.fileno()).st_size
        self.members = {info.filename: info for info in self._zip.infolist()}
        try:
            self._check(methods)
        except UserError:
            self.close()
            raise

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()
        self._file.close()

    def _check(self, methods: tuple[int, ...]) -> None:
        """UserError for what the programs that write such files never write."""
        if len(self.members) != len(self._zip.infolist()):
            raise UserError(f"{self.path} is damaged: it holds two members of one name.")
        for name, info in self.members.items():
            if info.flag_bits & 0x1:
                raise UserError(f"{self.path}: {shown(name)} is encrypted; save it without a password.")
            if info.compress_type not in methods:
                kinds = " or ".join(METHODS[method] for method in methods)
                raise UserError(f"{self.path}: {shown(name)} is packed by method {info.compress_type}; members of such a file are {kinds}.")
            if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
                raise UserError(f"{self.path} is damaged: {shown(name)} is stored as it is, yet has two sizes.")

    def read(self, name: str, most_bytes: int) -> bytes:
        """A member of at most so many bytes, checked against its sum. Raises UserError if it is larger or damaged."""
        info = self.members[name]
        if info.file_size > most_bytes:
            raise UserError(f"{self.path}: {shown(name)} has {info.file_size:,} bytes; at most {most_bytes:,} are read.")
        try:
            with self._zip.open(info) as member:
                content = member.read(info.file_size + 1)  # to the end, where the sum is checked
        except ERRORS as error:
            raise self._damaged(error) from error
        if len(content) != info.file_size:
            raise UserError(f"{self.path} is truncated or damaged: {shown(name)} has {len(content):,} of {info.file_size:,} bytes.")
        return content

    def start(self, name: str) -> int:
        """The byte of the file at which a stored member's content starts."""
        info = self.members[name]
        self._file.seek(max(info.header_offset, 0))
        header = self._file.read(30)
        start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        self._file.seek(0, io.SEEK_END)
        if info.header_offset < 0 or len(header) < 30 or header[:4] != b"PK\x03\x04" or start + info.file_size > self._file.tell():
            raise UserError(
                f"{self.path} is truncated or damaged: {shown(name)} is not where the directory says. Copy or download it again."
            )
        return start

    def _damaged(self, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        return UserError(f"{self.path} is truncated or damaged ({error}). Copy or download it again.")
