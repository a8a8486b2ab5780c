"""Random weights of a family's shapes as a Hugging Face folder, which both sides of a comparison read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mpt_jax.model import formats
from mpt_jax.model.families import FAMILIES
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import names

SIZES = {size: config for family in FAMILIES.values() for size, config in family.sizes.items()}

TINY = T5Config("tiny", 384, 64, 4, 16, 128, 2, 2)


def depth_of(config: Any) -> int:
    """Layers of the decoder."""
    return config.num_decoder_layers if hasattr(config, "num_decoder_layers") else config.num_layers


def config_of(size: str, layers: int = 0) -> Any:
    """A row of the families' size tables, or 'tiny'; ``layers`` > 0 replaces the depth of every stack."""
    config = TINY if size == "tiny" else SIZES[size]
    depths = [field.name for field in dataclasses.fields(config) if field.name.startswith("num_") and field.name.endswith("layers")]
    return dataclasses.replace(config, **dict.fromkeys(depths, layers)) if layers else config


def backbone_folder(folder: Path, size: str, layers: int = 0) -> Path:
    """The folder of the weights, written where there is none: as wide as T5 initialises them, whatever the family, norms at one."""
    config = config_of(size, layers)
    path = folder / f"{size}_{depth_of(config)}_hf"
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
