"""Runs of random prompts on a random backbone, written as training leaves them: what convert, load and serve read."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import tiny_families
from tiny_model import CONFIG, weights
from tiny_run import row, write_run

from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, fingerprint_of


def write_backbone(folder: Path, config=CONFIG, vocabulary: str = "bytes") -> dict:
    """Writes a backbone; what a run says of it."""
    arrays = jax.tree.map(lambda array: 2.0 * array, weights(config)) if config is CONFIG else tiny_families.weights(config)
    formats.write_backbone("own", str(folder), config, arrays, vocabulary)
    return {"backbone": str(folder), "fingerprint": fingerprint(str(folder))}


def fingerprint(name: str) -> str:
    """What run.json says of the weights of a backbone."""
    return fingerprint_of(formats.read_backbone(backbone_folder(name))[1])


@functools.cache
def prompts(count: int, length: int, width: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    """Random prompts (N, P, D)."""
    return scale * np.random.default_rng(seed).normal(size=(count, length, width)).astype(np.float32)


def write_prompts(
    folder: Path, described: dict, names, width: int = 16, length: int = 4, seed: int = 0, scale: float = 3.0, inputs: int = 64, cue="",
    vocabulary="",
) -> str:
    """A run of teachers: a prompt of its own for each task (a name may be there twice, with another seed). inputs: tokens at most."""
    runs = [row(name, 1 + sum(other == name for other in names[:n]), n) for n, name in enumerate(names)]
    write_run(folder, runs, {"bank/shared": prompts(len(names), length, width, seed, scale)}, **described)
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["data"] |= {"feature_lengths": {"inputs": inputs, "targets": 16}, "cue": cue}
    run["settings"]["backbone"]["vocabulary"] = vocabulary
    (folder / "run.json").write_text(json.dumps(run))
    return str(folder)
