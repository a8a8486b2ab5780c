"""Scores of the study: on dev splits while choosing, and once on test rows in the final evaluation."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.study import data
from benchmarks.study.plan import ACCELERATOR, BACKBONE, BUCKETS, DEV_ROWS, DTYPE, LENGTHS
from mpt_jax import tasks
from mpt_jax.checkpoint import load_trainable
from mpt_jax.config import BackboneSettings
from mpt_jax.data.cache import TokenCache, open_cache
from mpt_jax.infer import requests
from mpt_jax.infer.evaluate import EvalResult, EvalRun, evaluate_runs
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.methods.bank import PromptBank, compose_all
from mpt_jax.methods.method import Method
from mpt_jax.methods.prompt import METHOD, bank_of, paths_of
from mpt_jax.methods.table import method_named
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families.family import Network

COMPUTATION = BackboneSettings(BACKBONE, dtype=DTYPE).computation
SPEC = inference_spec(LENGTHS["inputs"], LENGTHS["targets"], 256 if ACCELERATOR else 32, BUCKETS)


class Trained(NamedTuple):
    """What answers: a method, its arrays by path, and the group of each run (N,)."""

    method: Method
    arrays: Mapping[str, Any]
    group_N: np.ndarray


def trained_of(run_dir: Path, weights: str = "best") -> tuple[list[dict], Trained]:
    """The runs of a folder and their best or last arrays."""
    arrays, run = load_trainable(run_dir, weights)
    return run["runs"], Trained(method_named(run["method"]), arrays, np.array([row["group"] for row in run["runs"]], np.int32))


def prompts_of(run_dir: Path) -> tuple[list[dict], np.ndarray]:
    """The runs of a folder and their best prompts (N, P, D)."""
    runs, trained = trained_of(run_dir)
    return runs, np.asarray(compose_all(bank_of(trained.arrays, trained.group_N)))


def accuracies(
    folder: Path, prompts_NPD: np.ndarray, pairs: Sequence[tuple[int, str]], split: str, backbone: Backbone, rows: int = 0
) -> list[float]:
    """Accuracy in percent of each (prompt, task) pair on a split, or ``rows`` of it; the label that decoding among labels gives."""
    number = np.arange(len(prompts_NPD), dtype=np.int32)
    trained = Trained(METHOD, paths_of(PromptBank(prompts_NPD, None, None, number)), number)
    return accuracies_of(folder, trained, pairs, split, backbone, rows)


def accuracies_of(
    folder: Path, trained: Trained, pairs: Sequence[tuple[int, str]], split: str, backbone: Backbone, rows: int = 0
) -> list[float]:
    """As ``accuracies``, of each (run, task) pair of any method."""
    return [result.scores["accuracy"] for result in _results(folder, trained, pairs, split, backbone, rows)]


def _results(
    folder: Path, trained: Trained, pairs: Sequence[tuple[int, str]], split: str, backbone: Backbone, rows: int
) -> list[EvalResult]:
    network = Network(backbone.config, COMPUTATION, trained.method.adaptation)
    vocabulary = backbone.vocabulary(data.CUE)
    model = Model(network, backbone.params, vocabulary, trained.arrays, trained.method.parts, trained.group_N)
    held = {name: caches(folder, name, split, vocabulary) for name in {name for _, name in pairs}}
    return evaluate_runs(model, [EvalRun(held[name], n, rows) for n, name in pairs], SPEC, method="rank")


def caches(folder: Path, name: str, split: str, vocabulary) -> TokenCache:
    """The token cache of a split of a registered task."""
    return open_cache(name, split, vocabulary, folder / "cache")


def run_scores(folder: Path, run_dir: Path, split: str, backbone: Backbone, rows: Sequence[int]) -> dict[tuple[int, str], float]:
    """(row of the run, its task) -> accuracy on a split."""
    runs, trained = trained_of(run_dir)
    pairs = [(n, runs[n]["task"]) for n in rows]
    return dict(zip(pairs, accuracies_of(folder, trained, pairs, split, backbone), strict=True))


def screened(folder: Path, run_dir: Path, targets: Collection[str], backbone: Backbone) -> dict[str, dict[str, float]]:
    """Of each source task's prompt, and of their mean: its accuracy on every target's dev rows without training on the target."""
    runs, prompts_NPD = prompts_of(run_dir)
    prompts_NPD = np.concatenate([prompts_NPD, prompts_NPD.mean(axis=0, keepdims=True)])
    names = [row["task"] for row in runs] + ["mean"]
    pairs = [(n, target) for n in range(len(names)) for target in targets]
    found = dict(zip(pairs, accuracies(folder, prompts_NPD, pairs, "validation", backbone, DEV_ROWS), strict=True))
    return {name: {target: found[n, target] for target in targets} for n, name in enumerate(names)}


def answers(folder: Path, trained: Trained, pairs: Sequence[tuple[int, str]], backbone: Backbone) -> list[dict[str, float]]:
    """What each (run, task) pair answers to the dev rows that choose, in percent: see ``of_answers``."""
    found = []
    for result in _results(folder, trained, pairs, "validation", backbone, DEV_ROWS):
        cache = caches(folder, result.task, "validation", backbone.vocabulary(data.CUE))
        found.append(of_answers(result.predictions, [tasks.scoring.target_text(cache.extra(n)) for n in result.row_index]))
    return found


def of_answers(given: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """In percent: accuracy, recall (of each label, their mean: what one label for all rows gets is 100 / labels), and most_frequent
    (the share of the answer that is given most).

    >>> of_answers(["no", "no", "no", "yes"], ["no", "no", "yes", "yes"])
    {'accuracy': 75.0, 'recall': 75.0, 'most_frequent': 75.0}
    """
    given_N, label_N = np.array(given), np.array(labels)
    right_N = given_N == label_N
    recall = np.mean([right_N[label_N == label].mean() for label in np.unique(label_N)])
    most = np.unique(given_N, return_counts=True)[1].max() / len(given_N)
    return {name: float(100 * value) for name, value in (("accuracy", right_N.mean()), ("recall", recall), ("most_frequent", most))}


def majorities(folder: Path, split: str, targets: Collection[str], backbone: Backbone) -> dict[str, float]:
    """Of each target: the accuracy, in percent, of always answering the most frequent label of the rows that are scored."""
    found = {}
    for name in targets:
        cache = caches(folder, name, split, backbone.vocabulary(data.CUE))
        scored = EvalRun(cache, 0, DEV_ROWS if split == "validation" else 0).rows()
        labels = [tasks.scoring.target_text(cache.extra(n)) for n in scored]
        found[name] = 100 * max(map(labels.count, set(labels))) / len(labels)
    return found


def instruction_scores(folder: Path, split: str, targets: Mapping[str, data.Row], backbone: Backbone) -> dict[str, dict[str, float]]:
    """What the backbone answers to a target's instruction in words, without training: accuracy raw, and with the labels' prior taken out.

    The prior of a label is its mean log-probability over the same inputs; no label of a row enters.
    """
    model = Model(Network(backbone.config, COMPUTATION), backbone.params, backbone.vocabulary(data.CUE))
    found = {}
    for name, row in targets.items():
        cache = caches(folder, f"{name}_asked", split, model.vocabulary)
        rows = EvalRun(cache, 0, DEV_ROWS if split == "validation" else 0).rows()
        given = Requests([cache.inputs(n) for n in rows], [0] * len(rows), [0] * len(rows))
        logp = requests.score_each_label(model, given, requests.label_tokens(row.labels, model.vocabulary), SPEC)
        gold = np.array([row.labels.index(tasks.scoring.target_text(cache.extra(n))) for n in rows])
        corrected = logp - logp.mean(axis=0)
        found[name] = {
            kind: float(100 * np.mean(values.argmax(axis=1) == gold)) for kind, values in (("raw", logp), ("prior out", corrected))
        }
    return found
