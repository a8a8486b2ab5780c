"""Readers that do what no reader may; test_mutated_files.py sees that each is found. A sound sample they all read."""

import os
import time
from pathlib import Path

from mutations import Reader


def _is_sound(folder: Path) -> bool:
    path = folder / "x"
    return path.is_file() and not path.is_symlink() and path.read_bytes() == b"sound" and len(list(folder.iterdir())) == 1


def reader(misbehave) -> Reader:
    """A reader that misbehaves on anything but the sound sample."""
    return Reader(lambda folder: (folder / "x").write_bytes(b"sound"), lambda folder: None if _is_sound(folder) else misbehave())


def _raise() -> None:
    raise KeyError("x")


def _spin() -> None:
    start = time.process_time()
    while time.process_time() - start < 2.5:
        pass


READERS = {
    "raises": reader(_raise),
    "aborts": reader(os.abort),
    "hangs": reader(lambda: time.sleep(1000)),
    "is_slow": reader(_spin),
    "takes_memory": reader(lambda: bytearray(2**31)),
    "is_sound": reader(lambda: None),
}
