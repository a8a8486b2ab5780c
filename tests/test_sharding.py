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
from tiny_model import backbone

from mpt_jax import sharding
from mpt_jax.config import MeshSettings
from mpt_jax.errors import UserError

MESH = AbstractMesh((2, 2, 2), sharding.AXES)


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
    specs = {path: sharding.parameter_sharding(MESH, path, array.shape).spec for path, array in backbone().items()}
    assert specs["backbone/token_embedder/embedding"] == P(("tensor",), ("fsdp",))
    assert specs["backbone/encoder/layers_0/attention/query/kernel"] == P(("fsdp",), ("tensor",))
    assert specs["backbone/decoder/layers_0/encoder_decoder_attention/out/kernel"] == P(("tensor",), ("fsdp",))
    assert specs["backbone/decoder/logits_dense/kernel"] == P(("fsdp",), ("tensor",))
    assert specs["backbone/encoder/relpos_bias/rel_embedding"] == P(("tensor",), None)
    assert all(spec == P(None) for path, spec in specs.items() if path.endswith("scale"))
    with pytest.raises(UserError, match="'backbone/encoder/new/bias' has no row in PARAMETER_AXES"):
        sharding.parameter_sharding(MESH, "backbone/encoder/new/bias", (3,))


def test_a_dimension_that_does_not_divide_stays_whole():
    spec = sharding.parameter_sharding(MESH, "encoder/layers_0/mlp/wi_0/kernel", (6, 15)).spec
    assert spec == P(("fsdp",), None)


def test_the_bank_is_whole_until_it_is_large(monkeypatch):
    shape = (8, 3, 4)
    moments = {"mu": {"bank/cols": jax.ShapeDtypeStruct((4, 2, 3, 4), "float32")}, "count": jax.ShapeDtypeStruct((4,), "int32")}
    assert sharding.parameter_sharding(MESH, "bank/cols", shape).spec == P()
    monkeypatch.setattr(sharding, "LARGE_BANK_BYTES", 4 * 8 * 3 * 4)
    assert sharding.parameter_sharding(MESH, "bank/cols", shape).spec == P(("data", "fsdp"), None, None)
    placed = sharding.tree_sharding(MESH, moments)
    assert placed["mu"]["bank/cols"].spec == P(("data", "fsdp"), None, None, None) and placed["count"].spec == P()


def test_rows_are_rounded_up_to_the_parts_of_a_batch(capsys):
    assert sharding.whole_rows(MESH, 8, "DataSettings.micro_batch_size") == 8 and capsys.readouterr().err == ""
    assert sharding.whole_rows(MESH, 9, "DataSettings.micro_batch_size") == 12
    assert "DataSettings.micro_batch_size = 9 rounded up to 12: 4 parts" in capsys.readouterr().err
    assert sharding.whole_rows(None, 9) == 9


def test_without_a_mesh_nothing_moves():
    x = np.ones((2, 2), np.float32)
    assert sharding.constrain(x, "batch", "length") is x and sharding.place_rows(None, x) is x
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
