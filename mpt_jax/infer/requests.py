"""Inputs waiting for the model: rows of many tasks and runs in shared batches, each with its own prompt.

Batches come from data.batches.eval_batches, so cutting, padding and "every row once" are the same as in training.
B examples, L input tokens, T target tokens, N rows of the prompt bank, C labels.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import EvalSettings
from mpt_jax.data.batches import LONG, BatchSpec, buckets, eval_batches, longest_inputs
from mpt_jax.data.in_flight import in_flight
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.infer.likelihood import Labels, score_labels, score_rows, walk_labels
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.methods.method import Part, take
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Network, rows_of, tasks_of

Progress = Callable[[int, int], None]  # told (rows done, rows in all)
BATCH_SIZE = EvalSettings.batch_size  # rows answered together, where nothing else is said
SHORT = 8  # tokens: rows that may give longer answers are decoded apart, so that short ones need not wait for them
# of inputs: fewer than in training, since on 2 CPU cores a program compiles as long as 4 batches of the nano backbone run
INPUT_BUCKETS = (32, 64, 128, 256, 512, 1024, *LONG)
FINE = ()  # training's
# operations that a program more must save: what 2 CPU cores do while one that was compiled before is read [ours]
PROGRAM_COST = 1e11
# positions that are computed while a batch's next token reads the weights: 140e9 operations and 20e9 bytes a second [ours]
TOKEN_COST = 16
MANY = 4  # batches from which others are looked at: few rows at a time, as in serving, meet the same few programs [ours]


@dataclasses.dataclass(eq=False)
class Model:
    """What answers: a network, its frozen weights, its vocabulary, and what a method trained.

    own: the method's arrays by path, none for a fine-tuned or bare backbone; parts: the method's rows, group_N: the group of each run.
    Both are replaced where prompts come and go (live_bank.py).
    ``mesh``: the devices that the weights are on and batches are split over; None on one device.
    """

    network: Network
    params: dict
    vocabulary: Vocabulary
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    group_N: np.ndarray | None = None
    mesh: Mesh | None = None

    def put(self, array: np.ndarray):
        """An array of examples (B, ...) on the devices."""
        return sharding.put_rows(self.mesh, array)

    def own_of(self, task_id_U) -> dict[str, jax.Array]:
        """The method's arrays of tasks, taken by a program of its own: any number of runs shares the compiled network."""
        return _take(dict(self.own), self.parts, self.group_N, task_id_U) if self.own else {}


def _take_fn(own, parts, group_N, task_id_B):
    return take(own, parts, group_N, task_id_B)


_take = jax.jit(_take_fn, static_argnums=1)


class Requests:
    """Token rows with the bank row that answers each and the most tokens an answer may have: a RowSource (data/cache.py)."""

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

    def marks(self, index_B: np.ndarray) -> np.ndarray:
        """A number for each of these rows that its tokens and its bank row make, wherever it stands: (B,) uint32; 0 for rows -1."""
        rows = ((self._inputs[row], self.task_id[row]) if row >= 0 else None for row in index_B)
        return np.array([0 if row is None else zlib.crc32(np.append(*row).astype(np.int32).tobytes()) for row in rows], np.uint32)

    def targets(self, row: int) -> np.ndarray:
        """Target tokens of a row, none where nothing is scored."""
        return np.empty(0, np.int32) if self._targets is None else self._targets[row]


def inference_spec(input_length: int, target_length: int, batch_size: int, input_buckets: Sequence[int] = ()) -> BatchSpec:
    """Batches of ``batch_size`` rows with INPUT_BUCKETS, or those of training where they are fewer; lengths in tokens, EOS included."""
    fewer = 0 < len(input_buckets) < len(INPUT_BUCKETS)
    return BatchSpec(input_length, target_length, batch_size, tuple(input_buckets) if fewer else INPUT_BUCKETS)


def label_tokens(labels: Sequence[str], vocabulary: Vocabulary) -> Labels:
    """Labels as tokens, each with EOS."""
    rows = [vocabulary.target_tokens(label) for label in labels]
    tokens_CT = np.full((len(rows), max(map(len, rows))), vocabulary.pad_id, np.int32)
    for line, row in zip(tokens_CT, rows, strict=True):
        line[: len(row)] = row
    return Labels(tokens_CT, np.array([len(row) for row in rows], np.int32))


def decode(
    model: Model, requests: Requests, spec: BatchSpec, progress: Progress | None = None, search: Search = GREEDY
) -> list[np.ndarray]:
    """Answers, token rows (T,) int32 in the order of the requests. One program for each input bucket."""
    answers: list = [None] * requests.rows
    if not requests.rows:
        return answers
    longest = int(requests.limit.max())
    max_length = next((size for size in spec.target_buckets if size >= longest), longest)

    ends, pad = model.vocabulary.ends, model.vocabulary.pad_id

    def program(own, rows, index_B):
        limit_B = np.where(index_B < 0, 0, requests.limit[index_B]).astype(np.int32)
        decoder = search.program(model.put(requests.marks(index_B)) if search.temperature else None)
        return decoder(model.network, model.params, own, rows, max_length, ends, limit_B=model.put(limit_B), pad=pad)

    short = requests.limit <= SHORT
    groups = [np.flatnonzero(short), np.flatnonzero(~short)]
    for row, tokens_T in _answers(model, requests, spec, groups, program, progress):
        answers[row] = tokens_T
    return answers


