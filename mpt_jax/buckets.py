"""Folders and files in buckets (gs://, s3://), by way of a folder on this host: whole objects come down, whole objects go up.

What is at ``gs://BUCKET/KEY`` has its place under ``root()`` here. ``here`` fetches what has changed and gives that place; a folder that
is put up is there once its marker is, which is written last and names every file with its size and digest. Needs the extra ``buckets``
(gcsfs, s3fs). They find credentials, and an emulator, as they always do: STORAGE_EMULATOR_HOST for gs://, AWS_ENDPOINT_URL for s3://.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpt_jax.errors import UserError

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
SCHEMES = tuple(f"{scheme}://" for scheme in LIBRARIES)
READ_IN_PLACE = ("gs://",)  # what readers of backbones and prompts understand themselves (model/formats/files.py)
MARKER = "_COMMITTED.json"  # last object of a folder that is whole
MOST_MARKER_BYTES = 2**24
TEMPORARY = ".mpt-fetch"  # suffix of what is coming down
READ, TRAINED = "read", "trained"  # kinds of places: what came from a bucket; runs that are trained here, and may be ahead of theirs
CONNECT_SECONDS, SECONDS = 10.0, 60.0  # without an answer, after which a request has failed [ours]


def is_address(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket."""
    return str(path).startswith(SCHEMES)


def root() -> Path:
    """The folder of this host that holds what came from buckets, and what waits to go there."""
    given = os.environ.get("MPT_CACHE_DIR") or ""
    return Path("~/.cache/mpt_jax" if not given or is_address(given) else given).expanduser().absolute() / "buckets"


def place_of(address: str, kind: str = READ) -> Path:
    """Where an address has its place on this host. Raises UserError for one that names no object that a file can stand for."""
    scheme, _, path = address.partition("://")
    parts = path.rstrip("/").split("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", parts[0]) or any(part in ("", ".", "..") or "\\" in part for part in parts):
        raise UserError(f"{address!r} is not {scheme}://BUCKET/FOLDER; give the name of a bucket and a path in it.")
    return root().joinpath(kind, scheme, *parts)


def address_of(place: str | os.PathLike) -> str | None:
    """The address that a path of this host stands for; None for any other path."""
    absolute = Path(place).absolute()
    parts = absolute.relative_to(root()).parts if absolute.is_relative_to(root()) else ()
    return f"{parts[1]}://{'/'.join(parts[2:])}" if len(parts) > 2 else None


def system(address: str) -> Any:
    """fsspec's file system of an address. Raises UserError telling what to install where its library is missing."""
    scheme = address.partition("://")[0]
    logging.getLogger(LIBRARIES[scheme]).setLevel(logging.CRITICAL)  # it prints a traceback of what is raised
    try:
        if scheme == "gs":
            # not gcsfs.GCSFileSystem, which may ask over gRPC of what kind each bucket is: an emulator does not speak that
            from gcsfs.core import GCSFileSystem as FileSystem
        else:
            from s3fs import S3FileSystem as FileSystem
    except ImportError as error:
        raise UserError(f"{address!r} needs {LIBRARIES[scheme]}, which is not installed: pip install 'mpt_jax[buckets]'.") from error
    return FileSystem(use_listings_cache=False, **_options(scheme))


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "gs":
        from aiohttp import ClientTimeout

        emulator = os.environ.get("STORAGE_EMULATOR_HOST")
        place = {"token": "anon", "endpoint_url": emulator} if emulator else {}
        # of silence, not in all: a large object takes what it takes
        return {**place, "requests_timeout": ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=SECONDS)}
    return {"config_kwargs": {"connect_timeout": CONNECT_SECONDS, "read_timeout": SECONDS, "retries": {"max_attempts": 3}}}


def _failures() -> tuple[type[Exception], ...]:
    """What the libraries raise for a bucket that is not there, not allowed or not answering; those that are installed."""
    found: list[type[Exception]] = [OSError, ValueError]
    with contextlib.suppress(ImportError):
        from aiohttp import ClientError

        found.append(ClientError)
    with contextlib.suppress(ImportError):
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        found += [HttpError, GoogleAuthError]
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError
        from botocore.exceptions import ClientError as ServerError

        found += [BotoCoreError, ServerError]
    return tuple(found)


