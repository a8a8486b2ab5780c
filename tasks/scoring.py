"""From rows and predicted texts to the scores of a task."""

import warnings
from collections.abc import Callable, Mapping, Sequence

from tasks import seqio_tasks
from tasks.errors import TaskError
from tasks.scores import SCORES, number
from tasks.table import TABLE, Task

AVERAGE = "average"
Scorer = Callable[[Sequence[Mapping], Sequence[str]], dict[str, float]]


def scorer(name: str) -> Scorer:
    """The function (rows, predictions) -> {score: percent} of a task.

    Rows are those of `tasks.rows` or of the token cache. Several scores come with their `average` (those
    where higher is better); tasks with labels or numbers with `invalid`, the percentage of predictions that
    are none. An ordinary SeqIO task's postprocess_fn and metric_fns give the numbers, as they are, and
    `average`. Raises TaskError for an unknown task, one without scores, no rows, or unequal numbers of rows
    and predictions.
    """
    task = TABLE.get(name)
    if task is None:
        return _checked(name, _seqio_scorer(name))
    if task.tokens:
        raise TaskError(f"task {name!r} holds tokens, not text: it has a loss and no scores")
    return _checked(name, lambda rows, predictions: _table_scores(task, rows, predictions))


def main_score(name: str) -> str:
    """The score that selects checkpoints, higher is better: the task's only one, or `average` of several."""
    task = TABLE.get(name)
    if task is None:
        seqio_tasks.get(name)
        return AVERAGE
    if task.tokens:
        raise TaskError(f"task {name!r} holds tokens, not text: it has a loss and no scores")
    keys = _rising_keys(task)
    return keys[0] if len(keys) == 1 else AVERAGE


def references(row: Mapping) -> list[str]:
    """A row's right texts: `answers` or `references` (a list or SQuAD's {'text': list}), else the target."""
    for key in ("answers", "references"):
        found = row.get(key)
        if isinstance(found, Mapping):
            found = found.get("text")
        if isinstance(found, list) and found and all(isinstance(text, str) for text in found):
            return found
    return [target_text(row)]


def target_text(row: Mapping) -> str:
    """The target of a row of `tasks.rows` or of the token cache (which calls it targets_pretokenized)."""
    text = row.get("targets_pretokenized", row.get("targets"))
    if not isinstance(text, str):
        raise TaskError(f"a row to score has no target text; its fields are {', '.join(map(repr, row))}")
    return text


def _rising_keys(task: Task) -> list[str]:
    return [key for score in task.scores if SCORES[score].higher_is_better for key in SCORES[score].keys]


def _table_scores(task: Task, rows: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
    golds = [[target_text(row)] if task.labels else references(row) for row in rows]
    found = {}
    for score in task.scores:
        more = (_groups(task, rows),) if SCORES[score].grouped else ()
        found |= SCORES[score].function(golds, predictions, task.labels, *more)
    rising = _rising_keys(task)
    if len(rising) > 1:
        found[AVERAGE] = sum(found[key] for key in rising) / len(rising)
    invalid = None
    if task.labels:
        invalid = [text.strip() not in task.labels for text in predictions]
    elif any(SCORES[score].needs == "numbers" for score in task.scores):
        invalid = [number(text) is None for text in predictions]
    if invalid is not None:
        found["invalid"] = 100.0 * sum(invalid) / len(invalid)
    return found


def _groups(task: Task, rows: Sequence[Mapping]) -> list[str]:
    for place, row in enumerate(rows):
        if "group" not in row:
            raise TaskError(f"task {task.name!r}: row {place} has no field 'group', which its scores {task.scores} need")
    return [str(row["group"]) for row in rows]


def _seqio_scorer(name: str) -> Scorer:
    task = seqio_tasks.get(name)
    if not task.predict_metric_fns:
        raise TaskError(
            f"SeqIO task {name!r} has no metric function of (targets, predictions), so its predictions "
            "cannot be scored: give it `metric_fns`"
        )
    unused = [function for function in task.metric_fns if function not in task.predict_metric_fns]
    if unused or len(task.metric_objs) > len(task.metric_fns):
        warnings.warn(
            f"SeqIO task {name!r}: only its metric_fns of (targets, predictions) are used", stacklevel=3
        )

    def score(rows: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
        examples = [seqio_tasks.example_of_row(row) for row in rows]
        finish = task.postprocessor or (lambda text, **_: text)
        targets = [
            finish(target_text(row), example=example, is_target=True)
            for row, example in zip(rows, examples, strict=True)
        ]
        finished = [
            finish(text, example=example, is_target=False)
            for text, example in zip(predictions, examples, strict=True)
        ]
        found: dict[str, float] = {}
        for function in task.predict_metric_fns:
            numbers = seqio_tasks.numbers(function(targets, finished))
            if found.keys() & numbers.keys():
                raise TaskError(
                    f"SeqIO task {name!r}: two metric_fns give {', '.join(found.keys() & numbers.keys())}"
                )
            found |= numbers
        if not found:
            raise TaskError(f"SeqIO task {name!r}: its metric_fns give no number")
        return {**found, AVERAGE: sum(found.values()) / len(found)}

    return score


def _checked(name: str, score: Scorer) -> Scorer:
    def checked(rows: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
        if len(rows) != len(predictions) or not len(rows):
            raise TaskError(
                f"task {name!r}: {len(rows)} rows and {len(predictions)} predictions: "
                "one for each of 1 or more rows is needed"
            )
        return score(rows, predictions)

    return checked
