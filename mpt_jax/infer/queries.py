"""Queries of any tasks, from any sources, in shared batches.

B examples, C labels.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mpt_jax import tasks
from mpt_jax.config import MOST_TOKENS
from mpt_jax.data.batches import BatchSpec, cut
from mpt_jax.data.spelling import check_labels, spelling
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Progress, Requests
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.infer.sources import Source, Sources
from mpt_jax.regular_files import shown

log = logging.getLogger(__name__)
LONGEST = "%d of %d inputs are longer than %d tokens and were cut; raise TASK_FEATURE_LENGTHS['inputs']"


@dataclasses.dataclass(frozen=True)
class Query:
    """A text that the model reads, for a task's prompt. It is answered with a text, unless ``target`` or ``labels`` ask for scores.

    task: None where there is one only. seed: of a task that was trained with several. max_tokens: 0 is the run's target length.
    target: its log-probability is asked for. labels: the log-probability of each is. What cannot be answered is refused by
    ``Predictor.answer``, with a UserError.

    >>> query = mpt_jax.Query("definition: full of joy", labels=("negative", "positive"))
    >>> sorted(run.answer([query])[0].scores)
    ['negative', 'positive']
    """

    text: str
    task: str | None = None
    seed: int | None = None
    max_tokens: int = 0
    target: str | None = None
    labels: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """text, or the log-probability of the target (natural, summed over its tokens, EOS included), or that of each label.

    What was not asked for is None.

    >>> answer = run.answer([mpt_jax.Query("definition: full of joy", target="positive")])[0]
    >>> answer.score < 0, answer.text
    (True, None)
    """

    text: str | None = None
    score: float | None = None
    scores: Mapping[str, float] | None = None


class Asked(NamedTuple):
    """A query in tokens. tokens: cut to the source's input length; spelled: the task's labels by what the vocabulary makes of them."""

    source: Source
    row: int
    tokens: np.ndarray
    limit: int
    spelled: Mapping[str, str]
    target: np.ndarray | None = None
    labels: tuple[str, ...] | None = None

    def answered(self, tokens_T: np.ndarray) -> str:
        """The text of an answer's tokens."""
        text = self.source.vocabulary.text_of(tokens_T)
        return self.spelled.get(text, text)


def asked(queries: Sequence[Query], sources: Sources, cuts_allowed: bool = True) -> list[Asked]:
    """The queries in tokens; inputs longer than their run reads are cut, or refused.

    Raises UserError naming the query that cannot be answered, and why.
    """
    places: dict[tuple, tuple[Source, str | None, int, int, Mapping[str, str]]] = {}
    checked: set[tuple] = set()
    found, cuts = [], {}
    for number, query in enumerate(queries):
        where = f"text {number} of {len(queries)}"
        if not 0 <= query.max_tokens <= MOST_TOKENS:
            raise UserError(f"max_tokens = {query.max_tokens}: must be 0 .. {MOST_TOKENS:,}.")
        labels = _labels(query.labels, where)
        plain = query.target is None and labels is None
        key = query.task, query.seed, plain
        if key not in places:
            source, task = sources.find(query.task)
            around = len(source.vocabulary.input_tokens(""))
            spelled = spelling(task, source.vocabulary, source.target_length) if plain else {}
            places[key] = source, task, source.bank_row(task, query.seed), around, spelled
        source, task, row, around, spelled = places[key]
        tokens = _input(query.text, where, source, around)
        if len(tokens) > source.input_length:
            if not cuts_allowed:
                message = f"{where} has {len(tokens):,} tokens, and task {shown(query.task)} reads {source.input_length}"
                raise UserError(f"{message}: shorten it.")
            cuts[source.input_length] = cuts.get(source.input_length, 0) + (labels is None)
            tokens = cut(tokens, source.input_length, source.vocabulary.frame.input_end)
        if labels is not None and (task, labels) not in checked:
            _check_texts("label", labels)
            check_labels(task, labels, source.vocabulary)
            checked.add((task, labels))
        target = None if query.target is None else _target(query.target, f"target {number} of {len(queries)}", source)
        limit = (query.max_tokens or source.target_length) if plain else 0
        found.append(Asked(source, row, tokens, limit, spelled, target, labels))
    for longest, count in cuts.items():
        if count:  # label scores come with answers to the same texts
            log.warning(LONGEST, count, len(queries), longest)
    return found


