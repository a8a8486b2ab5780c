"""Tasks from JSONL, TSV and CSV files: the short forms `jsonl`, `tsv`, `csv`, and reading such files."""

import csv as csv_reader
import glob
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.lines import LINE_LIMIT, check_file, json_object, lines
from mpt_jax.tasks.table import FORMATS, Task, add

from mpt_jax import buckets

Files = str | Path | Sequence[str | Path]  # a file, a pattern of files, or a list of them
csv_reader.field_size_limit(LINE_LIMIT)  # Python's own limit of 131,072 cuts off real texts


def jsonl(name: str, files: Mapping[str, Files], template: str, **settings) -> Task:
    """Adds a task whose rows are JSON objects, one per line, to the table.

    files: by split a path, a pattern ('train-*.jsonl', in the order of the names) or a list of both; relative to the module that calls, or
    to the current folder. template: the text that the model reads, with fields of a row in braces. Give `labels` or `target`; the other
    settings are optional:

    * labels: the words that a row's `label` means, by word or by index from 0;
    * target: a template of the right answer;
    * score: a name or several, of `tasks.scores` or added by `add_score` ('accuracy'); scores are in percent;
    * references: the field with a list of all right answers, where the target is not the only one;
    * description: a line for `mpt-jax tasks`; replace=True: takes the place of another task of this name;
    * embedding_size: the length of a row's `embedding`, for pretraining.

    Files are read when rows are asked for. Raises TaskError where the settings do not fit together.

    >>> files = {"train": "mood_train.jsonl", "validation": "mood_dev.jsonl"}
    >>> task = tasks.jsonl("mood", files=files, template="review: {text}", labels=("negative", "positive"))
    >>> row = next(tasks.rows("mood", "train"))
    >>> row["inputs"], row["targets"]
    ('review: a joy from start to end', 'positive')
    """
    return file_task("jsonl", _caller_folder(), name, files, template, **settings)


def tsv(name: str, files: Mapping[str, Files], template: str, **settings) -> Task:
    """Adds a task of tab-separated rows to the table; settings as in `jsonl`.

    The first line names the columns, or `columns` does. Quotes have no meaning. Raises TaskError as `jsonl` does.

    >>> task = tasks.tsv("capitals", files={"train": "capitals.tsv"}, template="capital of {country}", target="{capital}")
    >>> next(tasks.rows("capitals", "train"))["targets"]
    'Lima'
    """
    return file_task("tsv", _caller_folder(), name, files, template, **settings)


def csv(name: str, files: Mapping[str, Files], template: str, **settings) -> Task:
    """Adds a task of comma-separated rows to the table; settings as in `jsonl`.

    The first line names the columns, or `columns` does. A value with commas or line breaks is "quoted". Raises TaskError as `jsonl` does.

    >>> names = ("country", "capital")
    >>> task = tasks.csv("towns", files={"train": "towns.csv"}, template="capital of {country}", target="{capital}", columns=names)
    >>> next(tasks.rows("towns", "train"))["inputs"]
    'capital of Peru'
    """
    return file_task("csv", _caller_folder(), name, files, template, **settings)


def file_task(
    format: str,
    folder: Path,
    name: str,
    files: Mapping[str, Files],
    template: str,
    labels: Sequence[str] | None = None,
    target: str | None = None,
    score: str | Sequence[str] = "accuracy",
    references: str | None = None,
    columns: Sequence[str] | None = None,
    embedding_size: int = 0,
    group: str = "user",
    description: str = "",
    replace: bool = False,
) -> Task:
    """Adds a task over files of a format to the table, as `jsonl` says; paths are relative to `folder` if they are there, else to here."""
    if not isinstance(files, Mapping):
        raise TaskError(f"task {name!r}: `files` must be like {{'train': 'train.{format}'}}, got {files!r}")
    if columns is not None and format == "jsonl":
        raise TaskError(f"task {name!r}: `columns` is for TSV and CSV; JSON rows name their fields")
    return add(
        Task(
            name=name,
            kind="file",
            splits=tuple(files),
            template=template,
            target=target,
            labels=None if labels is None else _texts(name, "labels", labels),
            score=score if isinstance(score, str) else _texts(name, "score", score),
            group=group,
            description=description,
            references=references,
            files={split: _resolve_all(name, split, folder, given) for split, given in files.items()},
            format=format,
            columns=None if columns is None else _texts(name, "columns", columns),
            embedding_size=embedding_size,
        ),
        replace=replace,
    )


