"""Rows in, rows out: ``mpt-jax infer`` over a JSONL file or a task's split."""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tasks
from mpt_jax.distributed import is_first
from mpt_jax.errors import UserError
from mpt_jax.infer.predictor import Predictor
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.metrics import ProgressLine

CHUNK = 4096  # rows sorted by length together, and held in memory


def read_rows(source: str) -> Iterator[tuple[str, dict]]:
    """(place for messages, row) of a JSONL file, or of TASK:SPLIT for a task's split. Raises UserError naming file and line."""
    path = Path(source)
    if not path.is_file():
        name, colon, split = source.rpartition(":")
        if not colon:
            raise UserError(f"--input {source!r}: there is no such file (and it is not TASK:SPLIT).")
        for number, row in enumerate(tasks.rows(name, split)):
            yield f"{source} row {number}", row
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{source}:{number}", _parsed(line, f"{source}:{number}")


def _parsed(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: no JSON ({error}); each line must be one object.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: {line.strip()!r:.80} is no object; each line must be one.")
    return row


def task_of_row(predictor: Predictor, row: dict, task: str | None, where: str) -> str | None:
    """The task that answers a row: the one given, the run's only one, or the row's own field ``task``."""
    if task is not None or len(predictor.tasks) == 1:
        return task or predictor.tasks[0]
    if row.get("task") in predictor.tasks:
        return row["task"]
    if not predictor.model.own:
        return None
    message = f"{where}: the run holds several tasks ({', '.join(predictor.tasks)})"
    raise UserError(f"{message}; give --gin.MIXTURE_OR_TASK_NAME=\"'task'\", or a field 'task' in each row.")


def text_of_row(row: dict, task: str | None, where: str) -> str:
    """What the model reads: the field ``inputs`` if there is one, else the task's template over the row's fields."""
    if "inputs" in row:
        if not isinstance(row["inputs"], str) or not row["inputs"].strip():
            raise UserError(f"{where}: field 'inputs' is {row['inputs']!r:.60}; it must be a text that is not empty.")
        return row["inputs"]
    if task not in tasks.TABLE:
        message = f"{where}: no field 'inputs', and task {task!r} is not registered here to make it from {', '.join(map(repr, row))}"
        raise UserError(f"{message}; name its module by MIXTURE_OR_TASK_MODULE.")
    return tasks.inputs_text(tasks.TABLE[task], row, where)


def infer(
    predictor: Predictor, source: str, output: str | Path, task: str | None = None, score: bool = False, search: Search = GREEDY
) -> int:
    """Writes each row of ``source`` with ``inputs`` as the model saw it, ``prediction`` and, with ``score``, ``scores`` of the labels.

    Returns the number of rows. The output file appears when it is complete. Raises UserError and tasks.TaskError naming the row; all
    rows are checked before the first is answered.
    """
    if task is not None:
        predictor.bank_rows(task)
    total = _check(predictor, source, task, score)
    output = Path(output)
    temporary = output.with_name(output.name + ".tmp")
    rows = read_rows(source)
    passes = 2 if score else 1
    done = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        opened = temporary.open("w", encoding="utf-8") if is_first() else contextlib.nullcontext()
        with ProgressLine("infer", total, unit="rows") as progress, opened as file:
            while chunk := list(itertools.islice(rows, CHUNK)):
                tell = lambda answered, start=done: progress.update(start + answered // passes)  # noqa: E731
                for row in _answered(predictor, chunk, task, score, tell, search):
                    if file is not None:
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                done += len(chunk)
        if is_first():
            os.replace(temporary, output)
    except OSError as error:
        raise UserError(f"--output {str(output)!r} cannot be written: {error.strerror or error}.") from error
    finally:
        if is_first() and temporary.is_file():
            temporary.unlink()
    return total


def _check(predictor: Predictor, source: str, task: str | None, score: bool) -> int:
    total, seen = 0, set()
    for where, row in read_rows(source):
        name = task_of_row(predictor, row, task, where)
        text_of_row(row, name, where)
        if name not in seen and score:
            predictor.labels(name)
        seen.add(name)
        total += 1
    if not total:
        raise UserError(f"--input {source!r} holds no rows.")
    return total


def _answered(
    predictor: Predictor, chunk: list[tuple[str, dict]], task: str | None, score: bool, tell: Callable[[int], None], search: Search
) -> Iterable[dict]:
    """The rows of a chunk with their answers, in the order given; ``tell`` hears the rows answered, those scored counted again."""
    names = [task_of_row(predictor, row, task, where) for where, row in chunk]
    texts = [text_of_row(row, name, where) for (where, row), name in zip(chunk, names, strict=True)]
    found: list[dict] = [{} for _ in chunk]
    answered = 0
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        chosen = [texts[place] for place in places]
        progress = lambda rows, _: tell(answered + rows)  # noqa: E731, B023 - called before `answered` changes
        for place, prediction in zip(places, predictor.predict(chosen, name, progress=progress, search=search), strict=True):
            found[place]["prediction"] = prediction
        answered += len(places)
        if score:
            labels = predictor.labels(name)
            scores = predictor.score_labels(chosen, labels, name, progress=progress)
            for place, logp_C in zip(places, scores, strict=True):
                found[place]["scores"] = {label: float(logp) for label, logp in zip(labels, logp_C, strict=True)}
            answered += len(places)
    for (_, row), text, answer in zip(chunk, texts, found, strict=True):
        yield {**row, "inputs": text, **answer}
