"""Random weights of T5's shapes as a Hugging Face folder, which both sides of a comparison read."""

import dataclasses
from pathlib import Path

import numpy as np

from mpt_jax.model import formats
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config
from mpt_jax.model.formats import names

TINY = T5Config("tiny", 384, 64, 4, 16, 128, 2, 2)


def config_of(size: str, layers: int = 0) -> T5Config:
    """A row of the size table, or 'tiny'; ``layers`` > 0 replaces the depth of both stacks."""
    config = TINY if size == "tiny" else T5_SIZES[size]
    return dataclasses.replace(config, num_encoder_layers=layers, num_decoder_layers=layers) if layers else config


def backbone_folder(folder: Path, size: str, layers: int = 0) -> Path:
    """The folder of the weights, written where there is none: as wide as T5 initialises them, norms at one."""
    config = config_of(size, layers)
    path = folder / f"{size}_{config.num_encoder_layers}_hf"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    params = {}
    for entry in names.entries(config):
        scale = 1.0 if "embed" in entry.ours else entry.shape[0] ** -0.5
        if entry.ours.endswith("query/kernel"):
            scale *= config.head_dim**-0.5
        one = entry.ours.endswith("scale")
        params[entry.ours] = np.ones(entry.shape, np.float32) if one else scale * rng.standard_normal(entry.shape, np.float32)
    formats.write_backbone("hf", str(path), config, params)
    return path
