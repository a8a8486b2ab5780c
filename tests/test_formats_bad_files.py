"""Every kind of bad file stops with a message that names the file, what is wrong and what to do; none runs code."""

import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import TINY, data_folder, random_params

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.formats import prompt_writers, prompts, torch_file
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.huggingface import settings_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 990345061\n"


def load(folder) -> None:
    formats.restore(formats.read_backbone(folder)[1])


def written(tmp_path: Path, kind: str) -> Path:
    formats.write_backbone(kind, tmp_path / kind, TINY, random_params(TINY))
    return tmp_path / kind


def cut(path: Path, count: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: count if count > 0 else len(data) + count])


@pytest.mark.parametrize("kept, message", [(-10, "truncated: its header promises"), (500, "truncated"), (4, "not a safetensors")])
def test_truncated_safetensors(kept, message, tmp_path):
    folder = written(tmp_path, "hf")
    cut(folder / "model.safetensors", kept)
    with pytest.raises(UserError, match=f"model.safetensors.*{message}"):
        load(folder)


def test_damaged_safetensors_header(tmp_path):
    folder = written(tmp_path, "hf")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"shape":[48,16]', b'"shape":[48,17]', 1))
    with pytest.raises(UserError, match="shared.weight: shape .48, 17. of F32 does not fill"):
        load(folder)


def test_zarr_array_missing(tmp_path):
    folder = written(tmp_path, "t5x")
    shutil.rmtree(folder / "target.encoder.layers_1.mlp.wo.kernel")
    with pytest.raises(UserError, match="target.encoder.layers_1.mlp.wo.kernel is missing.*Copy"):
        load(folder)


def test_zarr_chunk_missing_is_not_read_as_zeros(tmp_path):
    folder = written(tmp_path, "t5x")
    os.remove(folder / "target.token_embedder.embedding" / "0.0")
    with pytest.raises(UserError, match="target.token_embedder.embedding lacks 1 of its 1 chunk files"):
        load(folder)


def test_zarr_chunk_truncated(tmp_path):
    folder = written(tmp_path, "t5x")
    cut(folder / "target.token_embedder.embedding" / "0.0", 100)
    with pytest.raises(UserError, match="target.token_embedder.embedding is damaged"):
        load(folder)


def test_truncated_t5x_index(tmp_path):
    folder = written(tmp_path, "t5x")
    cut(folder / "checkpoint", -20)
    with pytest.raises(UserError, match="checkpoint is truncated"):
        load(folder)


def test_truncated_legacy_checkpoint(tmp_path):
    data = Path(data_folder("checkpoints/t5x_tiny_msgpack/checkpoint_0")).read_bytes()
    (tmp_path / "checkpoint_0").write_bytes(data[: len(data) - 100])
    with pytest.raises(UserError, match="checkpoint_0 is truncated"):
        load(tmp_path / "checkpoint_0")


def test_orbax_without_its_arrays(tmp_path):
    folder = written(tmp_path, "orbax")
    for name in ("d", "ocdbt.process_0"):
        shutil.rmtree(folder / "state" / name, ignore_errors=True)
    with pytest.raises(UserError, match="target[.]"):
        load(folder)


def rewrite(folder: Path, change) -> None:
    """Writes the weights again after change(arrays by Hugging Face's names)."""
    arrays, _ = formats.safetensors.read(Folder(folder), "model.safetensors")
    changed = {name: lazy.load() for name, lazy in arrays.items()}
    change(changed)
    formats.safetensors.write(str(folder / "model.safetensors"), {k: formats.in_memory(v) for k, v in changed.items()})


def test_wrong_missing_and_left_over_arrays_are_all_listed(tmp_path):
    folder = written(tmp_path, "hf")

    def change(arrays):
        arrays["encoder.block.0.layer.1.DenseReluDense.wo.weight"] = np.zeros((16, 25), np.float32)
        arrays["encoder.block.9.layer.0.SelfAttention.q.weight"] = np.zeros((16, 16), np.float32)
        del arrays["decoder.final_layer_norm.weight"]

    rewrite(folder, change)
    with pytest.raises(UserError) as caught:
        load(folder)
    text = str(caught.value)
    assert "missing: decoder.final_layer_norm.weight" in text
    assert "left over: encoder.block.9.layer.0.SelfAttention.q.weight" in text
    assert "encoder.block.0.layer.1.DenseReluDense.wo.weight has shape (16, 25), not (16, 24)" in text


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("vocab_size", 50, "48 vocabulary rows, its config says vocab_size = 50"),
        ("d_model", 12, "not .48, 12."),
        ("num_layers", 4, "missing: encoder.block.3.layer.0"),
        ("feed_forward_proj", "relu", "left over: .*wi_0"),
        ("feed_forward_proj", "gated-relu", "feed_forward_proj 'gated-relu' is none of relu, gated-gelu, gated-silu"),
        ("model_type", "bert", "model_type 'bert' is none of t5, mt5"),
        ("tie_word_embeddings", True, "lm_head.weight is not the shared embedding"),
        ("d_kv", None, "d_kv"),
    ],
)
def test_config_that_does_not_fit(field, value, message, tmp_path):
    folder = written(tmp_path, "hf")
    settings = settings_of(TINY, "float32") | {field: value}
    if value is None:
        del settings[field]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        load(folder)


