"""A trained run for notebooks and scripts: ``mpt_jax.load(run_dir).predict(["…"], task="trec")``.

B examples, P prompt positions, D model width, C labels.
"""

import dataclasses
import difflib
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import distributed, tasks
from mpt_jax.checkpoint import load as load_checkpoint
from mpt_jax.config import MOST_TOKENS, BackboneSettings, DataSettings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.spelling import check_labels, spelling
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.history import best_dev, chosen_settings
from mpt_jax.infer.requests import BATCH_SIZE, Model, Progress, Requests
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.methods.bank import compose
from mpt_jax.methods.method import backbone_of, check_counts, own_of, places_for
from mpt_jax.methods.prompt import bank_of
from mpt_jax.methods.table import method_named
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Network
from mpt_jax.run_folder import require

log = logging.getLogger(__name__)
LENGTHS = tuple(f"settings.data.feature_lengths.{name}" for name in ("inputs", "targets"))
NEEDED = ("tasks", "runs", "settings.backbone.path", *LENGTHS, "backbone.name", "backbone.fingerprint")


class Predictor:
    """Answers, probabilities and prompts of a run's tasks. Texts are what the model reads; ``format`` applies a task's template.

    A task trained under several learning rates and seeds answers with the best rates on the dev split and the first seed, unless
    ``seed`` names another.
    """

    def __init__(self, model: Model, run: dict, spec: BatchSpec, best: Mapping[int, float] | None = None, step: int | None = None):
        self.model, self.vocabulary, self.run, self.spec = model, model.vocabulary, run, spec
        self.step = step  # that training had come to
        self.tasks: tuple[str, ...] = tuple(run["tasks"])
        self._best = dict(best or {})

    def bank_rows(self, task: str | None = None) -> list[int]:
        """Bank rows of a task, those with the best learning rates; one row for a run that trained a backbone.

        Raises UserError for a task that the run does not hold, or where none is named and it holds several.
        """
        if not self.model.own:
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

    def undecided(self) -> list[str]:
        """A line for each task that has several learning rates, and no dev scores to tell which did best."""
        lines = []
        for task in self.tasks if self.model.own else ():
            rows = {n: row for n, row in enumerate(self.run["runs"]) if row["task"] == task}
            rates = list(dict.fromkeys((row.get("learning_rate"), row.get("factor_learning_rate")) for row in rows.values()))
            if len(rates) > 1 and not all(n in self._best for n in rows):
                does = f"answers are those of {rates[0][0]}, eval averages over all"
                lines.append(f"no dev scores tell which of {len(rates)} learning rates is best for task {task!r}: {does}")
        return lines

    def bank_row(self, task: str | None = None, seed: int | None = None) -> int:
        """The bank row that answers for a task. Raises UserError for an unknown task or seed."""
        numbers = self.bank_rows(task)
        if seed is None or not self.model.own:
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
        search: Search = GREEDY,
    ) -> list[str]:
        """An answer to each text, the most likely one token by token, or as ``search`` says.

        At most ``max_tokens`` (0: the run's target length).
        """
        if not 0 <= max_tokens <= MOST_TOKENS:
            raise UserError(f"max_tokens = {max_tokens}: must be 0 .. {MOST_TOKENS:,}.")
        limit = max_tokens or self.spec.target_length
        spelled = spelling(self._one_task(task), self.vocabulary, self.spec.target_length)
        given = self._requests(texts, self.bank_row(task, seed), limit)
        answers = requests.decode(self.model, given, self._spec(len(given.task_id)), progress, search)
        return [spelled.get(text, text) for text in map(self.vocabulary.text_of, answers)]

    def score(self, inputs: Sequence[str], targets: Sequence[str], task: str | None = None, seed: int | None = None) -> np.ndarray:
        """Log-probability of each target (natural logarithm, summed over its tokens, EOS included): (B,) float32."""
        if isinstance(targets, str) or len(inputs) != len(targets):
            raise UserError(f"score takes a target for each input: {len(inputs)} inputs, {len(targets)} targets.")
        _check_texts("target", targets)
        tokens = [np.array(self.vocabulary.target_tokens(text), np.int32) for text in targets]
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
        """Log-probability of every label for each text: (B, C) float32; labels default to the registered task's.

        Raises UserError for labels that the vocabulary cannot tell apart.
        """
        labels = labels or self.labels(task)
        _check_texts("label", labels)
        check_labels(self._one_task(task), labels, self.vocabulary)
        tokens = requests.label_tokens(labels, self.vocabulary)
        given = self._requests(texts, self.bank_row(task, seed), 0)
        return requests.score_each_label(self.model, given, tokens, self._spec(given.rows), progress)

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Labels of a task of the table. Raises UserError where it has none."""
        name = self._one_task(task)
        registered = tasks.TABLE.get(name)
        if registered is not None and not registered.labels:
            raise UserError(f"task {name!r} has a target and no labels: leave out --score, or give `labels`.")
        if registered is None:
            raise UserError(f"task {name!r} has no labels here: register it (MIXTURE_OR_TASK_MODULE) or give `labels`.")
        return registered.labels

    def check_task(self, task: str | None, needs_labels: bool = False) -> None:
        """Raises UserError for labels that cannot be answered (too long, the same to the vocabulary), or none where they are needed."""
        spelling(self._one_task(task), self.vocabulary, self.spec.target_length)
        if needs_labels:
            self.labels(task)

    def _one_task(self, task: str | None) -> str | None:
        """The task named, or the run's only one."""
        return self.tasks[0] if task is None and len(self.tasks) == 1 else task

    def prompt(self, task: str | None = None, seed: int | None = None) -> np.ndarray:
        """The prompt of a task, composed: (P, D) float32. Raises UserError for a run that trained something else."""
        bank = bank_of(self.model.own, self.model.group_N)
        if bank is None:
            raise UserError("this run trained a backbone, or another method's parameters, and holds no prompt.")
        return np.asarray(compose(bank, np.array([self.bank_row(task, seed)]))[0], np.float32)

    def format(self, row: Mapping, task: str | None = None) -> str:
        """The text that the model reads for a row of fields. Raises tasks.TaskError for a missing field, UserError for the task."""
        name = self._one_task(task)
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
        _check_texts("text", texts)
        empty = [number for number, text in enumerate(texts) if not text.strip()]
        if empty:
            raise UserError(f"zero-length input: text {empty[0]} of {len(texts)} is {texts[empty[0]]!r}.")
        tokens = [np.array(self.vocabulary.input_tokens(text), np.int32) for text in texts]
        around = len(self.vocabulary.input_tokens(""))
        empty = [number for number, row in enumerate(tokens) if len(row) == around]
        if empty:
            text = f"text {empty[0]} of {len(texts)} is {texts[empty[0]]!r:.60}"
            raise UserError(f"zero-length input: {text}, of which vocabulary {self.vocabulary.path!r} can write nothing.")
        longest = self.spec.input_length
        cut = sum(len(row) > longest for row in tokens)
        if cut and (limit or targets is not None):  # label scores come with answers to the same texts
            message = "%d of %d inputs are longer than %d tokens and were cut; raise TASK_FEATURE_LENGTHS['inputs']"
            log.warning(message, cut, len(tokens), longest)
        return Requests(tokens, [bank_row] * len(tokens), [limit] * len(tokens), targets)