class Unreachable(UserError):
    """A bucket that is not there, not allowed or not answering."""


@contextlib.contextmanager
def answers(address: str) -> Iterator[None]:
    """Turns what the libraries raise in the block into one sentence: Unreachable."""
    try:
        yield
    except UserError:
        raise
    except _failures() as error:
        raise Unreachable(f"{address!r} cannot be used: {_reason(address, error)}") from error


def _reason(address: str, error: Exception) -> str:
    bucket = address.partition("://")[2].partition("/")[0]
    text = " ".join(str(error).split())[:200] or type(error).__name__
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or str(code) == "404" or "NoSuchBucket" in text:
        return f"there is no bucket {bucket!r}, or it may not be seen ({text}); correct the name, or make the bucket."
    forbidden = str(code) in ("401", "403") or "redential" in text or type(error).__module__.startswith("google")
    # gcsfs raises a plain OSError for code 403
    if isinstance(error, PermissionError) or forbidden or text.startswith("Forbidden"):
        ways = "gcloud auth application-default login" if address.startswith("gs:") else "aws configure, or AWS_ACCESS_KEY_ID"
        return f"it is not allowed ({text}); give credentials ({ways}) that may read and write it."
    return f"it does not answer ({text}); when it does again, the same command continues."


class Object(NamedTuple):
    """An object in a bucket: its path within the folder asked for, bytes, and what tells its content from another one's."""

    name: str
    size: int
    version: str


def listed(address: str) -> dict[str, Object]:
    """The objects below an address by their path there; {'': object} where it is an object itself; empty for nothing."""
    key = address.partition("://")[2].rstrip("/")
    with answers(address):
        found = system(address).find(key, detail=True)
    objects = {}
    for path, info in found.items():
        name = path[len(key) :].lstrip("/")
        if info.get("type") != "directory" and not path.endswith("/"):
            version = str(info.get("generation") or info.get("ETag") or info.get("etag") or info.get("md5Hash") or info.get("mtime"))
            objects[name] = Object(name, int(info.get("size") or 0), version)
    return objects


def read(address: str) -> bytes | None:
    """A small object; None where there is none."""
    with answers(address):
        try:
            return system(address).cat_file(address.partition("://")[2])
        except FileNotFoundError:
            return None


def write(address: str, content: bytes) -> None:
    """A small object, whole or not at all."""
    with answers(address):
        system(address).pipe_file(address.partition("://")[2], content)


def put_file(local: Path, address: str) -> None:
    """A file as one object, whole or not at all. Raises FileNotFoundError where the file is not on this host."""
    with open(local, "rb") as file, answers(address):  # read through the open file, whose name may go meanwhile
        system(address).put_file(f"/proc/self/fd/{file.fileno()}", address.partition("://")[2])


