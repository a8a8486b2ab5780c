"""A trained run for notebooks and scripts: ``mpt_jax.load(run_dir).predict(["…"], task="trec")``.

B examples, P prompt positions, D model width, C labels.
"""

import dataclasses
import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

import tasks
from mpt_jax import sharding
from mpt_jax.checkpoint import bank_of, load_trainable
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.evaluate import spelling
from mpt_jax.infer.history import best_dev, chosen_settings
from mpt_jax.infer.requests import Model, Progress, Requests
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.prompt_bank import compose
from mpt_jax.run_folder import require

log = logging.getLogger(__name__)
BATCH_SIZE = 64  # rows answered together
LENGTHS = tuple(f"settings.data.feature_lengths.{name}" for name in ("inputs", "targets"))
NEEDED = ("tasks", "runs", "settings.train.backbone", *LENGTHS, "backbone.name", "backbone.fingerprint")


class Predictor:
    """Answers, probabilities and prompts of a run's tasks. Texts are what the model reads; ``format`` applies a task's template.

    A task trained under several learning rates and seeds answers with the best rates on the dev split and the first seed, unless
    ``seed`` names another.
    """

    def __init__(self, model: Model, vocabulary: Vocabulary, run: dict, spec: BatchSpec, best: Mapping[int, float] | None = None):
        self.model, self.vocabulary, self.run, self.spec = model, vocabulary, run, spec
        self.tasks: tuple[str, ...] = tuple(run["tasks"])
        self._best = dict(best or {})

    def bank_rows(self, task: str | None = None) -> list[int]:
        """Bank rows of a task, those with the best learning rates; one row for a run that trained a backbone.

        Raises UserError for a task that the run does not hold, or where none is named and it holds several.
        """
        if self.model.bank is None:
            return [n for n, row in enumerate(self.run["runs"]) if row["task"] == task][:1] or [0]
        if task is None and len(self.tasks) > 1:
            raise UserError(f"this run holds several tasks: name one of {', '.join(self.tasks)} as `task`.")
        task = self.tasks[0] if task is None else task
        rows = self.run["runs"]
        numbers = [n for n, row in enumerate(rows) if row["task"] == task]
        if not numbers:
            near = difflib.get_close_matches(task, self.tasks, 3, 0.4) or self.tasks
            raise UserError(f"this run holds no prompt of task {task!r}; nearest: {', '.join(near)}.")
        return chosen_settings(rows, numbers, self._best)

    def bank_row(self, task: str | None = None, seed: int | None = None) -> int:
        """The bank row that answers for a task. Raises UserError for an unknown task or seed."""
        numbers = self.bank_rows(task)
        if seed is None or self.model.bank is None:
            return numbers[0]
        seeds = [self.run["runs"][n]["seed"] for n in numbers]
        if seed not in seeds:
            raise UserError(f"seed = {seed}: the run holds seeds {', '.join(map(str, seeds))} of task {task!r}.")
        return numbers[seeds.index(seed)]

    def predict(
        self,
        texts: Sequence[str],
        task: str | None = None,
        seed: int | None = None,
        max_tokens: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """The most likely answer to each text, token by token; at most ``max_tokens`` (0: the run's target length)."""
        limit = max_tokens or self.spec.target_length
        given = self._requests(texts, self.bank_row(task, seed), limit)
        answers = requests.decode(self.model, given, self._spec(len(given.task_id)), progress)
        spelled = spelling(task or self.tasks[0], self.vocabulary)
        return [spelled.get(text, text) for text in map(self.vocabulary.decode, answers)]

    def score(self, inputs: Sequence[str], targets: Sequence[str], task: str | None = None, seed: int | None = None) -> np.ndarray:
        """Log-probability of each target (natural logarithm, summed over its tokens, EOS included): (B,) float32."""
        if isinstance(targets, str) or len(inputs) != len(targets):
            raise UserError(f"score takes a target for each input: {len(inputs)} inputs, {len(targets)} targets.")
        tokens = [requests.tokens_of(text, self.vocabulary) for text in targets]
        longest = max(map(len, tokens), default=0)
        if longest > self.spec.target_length:
            limit = self.spec.target_length
            raise UserError(f"a target has {longest} tokens, the limit is {limit}: raise TASK_FEATURE_LENGTHS['targets'].")
        given = self._requests(inputs, self.bank_row(task, seed), 0, tokens)
        return requests.score_given(self.model, given, self._spec(given.rows))

    def score_labels(
        self,
        texts: Sequence[str],
        labels: Sequence[str] | None = None,
        task: str | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Log-probability of every label for each text: (B, C) float32; labels default to the registered task's."""
        labels_CT = requests.label_tokens(labels or self.labels(task), self.vocabulary)
        given = self._requests(texts, self.bank_row(task, seed), 0)
        return requests.score_each_label(self.model, given, labels_CT, self._spec(given.rows), progress)

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Labels of a task of the table. Raises UserError where it has none."""
        name = self.tasks[0] if task is None and len(self.tasks) == 1 else task
        registered = tasks.TABLE.get(name)
        if registered is None or not registered.labels:
            raise UserError(f"task {name!r} has no labels here: register it (MIXTURE_OR_TASK_MODULE) or give `labels`.")
        return registered.labels

    def prompt(self, task: str | None = None, seed: int | None = None) -> np.ndarray:
        """The prompt of a task, composed: (P, D) float32. Raises UserError for a run that trained a backbone."""
        if self.model.bank is None:
            raise UserError("this run trained a backbone and holds no prompt.")
        return np.asarray(compose(self.model.bank, np.array([self.bank_row(task, seed)]))[0], np.float32)

    def format(self, row: Mapping, task: str | None = None) -> str:
        """The text that the model reads for a row of fields. Raises tasks.TaskError for a missing field, UserError for the task."""
        name = self.tasks[0] if task is None and len(self.tasks) == 1 else task
        if name not in tasks.TABLE:
            raise UserError(f"task {name!r} is not registered here: import its module (MIXTURE_OR_TASK_MODULE), or give texts.")
        return tasks.inputs_text(tasks.TABLE[name], row, "the given row")

    def _spec(self, rows: int) -> BatchSpec:
        """Batches no larger than needed: a call with one text is not padded to a full batch."""
        size = min(self.spec.micro_batch_size, 1 << max(rows - 1, 0).bit_length())
        return dataclasses.replace(self.spec, micro_batch_size=size)

    def _requests(self, texts: Sequence[str], bank_row: int, limit: int, targets=None) -> Requests:
        if isinstance(texts, str):
            raise UserError(f"texts must be a list of texts, not the text {texts!r:.60}.")
        empty = [place for place, text in enumerate(texts) if not text.strip()]
        if empty:
            raise UserError(f"zero-length input: text {empty[0]} of {len(texts)} is {texts[empty[0]]!r}.")
        tokens = [requests.tokens_of(text, self.vocabulary) for text in texts]
        longest = self.spec.input_length
        cut = sum(len(row) > longest for row in tokens)
        if cut and (limit or targets is not None):  # label scores come with answers to the same texts
            message = "%d of %d inputs are longer than %d tokens and were cut; raise TASK_FEATURE_LENGTHS['inputs']"
            log.warning(message, cut, len(tokens), longest)
        return Requests(tokens, [bank_row] * len(tokens), [limit] * len(tokens), targets)


def load(
    run_dir: str | Path,
    checkpoint: str = "best",
    backbone: str = "",
    feature_lengths: Mapping[str, int] | None = None,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
) -> Predictor:
    """A run folder ready to answer. checkpoint: 'best' on the dev split | 'last'.

    ``backbone`` replaces a folder that has moved since training; its weights must be the same. ``feature_lengths`` (tokens) default
    to those of training; ``batch_size`` rows are answered together, split over ``mesh`` if there is one. Raises UserError for a folder
    that is no run, is damaged, or belongs to other weights.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint = {checkpoint!r} is not one of 'best', 'last'.")
    trained, run = load_trainable(run_dir, checkpoint)
    bank = bank_of(trained, run)
    require(run, run_dir, *NEEDED)
    train = run["settings"]["train"]
    name, place = backbone or train["backbone"], sharding.backbone_sharding(mesh)
    # not 'fused', which the machine that trained may have had and this one lacks
    attention = "einsum" if train.get("attention") == "einsum" else "auto"
    loaded = load_backbone(name, train.get("dtype", "float32"), train.get("vocabulary", ""), place, attention)
    if loaded.fingerprint != run["backbone"]["fingerprint"]:
        there = f"{run['backbone']['name']} ({run['backbone']['fingerprint']})"
        message = f"run {str(run_dir)!r} was trained on backbone {there}, but {loaded.name} ({loaded.fingerprint}) was found"
        raise UserError(f"{message}; give the folder of the same weights as `backbone`.")
    params = loaded.params
    if any(path.startswith("backbone/") for path in trained):
        params = sharding.place_tree(mesh, _with_trained(params, trained))
    lengths = feature_lengths or run["settings"]["data"]["feature_lengths"]
    spec = requests.inference_spec(lengths["inputs"], lengths["targets"], batch_size)
    vocabulary = loaded.vocabulary()
    return Predictor(Model(loaded.config, params, bank, mesh), vocabulary, run, spec, best_dev(run_dir))


def _with_trained(params: dict, trained: Mapping[str, np.ndarray]) -> dict:
    """Backbone weights with the trained ones in place; what else was trained (teaching heads) answers nothing."""
    flat = flatten_dict(params, sep="/")
    for path, array in trained.items():
        name = path.removeprefix("backbone/")
        if name != path:
            flat[name] = array.astype(flat[name].dtype)
    return unflatten_dict(flat, sep="/")
