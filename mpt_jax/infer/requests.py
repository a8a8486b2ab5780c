"""Inputs waiting for the model: rows of many tasks and runs in shared batches, each with its own prompt.

Batches come from data.batches.eval_batches, so cutting, padding and "every row once" are the same as in training.
B examples, L input tokens, T target tokens, N rows of the prompt bank, C labels.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import T5Config
from mpt_jax.data.batches import LONG, BatchSpec, eval_batches
from mpt_jax.data.vocabulary import EOS_ID, Vocabulary
from mpt_jax.infer.decode import greedy_decode, prompts_of
from mpt_jax.infer.likelihood import score_labels, score_targets, walk_labels
from mpt_jax.model.prompt_bank import PromptBank

Progress = Callable[[int, int], None]  # told (rows done, rows in all)
SHORT = 8  # tokens: rows that may give longer answers are decoded apart, so that short ones need not wait for them
# of inputs: fewer than in training, since on 2 CPU cores a program compiles as long as 4 batches of the nano backbone run
INPUT_BUCKETS = (32, 64, 128, 256, 512, 1024, *LONG)
IN_FLIGHT = 2  # batches handed to the device ahead of the one being read


@dataclasses.dataclass(frozen=True)
class Model:
    """What answers: a network, its frozen weights, and the prompt bank, or None for a fine-tuned or bare backbone.

    ``mesh``: the devices that the weights are on and batches are split over; None on one device.
    """

    config: T5Config
    params: dict
    bank: PromptBank | None
    mesh: Mesh | None = None

    def place(self, array: np.ndarray):
        """An array of examples (B, ...) on the devices."""
        return sharding.place_rows(self.mesh, array)


class Requests:
    """Token rows with the bank row that answers each and the most tokens an answer may have; readable like a token cache."""

    embedding = teacher = None

    def __init__(
        self,
        inputs: Sequence[np.ndarray],
        task_id: Sequence[int],
        limit: Sequence[int],
        targets: Sequence | None = None,
    ):
        self._inputs, self._targets = inputs, targets
        self.rows = len(inputs)
        self.task_id = np.asarray(task_id, np.int32)
        self.limit = np.asarray(limit, np.int32)
        self.input_lengths = np.array([len(tokens) for tokens in inputs], np.int32)
        self.target_lengths = np.array([len(tokens) for tokens in targets or ()], np.int32)
        if targets is None:
            self.target_lengths = np.zeros(self.rows, np.int32)

    def inputs(self, row: int) -> np.ndarray:
        """Input tokens of a row."""
        return self._inputs[row]

    def targets(self, row: int) -> np.ndarray:
        """Target tokens of a row, none where nothing is scored."""
        return np.empty(0, np.int32) if self._targets is None else self._targets[row]


def inference_spec(input_length: int, target_length: int, batch_size: int) -> BatchSpec:
    """Batches of ``batch_size`` rows with INPUT_BUCKETS; lengths in tokens, EOS included."""
    return BatchSpec(input_length, target_length, batch_size, INPUT_BUCKETS)


def tokens_of(text: str, vocabulary: Vocabulary) -> np.ndarray:
    """Token ids (int32) of a text with EOS."""
    return np.array([*vocabulary.encode(text), EOS_ID], np.int32)


def label_tokens(labels: Sequence[str], vocabulary: Vocabulary) -> np.ndarray:
    """Labels as (C, T) int32, each with EOS, zero-padded."""
    rows = [tokens_of(label, vocabulary) for label in labels]
    labels_CT = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for line, row in zip(labels_CT, rows, strict=True):
        line[: len(row)] = row
    return labels_CT


def decode(model: Model, requests: Requests, spec: BatchSpec, progress: Progress | None = None) -> list[np.ndarray]:
    """Greedy answers, token rows (T,) int32 in the order of the requests. One program for each input bucket."""
    answers: list = [None] * requests.rows
    if not requests.rows:
        return answers
    longest = int(requests.limit.max())
    max_length = next((size for size in spec.target_buckets if size >= longest), longest)

    def program(part, index_B, prompt_BPD):
        limit_B = np.where(index_B < 0, 0, requests.limit[index_B]).astype(np.int32)
        inputs_BL = model.place(part["inputs_BL"])
        return greedy_decode(model.config, model.params, prompt_BPD, inputs_BL, max_length, model.place(limit_B))

    short = requests.limit <= SHORT
    groups = [np.flatnonzero(short), np.flatnonzero(~short)]
    for row, tokens_T in _answers(model, requests, spec, groups, program, progress):
        answers[row] = tokens_T
    return answers


def score_given(model: Model, requests: Requests, spec: BatchSpec, progress: Progress | None = None) -> np.ndarray:
    """log p(target) of each request's own target: (rows,) float32."""

    def program(part, index_B, prompt_BPD):
        inputs_BL, targets_BT = model.place(part["inputs_BL"]), model.place(part["targets_BT"])
        return score_targets(model.config, model.params, prompt_BPD, inputs_BL, targets_BT)

    logp = np.empty(requests.rows, np.float32)
    for row, value in _answers(model, requests, spec, [np.arange(requests.rows)], program, progress):
        logp[row] = value
    return logp


def score_each_label(
    model: Model, requests: Requests, labels_CT: np.ndarray, spec: BatchSpec, progress: Progress | None = None
) -> np.ndarray:
    """log p(label) of each request and label: (rows, C) float32."""
    found = np.empty((requests.rows, len(labels_CT)), np.float32)
    return _over_labels(score_labels, found, model, requests, labels_CT, spec, progress)


def choose_label(
    model: Model, requests: Requests, labels_CT: np.ndarray, spec: BatchSpec, progress: Progress | None = None
) -> np.ndarray:
    """The label that greedy decoding among the labels' tokens gives each request: (rows,) int32."""
    return _over_labels(walk_labels, np.empty(requests.rows, np.int32), model, requests, labels_CT, spec, progress)


def _over_labels(function, found: np.ndarray, model: Model, requests: Requests, labels_CT, spec: BatchSpec, progress) -> np.ndarray:
    """``found``, filled with each request's line of a function of likelihood.py that takes labels."""

    def program(part, index_B, prompt_BPD):
        return function(model.config, model.params, prompt_BPD, model.place(part["inputs_BL"]), labels_CT)

    for row, line in _answers(model, requests, spec, [np.arange(requests.rows)], program, progress):
        found[row] = line
    return found


def _answers(model: Model, requests: Requests, spec: BatchSpec, groups, program, progress) -> Iterator[tuple[int, np.ndarray]]:
    """(row, its line of the program's result) of every request once; the device works ahead of the reader."""
    waiting: list = []
    done = 0

    def read():
        nonlocal done
        index_B, result = waiting.pop(0)
        lines = np.asarray(result)
        for place in np.flatnonzero(index_B >= 0):
            yield int(index_B[place]), lines[place]
        done += int(np.sum(index_B >= 0))
        if progress:
            progress(done, requests.rows)

    spec = dataclasses.replace(spec, micro_batch_size=sharding.whole_rows(model.mesh, spec.micro_batch_size))
    for group in groups:
        for index_B, part in eval_batches(requests, spec, subset=group):
            task_id_B = np.where(index_B < 0, 0, requests.task_id[index_B]).astype(np.int32)
            with sharding.use(model.mesh):
                waiting.append((index_B, program(part, index_B, prompts_of(model.bank, model.place(task_id_B)))))
            if len(waiting) > IN_FLIGHT:
                yield from read()
    while waiting:
        yield from read()