def remove(address: str, names: Sequence[str]) -> None:
    """Removes objects below an address, one after the other; one that is gone already does not matter."""
    with answers(address):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                system(address).rm_file(f"{address.partition('://')[2].rstrip('/')}/{name}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_folder(local: Path, address: str) -> None:
    """A folder whose files no longer change: its files, and then its marker. What was there before is replaced, its marker first.

    Raises FileNotFoundError, and leaves no marker, where the folder is removed meanwhile.
    """
    paths = _files(local)
    files = {path.relative_to(local).as_posix(): [path.stat().st_size, digest(path)] for path in paths}
    remove(address, [MARKER])
    for name in files:
        put_file(local / name, f"{address}/{name}")
    if not paths or _files(local) != paths:
        raise FileNotFoundError(errno.ENOENT, "was removed while it went up", str(local))
    write(f"{address}/{MARKER}", json.dumps({"files": files}).encode())


def _files(local: Path) -> list[Path]:
    return sorted(path for path in local.rglob("*") if path.is_file())


def remove_folder(address: str) -> None:
    """Removes a folder, its marker first, so that no half of it is taken for the whole."""
    remove(address, sorted(listed(address), key=lambda name: (name != MARKER, name)))


def committed(address: str) -> dict[str, list] | None:
    """{file: [bytes, SHA-256]} of a folder that is whole; None for one that is not."""
    content = read(f"{address}/{MARKER}")
    if content is None:
        return None
    try:
        files = json.loads(content[:MOST_MARKER_BYTES])["files"]
        whole = all(isinstance(size, int) and isinstance(sha256, str) and _is_below(name) for name, (size, sha256) in files.items())
    except (ValueError, LookupError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(f"{address}/{MARKER} is damaged; remove that folder from the bucket.")
    return files


def _is_below(name: str) -> bool:
    """Whether a name from a bucket stays in its folder."""
    return not name.startswith("/") and not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in name.split("/"))


def check_names(setting: str, address: str, names: Iterable[str]) -> None:
    """Raises UserError for a name from a bucket that would lead a file out of the folder that it is brought to."""
    wrong = next((name for name in names if name and not _is_below(name)), None)
    if wrong is not None:
        raise UserError(f"{setting} = {address!r} holds {wrong!r}, which is not the path of a file: remove it there.")


def fetch_folder(address: str, local: Path) -> bool:
    """Brings a whole folder here; False, and nothing comes, where the bucket does not have it whole. Raises UserError if it is damaged."""
    files = committed(address)
    if files is None:
        return False
    temporary = local.with_name(f"{local.name}{TEMPORARY}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, (size, sha256) in files.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            get_file(f"{address}/{name}", target)
            if target.stat().st_size != size or digest(target) != sha256:
                raise UserError(f"{address}/{name} is not what was written; remove that folder from the bucket.")
        temporary.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(local, ignore_errors=True)
        os.replace(temporary, local)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def get_file(address: str, target: Path) -> None:
    with answers(address):
        system(address).get_file(address.partition("://")[2], str(target))


def here(setting: str, path: str) -> str:
    """A path of this host: the given one, or where the content of an address is after it was brought here.

    A folder that is put up in parts with markers (checkpoints of a run, token caches) comes without parts that are not whole. Raises
    UserError where there is nothing at the address, or the bucket cannot be used.
    """
    if not is_address(path):
        return path
    local, address = place_of(path), path.rstrip("/")
    objects = listed(address)
    if not objects:
        raise UserError(f"{setting} = {path!r}: there is nothing at this address.")
    check_names(setting, path, objects)
    record = root() / "versions" / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.json"
    had = _record(record)
    parts = {name.removesuffix(MARKER).rstrip("/"): each for name, each in objects.items() if name.rpartition("/")[2] == MARKER}
    managed = {name.rpartition("/")[0] for name in parts if name}  # folders whose sub-folders have markers
    for name, marker in parts.items():
        if had.get(marker.name) != marker.version or not (local / name).is_dir():
            if fetch_folder(f"{address}/{name}".rstrip("/"), local / name):  # it may have gone since it was listed
                had[marker.name] = marker.version
    loose = [each for each in objects.values() if not _in_parts(each.name, managed) and "" not in parts]
    for each in loose:
        _fetch_file(f"{address}/{each.name}".rstrip("/"), local / each.name if each.name else local, each, had)
    _forget(local, set(parts), {each.name for each in loose})
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({name: version for name, version in had.items() if name in objects}))
    return str(local)


def _in_parts(name: str, managed: set[str]) -> bool:
    """Whether a file belongs to a sub-folder of one of the folders whose sub-folders have markers."""
    return any(name.startswith(f"{folder}/" if folder else "") and "/" in name[len(folder) :].lstrip("/") for folder in managed)


def _fetch_file(address: str, target: Path, each: Object, had: dict[str, str]) -> None:
    """Brings an object here unless it is here in this version; what was here is replaced whole."""
    if had.get(each.name) == each.version and target.is_file() and target.stat().st_size == each.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}{TEMPORARY}-{os.getpid()}")
    get_file(address, temporary)
    os.replace(temporary, target)
    had[each.name] = each.version


def _record(path: Path) -> dict[str, str]:
    """Versions by name of what came before."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _forget(local: Path, parts: set[str], loose: set[str]) -> None:
    """Removes here what the bucket no longer has."""
    if not local.is_dir():
        return
    for path in sorted(local.rglob("*"), reverse=True):
        name = path.relative_to(local).as_posix()
        if TEMPORARY in name or any(name == part or name.startswith(f"{part}/") or not part for part in parts):
            continue
        if path.is_file() and name not in loose:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
