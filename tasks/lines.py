"""Lines of text files and JSON in them: bounded, and every fault names file and line."""

import gzip
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mpt_jax.tasks.errors import TaskError

LINE_LIMIT = 2**24  # bytes of a line or field: more is a file without line ends, not a row [ours]
FILE_LIMIT = 2**26  # bytes of a file that is read as a whole, unpacked: SQuAD 1.1 has 30 MB [ours]
DEEPEST = 100  # levels of a JSON object: Python's own limit depends on where it is read and written [ours]
TOO_DEEP = f"more than {DEEPEST} levels of lists and objects"
# what the file system and gzip raise
UNREADABLE = (OSError, EOFError, zlib.error)


def check_file(path: str | Path, setting: str = "`files` of the task or the current folder") -> None:
    """Raises TaskError unless the path is a regular file: a pipe or device may never end and cannot be read twice."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TaskError(f"{path}: there is no such file: correct {setting}") from error
    except (OSError, ValueError) as error:
        raise TaskError(f"{path}: cannot be read ({error}): correct {setting}") from error
    if stat.S_ISDIR(mode):
        raise TaskError(f"{path}: is a folder, and a file is needed: correct {setting}")
    if not stat.S_ISREG(mode):
        raise TaskError(f"{path}: is a pipe or device: save its content as a file and name that file")


def lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 file (.gz: unpacked) with their ends, which are line feeds alone. A byte order mark is left out."""
    check_file(path)
    number = 0
    try:
        with (gzip.open(path) if str(path).endswith(".gz") else open(path, "rb")) as file:
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(line) > LINE_LIMIT:
                    raise TaskError(f"{path}:{number}: a line of more than {LINE_LIMIT:,} bytes: end each row with a line feed")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}:{number}: not UTF-8 ({error.reason}): save it as UTF-8") from error
    except UNREADABLE as error:
        raise TaskError(f"{path}:{number + 1}: cannot be read ({error}): is it complete?") from error


def whole_text(path: str | Path) -> str:
    """The text of a UTF-8 file (.gz: unpacked) of at most FILE_LIMIT bytes."""
    found, size = [], 0  # of characters, which are bytes or fewer
    for line in lines(path):
        size += len(line)
        if size > FILE_LIMIT:
            raise TaskError(f"{path}: more than {FILE_LIMIT:,} bytes, which is not the published file")
        found.append(line)
    return "".join(found)


def json_object(text: str, where: str) -> dict:
    """The JSON object that a line is. Raises TaskError naming it ('FILE:LINE')."""
    try:
        found = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: {_what_is_wrong(error)}: {_shown(text)}") from error
    if not isinstance(found, dict):
        raise TaskError(f'{where}: a JSON object is needed, {{"field": …}}, got {_shown(text)}')
    if len(text) > 2 * DEEPEST and text.count("[") + text.count("{") > DEEPEST and deeper_than(found, DEEPEST):
        raise TaskError(f"{where}: {TOO_DEEP}: {_shown(text)}")
    return found


def _shown(text: str) -> str:
    return f"{text.strip():.80}"


def _what_is_wrong(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, column {error.colno})"
    if isinstance(error, TaskError):
        return str(error)
    return f"a number of more digits than can be read ({error}): write it as a text"


def _fields(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise TaskError(f"field {twice!r:.80} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_fields)


def deeper_than(value: object, levels: int) -> bool:
    """Whether lists and objects stand in one another more than so many levels deep."""
    inner = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = [
            item
            for holder in inner
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
        if not inner:
            return False
    return True
