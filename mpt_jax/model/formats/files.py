"""Bytes of checkpoint files, local or at gs://, read by range so that nothing is read that is not wanted."""

import os
import pathlib
from typing import Any, BinaryIO

import numpy as np
import tensorstore as ts

from mpt_jax.errors import UserError
from mpt_jax.regular_files import MOST_JSON_BYTES, check_regular, open_regular, parse_json, read_regular

LFS_POINTER = b"version https://git-lfs"
MOST_COPIED_BYTES = 64 * 2**20  # of a vocabulary; mT5's SentencePiece model has 4 MB, its tokenizer.json 16
REMOTE_SECONDS = 30.0  # for the small first look at a remote folder; a wrong bucket or no network must not hang


def is_remote(path: str | os.PathLike) -> bool:
    """True for a path that only TensorStore can open."""
    return str(path).startswith("gs://")


def kvstore_spec(path: str) -> dict:
    """TensorStore's key-value store for a folder, local or gs://BUCKET/PATH; the folder's path ends in a
    slash."""
    if is_remote(path):
        bucket, _, key = str(path)[len("gs://") :].partition("/")
        if not bucket:
            raise UserError(f"{path!r} names no bucket; write gs://BUCKET/FOLDER.")
        return {"driver": "gcs", "bucket": bucket, "path": key.rstrip("/") + "/" if key else ""}
    return {"driver": "file", "path": str(pathlib.Path(path).resolve()) + "/"}


class Folder:
    """A folder of files that are read by byte range.

    Local files go through the operating system without mapping them into memory (mapped pages count as memory
    of the process); gs:// files through TensorStore. Raises UserError naming the file when it is missing or
    too short.
    """

    def __init__(self, path: str | os.PathLike):
        self.remote = is_remote(path)
        self.path = str(path) if str(path) == "gs://" else str(path).rstrip("/") or "/"
        self._store = None
        if self.remote:
            spec = kvstore_spec(self.path)
            try:
                self._store = ts.KvStore.open(spec).result()
            except ValueError as error:  # a name that no bucket can have
                raise UserError(f"{self.path} cannot be opened: {str(error).splitlines()[0]}. Write gs://BUCKET/FOLDER.") from error
        elif not os.path.isdir(self.path):
            if os.path.lexists(self.path):
                raise UserError(f"{self.path} is not a folder.")
            raise UserError(f"Folder {self.path} does not exist.")

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.path}/{name}")

    def where(self, name: str) -> str:
        """Full path of a file, for messages."""
        return f"{self.path}/{name}"

    def _wait(self, future):
        try:
            return future.result(timeout=REMOTE_SECONDS)
        except (ValueError, OSError, TimeoutError) as error:
            reason = str(error) or f"no answer in {REMOTE_SECONDS:.0f} s"
            raise UserError(
                f"Cannot read {self.path}: {reason}. Check the network and the credentials (gcloud auth "
                "application-default login), or copy the folder here and give its local path."
            ) from error

    def exists(self, name: str) -> bool:
        """True if the folder has something of that name that is not a folder; reading it tells whether it is a file."""
        if self._store is None:
            return os.path.lexists(self.where(name)) and not os.path.isdir(self.where(name))
        return self._wait(self._store.read(name, byte_range=slice(0, 1))).state == "value"

    def has_folder(self, name: str) -> bool:
        """True if the folder has such a sub-folder."""
        if self._store is None:
            return os.path.isdir(self.where(name))
        keys = ts.KvStore.KeyRange(f"{name}/", f"{name}0")  # '0' follows '/'
        return bool(self._wait(self._store.list(keys)))

    def names(self) -> list[str]:
        """Names of the files and folders directly in this folder, sorted."""
        if self._store is None:
            try:
                return sorted(os.listdir(self.path))
            except OSError as error:
                raise UserError(f"{self.path} cannot be read: {error.strerror}.") from error
        keys = self._wait(self._store.list())
        return sorted({key.decode().split("/")[0] for key in keys})

    def size(self, name: str) -> int:
        """Bytes of a local file. Raises UserError unless it is a regular file."""
        return check_regular(self.where(name))

    def open(self, name: str) -> BinaryIO:
        """A local file opened for reading. Raises UserError unless it is a regular file that may be read."""
        return open_regular(self.where(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes start..stop of a file. Raises UserError if it is missing or ends before stop."""
        if self._store is not None:
            data = self._remote(name, start, stop)
        else:
            if stop > self.size(name):
                raise self._truncated(name, start, stop, self.size(name))
            with self.open(name) as file:
                file.seek(start)
                data = file.read(stop - start)
        if len(data) != stop - start:
            raise self._truncated(name, start, stop, start + len(data))
        return data

    def read_whole(self, name: str, most_bytes: int = MOST_JSON_BYTES) -> bytes:
        """A small file. Raises UserError if it is missing or holds more than so many bytes."""
        if self._store is None:
            return read_regular(self.where(name), most_bytes)
        data = self._remote(name, 0, None)
        if len(data) > most_bytes:
            raise UserError(f"{self.where(name)} holds more than {most_bytes:,} bytes; a file of this kind has at most that.")
        return data

    def read_json(self, name: str, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
        """A JSON object. Raises UserError if the file is missing, too long, not JSON or holds something else."""
        value = parse_json(self.read_whole(name, most_bytes), self.where(name))
        if not isinstance(value, dict):
            raise UserError(f"{self.where(name)} holds a {type(value).__name__}, not a JSON object.")
        return value

    def _remote(self, name: str, start: int, stop: int | None) -> bytes:
        """Bytes start..stop of a file in a bucket, None: to its end."""
        assert self._store is not None
        result = self._wait(self._store.read(name, byte_range=slice(start, stop)))
        if result.state != "value":
            raise UserError(f"{self.where(name)} is missing.")
        return result.value

    def read_into(self, name: str, start: int, array: np.ndarray) -> None:
        """Fills a C-contiguous array with the bytes from start on. Raises UserError if the file ends before that."""
        view = array.reshape(-1).view(np.uint8)
        if self._store is not None:
            view[...] = np.frombuffer(self.read(name, start, start + view.size), np.uint8)
            return
        got = 0
        with open_regular(self.where(name), unbuffered=True) as file:
            file.seek(start)
            while got < view.size:
                count = file.readinto(view[got:].data)
                if not count:
                    raise self._truncated(name, start, start + view.size, start + got)
                got += count

    def _truncated(self, name: str, start: int, stop: int, end: int) -> UserError:
        return UserError(
            f"{self.where(name)} is truncated: bytes {start} to {stop} are needed, it ends at {end}. Copy or "
            "download it again."
        )

    def start(self, name: str, count: int) -> bytes:
        """The first bytes of a file, at most count. Raises UserError if it is a Git LFS pointer."""
        data = self._remote(name, 0, count) if self._store is not None else self.read(name, 0, min(count, self.size(name)))
        if data.startswith(LFS_POINTER):
            raise UserError(
                f"{self.where(name)} is a Git LFS pointer, not the weights. Run `git lfs pull` in that repository, "
                "or download the file itself."
            )
        return data


def copy_file(source: str, dest: str) -> None:
    """Copies a small file, local or remote, to a local path. Raises UserError if it is missing or not small."""
    folder, _, name = source.rpartition("/")
    content = Folder(folder or ".").read_whole(name, MOST_COPIED_BYTES)
    with open(dest, "wb") as file:
        file.write(content)
