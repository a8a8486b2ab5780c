"""What there is to say of one task: rows as the model sees them, lengths, cuts, labels, scores, origin."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np
from mpt_jax.tasks import seqio_tasks
from mpt_jax.tasks.files import paths_of
from mpt_jax.tasks.scoring import main_score
from mpt_jax.tasks.sources import rows
from mpt_jax.tasks.table import TABLE


def describe(
    name: str,
    tokens: Mapping[str, Callable[[str], Sequence[int]]],
    lengths: Mapping[str, int],
    limit: int | None = None,
    shown: int = 3,
    written: Callable[[str], str] | None = None,
) -> dict:
    """A task as JSON-able values, for `mpt-jax tasks NAME`.

    `tokens`: {'inputs': …, 'targets': …}, each turns a text into the ids of a row, with what stands around it;
    `lengths` are TASK_FEATURE_LENGTHS ({'inputs': …, 'targets': …}); at most `limit` rows of each split are read
    (None: all) and `shown` of the first split are given whole. `splits`: split -> {rows, complete, labels: {label: rows},
    inputs and targets: {median, p95, max, limit, cut}} with lengths in tokens. `written`: what the vocabulary makes of a text;
    with it `respelled` is {rows, target, written}: how many targets come back as another text, and the first one (tasks
    with labels have none: labels are recognised as the vocabulary writes them). Raises TaskError as `rows` does.
    """
    task = TABLE.get(name)
    splits = task.splits if task else seqio_tasks.splits_of(name)
    measured = {split: _measure(name, split, tokens, lengths, limit, written) for split in splits}
    found = {
        "name": name,
        "kind": task.kind if task else "seqio",
        "group": task.group if task else "user",
        "description": task.description if task else "",
        "template": task.template if task else None,
        "target": task.target if task else None,
        "labels": list(task.labels) if task and task.labels else None,
        "scores": list(task.scores) if task else [_name(f) for f in seqio_tasks.get(name).predict_metric_fns],
        "main_score": None if task and task.tokens else main_score(name),
        "source": _origin(name),
        "splits": measured,
        "examples": [_short(row) for row in islice(rows(name, splits[0]), shown)],
    }
    return found


def _name(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _origin(name: str) -> dict[str, str]:
    """Split -> where its rows come from, in words."""
    task = TABLE.get(name)
    if task is None:
        seqio_task = seqio_tasks.get(name)
        return {split: str(seqio_task.source) for split in seqio_task.splits}
    if task.kind == "file":
        return {split: ", ".join(paths_of(task, split)) for split in task.splits}
    if task.origin:
        found = task.origin()
        where = f"TFDS {found['tfds']} {found['version']}" if "tfds" in found else "files in their published layout"
        return {split: where for split in task.splits}
    origin = f"generated from {', '.join(task.packages) or 'nothing else'} (version {task.version})"
    return {split: origin for split in task.splits}


def _short(row: Mapping) -> dict:
    return {key: value for key, value in row.items() if key != "embedding"}


def _measure(
    name: str, split: str, tokens: Mapping[str, Callable], lengths: Mapping[str, int], limit: int | None, written: Callable | None
) -> dict:
    task = TABLE.get(name)
    sizes: dict[str, list[int]] = {"inputs": [], "targets": []}
    labels: Counter[str] = Counter()
    respelled = {"rows": 0, "target": "", "written": ""}
    source = rows(name, split)
    for row in islice(source, limit):
        for key in sizes:
            made = row.get(f"{key}_tokens")
            sizes[key].append(len(tokens[key](row[key]) if made is None else made))
        if task and task.labels:
            labels[row["targets"]] += 1
        elif written and "targets" in row and written(row["targets"]) != row["targets"].strip():
            first = respelled if respelled["rows"] else {"target": row["targets"], "written": written(row["targets"])}
            respelled |= {**first, "rows": respelled["rows"] + 1}
    return {
        "rows": len(sizes["inputs"]),
        "complete": next(source, None) is None,
        "labels": {label: labels[label] for label in task.labels} if task and task.labels else {},
        **({"respelled": respelled} if written else {}),
        **{key: _lengths(np.asarray(values), lengths.get(key)) for key, values in sizes.items()},
    }


def _lengths(sizes: np.ndarray, limit: int | None) -> dict:
    return {
        "median": float(np.median(sizes)),
        "p95": float(np.percentile(sizes, 95)),
        "max": int(sizes.max()),
        "limit": limit,
        "cut": 0 if limit is None else int((sizes > limit).sum()),
    }
