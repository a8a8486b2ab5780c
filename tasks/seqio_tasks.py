"""Ordinary SeqIO tasks, registered by a user's module: names, rows, and what went into them.

SeqIO is used only where such a module has imported it; nothing here imports it at the top.
"""

import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.table import TABLE, check_split, unknown_name

if TYPE_CHECKING:
    import seqio

ROW_FIELD = "row_json"  # the feature in which a row's own fields travel through SeqIO


def names() -> tuple[list[str], list[str]]:
    """(tasks, mixtures) in SeqIO's registries; both empty if nobody has imported SeqIO."""
    seqio = sys.modules.get("seqio")
    if seqio is None:
        return [], []
    return list(seqio.TaskRegistry.names()), list(seqio.MixtureRegistry.names())


def get(name: str) -> "seqio.Task":
    """A registered SeqIO task. Raises TaskError with the nearest names if there is none."""
    found, mixtures = names()
    if name not in found:
        raise unknown_name(name, [*TABLE, *found, *mixtures])
    return sys.modules["seqio"].TaskRegistry.get(name)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits of a registered SeqIO task. Raises TaskError where its data are not there yet."""
    task = get(name)
    try:
        return tuple(task.splits)
    except (ValueError, OSError) as error:  # a source over TFDS asks for the data as they were prepared
        told = getattr(getattr(task.source, "tfds_dataset", None), "name", None)
        how = f"`tfds build {told}`, or tfds.load({told!r})" if told else "what its source reads"
        why = str(error).strip() or type(error).__name__
        raise TaskError(f"the data of SeqIO task {name!r} are not there ({why}): prepare {how}") from error


def mixture_tasks(name: str) -> list[str]:
    """Names of the tasks in a registered mixture."""
    seqio = sys.modules["seqio"]
    return [task.name for task in seqio.get_subtasks(seqio.MixtureRegistry.get(name))]


def seqio_rows(name: str, split: str) -> Iterator[dict]:
    """The rows of an ordinary SeqIO task, in order: `inputs` and `targets` text and the other features."""
    task = get(name)
    check_split(name, split, splits_of(name))
    for feature in ("inputs", "targets"):
        if feature not in task.output_features:
            raise TaskError(
                f"SeqIO task {name!r} has no output feature {feature!r}, "
                f"only {', '.join(task.output_features)}"
            )

    def read() -> Iterator[dict]:
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
        for example in dataset.as_numpy_iterator():
            row = row_of_example(example)
            for feature in ("inputs", "targets"):
                if feature not in row and feature in example:
                    row[feature] = task.output_features[feature].vocabulary.decode(example[feature].tolist())
            yield row

    return read()


def row_of_example(example: Mapping[str, Any]) -> dict:
    """The row (JSON-able) of one NumPy example of a SeqIO dataset, without its tokens and its embedding.

    `inputs` and `targets` are the text before tokenisation where the example kept it.
    """
    row = json.loads(example[ROW_FIELD]) if ROW_FIELD in example else {}
    for key, value in example.items():
        if key not in (ROW_FIELD, "inputs", "targets", "embedding"):
            row[key] = plain(value)
    for key in ("inputs", "targets"):
        if f"{key}_pretokenized" in row:
            row[key] = row.pop(f"{key}_pretokenized")
    return row


def example_of_row(row: Mapping) -> dict[str, Any]:
    """A row as the postprocess_fn of a SeqIO task expects its example: NumPy arrays, text as bytes."""
    example = {}
    for key, value in row.items():
        key = f"{key}_pretokenized" if key in ("inputs", "targets") else key
        example[key] = _array(value)
    return example


def _array(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _array(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, list):
        return np.asarray(value)[()]
    inner = [_array(item) for item in value]
    same_shape = len({np.shape(item) for item in inner}) < 2
    numbers_only = same_shape and not any(np.asarray(item).dtype.kind in "SO" for item in inner)
    return np.array(inner) if numbers_only else np.array(inner, dtype=object)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if hasattr(value, "to_list"):  # a ragged tensor's value
        return plain(value.to_list())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def numbers(found: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers that a metric function returned (plain or SeqIO's Scalar), without texts and images; integers stay integers."""
    plain = {key: getattr(value, "value", value) for key, value in found.items()}
    real = {key: value for key, value in plain.items() if np.isscalar(value) and np.isreal(value)}
    return {key: int(value) if isinstance(value, int | np.integer) else float(value) for key, value in real.items()}


def seqio_ingredients(name: str, split: str) -> dict:
    """What decides the rows of an ordinary SeqIO task, as far as it can be seen from outside.

    The source's settings and files, the source text of its functions and preprocessors with their bound
    values, versions. Not seen: what those functions call or read themselves, so such a change needs a new
    task name or an emptied cache.
    """
    task = get(name)
    check_split(name, split, splits_of(name))
    source = task.source
    settings = {}
    for key in ("tfds_dataset", "_dataset_fn", "_reader", "_read_file_fn", "_split_to_filepattern"):
        value = getattr(source, key, None)
        if value is not None:
            settings[key] = _description(value)
    features = {
        key: [repr(feature.add_eos), str(feature.dtype)] for key, feature in task.output_features.items()
    }
    return {
        "name": name,
        "split": split,
        "kind": "seqio",
        "source": type(source).__qualname__,
        "settings": settings,
        "files": _files(source, split),
        "preprocessors": [_description(function) for function in task.preprocessors],
        "features": features,
        "seqio": metadata.version("seqio"),
    }


def _files(source: Any, split: str) -> list[list]:
    """[path, bytes, time of change] of each local file of a source over files."""
    if not hasattr(source, "_split_to_filepattern"):
        return []
    paths = [path for path in source.list_shards(split) if os.path.isfile(path)]
    return [[path, os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in paths]


def _description(value: Any) -> Any:
    if isinstance(value, functools.partial):
        bound = [[key, _description(inner)] for key, inner in sorted(value.keywords.items())]
        return [_description(value.func), [_description(inner) for inner in value.args], bound]
    if isinstance(value, Mapping):
        return {str(key): _description(inner) for key, inner in value.items()}
    if not callable(value):
        name = getattr(value, "name", None)  # a LazyTfdsLoader's repr holds an address
        return repr(value) if name is None else [name, repr(getattr(value, "split_map", None))]
    try:
        text = hashlib.sha256(inspect.getsource(value).encode()).hexdigest()
    except (OSError, TypeError):
        text = ""
    closed = [repr(cell.cell_contents) for cell in getattr(value, "__closure__", None) or ()]
    return [getattr(value, "__qualname__", type(value).__qualname__), text, closed]
