"""Only regular files are opened, within bounds."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hostile import load, refused, write_sound

from mpt_jax.model.formats import prompts
from mpt_jax.regular_files import (
    MOST_BRACKETS,
    MOST_LEVELS,
    MOST_LINE_BYTES,
    numbered_lines,
    open_regular,
    parse_json,
    read_regular,
    shown,
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


EMBEDDING = "target.token_embedder.embedding"


@pytest.mark.parametrize("odd", ["pipe", "device", "loop", "dangling", "folder"])
@pytest.mark.parametrize(
    "kind, name",
    [
        ("hf", "config.json"),
        ("hf", "generation_config.json"),
        ("hf", "model.safetensors"),
        ("t5x", "checkpoint"),
        ("t5x", f"{EMBEDDING}/.zarray"),
        ("t5x", f"{EMBEDDING}/0.0"),
        ("orbax", "state/_METADATA"),
        ("orbax", "state/manifest.ocdbt"),
        ("own", "config.json"),
    ],
)
def test_what_is_not_a_file_is_not_opened(odd, kind, name, tmp_path, sound):
    path = shutil.copytree(sound / kind, tmp_path / kind) / name
    path.unlink()
    {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path.name),
        "dangling": lambda path: path.symlink_to("nothing"),
        "folder": os.mkdir,
    }[odd](path)
    if name == "generation_config.json" and odd == "folder":
        load(tmp_path / kind)  # a folder of that name is none of the model's
    else:
        refused(lambda: load(tmp_path / kind), str(tmp_path))


def test_regular_files(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", 5) == b"12345"
    (tmp_path / "link").symlink_to("x")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"12345"
    refused(lambda: read_regular(tmp_path / "x", 4), "holds 5 bytes; a file of this kind has at most 4")
    refused(lambda: read_regular("/dev/zero", 4), "/dev/zero is a device")
    refused(lambda: read_regular(tmp_path, 4), "is a folder")
    refused(lambda: read_regular("a\0b", 4), "cannot be read")
    refused(lambda: read_regular("/proc/self/mem", 10), "/proc/self/mem cannot be read: Input/output error")
    assert read_regular("/proc/self/stat", 10_000)  # of no size, says the kernel
    refused(lambda: read_regular("/proc/self/maps", 10), "at most 10")


def test_files_that_may_not_be_read(tmp_path, forbidden, sound):
    folder = shutil.copytree(sound / "hf", tmp_path / "hf")
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    for path, read in (
        (folder / "model.safetensors", load),
        (folder / "config.json", load),
        (folder, load),
        (tmp_path / "x.npy", prompts.read),
    ):
        with forbidden(path):
            refused(
                lambda path=path, read=read: read(folder if read is load else path),
                "cannot be read: Permission denied|does not exist|not a folder",
            )


def test_lines_within_bounds(tmp_path):
    longest = b"x" * (MOST_LINE_BYTES - 1) + b"\n"
    (tmp_path / "x").write_bytes(b"a\n\n" + longest + b"b")
    assert list(numbered_lines(tmp_path / "x")) == [(1, b"a\n"), (2, b"\n"), (3, longest), (4, b"b")]
    (tmp_path / "x").write_bytes(b"a\n")
    os.truncate(tmp_path / "x", 2**34)  # a line of zeros without an end, which takes no room on the disk
    refused(lambda: list(numbered_lines(tmp_path / "x")), "x:2 is damaged: it is a line of more than 1,048,576 bytes; delete this line")


def test_json_within_bounds():
    assert parse_json(b'{"a": [1, NaN]}', "x")["a"][0] == 1
    for levels in (MOST_LEVELS + 1, 3_000, 100_000):
        for text in (b"[" * levels, b"[" * levels + b"]" * levels, b'{"a":' * levels + b"1" + b"}" * levels):
            refused(lambda text=text: parse_json(text, "x"), "x is not JSON that is read here: it is nested too deeply")
    refused(lambda: parse_json(b'["' + b"[" * 300 + b'" x', "x"), "x is not JSON: ")  # brackets in a text are no levels
    assert parse_json("[" * MOST_LEVELS + "]" * MOST_LEVELS, "x") and len(parse_json(b"[" + b"[]," * 500 + b"[]]", "x")) == 501
    refused(lambda: parse_json(b"1" * 5000, "x"), "too many digits")
    refused(lambda: parse_json(b"[]," * (MOST_BRACKETS + 1), "x"), "lists and objects")
    refused(lambda: parse_json(b'"\xff"', "x"), "x is not JSON")
    assert len(shown("x" * 10_000)) < 100 and len(shown([["x" * 100] * 100] * 100)) < 2000 and "\n" not in shown("a\nb")
    assert shown(10**5000) == "a value of type int"
