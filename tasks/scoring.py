"""From rows and predicted texts to the scores of a task."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence

from mpt_jax.tasks import seqio_tasks
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.rendering import right_texts
from mpt_jax.tasks.scores import AVERAGE, SCORES, TAKEN, number
from mpt_jax.tasks.table import TABLE, Task

MAIN = "main_score"  # attribute of a SeqIO metric function: the name of the number that selects checkpoints
# a number of a SeqIO metric function whose name has one of these words counts or loses, and is not averaged
NO_SCORES = frozenset(
    "loss losses nll perplexity ppl error errors wer cer ter distance mse mae rmse count counts num number n total size examples rows "
    "tokens length lengths time seconds invalid".split()
)
Scorer = Callable[[Sequence[Mapping], Sequence[str]], dict[str, float]]
Written = Callable[[str], str]


def scorer(name: str, written: Written = str) -> Scorer:
    """The function (rows, predictions) -> {score: percent} of a task; the score that selects checkpoints comes first.

    Rows are those of `tasks.rows` or of the token cache. `written`: what the model's vocabulary makes of a text; labels and right
    texts are compared as it writes them. Several scores come with their `average` (those where higher is better); tasks with labels
    or numbers with `invalid`, the percentage of predictions that are none. An ordinary SeqIO task's postprocess_fn and metric_fns
    give the numbers, as they are and of the texts as they are, and `average` (see main_score). Raises TaskError for an unknown task,
    one without scores, no rows, or unequal numbers of rows and predictions.

    >>> rows = [{"targets": "positive"}, {"targets": "negative"}]
    >>> tasks.scorer("definition_valence")(rows, ["positive", "awful"])
    {'accuracy': 50.0, 'invalid': 50.0}
    """
    task = TABLE.get(name)
    if task is None:
        return _checked(name, _seqio_scorer(name))
    _check_text_task(task)
    return _checked(name, lambda rows, predictions: _table_scores(task, rows, predictions, written))


def main_score(name: str) -> str:
    """The score that selects checkpoints, higher is better: the task's only one, or `average` of several.

    Of an ordinary SeqIO task it is the number that a metric function declares by its attribute `main_score`; without one the average
    of its numbers, without those named after counts and losses (NO_SCORES) and, where there are others, without integers.
    """
    task = TABLE.get(name)
    if task is None:
        return _declared(name) or AVERAGE
    _check_text_task(task)
    keys = _rising_keys(task)
    return keys[0] if len(keys) == 1 else AVERAGE


def references(row: Mapping, field: str = "answers") -> list[str]:
    """A row's right texts in a field: a list of texts or numbers, or SQuAD's {'text': list}. Raises TaskError for anything else."""
    return right_texts(row, field, "a row to score")


def target_text(row: Mapping) -> str:
    """The target of a row of `tasks.rows` or of the token cache (an example of SeqIO calls it targets_pretokenized)."""
    text = row.get("targets", row.get("targets_pretokenized"))
    if not isinstance(text, str):
        raise TaskError(f"a row to score has no target text; its fields are {', '.join(map(repr, row))}")
    return text


def _check_text_task(task: Task) -> None:
    if task.tokens:
        raise TaskError(f"task {task.name!r} holds tokens, not text: it has a loss and no scores")


def _rising_keys(task: Task) -> list[str]:
    return [key for score in task.scores if SCORES[score].higher_is_better for key in SCORES[score].keys]


def _table_scores(task: Task, rows: Sequence[Mapping], predictions: Sequence[str], written: Written) -> dict[str, float]:
    golds = [references(row, task.references) if task.references else [target_text(row)] for row in rows]
    numbers = any(SCORES[score].needs == "numbers" for score in task.scores)
    if task.labels:
        spelled = {written(label): label for label in task.labels}
        predictions = [spelled.get(text, text) for text in predictions]
    elif not numbers:
        golds = [[written(text) for text in right] for right in golds]
    found: dict[str, float] = {}
    for score in task.scores:
        more = (_groups(task, rows),) if SCORES[score].grouped else ()
        given = SCORES[score].function(golds, predictions, task.labels, *more)
        if given.keys() != set(SCORES[score].keys):
            names = ", ".join(map(str, given)) or "nothing"
            raise TaskError(f"score {score!r} gives {names}; it was added with the keys {SCORES[score].keys}")
        found |= given
    rising = _rising_keys(task)
    if len(rising) > 1:
        found[AVERAGE] = sum(found[key] for key in rising) / len(rising)
    invalid = None
    if task.labels:
        invalid = [text.strip() not in task.labels for text in predictions]
    elif numbers:
        invalid = [number(text) is None for text in predictions]
    if invalid is not None:
        found["invalid"] = 100.0 * sum(invalid) / len(invalid)
    main = AVERAGE if len(rising) > 1 else rising[0]
    return {main: found[main], **found}


def _groups(task: Task, rows: Sequence[Mapping]) -> list[str]:
    for index, row in enumerate(rows):
        if "group" not in row:
            raise TaskError(f"task {task.name!r}: row {index} has no field 'group', which its scores {task.scores} need")
    return [str(row["group"]) for row in rows]


def _declared(name: str) -> str | None:
    """The number that a metric function of a SeqIO task declares as its main one, or None."""
    found = {getattr(function, MAIN) for function in seqio_tasks.get(name).predict_metric_fns if hasattr(function, MAIN)}
    if len(found) > 1:
        several = ", ".join(sorted(map(str, found)))
        raise TaskError(f"SeqIO task {name!r}: its metric_fns declare several main scores ({several}): keep one `{MAIN}`")
    return found.pop() if found else None


def _seqio_scorer(name: str) -> Scorer:
    task = seqio_tasks.get(name)
    if not task.predict_metric_fns:
        raise TaskError(
            f"SeqIO task {name!r} has no metric function of (targets, predictions), so its predictions "
            "cannot be scored: give it `metric_fns`"
        )
    declared = _declared(name)
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
            twice = found.keys() & numbers.keys()
            if twice:
                raise TaskError(f"SeqIO task {name!r}: two metric_fns give {', '.join(twice)}")
            found |= numbers
        return _with_main(name, found, declared)

    return score


def _with_main(name: str, found: dict[str, float], declared: str | None) -> dict[str, float]:
    """A SeqIO task's numbers, the one that selects first. Raises TaskError where none does."""
    if taken := ", ".join(sorted(found.keys() & TAKEN)):
        raise TaskError(f"SeqIO task {name!r}: its metric_fns give a number called {taken}, which a line of metrics has already: rename it")
    values, known = {key: float(value) for key, value in found.items()}, ", ".join(found) or "there are none"
    if declared is not None:
        if declared not in found:
            raise TaskError(f"SeqIO task {name!r}: `{MAIN}` = {declared!r} is none of its numbers: {known}")
        return {declared: values[declared], **values}
    scores = [key for key in found if not NO_SCORES & set(re.split("[^a-z]+", key.lower()))]
    scores = [key for key in scores if not isinstance(found[key], int)] or scores
    if not scores:
        raise TaskError(
            f"SeqIO task {name!r}: none of its numbers is a score ({known}; counts and losses are not): "
            f"name the one that selects checkpoints by an attribute of its metric function, {MAIN} = 'name'"
        )
    return {AVERAGE: sum(values[key] for key in scores) / len(scores), **values}


def _checked(name: str, score: Scorer) -> Scorer:
    def checked(rows: Sequence[Mapping], predictions: Sequence[str]) -> dict[str, float]:
        if len(rows) != len(predictions) or not len(rows):
            raise TaskError(
                f"task {name!r}: {len(rows)} rows and {len(predictions)} predictions: "
                "one for each of 1 or more rows is needed"
            )
        return score(rows, predictions)

    return checked
