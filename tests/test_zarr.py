"""Zarr arrays, plain and inside Orbax checkpoints: checked before TensorStore sees them, and no chunk read as zeros."""

import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import random_params
from hostile import SMALL, load, refused, write_sound

from mpt_jax.errors import UserError
from mpt_jax.model.formats import t5x, zarr
from mpt_jax.model.formats.arrays import unflatten


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


EMBEDDING = "target.token_embedder.embedding"


def change_zarray(folder: Path, **changes) -> None:
    path = folder / EMBEDDING / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"chunks": [10**9, 16]}, "chunks of shape .1000000000, 16. do not divide an array of shape .48, 16."),
        ({"chunks": [64, 16]}, "do not divide"),
        ({"chunks": [0, 16]}, "do not divide"),
        ({"chunks": [10**9, 10**9], "shape": [10**9, 10**9]}, "has 4,000,000,000,000,000,000 bytes by its shape"),
        ({"chunks": [20_000, 20_000], "shape": [20_000, 20_000]}, "has 1,600,000,000 bytes by its shape"),
        ({"shape": [10**9, 16]}, "makes more than 100,000 files"),
        ({"shape": "x"}, "has the shape 'x'"),
        ({"dtype": "|V1000000000"}, "says dtype = '|V1000000000'"),
        ({"compressor": {"id": "blosc"}}, "says compressor"),
        ({"compressor": ["gzip"]}, "says compressor"),
        ({"filters": [{"id": "delta"}]}, "says filters"),
        ({"zarr_format": 3}, "says zarr_format = 3"),
        ({"fill_value": "x"}, "cannot be opened"),
    ],
)
def test_metadata_of_zarr_arrays(changes, message, tmp_path, sound):
    folder = shutil.copytree(sound / "t5x", tmp_path / "t5x")
    change_zarray(folder, **changes)
    refused(lambda: load(folder), message)


@pytest.mark.parametrize("stray", [".DS_Store", "0.0.bak", "1.0", "00.0"])
def test_a_missing_chunk_is_found_whatever_lies_there(stray, tmp_path, sound):
    folder = shutil.copytree(sound / "t5x", tmp_path / "t5x")
    os.rename(folder / EMBEDDING / "0.0", folder / EMBEDDING / stray)
    refused(lambda: load(folder), rf"{EMBEDDING} lacks 1 of its 1 chunk files \(0.0\)")


def test_files_among_the_chunks_do_no_harm(tmp_path, sound):
    folder = shutil.copytree(sound / "t5x", tmp_path / "t5x")
    (folder / EMBEDDING / ".DS_Store").write_bytes(b"x")
    found, wanted = (zarr.read(str(path), [EMBEDDING])[EMBEDDING].load() for path in (folder, sound / "t5x"))
    np.testing.assert_array_equal(found, wanted)
    load(folder)


@pytest.mark.parametrize("zarr3", [False, True])
@pytest.mark.parametrize("ocdbt", [False, True])
def test_each_layout_of_orbax_is_read_and_its_missing_chunks_found(zarr3, ocdbt, tmp_path):
    import orbax.checkpoint as ocp

    target = unflatten(random_params(SMALL).items())
    target["decoder"]["scalar"] = np.float32(3)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)) as checkpointer:
        checkpointer.save(tmp_path / "x" / "state", args=ocp.args.PyTreeSave({"target": target}))
    read = t5x.read("orbax", str(tmp_path / "x"))
    for path, array in random_params(SMALL).items():
        np.testing.assert_array_equal(read[path].load(), array)
    assert read["decoder/scalar"].load() == 3
    if ocdbt:
        return
    chunk = tmp_path / "x" / "state" / EMBEDDING / ("c/0/0" if zarr3 else "0.0")
    chunk.rename(chunk.with_name("stray"))
    with pytest.raises(UserError, match="lacks 1 of its 1 chunk files"):
        read["token_embedder/embedding"].load()


@pytest.mark.parametrize(
    "key", ["__import__('os').system('x')", "(" * 900, "('..',)", "('a','b'", "('target', 5)", "()", "('',)", "('\\x00',)", "x" * 5000]
)
def test_paths_in_orbax_metadata(key, tmp_path, sound):
    folder = shutil.copytree(sound / "orbax", tmp_path / "orbax")
    path = folder / "state" / "_METADATA"
    metadata = json.loads(path.read_text())
    rows = metadata["tree_metadata"]
    rows[key] = rows.pop(next(iter(rows)))
    if key == "('..',)":  # read as a path among the others, so without the root
        metadata["tree_metadata"] = {key: rows[key]}
    path.write_text(json.dumps(metadata))
    refused(lambda: load(folder), "_METADATA|'..', which is not the name of a folder")


def test_a_chunk_that_unpacks_to_gigabytes(tmp_path, sound):
    folder = shutil.copytree(sound / "t5x", tmp_path / "t5x")
    packed = gzip.compress(bytes(2**20))
    (folder / EMBEDDING / "0.0").write_bytes(packed * 500)  # members of one gzip file follow one another
    refused(lambda: load(folder), f"{EMBEDDING} is damaged")


@pytest.mark.parametrize(
    "kind, name",
    [("t5x", f"{EMBEDDING}/0.0"), ("t5x", f"{EMBEDDING}/.zarray"), ("t5x", f"{EMBEDDING}/stray"), ("orbax", "state/manifest.ocdbt")],
)
def test_a_file_of_a_terabyte_is_not_read(kind, name, tmp_path, sound):
    path = shutil.copytree(sound / kind, tmp_path / kind) / name
    path.touch()
    os.truncate(path, 2**40)
    refused(lambda: load(tmp_path / kind), "has 1,099,511,627,776 bytes; ")


def test_each_flipped_bit_of_a_chunk_is_found(tmp_path, sound):
    """T5X packs chunks with gzip, which keeps a check sum."""
    folder = shutil.copytree(sound / "t5x", tmp_path / "t5x")
    chunk, wanted = folder / EMBEDDING / "0.0", zarr.read(str(folder), [EMBEDDING])[EMBEDDING].load()
    whole, refused_bits = chunk.read_bytes(), 0
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 60):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        chunk.write_bytes(data)
        try:
            np.testing.assert_array_equal(zarr.read(str(folder), [EMBEDDING])[EMBEDDING].load(), wanted)
        except UserError:
            refused_bits += 1
    assert refused_bits > 55
