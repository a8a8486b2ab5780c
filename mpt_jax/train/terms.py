"""The terms of the loss, a row each: what is summed, what it weighs, what it is divided by. Metrics are the same sums over the same counts.

B examples, N tasks (runs), L input tokens, P prompt positions, T target tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mpt_jax.config import DistillationSettings
from mpt_jax.methods.method import Method
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Network, Outputs, Rows, sums_over_positions
from mpt_jax.train import losses
from mpt_jax.train.distillation import Teaching, compared, log_probabilities


class Objective(NamedTuple):
    """Everything about the loss that is fixed while training; prompt_length: P."""

    network: Network
    method: Method
    group_N: np.ndarray
    distillation: DistillationSettings | None = None  # None: no teachers
    prompt_length: int = 0
    encoder_teaching: float = 0.0
    dropout_seed: int = 0

    @property
    def num_groups(self) -> int:
        """G."""
        return int(self.group_N.max()) + 1


@dataclasses.dataclass
class Pass:
    """A micro-batch after the student's pass and, where there is one, the teacher's."""

    objective: Objective
    rows: Rows
    student: Outputs
    teacher: Teaching | None
    batch: Mapping[str, Any]
    head: jax.Array | None  # (D, E), maps encoder output to sentence vectors

    @property
    def real_BT(self) -> jax.Array:
        """Real target positions."""
        return self.student.states["decoder"].real_BY

    @functools.cached_property
    def token_sums(self) -> dict[str, jax.Array]:
        """Sums (B,) over target tokens of what needs logits: negative log-likelihood, right tokens, divergence from the teacher."""
        settings, teacher = self.objective.distillation, self.teacher
        kept = (teacher.logp_BTA, teacher.ids_BTA, teacher.tail_BT) if teacher else (None, None, None)
        beside = teacher.decoded if teacher else None

        def sums(student_BTD, targets_BT, real_BT, teacher_BTD, logp_BTA, ids_BTA, tail_BT):
            logits_BTV = self.student.decoded.logits_of(student_BTD)
            found = dict(zip(("loss", "correct"), losses.cross_entropy(logits_BTV, targets_BT, real_BT), strict=True))
            if settings and settings.logits:
                if teacher_BTD is not None:
                    logp_BTA = jax.lax.stop_gradient(log_probabilities(beside.logits_of(teacher_BTD), settings.temperature))
                found["kl"] = losses.kl_divergence(logp_BTA, logits_BTV, real_BT, settings.temperature, ids_BTA, tail_BT)
            return found

        states_BTD, vocab_size = self.student.decoded.states_BTD, self.objective.network.config.vocab_size
        told_BTD = None if beside is None else beside.states_BTD
        return sums_over_positions(sums, vocab_size, states_BTD, self.rows.targets_BT, self.real_BT, told_BTD, *kept)


class Term(NamedTuple):
    """A row. sums(Pass) -> (B,); weight in the loss, 0 for what is only reported; counts(batch) -> what the sums are of, (N,).

    In the loss a sum is divided by its group's counts over the whole batch; a metric of a task by the task's own.
    """

    name: str
    sums: Callable[[Pass], jax.Array]
    weight: float
    counts: Callable[[Any], np.ndarray]


def terms(objective: Objective) -> tuple[Term, ...]:
    """The rows of an objective."""
    rows = [Term("loss", _loss, 1.0, _target_tokens), Term("correct", _correct, 0.0, _target_tokens)]
    settings = objective.distillation
    if settings and settings.logits:
        rows.append(Term("kl", _kl, settings.weight, _target_tokens))
    if settings and settings.hidden != "none":
        for name in family_of(objective.network.config).states:
            counts = _encoder_positions(settings, objective.prompt_length) if name == "encoder" else _target_tokens
            rows.append(Term(f"hidden_{name}", _hidden(settings, name), settings.weight, counts))
    if objective.encoder_teaching:
        rows.append(Term("sentence", _sentence, objective.encoder_teaching, _embedded_rows))
    return tuple(rows)


def _target_tokens(batch) -> np.ndarray:
    return batch.target_tokens_N


def _encoder_positions(settings: DistillationSettings, prompt_length: int):
    def counts(batch) -> np.ndarray:
        prefix = prompt_length if settings.hidden_positions == "all" else 0
        return batch.input_tokens_N + batch.examples_N * prefix

    return counts


def _embedded_rows(batch) -> np.ndarray:
    return batch.embedded_N


def _loss(passed: Pass) -> jax.Array:
    return passed.token_sums["loss"]


def _correct(passed: Pass) -> jax.Array:
    return passed.token_sums["correct"]


def _kl(passed: Pass) -> jax.Array:
    return passed.token_sums["kl"]


def _hidden(settings: DistillationSettings, name: str):
    def sums(passed: Pass) -> jax.Array:
        assert passed.teacher is not None
        layers, real_BY = compared(settings, passed.student, passed.rows)[name]
        return losses.hidden_distance(passed.teacher.states[name], layers, real_BY)

    return sums


def _sentence(passed: Pass) -> jax.Array:
    encoder = passed.student.states["encoder"]
    return losses.sentence_distance(encoder.output_BYD, encoder.real_BY, passed.head, passed.batch["embedding_BE"])