def score_given(model: Model, requests: Requests, spec: BatchSpec, progress: Progress | None = None) -> np.ndarray:
    """log p(target) of each request's own target: (rows,) float32."""

    def program(own, rows, index_B):
        return score_rows(model.network, model.params, own, rows)

    logp = np.empty(requests.rows, np.float32)
    for row, value in _answers(model, requests, spec, [np.arange(requests.rows)], program, progress):
        logp[row] = value
    return logp


def score_each_label(model: Model, requests: Requests, labels: Labels, spec: BatchSpec, progress: Progress | None = None) -> np.ndarray:
    """log p(label) of each request and label: (rows, C) float32."""
    found = np.empty((requests.rows, len(labels.length_C)), np.float32)
    return _over_labels(score_labels, found, model, requests, labels, spec, progress)


def choose_label(model: Model, requests: Requests, labels: Labels, spec: BatchSpec, progress: Progress | None = None) -> np.ndarray:
    """The label that greedy decoding among the labels' tokens gives each request: (rows,) int32."""
    return _over_labels(walk_labels, np.empty(requests.rows, np.int32), model, requests, labels, spec, progress)


def label_of(
    model: Model, requests: Requests, labels: Sequence[str], method: str, spec: BatchSpec, progress: Progress | None = None
) -> list[str]:
    """The label of each request by a row of config.ANSWERS that ranks labels, 'rank' or 'rank_probability'."""
    tokens = label_tokens(labels, model.vocabulary)
    if method == "rank":
        chosen = choose_label(model, requests, tokens, spec, progress)
    else:
        chosen = score_each_label(model, requests, tokens, spec, progress).argmax(axis=1)
    return [labels[number] for number in chosen]


def _over_labels(function, found: np.ndarray, model: Model, requests: Requests, labels: Labels, spec: BatchSpec, progress) -> np.ndarray:
    """``found``, filled with each request's line of a function of likelihood.py that takes labels."""

    def program(own, rows, index_B):
        return function(model.network, model.params, own, rows, labels)

    for row, line in _answers(model, requests, spec, [np.arange(requests.rows)], program, progress):
        found[row] = line
    return found


def _answers(model: Model, requests: Requests, spec: BatchSpec, groups, program, progress) -> Iterator[tuple[int, np.ndarray]]:
    """(row, its line of the program's result) of every request once; the device works ahead of the reader."""
    by_task = family_of(model.network.config).decoder_only or model.network.changes_inside
    rows, frame = sharding.whole_rows(model.mesh, spec.micro_batch_size), model.vocabulary.frame
    ends = {"input_end": frame.input_end, "target_end": frame.target_end}
    spec = _fitted(dataclasses.replace(spec, micro_batch_size=rows, by_task=by_task, **ends), model, requests, groups)

    def results():
        for group in groups:
            for index_B, part in eval_batches(requests, spec, requests.task_id, group):
                part = sharding.put_micro_batch(model.mesh, part)
                with sharding.use(model.mesh):
                    yield index_B, program(model.own_of(tasks_of(part)), rows_of(part), index_B)

    done = 0
    for index_B, result in in_flight(results()):
        lines = np.asarray(result)
        for slot in np.flatnonzero(index_B >= 0):
            yield int(index_B[slot]), lines[slot]
        done += int(np.sum(index_B >= 0))
        if progress:
            progress(done, requests.rows)


def _fitted(spec: BatchSpec, model: Model, requests: Requests, groups: Sequence[np.ndarray]) -> BatchSpec:
    """On a CPU that no mesh cuts, where many rows wait, the spec with the batch size and the buckets that pad least for what they cost.

    Smaller batches read the weights more often, and more buckets are more programs to compile. Batches are never larger than the spec's.
    """
    coarse, rows = buckets(spec.input_length, INPUT_BUCKETS), spec.micro_batch_size
    waiting = sum(map(len, groups))
    if spec.input_buckets != coarse or waiting < MANY * rows or model.mesh is not None or jax.default_backend() != "cpu":
        return spec

    @functools.cache
    def operations(length: int) -> float:
        return family_of(model.network.config).prompt_step(model.network, 0, length, 1, False)["forward"]

    each_batch = max(1, int(requests.limit.max())) * operations(TOKEN_COST)

    def cost(tried: BatchSpec) -> float:
        longest = np.concatenate([longest_inputs(requests, tried, requests.task_id, group) for group in groups if len(group)])
        padded = np.take(tried.input_buckets, np.searchsorted(tried.input_buckets, longest)).tolist()
        return sum(tried.micro_batch_size * operations(length) + each_batch for length in padded) + PROGRAM_COST * len(set(padded))

    sizes = [size for size in (rows, rows // 2, rows // 4) if size]
    return min(
        (dataclasses.replace(spec, micro_batch_size=size, input_buckets=given) for size in sizes for given in (coarse, FINE)), key=cost
    )
