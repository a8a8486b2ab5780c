"""Backbones by name or folder, on one device or straight onto the shards of a mesh."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_model import CONFIG, tiny_backbone, weights

from mpt_jax.config import BackboneSettings
from mpt_jax.errors import UserError
from mpt_jax.model import backbone, formats
from mpt_jax.model.backbone import backbone_folder, load_backbone
from mpt_jax.model.formats.arrays import flatten


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbones") / "tiny"
    formats.write_backbone("own", str(path), CONFIG, weights(CONFIG), "bytes")
    return path


def test_values_dtype_and_fingerprint(folder, tmp_path):
    exact, half = (load_backbone(BackboneSettings(str(folder), dtype=dtype)) for dtype in ("float32", "bfloat16"))
    for path, array in flatten(weights(CONFIG)).items():
        np.testing.assert_array_equal(exact.flat()[f"backbone/{path}"], array)
        assert half.flat()[f"backbone/{path}"].dtype == "bfloat16"
    assert exact.fingerprint == half.fingerprint and len(exact.fingerprint) == 16
    formats.write_backbone("hf", str(tmp_path / "hf"), CONFIG, exact.params, "bytes")
    assert load_backbone(BackboneSettings(str(tmp_path / "hf"), "bytes")).fingerprint == exact.fingerprint


def test_the_shipped_backbone_loads_by_name():
    nano = load_backbone(BackboneSettings("nano"))
    assert nano.num_parameters <= 8_000_000 and nano.vocabulary().size == nano.config.vocab_size == 8192


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(UserError, match=r"neither a known backbone \(nano, smollm2\) nor a folder or file here; nothing is .*hf download"):
        load_backbone(BackboneSettings("t5_bsae"))


def test_a_folder_that_hides_a_known_backbone_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    backbone._tell_hidden.cache_clear()
    assert backbone_folder("nano") == "nano"
    assert "'nano' is the folder of that name here, not the backbone that is known by it" in capsys.readouterr().err
    assert backbone_folder("./nano") == "./nano" and not capsys.readouterr().err


SHARDED = """
import json, sys
import jax, numpy as np
from mpt_jax.config import BackboneSettings, MeshSettings
from mpt_jax.methods.method import places_for
from mpt_jax.methods.prompt import METHOD
from mpt_jax.model.backbone import load_backbone
from mpt_jax.sharding import make_mesh
settings = BackboneSettings(sys.argv[1], dtype="bfloat16")
mesh = make_mesh(MeshSettings(4, 1, 2))
sharded = load_backbone(settings, lambda config: places_for(mesh, METHOD, config).of_backbone())
whole = load_backbone(settings)
places = places_for(mesh, METHOD, whole.config)
found = {"devices": jax.device_count(), "fingerprint": sharded.fingerprint == whole.fingerprint, "halves": 0}
for path, array in sharded.flat().items():
    reference = np.asarray(whole.flat()[path])
    assert array.sharding.is_equivalent_to(places.sharding(path, array.shape), array.ndim), path
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), reference[shard.index])
    found["halves"] += array.addressable_shards[0].data.size == array.size // 2
print(json.dumps(found))
"""


def test_shards_go_straight_to_a_mesh_of_eight_devices(folder):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SHARDED, str(folder)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 8 and found["fingerprint"]
    split = [path for path in flatten(weights(CONFIG)) if not path.endswith("scale")]  # kernels, embedding and position biases
    assert found["halves"] == len(split)


def test_a_run_of_other_weights_is_refused():
    run = {"backbone": {"name": "tiny", "fingerprint": "f" * 16}}
    tiny_backbone().check_same(run, "run 'x'", "do something")
    with pytest.raises(UserError, match="run 'x' was trained on backbone tiny .f{16}., this is tiny .0{16}.; do something"):
        tiny_backbone("0" * 16).check_same(run, "run 'x'", "do something")


def test_a_backbone_without_a_vocabulary_needs_one(folder, tmp_path):
    formats.write_backbone("hf", str(tmp_path / "bare"), CONFIG, weights(CONFIG))
    with pytest.raises(UserError, match="brings no vocabulary; name its tokenizer.json or SentencePiece model"):
        load_backbone(BackboneSettings(str(tmp_path / "bare")))
