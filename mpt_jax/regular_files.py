"""Files that a user names, read whole and within bounds.

A pipe would wait forever for its writer and a device may never end, so only regular files (or links to them) are opened.
"""

import io
import itertools
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from mpt_jax.errors import UserError

MOST_JSON_BYTES = 16 * 2**20  # of a settings file or an index
MOST_LINE_BYTES = 2**20  # of a file that is written line by line: metrics of one task at one step
MOST_LEVELS = 200  # of lists and objects in one another
MOST_BRACKETS = 1_000_000  # of a JSON text: each makes an object of some 60 bytes. mT5's tokenizer.json has 250,000
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
_PARTS = re.compile(r'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)  # of a JSON text: texts, and what opens and closes
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def shown(value: Any) -> str:
    """repr() of a value from a file for a message: on one line, never long, whatever the value is."""
    try:
        text = _SHORT.repr(value).replace("\n", " ")  # arrays come on several lines
        return text if len(text) <= 300 else text[:300] + "..."
    except ValueError:  # an integer of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def check_regular(path: str | os.PathLike) -> int:
    """Bytes of a regular file. UserError if it is missing, forbidden, or something else (a pipe, a device, a folder)."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        linked = " (a link to a missing file)" if os.path.islink(path) else ""
        raise UserError(f"{path} is missing{linked}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}; a regular file is needed.")
    return found.st_size


class _Regular(io.FileIO):
    """A file whose disk may fail: reading then raises UserError."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {_reason(error)}.") from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise UserError(f"{self.name} cannot be read: {_reason(error)}.") from error


def open_regular(path: str | os.PathLike, unbuffered: bool = False) -> BinaryIO:
    """A regular file opened for reading bytes. UserError as check_regular, or if it may not be read; reading raises it, too."""
    check_regular(path)
    try:
        file = _Regular(path, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from error
    return file if unbuffered else io.BufferedReader(file)  # type: ignore[return-value]


def read_regular(path: str | os.PathLike, most_bytes: int) -> bytes:
    """The content of a regular file. UserError as open_regular, or if it holds more than so many bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size or most_bytes  # 0 is also what the kernel's own files say
        content = file.read(min(size, most_bytes) + 1)
    if len(content) > most_bytes:
        raise UserError(f"{path} holds {size:,} bytes; a file of this kind has at most {most_bytes:,}.")
    return content


def numbered_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a regular file. UserError as open_regular, or for a line of more than MOST_LINE_BYTES."""
    number = 1
    with open_regular(path) as file:
        while line := file.readline(MOST_LINE_BYTES + 1):
            if len(line) > MOST_LINE_BYTES:
                raise UserError(f"{path}:{number} is damaged: it is a line of more than {MOST_LINE_BYTES:,} bytes; delete this line.")
            yield number, line
            number += 1


def parse_json(content: bytes | str, where: str) -> Any:
    """The value of a JSON text. UserError naming `where` if it is none, not UTF-8, or nested too deeply."""
    brackets = content.count(b"[") + content.count(b"{") if isinstance(content, bytes) else content.count("[") + content.count("{")
    if brackets > MOST_BRACKETS:
        raise UserError(
            f"{where} is not JSON that is read here: it holds {brackets:,} lists and objects, at most {MOST_BRACKETS:,} are read."
        )
    deep = f"{where} is not JSON that is read here: it is nested too deeply."
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise UserError(deep) from error
    except ValueError as error:
        if brackets > MOST_LEVELS and _levels_of_text(content) > MOST_LEVELS:
            raise UserError(deep) from error
        reason = "a number has too many digits" if "set_int_max_str_digits" in str(error) else error
        raise UserError(f"{where} is not JSON: {reason}. Copy or write it again.") from error
    if brackets > MOST_LEVELS:
        from mpt_jax.tasks.lines import deeper_than  # here: --help reads no tasks

        if deeper_than(found, MOST_LEVELS):
            raise UserError(deep)
    return found


def _levels_of_text(content: bytes | str) -> int:
    """How deep a text that is no JSON goes before it breaks."""
    text = content if isinstance(content, str) else content.decode(errors="replace")
    steps = {"[": 1, "{": 1, "]": -1, "}": -1}
    return max(itertools.accumulate(steps.get(part[0], 0) for part in _PARTS.findall(text)), default=0)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
