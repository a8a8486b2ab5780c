"""Run folders and gin files that are damaged in many ways are read, or named, in 2 s and 1 GiB; other files: test_mutated_files.py."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from mutations import Reader, hunt, report

import gin
from mpt_jax.bindings import Binding
from mpt_jax.checkpoint import Best, Checkpoints, load, load_trainable
from mpt_jax.config import EvalSettings, OptimizerSettings, PromptSettings, TrainSettings
from mpt_jax.gin_settings import configured, parse_gin
from mpt_jax.infer import report as reports
from mpt_jax.methods.prompt import bank_alone
from mpt_jax.train import plan

SEED = 20_261
TRAIN = {"stage": "fewshot", "train_steps": 40, "patience": 2, "eval_steps": 10}
GIN = """include 'teacher.gin'
# a comment
TASKS = ['a', 'b']
MODEL_DIR = 'runs/x'
SEED = [1, 2]
LEARNING_RATE = 0.3
TASK_FEATURE_LENGTHS = {'inputs': 32, 'targets': 8}
PromptSettings.length = %PROMPT_LENGTH
"""


def state() -> dict:
    rng = np.random.default_rng(0)
    shapes = {"shared": (2, 3, 300), "cols": (4, 3, 1), "rows": (4, 1, 300)}  # some beyond a kilobyte, which files keep apart
    trainable = {f"bank/{name}": jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return {"step": jnp.asarray(40), "trainable": trainable, "opt_state": (trainable, {"count": jnp.asarray(3)})}


def write_run(folder: Path) -> None:
    """A few-shot run of two tasks and two seeds, scored and evaluated."""
    rates = {"learning_rate": 0.3, "factor_learning_rate": 0.1}
    runs = [{"task": task, "seed": seed, "group": seed - 1, **rates, "few_shot": [1, 5]} for seed in (1, 2) for task in ("rte", "b")]
    described = {
        "stage": "fewshot", "tasks": ["rte", "b"], "runs": runs, "settings": {"train": TRAIN, "data": {"k_shot": 16}},
        "parameters": {"per_task": 30, "fraction_of_backbone": 0.1}, "backbone": {"name": "x", "fingerprint": "0", "parameters": 300},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "config.gin").write_text(GIN)
    lines = [
        {"step": step, "split": split, "task": row["task"], "run": n, "loss": 1.0 / step, "accuracy": 50.0 + step}
        for step in (10, 20, 40) for n, row in enumerate(runs) for split in ("train", "dev")
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "eval").mkdir()
    found = {"task": "rte", "split": "test", "main_score": "accuracy", "scores": {"accuracy": 80.0}, "std": {"accuracy": 1.0}, "runs": [{}]}
    (folder / "eval" / "rte.json").write_text(json.dumps(found))


def read_report(folder: Path) -> None:
    """All that a report says, but for the picture, which takes a second to draw."""
    records = reports.read_runs([folder])
    tables = [reports.score_rows(records), reports.run_rows(records), *(found.rows for found in reports.comparisons(records))]
    assert all(isinstance(cell, str) for table in tables for row in table for cell in row)
    reports.loss_lines(records), reports.dev_lines(records), reports.bars(records), list(reports._details(records))


def write_checkpoint(folder: Path) -> None:
    write_run(folder)
    given = state()
    checkpoints = Checkpoints(folder, runs=json.loads((folder / "run.json").read_text())["runs"])
    best = Best({path: np.asarray(array) for path, array in given["trainable"].items()}, np.zeros(2), np.array([20, 30]))
    checkpoints.save(40, given, best, {"data": {}})
    checkpoints.close()


def read_checkpoint(folder: Path) -> None:
    """As a source or a teacher, by its last weights, and to go on."""
    plan.is_finished(load(folder))
    for which in ("best", "last"):
        bank = bank_alone(*load_trainable(folder, which), str(folder))
        np.testing.assert_array_equal(bank.shared_GPD, state()["trainable"]["bank/shared"])
    checkpoints = Checkpoints(folder)
    try:
        checkpoints.restore(40, state())
    finally:
        checkpoints.close()


def read_gin(folder: Path) -> None:
    try:
        parse_gin([str(folder / "own.gin")], [Binding.of("TRAIN_STEPS=5"), Binding.of("BACKBONE=nano")])
        for cls in (TrainSettings, PromptSettings, OptimizerSettings, EvalSettings):
            configured(cls)
    finally:
        gin.clear_config()


READERS = {
    "run_folder": Reader(write_run, read_report),
    "checkpoint": Reader(write_checkpoint, read_checkpoint, kept=("config.gin", "metrics.jsonl", "eval/*")),
    "gin": Reader(lambda folder: (folder / "own.gin").write_text(GIN), read_gin),
}


@pytest.mark.parametrize("name, count", [("run_folder", 60), ("checkpoint", 20), ("gin", 60)])
def test_damaged_runs_are_read_or_named(tmp_path, name, count):
    outcomes = hunt("test_mutated_runs", [name], SEED, count, tmp_path)
    assert len(outcomes) == count and not report(outcomes, SEED), report(outcomes, SEED)


@pytest.mark.long
def test_thousands_of_damaged_runs_are_read_or_named(tmp_path):
    outcomes = [outcome for name in READERS for outcome in hunt("test_mutated_runs", [name], SEED + 1, 600, tmp_path)]
    assert len(outcomes) == 1800 and not report(outcomes, SEED + 1), report(outcomes, SEED + 1)
