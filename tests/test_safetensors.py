"""Headers of safetensors files: what does not fit is named, before an array is made."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from hostile import load, refused, write_sound

from mpt_jax.model.formats import safetensors
from mpt_jax.model.formats.files import Folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


def write_header(path: Path, header, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(kind="F32", shape=(1,), start=0, stop=4) -> dict:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "header, message",
    [
        ({"a": entry("F8_E4M3")}, "a has type 'F8_E4M3'; known types"),
        ({"a": entry(["F32"])}, "header entry .* is damaged"),
        ({"a": entry(shape=[1] * 100_000)}, "has the shape"),
        ({"a": entry(shape=[2**62, 2**62])}, "has the shape"),
        ({"a": entry(shape=[True])}, "has the shape"),
        ({"a": entry(stop=2**62)}, "does not fill bytes"),
        ({"a": entry(start=-4, stop=0)}, "does not fill bytes"),
        ({"a": entry(), "b": entry()}, "b starts at byte 0 of the data, the array before it ends at 4"),
        ({"a": entry(start=4, stop=8)}, "a starts at byte 4 of the data"),
        ({"a": [1]}, "header entry .* is damaged"),
        ({"a\nb": entry()}, "names an array"),
        ({"__metadata__": {"a": 1}}, "its metadata is"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"a":[' + b"[]," * 2_000_000 + b"[]]}", "at most 1,000,000 are read"),
        (b"[1]", "not an object"),
    ],
)
def test_headers_of_safetensors_files(header, message, tmp_path):
    write_header(tmp_path / "x.safetensors", header, b"\0" * 4)
    refused(lambda: safetensors.read(Folder(tmp_path), "x.safetensors"), message)


def test_more_arrays_than_a_model_has(tmp_path):
    write_header(tmp_path / "x.safetensors", {f"a{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)})
    refused(lambda: safetensors.read(Folder(tmp_path), "x.safetensors"), "names 60,000 arrays; at most 50,000 are read")


def test_bytes_after_the_last_array(tmp_path):
    write_header(tmp_path / "x.safetensors", {"a": entry()}, b"\0" * 5)
    refused(lambda: safetensors.read(Folder(tmp_path), "x.safetensors"), "x.safetensors is damaged: its header promises")


@pytest.mark.parametrize(
    "index",
    [{"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": "config.json"}}],
)
def test_indices_of_shards(index, tmp_path, sound):
    folder = shutil.copytree(sound / "hf", tmp_path / "hf")
    os.remove(folder / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: load(folder), "model.safetensors.index.json")
