"""Checkpoints for the tests of formats: tiny random T5s, and the fixtures of the shared test data."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny

from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import names

CHECKPOINTS = ("hf_t5_tiny", "t5x_v1_1_tiny_zarr/checkpoint_3", "t5x_tiny_msgpack/checkpoint_0")
# what is read from shapes that no published size has is called 'custom'
TINY = tiny(name="custom", vocab_size=48, d_ff=24, num_encoder_layers=3, num_decoder_layers=2)
TINY_V1_0 = dataclasses.replace(TINY, num_encoder_layers=2, mlp_activations=("relu",), logits_via_embedding=True)


def data_folder(name: str) -> str:
    """A path in the folder of test data, or a skipped test."""
    folder = os.environ.get("MPT_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"no {path}: set MPT_DATA_DIR to the folder of test data")
    return str(path)


def random_params(config: T5Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights of a config by path."""
    rng = np.random.default_rng(seed)
    return {
        entry.ours: rng.normal(0, 0.25, entry.shape).astype(np.float32) + (len(entry.shape) == 1)
        for entry in names.entries(config)
    }
