"""Scores of the study: on dev splits while choosing, and once on test rows in the final evaluation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tasks
from benchmarks.study import data
from benchmarks.study.plan import BACKBONE, LENGTHS
from mpt_jax.config import BackboneSettings
from mpt_jax.data.cache import TokenCache, open_cache
from mpt_jax.infer import requests
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs
from mpt_jax.infer.predictor import Predictor, load
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Network

ROWS_AT_ONCE = 32
SPEC = inference_spec(LENGTHS["inputs"], LENGTHS["targets"], ROWS_AT_ONCE)


def caches(folder: Path, names: Sequence[str], split: str, vocabulary) -> dict[str, TokenCache]:
    """Token caches of a split of registered tasks."""
    return {name: open_cache(name, split, vocabulary, folder / "cache") for name in names}


def run_scores(folder: Path, run_dir: Path, split: str, targets: Sequence[str] = ()) -> dict[tuple[int, str], float]:
    """(row of the run, task) -> accuracy in percent, the best label chosen: each row on its own task, or on all ``targets``."""
    predictor: Predictor = load(run_dir, batch_size=ROWS_AT_ONCE, feature_lengths=LENGTHS)
    rows = predictor.run["runs"]
    held = caches(folder, targets or list(dict.fromkeys(row["task"] for row in rows)), split, predictor.vocabulary)
    pairs = [(n, name) for n, row in enumerate(rows) for name in (targets or [row["task"]])]
    results = evaluate_runs(predictor.model, [EvalRun(held[name], n) for n, name in pairs], predictor.spec, method="rank")
    return {pair: result.scores["accuracy"] for pair, result in zip(pairs, results, strict=True)}


def instruction_scores(folder: Path, split: str) -> dict[str, dict[str, float]]:
    """What the backbone answers to a target's instruction in words, without training: accuracy raw, and with the labels' prior taken out.

    The prior of a label is its mean log-probability over the inputs of the same split; no label of a row enters.
    """
    backbone = load_backbone(BackboneSettings(BACKBONE))
    model = Model(Network(backbone.config), backbone.params, backbone.vocabulary(data.CUE))
    found = {}
    for name, row in data.TARGETS.items():
        cache = caches(folder, [f"{name}_asked"], split, model.vocabulary)[f"{name}_asked"]
        given = Requests([cache.inputs(n) for n in range(cache.rows)], [0] * cache.rows, [0] * cache.rows)
        logp = requests.score_each_label(model, given, requests.label_tokens(row.labels, model.vocabulary), SPEC)
        gold = np.array([row.labels.index(tasks.scoring.target_text(cache.extra(n))) for n in range(cache.rows)])
        corrected = logp - logp.mean(axis=0)
        found[name] = {
            kind: float(100 * np.mean(values.argmax(axis=1) == gold)) for kind, values in (("raw", logp), ("prior out", corrected))
        }
    return found
