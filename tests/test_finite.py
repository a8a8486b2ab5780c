"""Numbers that are none: NaN, infinity and what a smaller type cannot hold are named, wherever they are read."""

import numpy as np
import pytest
from fixture_folders import random_params
from hostile import SMALL, unchecked

from mpt_jax.config import BackboneSettings
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.formats.arrays import check_finite


@pytest.mark.parametrize("kind", ["hf", "own", "t5x", "orbax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_named(kind, dtype, tmp_path):
    params = random_params(SMALL)
    params["encoder/layers_0/mlp/wo/kernel"][3, 5] = np.nan
    source = "encoder.layers_0.mlp.wo.kernel" if kind in ("t5x", "orbax") else "encoder/layers_0/mlp/wo/kernel"
    source = "encoder.block.0.layer.1.DenseReluDense.wo.weight" if kind == "hf" else source
    with pytest.raises(UserError, match="holds NaN"):
        formats.write_backbone(kind, tmp_path / kind, SMALL, params)
    assert not list(tmp_path.iterdir())  # nothing is written of it, either
    params["encoder/layers_0/mlp/wo/kernel"] = unchecked(params["encoder/layers_0/mlp/wo/kernel"])
    formats.write_backbone(kind, folder := tmp_path / kind, SMALL, params)
    (folder / "spiece.model").write_bytes(b"")  # looked at later
    place = r"\(5, 3\)|\(3, 5\)"
    with pytest.raises(UserError, match=f"{source} holds NaN at ({place})"):
        load_backbone(BackboneSettings(str(folder), "bytes", dtype))


def test_numbers_that_a_smaller_type_cannot_hold(tmp_path):
    array = np.full((2, 3), 1e39)
    lazy = formats.in_memory(array, "the file: weights")
    assert lazy.load().max() == 1e39
    for dtype in (np.float32, "bfloat16", np.float16):
        with pytest.raises(UserError, match="the file: weights holds infinity, or a float64 beyond"):
            formats.restore({"a": lazy}, dtype, digests={})


def test_every_kind_of_number_that_is_not_finite():
    for dtype in ("float16", "float32", "float64", "bfloat16"):
        good = np.array([0, -1, 60_000, -60_000], dtype)
        check_finite(good, "x")
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            with pytest.raises(UserError, match=r"x holds (NaN|infinity) at \(2,\)"):
                check_finite(np.array([0, -1, value, 1], dtype), "x")
    check_finite(np.array([2**31 - 1, -1]), "integers")