def _texts(name: str, setting: str, given: object) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
        raise TaskError(f"task {name!r}: `{setting}` must be a list of texts, got {given!r:.80}")
    return tuple(given)


def _caller_folder() -> Path:
    """The folder of the module that called a short form; the current one in a notebook."""
    file = sys._getframe(2).f_globals.get("__file__")
    return Path(file).resolve().parent if file else Path.cwd()


def _resolve_all(name: str, split: str, folder: Path, given: Files) -> str | tuple[str, ...]:
    if isinstance(given, str | Path):
        return _resolve(folder, given)
    if not isinstance(given, list | tuple) or not given or not all(isinstance(path, str | Path) for path in given):
        raise TaskError(f"task {name!r}: files[{split!r}] must be a path, a pattern or a list of paths, got {given!r:.80}")
    return tuple(_resolve(folder, path) for path in given)


def _resolve(folder: Path, path: str | Path) -> str:
    if buckets.is_address(path):
        return str(path)
    path = os.path.expanduser(path)
    beside = str(folder / path)
    if os.path.lexists(beside) or glob.glob(beside):
        return beside
    in_bucket = buckets.address_of(folder)  # of a module that came from a bucket
    here = str(Path.cwd() / path)
    return f"{in_bucket}/{path}" if in_bucket and not os.path.isabs(path) and not os.path.lexists(here) and not glob.glob(here) else here


def paths_of(task: Task, split: str) -> list[str]:
    """The files of a split in the order they are read. Raises TaskError for a pattern that fits no file."""
    given = task.files[split]
    found = []
    for path in (given,) if isinstance(given, str) else given:
        path = _brought(task, path)
        if os.path.lexists(path) or not glob.has_magic(path):
            found.append(path)
        elif several := sorted(glob.glob(path)):
            found += several
        else:
            raise TaskError(f"{path}: no file fits this pattern: correct `files` of the task or the current folder")
    return found


def _brought(task: Task, path: str) -> str:
    """A path, or the place here of what is at an address, which a module in a bucket may name by its own place here.

    Of a pattern the folder is brought here.
    """
    address = path if buckets.is_address(path) else buckets.address_of(path)
    if address is None:
        return path
    folder, _, last = address.rpartition("/")
    if glob.has_magic(last):
        return f"{buckets.here(f'files of task {task.name!r}', folder)}/{last}"
    return buckets.here(f"files of task {task.name!r}", address)


def read_records(
    path: str | Path, format: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict]]:
    """('FILE:LINE', record) of each row of a file; lines count from 1.

    Raises TaskError naming file and line for a missing or empty file, wrong JSON, columns or encoding.
    """
    if format not in FORMATS:
        raise TaskError(f"{path}: format {format!r} is none of {FORMATS}")
    check_file(path)
    read = _json_records(path) if format == "jsonl" else _separated_records(path, format, columns)
    empty = True
    for line, record in read:
        empty = False
        yield f"{path}:{line}", record
    if empty:
        raise TaskError(f"{path}: the file holds no row: give it rows or take its split out of `files`")


def _json_records(path: str | Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, json_object(line, f"{path}:{number}")


def _separated_records(path: str | Path, format: str, columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
    if format == "tsv":
        reader = csv_reader.reader(lines(path), delimiter="\t", quoting=csv_reader.QUOTE_NONE, strict=True)
    else:
        reader = csv_reader.reader(lines(path), strict=True)
    names, number = columns, 1
    while True:
        try:
            values = next(reader, None)
        except csv_reader.Error as error:
            advice = "end rows with line feeds" if "new-line" in str(error) else "correct the quotes"
            raise TaskError(f"{path}:{number}: not {format.upper()} ({error}): {advice}") from error
        if values is None:
            return
        if names is None:
            names = values
            if len(set(names)) != len(names):
                raise TaskError(f"{path}:{number}: two columns have the same name: {', '.join(names)}")
        elif values:
            if len(values) != len(names):
                raise TaskError(
                    f"{path}:{number}: {len(values)} values instead of {len(names)} ({', '.join(names)}): "
                    "correct the row; `columns` names columns if the first line does not"
                )
            yield number, dict(zip(names, values, strict=True))
        number = reader.line_num + 1
