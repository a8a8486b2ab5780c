"""The rows of a task of the table, and everything that went into them (which keys the token cache)."""

import functools
import hashlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata

from mpt_jax.tasks import seqio_tasks
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.files import paths_of, read_records
from mpt_jax.tasks.lines import check_file
from mpt_jax.tasks.rendering import render
from mpt_jax.tasks.table import TABLE, Task, check_split

ROW_FORMAT = 2  # raise it when the same records are to become other rows


def rows(name: str, split: str) -> Iterator[dict]:
    """The rows of a split in order: `inputs` and `targets` text and the record's own fields.

    A task of the table needs no TensorFlow; an ordinary SeqIO task is read through SeqIO. Raises TaskError
    for an unknown name or split at once, for bad rows when they are reached.

    >>> next(tasks.rows("definition_valence", "validation"))["targets"] in tasks.TABLE["definition_valence"].labels
    True
    """
    task = TABLE.get(name)
    if task is None:
        return seqio_tasks.seqio_rows(name, split)
    check_split(name, split, task.splits)
    _check_source(task)
    return (render(task, record, where) for where, record in _records(task, split))


def _records(task: Task, split: str) -> Iterator[tuple[str, dict]]:
    if task.kind == "file":
        for path in paths_of(task, split):
            yield from read_records(path, task.format, task.columns)
        return
    number = -1
    try:
        for number, record in enumerate(task.generate(split)):
            yield f"task {task.name!r} split {split!r} row {number}", record
    except OSError as error:
        raise TaskError(f"task {task.name!r} split {split!r}: what its rows are made from cannot be read ({error})") from error
    if number < 0:
        raise TaskError(f"task {task.name!r} split {split!r}: the generator gave no row")


def _check_source(task: Task) -> None:
    if task.kind == "cached":
        raise TaskError(f"task {task.name!r} is known from its token cache alone; its rows need MIXTURE_OR_TASK_MODULE, which registers it")


def ingredients(name: str, split: str) -> dict:
    """Everything that decides the rows of a split, as JSON-able values; equal ingredients give equal rows.

    Files count by their bytes, not by their path. For an ordinary SeqIO task see `seqio_ingredients`.
    """
    task = TABLE.get(name)
    if task is None:
        return seqio_tasks.seqio_ingredients(name, split)
    check_split(name, split, task.splits)
    _check_source(task)
    found = {
        "name": name,
        "split": split,
        "kind": task.kind,
        "row_format": ROW_FORMAT,
        "template": task.template,
        "target": task.target,
        "labels": None if task.labels is None else list(task.labels),
        "references": task.references,
        "embedding_size": task.embedding_size,
        "tokens": task.tokens,
    }
    if task.kind == "file":
        columns = None if task.columns is None else list(task.columns)
        digests = [file_digest(path) for path in paths_of(task, split)]
        return found | {"format": task.format, "columns": columns, "files": digests}
    return found | {
        "version": task.version,
        "packages": {package: version(package) for package in task.packages},
        **({"origin": task.origin()} if task.origin else {}),
    }


def version(package: str) -> str:
    """The version of a distribution, or of Python for 'python'. Raises TaskError if it is not installed."""
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise TaskError(
            f"package {package!r} is not installed, and the task's rows are made of it"
        ) from error


def file_digest(path: str) -> dict:
    """{'bytes': size, 'sha256': hex} of a file. Raises TaskError if it is missing, cannot be read, or is a pipe or device."""
    check_file(path)
    try:
        status = os.stat(path)
        return {"bytes": status.st_size, "sha256": _sha256(str(path), status.st_size, status.st_mtime_ns)}
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error}): correct `files` of the task") from error


@functools.lru_cache
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
