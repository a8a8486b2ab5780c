"""Run folders as training leaves them, for the tests of what reads them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tiny_model import CONFIG, LENGTH

from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings

DATA = DataSettings(feature_lengths={"inputs": 32, "targets": 16})
STEP = 5  # of the one checkpoint


def row(task: str, seed: int = 1, group: int = 0, rate: float = 0.3, **more) -> dict:
    """A run of run.json."""
    return {"task": task, "seed": seed, "group": group, "learning_rate": rate, "factor_learning_rate": rate, **more}


def describe(
    folder: Path, runs: Sequence[dict], backbone: str = "tiny", fingerprint: str = "f" * 16, stage: str = "teacher", **train
) -> dict:
    """Writes run.json; its content. ``train``: further settings."""
    chosen = TrainSettings(stage, str(folder), **{"train_steps": STEP, **train})
    settings = Settings(chosen, BackboneSettings(backbone), PromptSettings(length=LENGTH), data=DATA)
    described = {
        "stage": stage,
        "method": "weights" if settings.train.trains_backbone else "prompt",
        "tasks": list(dict.fromkeys(run["task"] for run in runs)),
        "runs": list(runs),
        "settings": settings.describe(),
        "backbone": {"name": backbone, "fingerprint": fingerprint, "parameters": CONFIG.num_parameters()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(described))
    return described


def write_run(
    folder: Path, runs: Sequence[dict], trainable: dict, best: dict | None = None, step: int = STEP, best_step_G=None, **described
) -> str:
    """A run with one checkpoint, of its last step if ``train_steps`` does not say otherwise.

    best: arrays of the best steps, where the dev split was scored.
    """
    describe(folder, runs, **described)
    groups = 1 + max(run["group"] for run in runs)
    steps_G = np.zeros(groups, np.int64) if best_step_G is None else np.array(best_step_G)
    kept = None if best is None else Best(best, np.zeros(groups), steps_G)
    checkpoints = Checkpoints(folder, runs=list(runs))
    state = {"step": np.asarray(step), "trainable": trainable, "opt_state": ()}
    checkpoints.save(step, state, kept, {"step": step, "has_best": best is not None})
    checkpoints.close()
    return str(folder)
