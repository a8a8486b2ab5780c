"""Prompt files that would take memory or be read wrongly are refused."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hostile import bomb, npy_header, refused, unchecked

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.formats import npy_file, prompts, safetensors


def npz(tmp_path: Path, **changes) -> Path:
    """A bank of one prompt, with changed parts."""
    parts = {
        "shared_GPD": np.ones((1, 2, 3), np.float32),
        "group_N": np.zeros(1, np.int64),
        "task_names": np.array(["a"]),
        "metadata": np.array("{}"),
    }
    np.savez(tmp_path / "x.npz", **{f"bank/{name}": part for name, part in (parts | changes).items() if part is not None})
    return tmp_path / "x.npz"


HUGE = np.full((1, 2, 3), 1e30)
BANKS = {
    "a group beyond int32": ({"group_N": np.array([2**32])}, r"x.npz: bank/group_N is \[4294967296\]"),
    "a negative group": ({"group_N": np.array([-1])}, "bank/group_N is"),
    "a group that is not whole": ({"group_N": np.array([0.0])}, "bank/group_N is .* of type float64"),
    "a group that is not there": ({"group_N": np.array([1])}, r"use the groups \[1\]; there are 1"),
    "a float64 beyond float32": (
        {"shared_GPD": np.full((1, 2, 3), 1e300)},
        "bank/shared_GPD holds infinity, or a float64 beyond float32, at",
    ),
    "infinity": ({"cols_NPR": np.full((1, 2, 1), -np.inf), "rows_NRD": np.ones((1, 1, 3))}, "x.npz: bank/cols_NPR holds infinity"),
    "a product beyond float32": ({"shared_GPD": HUGE, "cols_NPR": HUGE[..., :1], "rows_NRD": HUGE[:, :1]}, "composed prompts .* infinity"),
    "two tasks of one name": ({"group_N": np.zeros(2, int), "task_names": np.array(["a", "a"])}, "several prompts called 'a'"),
    "a task of two lines": ({"task_names": np.array(["a\nb"])}, r"names an array 'a\\nb'"),
    "no text for a task": ({"task_names": np.array([1])}, "task_names and bank/metadata must be texts"),
    "runs that are no list": ({"metadata": np.array('{"runs": 1}')}, "bank/metadata is damaged"),
    "a score that is no number": ({"metadata": np.array('{"runs": [{"scores": {"x": "y"}}]}')}, "bank/metadata is damaged"),
    "metadata without end": ({"metadata": np.array("[" * 100_000)}, "nested too deeply"),
    "no rank": ({"cols_NPR": np.ones((1, 2, 0)), "rows_NRD": np.ones((1, 0, 3))}, "factors have shapes"),
}


@pytest.mark.parametrize("name", BANKS)
def test_banks_that_would_be_read_wrongly(name, tmp_path):
    changes, message = BANKS[name]
    prompts.read(npz(tmp_path)).compose()  # what the process starts for its first product does not count
    path = npz(tmp_path, **changes)
    refused(lambda: prompts.read(path).compose(), message)


def test_numbers_that_are_none_are_named_in_every_prompt_format(tmp_path):
    array = np.ones((4, 6), np.float32)
    array[2, 3] = np.nan
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "y.npz", good=np.ones_like(array), wrong=array)
    (tmp_path / "z").mkdir()
    safetensors.write(str(tmp_path / "z" / "adapter_model.safetensors"), {"prompt_embeddings": unchecked(array)})
    (tmp_path / "z" / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1}')
    for name, source in (("x.npy", "x.npy"), ("y.npz", "y.npz: wrong"), ("z", "adapter_model.safetensors: prompt_embeddings")):
        with pytest.raises(UserError, match=rf"{source} holds NaN at \(.*2, 3\)"):
            prompts.read(tmp_path / name)


def test_npz_members_do_not_unpack_to_gigabytes(tmp_path):
    bomb(tmp_path / "x.npz", "a.npy", {}, 128)
    refused(lambda: prompts.read(tmp_path / "x.npz"), "x.npz has [0-9,]+ bytes and unpacks to 134,")


@pytest.mark.parametrize(
    "header, message",
    [
        (
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n",
            "needs 4,000,000,000,000,000,000 bytes, it has 0",
        ),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 5), }\n", "not an array of numbers: its header"),
        (b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", "not an array of numbers"),
        (b"(" * 9000, "not an array of numbers: its header"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 500 + b"), }\n", "has the shape"),
    ],
)
def test_headers_of_npy_files(header, message, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refused(lambda: prompts.read(tmp_path / "x.npy"), message)


def test_a_npy_file_of_a_terabyte(tmp_path):
    head = npy_header((10**9, 256))
    (tmp_path / "x.npy").write_bytes(head)
    os.truncate(tmp_path / "x.npy", len(head) + 4 * 256 * 10**9)
    refused(lambda: prompts.read(tmp_path / "x.npy"), "holds 1,024,000,[0-9,]+ bytes; prompts have at most")


def test_arrays_as_numpy_writes_them(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 4)),
        rng.normal(size=(3, 4)).T,
        np.float16(3),
        np.array(["a", "bcd"]),
        np.array([""]),
        np.zeros((0, 3)),
        np.arange(5),
    ]
    for number, array in enumerate([*arrays, rng.normal(size=(2, 3)).astype(">f4"), np.asfortranarray(rng.normal(size=(2, 3, 4)))]):
        np.save(tmp_path / f"{number}.npy", array)
        read = npy_file.read_npy(str(tmp_path / f"{number}.npy"))
        np.testing.assert_array_equal(read, array)
        assert read.dtype == np.asarray(array).dtype


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_virtual_tokens": 10**9}, "adapter_config.json says .1000000000, 8."),
        ({"num_virtual_tokens": "4"}, "num_virtual_tokens = '4'; it takes a whole number"),
        ({"num_transformer_submodules": True}, "num_transformer_submodules = True"),
        ({"num_tasks": 3}, "num_tasks = 3, but prefix_task_cols has shape .1, 4, 1."),
        ({"num_ranks": 2}, "num_ranks = 2, but"),
        ({"task_names": "ab"}, "'ab', not a list of names"),
        ({"task_names": [1]}, "names an array 1"),
    ],
)
def test_adapters_that_say_something_else(changes, message, tmp_path):
    from mpt_jax.model.formats import prompt_writers

    prompt_writers.write("peft", str(tmp_path / "x"), prompts.plain(np.zeros((1, 4, 8), np.float32), ["a"], {}))
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(lambda: prompts.read(tmp_path / "x"), message)


def test_weights_that_an_adapter_brings_with_its_prompt_are_not_dropped(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 1}')
    weights = {name: formats.in_memory(np.ones((2, 3), np.float32)) for name in ("prompt_embeddings", "base_model.lm_head.weight")}
    safetensors.write(str(tmp_path / "adapter_model.safetensors"), weights)
    refused(lambda: prompts.read(tmp_path), "also holds base_model.lm_head.weight")
