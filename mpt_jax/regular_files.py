"""Files that a user names, read whole and within bounds.

A pipe would wait for its writer for ever and a device may never end, so only regular files (or links to them) are opened.
"""

import json
import os
import reprlib
import stat
from typing import Any, BinaryIO

from mpt_jax.errors import UserError

MOST_JSON_BYTES = 16 * 2**20  # of a settings file or an index; parsed, the worst JSON takes some 20 times as much
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def shown(value: Any) -> str:
    """repr() of a value from a file for a message: on one line, never long, whatever the value is."""
    try:
        return _SHORT.repr(value).replace("\n", " ")  # arrays come on several lines
    except ValueError:  # an integer of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def check_regular(path: str | os.PathLike) -> int:
    """Bytes of a regular file. UserError if it is missing, forbidden, or something else (a pipe, a device, a folder)."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        linked = " (a link to a file that is not there)" if os.path.islink(path) else ""
        raise UserError(f"{path} is missing{linked}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}; a regular file is needed.")
    return found.st_size


def open_regular(path: str | os.PathLike, unbuffered: bool = False) -> BinaryIO:
    """A regular file opened for reading bytes. UserError as check_regular, or if it may not be read."""
    check_regular(path)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from error
    return os.fdopen(handle, "rb", buffering=0 if unbuffered else -1)


def read_regular(path: str | os.PathLike, most_bytes: int) -> bytes:
    """The content of a regular file. UserError as open_regular, or if it holds more than so many bytes."""
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size or most_bytes  # 0 is also what the kernel's own files say
            content = file.read(min(size, most_bytes) + 1)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {_reason(error)}.") from error
    if len(content) > most_bytes:
        raise UserError(f"{path} holds {size:,} bytes; a file of this kind has at most {most_bytes:,}.")
    return content


def parse_json(content: bytes | str, where: str) -> Any:
    """The value of a JSON text. UserError naming `where` if it is none, not UTF-8, or nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError as error:
        raise UserError(f"{where} is no JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:
        raise UserError(f"{where} is not JSON: {error}. Copy or write it again.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