def _check_texts(what: str, texts: Sequence[str]) -> None:
    try:
        for number, text in enumerate(texts):
            tasks.check_text(f"{what} {number} of {len(texts)}", text)
    except tasks.TaskError as error:
        raise UserError(str(error)) from error


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
    that is not a run folder, is damaged, or belongs to other weights.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint = {checkpoint!r} is not one of 'best', 'last'.")
    trained, run, step, _ = load_checkpoint(run_dir, checkpoint)
    require(run, run_dir, *NEEDED)
    method, own = method_named(run["method"]), own_of(trained)
    group_N = np.array([row["group"] for row in run["runs"]], np.int32)
    check_counts(own, method.parts, group_N)
    given = BackboneSettings(**run["settings"]["backbone"])
    # not 'fused', which the machine that trained may have had and this one lacks
    attention = "einsum" if given.attention == "einsum" else "auto"
    given = dataclasses.replace(given, path=backbone or given.path, attention=attention)
    places = functools.partial(places_for, mesh, method)
    loaded = load_backbone(given, lambda config: places(config).of_backbone())
    loaded.check_same(run, f"run {str(run_dir)!r}", "give the folder of the same weights as `backbone`")
    flat = loaded.flat()
    # trained weights replace the frozen ones; what else was trained for them (teaching heads) answers nothing
    weights = {path: jnp.asarray(array, flat[path].dtype) for path, array in trained.items() if path in flat}
    params = backbone_of(flat | places(loaded.config).put(weights))
    lengths = DataSettings(feature_lengths=dict(feature_lengths or run["settings"]["data"]["feature_lengths"])).feature_lengths
    spec = requests.inference_spec(lengths["inputs"], lengths["targets"], batch_size)
    network = Network(loaded.config, given.computation, method.adaptation)
    model = Model(network, params, loaded.vocabulary(run["settings"]["data"].get("cue") or ""), own, method.parts, group_N, mesh)
    predictor = Predictor(model, run, spec, best_dev(run_dir), step)
    for line in predictor.undecided():
        distributed.say(f"{str(run_dir)!r}: {line}")
    return predictor
