"""From a record (a dict of fields) to a row (`inputs` and `targets` text): templates and labels."""

import math
from collections.abc import Mapping

import numpy as np
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.scores import number
from mpt_jax.tasks.table import Task, check_text, template_fields

HALF_PRECISION = 65504.0  # the largest number that the token cache's float16 embeddings hold


def render(task: Task, record: Mapping, where: str) -> dict:
    """The row of a record: its own fields with `inputs`, `targets` and, in a label task, the index `label`.

    `where` names the record in messages. Raises TaskError naming it, the field and the value.
    """
    row = dict(record)
    if task.tokens:
        _check_tokens(task, row, where)
    else:
        if task.labels is not None:
            row["label"] = label_index(task, record, where)
            targets = task.labels[row["label"]]
        elif task.target is not None:
            targets = fill(task, task.target, record, where)
        else:
            targets = _text(task, record, "targets", "a generated row", where)
        row["inputs"] = _inputs(task, record, where)
        row["targets"] = targets
        if task.references is not None:
            row[task.references] = right_texts(record, task.references, where)
        if not targets.strip():
            raise TaskError(
                f"{where}: the target is empty: correct the row or `target` of task {task.name!r}"
            )
    _check_embedding(task, row, where)
    return row


def inputs_text(task: Task, record: Mapping, where: str) -> str:
    """What the model reads for a record to predict for, which needs no label: as in training where the template's fields are there.

    A record without them may hold the finished text as `inputs`, unless the template itself names a field `inputs`. Raises TaskError
    naming a field that is missing.
    """
    try:
        prepared = task.prepare(record) if task.prepare else record
    except TaskError as error:
        raise TaskError(f"{where}: {error}") from error
    if "inputs" in record:
        fields = template_keys(task)
        if "inputs" not in fields and not all(key in prepared for key in fields):
            return ready_text(record, where)
    return _inputs(task, prepared, where)


def ready_text(record: Mapping, where: str) -> str:
    """The field `inputs` of a record as the text that the model reads. Raises TaskError where it is none, or empty."""
    text = record.get("inputs")
    if not isinstance(text, str) or not text.strip():
        raise TaskError(f"{where}: field 'inputs' is {text!r:.60}; it must be a text that is not empty")
    check_text(f"{where}: field 'inputs'", text)
    return text


def template_keys(task: Task) -> list[str]:
    """The fields that a task's template names; `inputs` for a task without one."""
    if task.template is None:
        return ["inputs"]
    return [key for _, key in template_fields(task.name, task.template) if key is not None]


def _inputs(task: Task, record: Mapping, where: str) -> str:
    if task.template is None:
        text = _text(task, record, "inputs", "a row without a template", where)
        empty = not text.strip()
    else:
        text = fill(task, task.template, record, where)
        empty = not any(str(record[key]).strip() for key in template_keys(task))
    if empty:
        raise TaskError(f"{where}: zero-length input {text!r}: give its fields a text or remove the row")
    return text


def fill(task: Task, template: str, record: Mapping, where: str) -> str:
    """The template with each {field} replaced by the record's value (text, number, true or false)."""
    pieces = []
    for literal, key in template_fields(task.name, template):
        pieces.append(literal)
        if key is not None:
            pieces.append(_text(task, record, key, f"the template {template!r}", where))
    return "".join(pieces)


def _text(task: Task, record: Mapping, key: str, needed_by: str, where: str) -> str:
    if key not in record:
        raise TaskError(
            f"{where}: no field {key!r}, which {needed_by} of task {task.name!r} needs; the fields here are "
            f"{', '.join(map(repr, record)) or 'none'}: correct the row or the task"
        )
    value = record[key]
    text = value if isinstance(value, str) else text_of(value)
    if text is None:
        raise TaskError(
            f"{where}: field {key!r} is {_shown(value)}, which {needed_by} of task {task.name!r} cannot show: "
            "it must be a text or a finite number"
        )
    if not text.isascii():
        check_text(f"{where}: field {key!r}", text)
    return text


def text_of(value: object) -> str | None:
    """A field's value as text: a text, a finite number, true or false; None for anything else, null and NaN too."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        return str(value) if isinstance(value, str | int | float) else None
    except ValueError:  # an integer of more digits than Python writes
        return None


def right_texts(record: Mapping, key: str, where: str) -> list[str]:
    """The right answers in a field: a list of texts or numbers, or SQuAD's {'text': list}. Raises TaskError for anything else."""
    found = record.get(key)
    listed = found.get("text") if isinstance(found, Mapping) else found
    texts = [text_of(value) for value in listed] if isinstance(listed, list | tuple) else []
    if not texts or None in texts:
        raise TaskError(f"{where}: field {key!r} is {_shown(found)}; `references` needs a list of one or more texts")
    for text in texts:
        check_text(f"{where}: field {key!r}", text)
    return texts


def label_index(task: Task, record: Mapping, where: str) -> int:
    """The index into the labels that a record's `label` means: a label, else a whole number or its digits.

    Where labels are numbers themselves, a number in a row is the label of that value, and never an index.
    """
    labels, numbers = task.labels, task.label_numbers
    if "label" not in record:
        raise TaskError(
            f"{where}: no field 'label', which task {task.name!r} needs; the fields here are "
            f"{', '.join(map(repr, record)) or 'none'}"
        )
    value = record["label"]
    text = value.strip() if isinstance(value, str) else None
    index = None
    if text in labels:
        index = labels.index(text)
    elif numbers:
        index = numbers.get(_number(value))
    elif text is not None:
        index = int(text) if text.isdecimal() and len(text) <= 10 else None
    elif isinstance(value, int) and not isinstance(value, bool):
        index = value
    if index is None or not 0 <= index < len(labels):
        indices = "" if numbers else f"0 to {len(labels) - 1} or "
        raise TaskError(
            f"{where}: field 'label' is {_shown(value)}, which is none of the labels of task {task.name!r}: "
            f"{indices}{', '.join(labels)}: correct the row or `labels`"
        )
    return index


def _number(value: object) -> float | None:
    if isinstance(value, str):
        return number(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**53 or not math.isfinite(value):
        return None
    return float(value)


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of very many digits"


def _check_tokens(task: Task, row: Mapping, where: str) -> None:
    for key in ("inputs_tokens", "targets_tokens"):
        tokens = row.get(key)
        if not isinstance(tokens, list) or not tokens:
            raise TaskError(
                f"{where}: field {key!r} of task {task.name!r} must be a list of ids, got {tokens!r:.80}"
            )


def _check_embedding(task: Task, row: Mapping, where: str) -> None:
    given = row.get("embedding")
    size = len(given) if isinstance(given, list) else 0
    if size != task.embedding_size:
        raise TaskError(
            f"{where}: field 'embedding' has {size} numbers, task {task.name!r} is declared with "
            f"embedding_size={task.embedding_size}: correct the row or embedding_size"
        )
    if not size:
        return
    try:
        largest = float(np.abs(np.asarray(given, np.float64)).max())
    except (TypeError, ValueError):
        largest = math.nan
    if not largest <= HALF_PRECISION:
        raise TaskError(f"{where}: field 'embedding' must hold finite numbers within ±{HALF_PRECISION:g}: correct the row")