def each_label(one: Asked, where: str) -> list[Asked]:
    """A query for each of its labels, as its target, or the query alone. Raises UserError for a label that is too long."""
    if one.labels is None:
        return [one]
    targets = [_target(label, f"label {number} of {len(one.labels)} of {where}", one.source) for number, label in enumerate(one.labels)]
    return [one._replace(labels=None, target=target) for target in targets]


def _labels(given: Sequence[str] | None, where: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not given:
        raise UserError(f"labels = {shown(given)} of {where}: they are a list of one text or more.")
    return tuple(given)


def check_input(text: str, where: str, source: Source) -> None:
    """Raises UserError for a text of which the vocabulary makes no token."""
    _input(text, where, source, len(source.vocabulary.input_tokens("")))


def _check_texts(what: str, texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        _check_text(f"{what} {number} of {len(texts)}", text)


def _check_text(where: str, text: str) -> None:
    try:
        tasks.check_text(where, text)
    except tasks.TaskError as error:
        raise UserError(str(error)) from error


def _input(text: str, where: str, source: Source, around: int) -> np.ndarray:
    """Tokens of an input, not cut yet."""
    _check_text(where, text)
    if not text.strip():
        raise UserError(f"zero-length input: {where} is {text!r:.60}.")
    tokens = np.array(source.vocabulary.input_tokens(text), np.int32)
    if len(tokens) == around:
        raise UserError(f"zero-length input: {where} is {text!r:.60}, of which vocabulary {source.vocabulary.path!r} can write nothing.")
    return tokens


def _target(text: str, where: str, source: Source) -> np.ndarray:
    _check_text(where, text)
    tokens, limit = np.array(source.vocabulary.target_tokens(text), np.int32), source.target_length
    if len(tokens) > limit:
        raise UserError(f"{where} has {len(tokens):,} tokens, the limit is {limit}: shorten it, or raise TASK_FEATURE_LENGTHS['targets'].")
    return tokens


def answer(given: Sequence[Asked], spec: BatchSpec, progress: Progress | None = None, search: Search = GREEDY) -> list[Answer]:
    """An answer to each, in the order given. Rows of different tasks share batches of ``spec``, whose lengths are those of all sources."""
    answers: list[Answer] = [Answer()] * len(given)
    groups: dict[tuple, list[int]] = {}
    for number, one in enumerate(given):
        kind = "labels" if one.labels is not None else "text" if one.target is None else "target"
        groups.setdefault((id(one.source.model), kind, one.labels), []).append(number)
    done = 0
    for (_, kind, labels), numbers in groups.items():
        rows = [given[number] for number in numbers]
        tell = functools.partial(_more, progress, done, len(given)) if progress else None
        for number, found in zip(numbers, answers_of(kind, labels, rows, smaller(spec, len(rows)), tell, search), strict=True):
            answers[number] = found
        done += len(rows)
    return answers


def label_of(rows: Sequence[Asked], labels: Sequence[str], method: str, spec: BatchSpec, tell: Progress | None = None) -> list[str]:
    """The label that each row of one model gets by a row of config.ANSWERS that ranks labels."""
    if not rows:
        return []
    return requests.label_of(rows[0].source.model, _requests(rows), labels, method, smaller(spec, len(rows)), tell)


def _requests(rows: Sequence[Asked], targets: Sequence | None = None) -> Requests:
    return Requests([row.tokens for row in rows], [row.row for row in rows], [row.limit for row in rows], targets)


def answers_of(kind: str, labels, rows: Sequence[Asked], spec: BatchSpec, tell: Progress | None, search: Search) -> list[Answer]:
    """Answers to rows of one model and one kind."""
    source = rows[0].source
    given = _requests(rows, [row.target for row in rows] if kind == "target" else None)
    if kind == "text":
        decoded = requests.decode(source.model, given, spec, tell, search)
        return [Answer(row.answered(tokens_T)) for row, tokens_T in zip(rows, decoded, strict=True)]
    if kind == "target":
        return [Answer(score=float(logp)) for logp in requests.score_given(source.model, given, spec, tell)]
    tokens = requests.label_tokens(labels, source.vocabulary)
    logp_BC = requests.score_each_label(source.model, given, tokens, spec, tell)
    return [Answer(scores=dict(zip(labels, map(float, logp_C), strict=True))) for logp_C in logp_BC]


def smaller(spec: BatchSpec, rows: int) -> BatchSpec:
    """Batches no larger than needed: a call with one text is not padded to a full batch."""
    return dataclasses.replace(spec, micro_batch_size=min(spec.micro_batch_size, 1 << max(rows - 1, 0).bit_length()))


def _more(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)
