"""From a record (a dict of fields) to a row (`inputs` and `targets` text): templates and labels."""

from collections.abc import Mapping

from tasks.errors import TaskError
from tasks.table import Task, template_fields


def render(task: Task, record: Mapping, where: str) -> dict:
    """The row of a record: its own fields with `inputs`, `targets` and, in a label task, the index `label`.

    `where` names the place of the record in messages. Raises TaskError naming it, the field and the value.
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
        if not targets.strip():
            raise TaskError(
                f"{where}: the target is empty: correct the row or `target` of task {task.name!r}"
            )
    _check_embedding(task, row, where)
    return row


def inputs_text(task: Task, record: Mapping, where: str) -> str:
    """What the model reads for a record to predict for, which needs no label. Raises TaskError naming a field that is missing."""
    return _inputs(task, task.prepare(record) if task.prepare else record, where)


def _inputs(task: Task, record: Mapping, where: str) -> str:
    if task.template is None:
        text = _text(task, record, "inputs", "a row without a template", where)
        empty = not text.strip()
    else:
        text = fill(task, task.template, record, where)
        keys = [key for _, key in template_fields(task.name, task.template) if key is not None]
        empty = not any(str(record[key]).strip() for key in keys)
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
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise TaskError(
        f"{where}: field {key!r} is {value!r:.80}, which {needed_by} of task {task.name!r} cannot show: "
        "it must be a text or a number"
    )


def label_index(task: Task, record: Mapping, where: str) -> int:
    """The index into the labels that a record's `label` means: a label, else a number or its digits."""
    labels = task.labels
    if "label" not in record:
        raise TaskError(
            f"{where}: no field 'label', which task {task.name!r} needs; the fields here are "
            f"{', '.join(map(repr, record)) or 'none'}"
        )
    value = record["label"]
    if isinstance(value, str):
        text = value.strip()
        if text in labels:
            return labels.index(text)
        index = int(text) if text.isdecimal() else None
    else:
        index = value if isinstance(value, int) and not isinstance(value, bool) else None
    if index is None or not 0 <= index < len(labels):
        raise TaskError(
            f"{where}: field 'label' is {value!r}, which is none of the labels of task {task.name!r}: "
            f"0 to {len(labels) - 1} or {', '.join(labels)}: correct the row or `labels`"
        )
    return index


def _check_tokens(task: Task, row: Mapping, where: str) -> None:
    for key in ("inputs_tokens", "targets_tokens"):
        tokens = row.get(key)
        if not isinstance(tokens, list) or not tokens:
            raise TaskError(
                f"{where}: field {key!r} of task {task.name!r} must be a list of ids, got {tokens!r:.80}"
            )


def _check_embedding(task: Task, row: Mapping, where: str) -> None:
    size = len(row["embedding"]) if isinstance(row.get("embedding"), list) else 0
    if size != task.embedding_size:
        raise TaskError(
            f"{where}: field 'embedding' has {size} numbers, task {task.name!r} is declared with "
            f"embedding_size={task.embedding_size}: correct the row or embedding_size"
        )