class Evil:
    """Runs a command when it is unpickled by Python's own reader."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_torch_like(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(protocol, tmp_path):
    marker = tmp_path / "was_run"
    content = pickle.dumps({"shared.weight": Evil(marker)}, protocol)
    assert pickle.loads(content) is not None and marker.exists()  # it would
    marker.rmdir()
    folder = written(tmp_path, "hf")
    os.remove(folder / "model.safetensors")
    write_torch_like(folder / "pytorch_model.bin", content)
    with pytest.raises(UserError, match="pytorch_model.bin asks to run posix.mkdir; refused, nothing was run"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(content)  # without the zip around it
    with pytest.raises(UserError, match="refused|no torch file"):
        load(folder)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps([1, 2], 2), "holds a list"),
        (pickle.dumps({"a": 1}, 2), "holds no tensors"),
        (pickle.dumps({"a": 1}, 2)[:-3], "damaged"),
        (pickle.dumps({"a": re.compile("x")}, 2), "asks to run re._compile"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01tR.", "calls|damaged"),
        (b"\x80\x02}q\x00ctorch\nFloatStorage\nb.", "sets the state|damaged"),
        (b"\x80\x02(i__main__\nX\n.", "INST"),
    ],
)
def test_torch_files_with_other_things(content, message, tmp_path):
    write_torch_like(tmp_path / "x.bin", content)
    with pytest.raises(UserError, match=message):
        torch_file.read(Folder(tmp_path), "x.bin")


def test_truncated_torch_file(tmp_path):
    source = Path(data_folder("checkpoints/hf_t5_tiny"))
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(source / name, tmp_path / name)
    cut(tmp_path / "pytorch_model.bin", 300_000)
    with pytest.raises(UserError, match="pytorch_model.bin is truncated or damaged"):
        load(tmp_path)


@pytest.mark.parametrize("kind, name", [("hf", "model.safetensors"), ("own", "model.safetensors"), ("t5x", "checkpoint")])
def test_lfs_pointer_in_place_of_weights(kind, name, tmp_path):
    folder = written(tmp_path, kind)
    (folder / name).write_bytes(POINTER)
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer, not the weights. Run `git lfs pull`"):
        load(folder)


def test_lfs_pointer_of_other_files(tmp_path):
    folder = written(tmp_path, "hf")
    os.remove(folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    (tmp_path / "prompt.npy").write_bytes(POINTER)
    for read, path in ((load, folder), (prompts.read, tmp_path / "prompt.npy")):
        with pytest.raises(UserError, match="Git LFS pointer"):
            read(path)


def test_adapter_for_another_width(tmp_path):
    prompt = prompts.plain(np.zeros((1, 4, 8), np.float32), ["a"], {})
    for kind, name in (("peft", "x"), ("peft_single", "y"), ("npz", "z.npz"), ("npy", "w.npy")):
        prompt_writers.write(kind, str(tmp_path / name), prompt)
        with pytest.raises(UserError, match="prompts of width 8, the backbone has width 16"):
            prompts.read(tmp_path / name, width=16)


def adapter(tmp_path: Path, **changes) -> Path:
    prompt = prompts.plain(np.zeros((1, 4, 8), np.float32), ["a"], {})
    prompt_writers.write("peft", str(tmp_path / "adapter"), prompt)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "LORA"}, "'LORA' is not a prompt"),
        ({"num_virtual_tokens": 5}, r"has shape \(4, 8\); adapter_config.json says \(5, 8\)"),
        ({"token_dim": 9}, r"says \(4, 9\)"),
        ({"task_names": ["a", "b"]}, "2 task names"),
    ],
)
def test_adapters_that_do_not_fit(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prompts.read(adapter(tmp_path, **changes))


def test_adapter_without_weights(tmp_path):
    folder = adapter(tmp_path)
    os.remove(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="no weights; looked for adapter_model.safetensors"):
        prompts.read(folder)


def test_arrays_that_are_no_prompts(tmp_path):
    np.save(tmp_path / "vector.npy", np.zeros(4, np.float32))
    np.save(tmp_path / "integers.npy", np.zeros((3, 4), np.int32))
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    messages = {"vector.npy": "shape .4,.", "integers.npy": "int32", "objects.npy": "not an array of numbers", "cut.npy": "not an array"}
    for name, message in (messages | {"cut.npz": "truncated or damaged"}).items():
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            prompts.read(tmp_path / name)


def test_a_backbone_is_no_prompt_and_the_other_way_round(tmp_path):
    folder = written(tmp_path, "t5x")
    with pytest.raises(UserError, match="holds no prompt variable"):
        prompts.read(folder)
    with pytest.raises(UserError, match="holds prompts .peft., not a backbone"):
        formats.read_backbone(adapter(tmp_path))


@pytest.mark.parametrize("content", [{}, {"a.txt": "x"}, {"config.json": "{}"}, {"config.json": "[]"}, {"config.json": "{"}])
def test_folders_without_a_checkpoint(content, tmp_path):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        formats.read_backbone(tmp_path)


def test_a_bucket_without_network_or_name():
    with pytest.raises(UserError, match="names no bucket"):
        formats.read_backbone("gs://")
    with pytest.raises(UserError, match="Invalid GCS bucket name.*Write gs://BUCKET/FOLDER"):
        formats.read_backbone("gs://b/x")
