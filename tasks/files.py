"""Tasks from JSONL, TSV and CSV files: the short forms `jsonl`, `tsv`, `csv`, and reading such files."""

import csv as csv_reader
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tasks.errors import TaskError
from tasks.table import FORMATS, Task, add


def jsonl(name: str, files: Mapping[str, str | Path], template: str, **settings) -> Task:
    """Adds a task whose rows are JSON objects, one a line, to the table; settings as in `file_task`."""
    return file_task("jsonl", _caller_folder(), name, files, template, **settings)


def tsv(name: str, files: Mapping[str, str | Path], template: str, **settings) -> Task:
    """Adds a task of tab-separated rows (first line: names; no quoting); settings as in `file_task`."""
    return file_task("tsv", _caller_folder(), name, files, template, **settings)


def csv(name: str, files: Mapping[str, str | Path], template: str, **settings) -> Task:
    """Adds a task of comma-separated rows (first line: names; "quoted"); settings as in `file_task`."""
    return file_task("csv", _caller_folder(), name, files, template, **settings)


def file_task(
    format: str,
    folder: Path,
    name: str,
    files: Mapping[str, str | Path],
    template: str,
    labels: Sequence[str] | None = None,
    target: str | None = None,
    score: str | Sequence[str] = "accuracy",
    columns: Sequence[str] | None = None,
    embedding_size: int = 0,
    group: str = "user",
    description: str = "",
    replace: bool = False,
) -> Task:
    """Adds a task over files to the table: split -> path, relative to `folder` if it is there, else to here.

    `template` and `target` name fields of a row in braces; instead of `target`, `labels` lists the words
    that the row's `label` (an index, or one of the words) means. `columns` names the columns where the first
    line does not. Files are read when rows are asked for. Raises TaskError where the settings do not fit
    together.
    """
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
            labels=labels if labels is None or isinstance(labels, str) else tuple(labels),
            score=score if isinstance(score, str) else tuple(score),
            group=group,
            description=description,
            files={split: str(_resolve(folder, path)) for split, path in files.items()},
            format=format,
            columns=None if columns is None else tuple(columns),
            embedding_size=embedding_size,
        ),
        replace=replace,
    )


def _caller_folder() -> Path:
    """The folder of the module that called a short form; the current one in a notebook."""
    file = sys._getframe(2).f_globals.get("__file__")
    return Path(file).resolve().parent if file else Path.cwd()


def _resolve(folder: Path, path: str | Path) -> Path:
    path = Path(path).expanduser()
    return folder / path if (folder / path).exists() else Path.cwd() / path


def read_records(
    path: str | Path, format: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, dict]]:
    """('FILE:LINE', record) of each row of a file; lines count from 1.

    Raises TaskError naming file and line for a missing or empty file, wrong JSON, columns or encoding.
    """
    if format not in FORMATS:
        raise TaskError(f"{path}: format {format!r} is none of {FORMATS}")
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"{path}: there is no such file: correct `files` of the task or the current folder")
    read = _json_records(path) if format == "jsonl" else _separated_records(path, format, columns)
    empty = True
    for line, record in read:
        empty = False
        yield f"{path}:{line}", record
    if empty:
        raise TaskError(f"{path}: the file holds no row: give it rows or take its split out of `files`")


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise TaskError(f"{path}:{number}: not UTF-8 ({error.reason}): save it as UTF-8") from error


def _json_records(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            place = f"{path}:{number}"
            raise TaskError(
                f"{place}: not JSON ({error.msg}, column {error.colno}): {line.strip():.80}"
            ) from error
        if not isinstance(record, dict):
            raise TaskError(
                f'{path}:{number}: a JSON object is needed, {{"field": …}}, got {line.strip():.80}'
            )
        yield number, record


def _separated_records(path: Path, format: str, columns: Sequence[str] | None) -> Iterator[tuple[int, dict]]:
    if format == "tsv":
        reader = csv_reader.reader(_lines(path), delimiter="\t", quoting=csv_reader.QUOTE_NONE, strict=True)
    else:
        reader = csv_reader.reader(_lines(path), strict=True)
    names, number = columns, 1
    while True:
        try:
            values = next(reader, None)
        except csv_reader.Error as error:
            raise TaskError(f"{path}:{number}: not {format.upper()} ({error}): correct the quotes") from error
        if values is None:
            return
        if names is None:
            names = values
            if len(set(names)) != len(names):
                raise TaskError(f"{path}:{number}: two columns have the same name: {', '.join(names)}")
        elif values:
            if len(values) != len(names):
                raise TaskError(
                    f"{path}:{number}: {len(values)} values in place of {len(names)} ({', '.join(names)}): "
                    "correct the row; `columns` names columns if the first line does not"
                )
            yield number, dict(zip(names, values, strict=True))
        number = reader.line_num + 1
