"""Backbones in and out: fixtures of other programs load, round trips keep every bit, arrays are restored one by one.

Covers own.py, huggingface.py, names.py, naming.py, t5_names.py, arrays.py, memory.py, folder_writer.py, detect.py,
safetensors.py, torch_file.py, msgpack_file.py, zarr.py and t5x.py."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from fixture_folders import CHECKPOINTS, TINY, TINY_V1_0, data_folder, random_params
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.families import t5, t5_names
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config
from mpt_jax.model.formats import names, safetensors, torch_file, zarr
from mpt_jax.model.formats.arrays import LazyArray, flatten
from mpt_jax.model.formats.files import Folder

WRITTEN = ("own", "hf", "t5x", "orbax")


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Shapes that our network asks for."""
    return {path: leaf.shape for path, leaf in flatten(jax.eval_shape(lambda: t5.init(config, 0))).items()}


def bits(arrays) -> dict[str, bytes]:
    return {path: lazy.load().tobytes() for path, lazy in arrays.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_fixtures_load(name):
    config, arrays, vocabulary = formats.read_backbone(data_folder(f"checkpoints/{name}"))
    shapes = {path: lazy.shape for path, lazy in arrays.items()}
    assert shapes == parameter_shapes(config)  # of our own network
    assert (vocabulary is not None) == name.startswith("hf")
    assert config.name == "custom"


@pytest.mark.parametrize("name", ["nano", "t5_small", "byt5_small"])
def test_shapes_of_the_table_are_those_of_the_network(name):
    assert {entry.ours: entry.shape for entry in names.entries(T5_SIZES[name])} == parameter_shapes(T5_SIZES[name])


def test_sizes_are_recognised_by_their_shapes():
    for name, config in T5_SIZES.items():
        shapes = {entry.ours: entry.shape for entry in names.entries(config)}
        assert names.config_from_shapes(shapes, "x") == dataclasses.replace(config, name=name)


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("kind", WRITTEN)
def test_round_trip_is_bitwise(name, kind, tmp_path):
    config, arrays, vocabulary = formats.read_backbone(data_folder(f"checkpoints/{name}"))
    formats.write_backbone("own", tmp_path / "ours", config, arrays, vocabulary)
    ours_config, ours, ours_vocabulary = formats.read_backbone(tmp_path / "ours")
    formats.write_backbone(kind, tmp_path / "back", ours_config, ours, ours_vocabulary)
    back_config, back, _ = formats.read_backbone(tmp_path / "back")
    assert ours_config == config
    assert bits(back) == bits(arrays)
    assert parameter_shapes(back_config) == parameter_shapes(config)


def test_hugging_face_files_come_back_under_their_own_names(tmp_path):
    source = Folder(data_folder("checkpoints/hf_t5_tiny"))
    before = torch_file.read(source, "pytorch_model.bin")
    formats.write_backbone("hf", tmp_path / "hf", *formats.read_backbone(source.path))
    after, _ = safetensors.read(Folder(tmp_path / "hf"), "model.safetensors")
    assert bits(after) == {name: bits(before)[name] for name in after}
    aliases = {*t5_names.EMBEDDING_ALIASES, "lm_head.weight"}
    assert before.keys() - after.keys() <= aliases


def test_t5x_reads_what_is_written(tmp_path):
    """The index in the words of T5X (checkpoints.py, load_t5x_checkpoint), followed by hand with flax and TensorStore."""
    params = random_params(TINY)
    formats.write_backbone("t5x", tmp_path / "checkpoint_7", TINY, params)
    index = serialization.msgpack_restore((tmp_path / "checkpoint_7" / "checkpoint").read_bytes())
    assert index["version"] == 3
    assert index["optimizer"]["state"].keys() == {"step"}  # T5X stumbles over an empty param_states
    row = index["optimizer"]["target"]["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
    row["kvstore"]["path"] = str(tmp_path / "checkpoint_7" / row["kvstore"]["path"])
    array = ts.open(ts.Spec(row), open=True).result().read().result()
    np.testing.assert_array_equal(array, params["encoder/layers_0/mlp/wi_0/kernel"])
    scale = index["optimizer"]["target"]["encoder"]["encoder_norm"]["scale"]
    np.testing.assert_array_equal(scale, params["encoder/encoder_norm/scale"])


def test_optimiser_state_is_never_read(monkeypatch):
    read, wanted = [], Folder.read_into
    monkeypatch.setattr(Folder, "read_into", lambda *call: read.append(call[3].nbytes) or wanted(*call))
    path = data_folder("checkpoints/t5x_tiny_msgpack/checkpoint_0")
    _, arrays, _ = formats.read_backbone(path)
    formats.restore(arrays)
    weights = sum(int(np.prod(lazy.shape)) * lazy.dtype.itemsize for lazy in arrays.values())
    assert sum(read) == weights
    assert os.path.getsize(path) > 1.9 * weights


def test_restore_converts_places_and_digests(tmp_path):
    params = random_params(TINY)
    placed, seen = [], []
    for kind in WRITTEN:
        formats.write_backbone(kind, tmp_path / kind, TINY, params)
        for dtype in (None, ml_dtypes.bfloat16):
            digests: dict[str, bytes] = {}
            arrays = formats.read_backbone(tmp_path / kind)[1]
            tree = formats.restore(arrays, dtype, lambda path, array: placed.append(path) or array, digests=digests)
            seen.append(formats.fingerprint(digests))
    assert len(set(seen)) == 1  # the same backbone in any format and dtype
    assert sorted(placed) == sorted(2 * len(WRITTEN) * list(params))
    wanted = params["token_embedder/embedding"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(tree["token_embedder"]["embedding"], wanted)


@pytest.mark.parametrize("kind", WRITTEN)
def test_parts_of_arrays_are_read_for_shards(kind, tmp_path):
    params = random_params(TINY)
    formats.write_backbone(kind, tmp_path / "x", TINY, params)
    _, arrays, _ = formats.read_backbone(tmp_path / "x")
    index = (slice(2, 7), slice(1, None))
    for path in ("token_embedder/embedding", "decoder/logits_dense/kernel", "encoder/layers_1/mlp/wo/kernel"):
        np.testing.assert_array_equal(arrays[path].load(index=index), params[path][index])
        half = arrays[path].load(np.float16, index)
        np.testing.assert_array_equal(half, params[path][index].astype(np.float16))


def test_parts_of_arrays_in_several_chunks(tmp_path):
    array = np.arange(77 * 30, dtype=np.float32).reshape(77, 30)
    row = zarr.write(str(tmp_path), "x", array, chunk_bytes=500)
    assert row["metadata"]["chunks"] == [11, 10]
    lazy = zarr.read(str(tmp_path), ["x"])["x"]
    for index in ((slice(0, 77), slice(0, 30)), (slice(5, 41), slice(9, 10)), (slice(10, 22), slice(10, 30)), (slice(3, 3), slice(0, 4))):
        np.testing.assert_array_equal(lazy.load(index=index), array[index])
        np.testing.assert_array_equal(lazy.transposed().load(np.float16, index[::-1]), array[index].T.astype(np.float16))


def test_what_is_read_at_once_fits_into_the_model_and_its_largest_array():
    """Readers that need more memory than their arrays: many at a time while most of the model is not there, one at the end."""
    lock, reading, placed, seen = threading.Lock(), [], [], []
    beside = 15_000

    def reader(size):
        def fill(out, index):
            out[...] = 0
            with lock:
                reading.append(out.nbytes + beside)
                seen.append((len(reading), sum(reading) + sum(placed)))
            time.sleep(0.002)
            with lock:
                reading.remove(out.nbytes + beside)

        return LazyArray((size,), np.dtype(np.float32), str(size), fill, beside=beside)

    sizes = [5_000, 5_000, *[1_000] * 30]
    formats.restore({str(n): reader(size) for n, size in enumerate(sizes)}, None, lambda _, array: placed.append(array.nbytes) or array)
    assert len(placed) == len(seen) == len(sizes)
    assert max(number for number, _ in seen) > 1
    assert max(held for _, held in seen) <= 4 * (sum(sizes) + max(sizes))


def test_an_array_that_is_converted_is_read_in_parts_where_it_does_not_fit():
    array, read = np.arange(4_000, dtype=np.float32).reshape(1_000, 4), []

    def fill(out, index):
        read.append(index[0])
        out[...] = array[index]

    lazy = LazyArray(array.shape, array.dtype, "x", fill, beside=0)
    digests: list[dict] = [{}, {}]
    alone = formats.restore({"x": lazy}, np.float16, digests=digests[0])["x"]
    assert read == [slice(0, 500), slice(500, 1_000)]  # two copies of it are allowed: itself, and one half as it is in the file
    among = formats.restore({"x": lazy, "y": formats.in_memory(array)}, np.float16, digests=digests[1])["x"]
    assert read[2:] == [slice(0, 1_000)]
    np.testing.assert_array_equal(alone, array.astype(np.float16))
    np.testing.assert_array_equal(among, alone)
    assert digests[0]["x"] == digests[1]["x"]


def test_restores_to_a_mesh(tmp_path):
    formats.write_backbone("hf", tmp_path / "x", TINY, random_params(TINY))
    _, arrays, _ = formats.read_backbone(tmp_path / "x")
    mesh = Mesh(np.array(jax.devices()[:1]), ("model",))
    tree = formats.restore(
        arrays,
        sharding=lambda path, shape: NamedSharding(
            mesh, PartitionSpec("model") if len(shape) == 2 else PartitionSpec()
        ),
    )
    kernel = tree["decoder"]["logits_dense"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec("model")
    np.testing.assert_array_equal(kernel, random_params(TINY)["decoder/logits_dense/kernel"])


@pytest.mark.parametrize("config", [TINY, TINY_V1_0])
def test_sharded_hugging_face_files(config, tmp_path):
    params = random_params(config)
    formats.write_backbone("hf", tmp_path / "x", config, params)
    folder = Folder(tmp_path / "x")
    arrays, _ = safetensors.read(folder, "model.safetensors")
    half, weight_map = len(arrays) // 2, {}
    for number, part in enumerate((list(arrays)[:half], list(arrays)[half:]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        safetensors.write(folder.where(shard), {name: arrays[name] for name in part})
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / "x" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    os.remove(folder.where("model.safetensors"))
    read_config, read, _ = formats.read_backbone(tmp_path / "x")
    assert read_config == config
    assert bits(read) == {path: array.tobytes() for path, array in params.items()}


def test_the_safetensors_package_reads_our_files_and_we_its(tmp_path):
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.float16([1.5]),
        "empty": np.zeros((0, 3)),
    }
    safetensors.write(
        str(tmp_path / "ours.safetensors"), {k: formats.in_memory(v) for k, v in arrays.items()}, {"x": "y"}
    )
    save_file(arrays, tmp_path / "theirs.safetensors", {"x": "y"})
    theirs = load_file(tmp_path / "ours.safetensors")
    ours, metadata = safetensors.read(Folder(tmp_path), "theirs.safetensors")
    assert metadata == {"x": "y"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name].load(), array)


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_of_both_formats_without_torch(old, tmp_path):
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "plain": base, "turned": base.T, "half": base.half(), "bfloat": base.bfloat16(), "part": base[2:],
        "parameter": torch.nn.Parameter(base + 1), "scalar": torch.tensor(3.0),
    }  # fmt: skip
    torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=not old)
    read = torch_file.read(Folder(tmp_path), "x.bin")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name].load(np.float32), tensor.detach().float().numpy())


