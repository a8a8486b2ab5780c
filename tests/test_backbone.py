"""Backbones by name or folder, on one device or straight onto the shards of a mesh."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_model import CONFIG

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.prompted_t5 import init_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbones") / "tiny"
    formats.write_backbone("own", str(path), CONFIG, init_backbone(CONFIG, 0), "bytes")
    return path


def test_values_dtype_and_fingerprint(folder, tmp_path):
    exact, half = load_backbone(str(folder)), load_backbone(str(folder), "bfloat16")
    for path, array in flatten(init_backbone(CONFIG, 0)).items():
        np.testing.assert_array_equal(exact.flat()[f"backbone/{path}"], array)
        assert half.flat()[f"backbone/{path}"].dtype == "bfloat16"
    assert exact.fingerprint == half.fingerprint and len(exact.fingerprint) == 16
    formats.write_backbone("hf", str(tmp_path / "hf"), CONFIG, exact.params, "bytes")
    assert load_backbone(str(tmp_path / "hf"), vocabulary="bytes").fingerprint == exact.fingerprint


def test_the_shipped_backbone_loads_by_name():
    nano = load_backbone("nano")
    assert nano.num_parameters <= 8_000_000 and nano.vocabulary().size == nano.config.vocab_size == 8192


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(UserError, match=r"neither a shipped backbone \(nano\) nor a folder"):
        load_backbone("t5_bsae")


SHARDED = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mpt_jax.model.backbone import load_backbone
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
spec = lambda path, shape: PartitionSpec(None, "model") if path.endswith("kernel") else PartitionSpec()
sharded = load_backbone(sys.argv[1], "bfloat16", sharding=lambda path, shape: NamedSharding(mesh, spec(path, shape)))
whole = load_backbone(sys.argv[1], "bfloat16")
found = {"devices": jax.device_count(), "fingerprint": sharded.fingerprint == whole.fingerprint, "halves": 0}
for path, array in sharded.flat().items():
    reference = np.asarray(whole.flat()[path])
    assert array.sharding.spec == spec(path, array.shape), path
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), reference[shard.index])
    found["halves"] += array.addressable_shards[0].data.size < array.size
print(json.dumps(found))
"""


def test_shards_go_straight_to_a_mesh_of_eight_devices(folder):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SHARDED, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["fingerprint"]
    assert found["halves"] == sum(path.endswith("kernel") for path in load_backbone(str(folder)).flat())
