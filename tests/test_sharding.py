"""Meshes: the same results as one device on every shape, and where arrays are put."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from tiny_model import CONFIG, tiny_backbone

from mpt_jax import sharding
from mpt_jax.config import MeshSettings
from mpt_jax.errors import UserError
from mpt_jax.methods.method import places_for
from mpt_jax.methods.prompt import METHOD
from mpt_jax.model.formats.arrays import flatten

MESH = AbstractMesh((2, 2, 2), sharding.AXES)
PLACES = places_for(MESH, METHOD, CONFIG)


@pytest.mark.parametrize(
    "settings, devices, shape",
    [((0, 1, 1), 8, (8, 1, 1)), ((0, 2, 2), 8, (2, 2, 2)), ((1, 1, 8), 8, (1, 1, 8)), ((0, 1, 1), 1, (1, 1, 1))],
)
def test_numbers_make_a_mesh(settings, devices, shape):
    assert sharding.mesh_shape(MeshSettings(*settings), devices) == shape


@pytest.mark.parametrize(
    "settings, message",
    [
        ((0, 3, 1), r"MESH_FSDP \* MESH_TENSOR = 3 does not divide the 8 devices"),
        ((0, 8, 2), r"= 16 does not divide the 8 devices"),
        ((4, 1, 1), r"their product is 4, and there are 8 devices; change them \(MESH_DATA = 0"),
    ],
)
def test_numbers_that_do_not_fit_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        sharding.mesh_shape(MeshSettings(*settings), 8)


def test_every_parameter_has_a_row_and_the_large_ones_are_split():
    specs = {path: PLACES.sharding(path, array.shape).spec for path, array in tiny_backbone().flat().items()}
    assert specs["backbone/token_embedder/embedding"] == P(("tensor",), ("fsdp",))
    assert specs["backbone/encoder/layers_0/attention/query/kernel"] == P(("fsdp",), ("tensor",))
    assert specs["backbone/decoder/layers_0/encoder_decoder_attention/out/kernel"] == P(("tensor",), ("fsdp",))
    assert specs["backbone/decoder/logits_dense/kernel"] == P(("fsdp",), ("tensor",))
    assert specs["backbone/encoder/relpos_bias/rel_embedding"] == P(("tensor",), None)
    assert all(spec == P(None) for path, spec in specs.items() if path.endswith("scale"))
    with pytest.raises(UserError, match="'backbone/encoder/new/bias' has no row in the table of axes"):
        PLACES.sharding("backbone/encoder/new/bias", (3,))


def test_a_dimension_that_does_not_divide_stays_whole():
    spec = PLACES.sharding("encoder/layers_0/mlp/wi_0/kernel", (6, 15)).spec
    assert spec == P(("fsdp",), None)


def test_the_bank_is_whole_until_it_is_large(monkeypatch):
    shape = (8, 3, 4)
    moments = {"mu": {"bank/cols": jax.ShapeDtypeStruct((4, 2, 3, 4), "float32")}, "count": jax.ShapeDtypeStruct((4,), "int32")}
    assert PLACES.sharding("bank/cols", shape).spec == P()
    monkeypatch.setattr(sharding, "LARGE_BANK_BYTES", 4 * 8 * 3 * 4)
    assert PLACES.sharding("bank/cols", shape).spec == P(("data", "fsdp"), None, None)
    placed = PLACES.shardings(moments)
    assert placed["mu"]["bank/cols"].spec == P(("data", "fsdp"), None, None, None) and placed["count"].spec == P()


def test_flat_and_nested_trees_have_the_same_places():
    flat = {path.removeprefix("backbone/"): array for path, array in tiny_backbone().flat().items()}
    nested = flatten(PLACES.shardings(tiny_backbone().params))
    assert nested == PLACES.shardings(flat) and len(nested) == len(flat)
    assert nested["encoder/layers_0/mlp/wi_0/kernel"].spec == P(("fsdp",), ("tensor",))
    assert PLACES.shardings({"unheard of": np.ones(8)})["unheard of"].spec == P()  # a leaf that no path leads to is on every device


def test_arrays_that_lie_right_are_not_moved():
    mesh = sharding.make_mesh(MeshSettings())
    places = places_for(mesh, METHOD, CONFIG)
    put = places.put({"bank/shared": np.ones((1, 3, 16), np.float32)})
    assert places.put(put)["bank/shared"] is put["bank/shared"] and put["bank/shared"].sharding.mesh == mesh
    assert places.of_backbone()("encoder/encoder_norm/scale", (16,)).spec == P(None)
    alone = places_for(None, METHOD, CONFIG)
    assert alone.put(put) is put and alone.of_backbone() is None


def test_rows_are_rounded_up_to_the_parts_of_a_batch(capsys):
    assert sharding.whole_rows(MESH, 8, "DataSettings.micro_batch_size") == 8 and capsys.readouterr().err == ""
    assert sharding.whole_rows(MESH, 9, "DataSettings.micro_batch_size") == 12
    assert "DataSettings.micro_batch_size = 9 rounded up to 12: 4 parts" in capsys.readouterr().err
    assert sharding.whole_rows(None, 9) == 9


def test_without_a_mesh_nothing_moves():
    x = np.ones((2, 2), np.float32)
    assert sharding.constrain(x, "batch", "length") is x and sharding.put_rows(None, x) is x
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 1), sharding.AXES)
    assert sharding.local_rows(None, 4) is None and sharding.local_rows(mesh, 4) is None


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """What tests/mesh_checks.py found with 8 pretend devices."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    folder = str(tmp_path_factory.mktemp("mesh"))
    command = [sys.executable, str(here / "mesh_checks.py"), folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["tokens"] > 20
    return found["meshes"]


@pytest.mark.slow
@pytest.mark.parametrize("mesh, share", [("8x1x1", 1.0), ("4x2x1", 0.5), ("2x2x2", 0.25), ("1x1x8", 0.125), ("large bank", 0.25)])
def test_every_mesh_gives_what_one_device_gives(on_eight_devices, mesh, share):
    """Loss, gradients, bank, moments and metrics after three distilled updates: 1e-5, float32; decoded tokens and programs: equal."""
    found = on_eight_devices[mesh]
    differences = {name: found[name] for name in ("loss", "grads", "bank", "moments", "metrics")}
    assert max(differences.values()) <= 1e-5, differences
    assert found["tokens"] and found["traces"]
    assert found["share"] == share  # of a feed-forward kernel on a device
    assert set(found["bank_spec"]) == ({"P('data',)"} if mesh == "large bank" else {"P()"})


@pytest.mark.slow
def test_trained_weights_are_split_with_their_moments(on_eight_devices):
    found = on_eight_devices["finetune"]
    assert found["weights"] <= 1e-5
    assert found["specs"] == ["P('tensor', 'fsdp')", "P(None, 'tensor', 'fsdp')", "P(None, 'tensor', 'fsdp')"]