def test_a_model_directory_with_one_checkpoint_is_that_checkpoint():
    whole = formats.read_backbone(data_folder("checkpoints/t5x_v1_1_tiny_zarr"))[1]
    inner = formats.read_backbone(data_folder("checkpoints/t5x_v1_1_tiny_zarr/checkpoint_3"))[1]
    assert bits(whole) == bits(inner)


def test_several_checkpoints_are_a_choice(tmp_path):
    for step in (1, 2):
        formats.write_backbone("t5x", tmp_path / f"checkpoint_{step}", TINY, random_params(TINY))
    with pytest.raises(UserError, match="checkpoint_1, checkpoint_2"):
        formats.read_backbone(tmp_path)


def test_byte_vocabulary_is_recognised(tmp_path):
    config = T5Config("custom", 384, 16, 2, 8, 32, 2, 1)
    for kind in WRITTEN:
        formats.write_backbone(kind, tmp_path / kind, config, random_params(config), "bytes")
        assert formats.read_backbone(tmp_path / kind)[2] == "bytes"


def test_destination_is_whole_or_absent(tmp_path):
    params = random_params(TINY)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("x")
    with pytest.raises(UserError, match="there already"):
        formats.write_backbone("hf", tmp_path / "taken", TINY, params)
    broken = dict(params)
    del broken["encoder/encoder_norm/scale"]
    with pytest.raises(UserError, match="missing: encoder/encoder_norm/scale"):
        formats.write_backbone("hf", tmp_path / "new", TINY, broken)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["taken"]


MEASURE = """
import sys
import numpy as np
from mpt_jax.model import formats
from mpt_jax.model.families import t5
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
formats.read_backbone(sys.argv[1])
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
tree = formats.restore(formats.read_backbone(sys.argv[1])[1], sys.argv[2], digests={})
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' /proc to measure memory")
@pytest.mark.parametrize(
    "kind, dtype", [("hf", "float32"), *(pytest.param(kind, "float16", marks=pytest.mark.long) for kind in ("hf", "t5x", "orbax"))]
)
def test_peak_memory_is_the_model_and_1_3_times_its_largest_array(kind, dtype, tmp_path):
    config = T5Config("custom", 16_384, 512, 8, 64, 1024, 12, 12)
    rng = np.random.default_rng(0)
    params = {entry.ours: rng.standard_normal(entry.shape, np.float32) for entry in names.entries(config)}
    formats.write_backbone(kind, tmp_path / "x", config, params)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x"), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sizes = [array.size * np.dtype(dtype).itemsize for array in params.values()]
    assert int(done.stdout) <= sum(sizes) + 1.3 * max(sizes)
