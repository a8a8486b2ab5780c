"""Files and folders that are there whole or not at all, and never replace something."""

import contextlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from mpt_jax.errors import UserError


def check_free(dest: str) -> None:
    """UserError if there is something at dest, a link or a device included."""
    if os.path.lexists(dest):
        raise UserError(f"{dest} is there already; give another --output or remove it.")


def write_folder(dest: str, write: Callable[[str], None]) -> list[str]:
    """Runs write(folder) on a temporary folder next to dest and renames it to dest. Returns the written files.

    Raises UserError if dest exists and is not an empty folder, or cannot be written.
    """
    dest = os.path.abspath(dest)
    _check_name(dest)
    with _named(dest):
        if os.path.islink(dest) or not os.path.isdir(dest) or os.listdir(dest):
            check_free(dest)
        with _temporary(dest) as temporary:
            write(temporary)
            if os.path.isdir(dest):
                os.rmdir(dest)
            os.rename(temporary, dest)
    return sorted(os.path.join(root, name) for root, _, files in os.walk(dest) for name in files)


def write_files(contents: dict[str, Callable[[BinaryIO], None]]) -> list[str]:
    """Writes files (path: what writes it) that lie in one folder: all of them, or none. Returns their paths.

    Raises UserError if one of them is there, or cannot be written.
    """
    paths = [os.path.abspath(path) for path in contents]
    _check_name(paths[0])
    with _named(paths[0]):
        for path in paths:
            check_free(path)
        with _temporary(paths[0]) as temporary:
            for number, write in enumerate(contents.values()):
                with open(os.path.join(temporary, str(number)), "wb") as file:
                    write(file)
            for number, path in enumerate(paths):
                os.rename(os.path.join(temporary, str(number)), path)
    return paths


def _check_name(dest: str) -> None:
    """UserError for a path that no file can have."""
    try:
        os.fsencode(dest)
    except UnicodeEncodeError as error:
        raise UserError(f"{dest!r} cannot be written: it is not a text. Give another --output.") from error
    if "\0" in dest:
        raise UserError(f"{dest!r} cannot be written: it has a zero in it. Give another --output.")


def write_json(path: str, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


@contextlib.contextmanager
def _temporary(dest: str) -> Iterator[str]:
    """A new folder next to dest, gone afterwards. What killed processes of this machine left for dest goes, too."""
    parent, name = os.path.split(dest)
    os.makedirs(parent, exist_ok=True)
    mark = f"{name}.tmp-{platform.node()}-"
    for left in os.listdir(parent):
        pid = left.removeprefix(mark) if left.startswith(mark) else ""
        if pid.isascii() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(os.path.join(parent, left), ignore_errors=True)
    temporary = os.path.join(parent, f"{mark}{os.getpid()}")
    os.mkdir(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(folder: str) -> None:
    """Removes a folder into which TensorStore's threads may go on writing for a moment after one of them failed."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def _named(dest: str) -> Iterator[None]:
    """Turns what a full, read-only or forbidden folder says into a UserError that names dest."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}. Give another --output.") from error
