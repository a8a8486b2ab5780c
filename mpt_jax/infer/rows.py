"""Rows in, rows out: ``mpt-jax infer`` over a JSONL file or a task's split."""

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mpt_jax import tasks
from mpt_jax.data.cache import cached_names, open_cache
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.distributed import is_first, say
from mpt_jax.errors import UserError
from mpt_jax.infer import queries
from mpt_jax.infer.predictor import Predictor
from mpt_jax.infer.queries import Query
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.metrics import ProgressLine
from mpt_jax.output import PARTIAL, kept_in_part
from mpt_jax.tasks.lines import check_file, json_object, lines

CHUNK = 4096  # rows sorted by length together, and held in memory
KEPT_ROWS, KEPT_BYTES = 2**16, 2**26  # of a source that is read once and kept; a longer one is read again to be answered [ours]


class Given(NamedTuple):
    """A row to answer. where: file and line, for messages; ready: field `inputs` is what the model reads, whatever the template names."""

    where: str
    row: dict
    ready: bool


def read_rows(predictor: Predictor, source: str, cache_dir: Path) -> Iterator[Given]:
    """The rows of a JSONL file, or of TASK:SPLIT: of a task that is registered here, or from its token cache.

    Raises UserError or tasks.TaskError naming file and line.
    """
    if os.path.lexists(source):
        check_file(source, "--input")
        for number, line in enumerate(lines(source), 1):
            if line.strip():
                where = f"{source}:{number}"
                yield Given(where, json_object(line, where), False)
        return
    name, colon, split = source.rpartition(":")
    if not colon:
        raise UserError(f"--input {source!r}: there is no such file (and it is not TASK:SPLIT).")
    for number, row in enumerate(_rows_of_split(predictor, source, name, split, cache_dir)):
        yield Given(f"{source} row {number}", row, ready=True)


def _rows_of_split(predictor: Predictor, source: str, name: str, split: str, cache_dir: Path) -> Iterator[dict]:
    registered = tasks.TABLE[name].kind != "cached" if name in tasks.TABLE else name in tasks.seqio_tasks.names()[0]
    if registered or name not in cached_names(cache_dir):
        try:
            found = tasks.rows(name, split)
        except tasks.TaskError as error:
            raise UserError(f"--input {source!r}: there is no such file, and as TASK:SPLIT: {error}") from error
        yield from found
        return
    cache = open_cache(name, split, predictor.vocabulary, cache_dir, build=False)
    for row in range(cache.rows):
        fields = cache.extra(row)
        yield fields if "inputs" in fields else {**fields, "inputs": predictor.vocabulary.decode(cache.inputs(row))}


def task_of_row(predictor: Predictor, row: dict, task: str | None, where: str) -> str | None:
    """The task that answers a row: the one given, the run's only one, or the row's own field ``task``."""
    if task is not None or len(predictor.tasks) == 1:
        return task or predictor.tasks[0]
    if row.get("task") in predictor.tasks:
        return row["task"]
    if not predictor.model.own:
        return None
    message = f"{where}: the run holds several tasks ({', '.join(predictor.tasks)})"
    raise UserError(f"{message}; type --tasks NAME, or a field 'task' in each row.")


def text_of_row(given: Given, task: str | None) -> str:
    """What the model reads: as in training where the task is registered here, else the field ``inputs``."""
    where, row, ready = given
    if task in tasks.TABLE and not ready:
        return tasks.inputs_text(tasks.TABLE[task], row, where)
    if "inputs" in row:
        return tasks.ready_text(row, where)
    if task in tasks.seqio_tasks.names()[0]:
        message = f"{where}: no field 'inputs', and the preprocessors of SeqIO task {task!r} read its own data alone"
        raise UserError(f"{message}; give rows with 'inputs', or --input {task}:SPLIT.")
    message = f"{where}: no field 'inputs', and task {task!r} is not registered here to make it from {', '.join(map(repr, row))}"
    raise UserError(f"{message}; name its module by MIXTURE_OR_TASK_MODULE.")


def infer(
    predictor: Predictor,
    source: str,
    output: str | Path,
    task: str | None = None,
    score: bool = False,
    cache_dir: Path | None = None,
    search: Search = GREEDY,
    method: str = "decode",
) -> int:
    """Writes each row of ``source`` with ``inputs`` as the model saw it, ``prediction`` and, with ``score``, ``scores`` of the labels.

    ``method``: a row of config.ANSWERS; tasks without labels are decoded by any. ``search``: how what is decoded is found.
    Returns the number of rows. The output file appears when it is complete; until then, and after an error, what is answered is in
    OUTPUT.partial. Raises UserError and tasks.TaskError naming the row; all rows are checked before the first is answered.
    """
    if os.path.realpath(source) == f"{os.path.realpath(output)}{PARTIAL}":
        raise UserError(f"--input {source!r} is what an earlier command left of --output {str(output)!r}: give it another name first.")
    of_split = "" if os.path.lexists(source) else source.rpartition(":")[0]
    if task is None and of_split and (of_split in predictor.tasks or not predictor.model.own):  # without prompts any task will do
        task = of_split
    cache_dir = cache_dir or cache_folder()
    if task is not None:
        predictor.bank_rows(task)
        _check_known(predictor, task, cache_dir)
    answering = task or (predictor.tasks[0] if len(predictor.tasks) == 1 else of_split)
    if of_split and predictor.model.own and answering != of_split:
        say(f"--input {source!r}: its rows are answered with the prompt of task {answering!r}")
    total, kept = _check(predictor, read_rows(predictor, source, cache_dir), source, task, score, method)
    rows = iter(kept) if len(kept) == total else read_rows(predictor, source, cache_dir)
    done = 0
    opened = kept_in_part(output, "--output") if is_first() else contextlib.nullcontext()
    with ProgressLine("infer", total, unit="rows") as progress, opened as file:
        while chunk := list(itertools.islice(rows, CHUNK)):
            tell = functools.partial(_tell, progress, done, 2 if score else 1)
            for row in _answered(predictor, chunk, task, score, tell, search, method):
                if file is not None:
                    file.write(_line(row))
            if file is not None:
                file.flush()
            done += len(chunk)
    return total


def _tell(progress: ProgressLine, start: int, passes: int, answered: int) -> None:
    progress.update(start + answered // passes)


def _more(tell: Callable[[int], None], answered: int, rows: int, _: int) -> None:
    """Tells of rows answered in one of several calls."""
    tell(answered + rows)


def _line(row: dict) -> bytes:
    text = json.dumps(row, ensure_ascii=False)
    try:
        return f"{text}\n".encode()
    except UnicodeEncodeError:  # half of a surrogate pair in a field that is passed through: as it was given, escaped
        return f"{json.dumps(row)}\n".encode()


def _ranked(predictor: Predictor, task: str | None, method: str) -> tuple[str, ...]:
    """The labels that a method chooses among; none where it decodes. Raises UserError for a task that is not registered here."""
    registered = tasks.TABLE.get(task) if task else None
    decodes = method == "decode" or (registered is not None and not registered.labels)
    decodes = decodes or (registered is None and task in tasks.seqio_tasks.names()[0])
    return () if decodes else predictor.labels(task)


def _check_known(predictor: Predictor, task: str, cache_dir: Path) -> None:
    """Raises TaskError for a name that neither the run nor anybody here knows: without prompts a run answers for any task."""
    known = [*predictor.tasks, *tasks.TABLE, *tasks.seqio_tasks.names()[0]]
    if not predictor.model.own and task not in known and task not in cached_names(cache_dir):
        raise tasks.table.unknown_name(task, known)


def _tell_seed(predictor: Predictor, task: str | None) -> None:
    """A line where several runs of a task could answer: it is the first of them."""
    runs = [predictor.run["runs"][n] for n in predictor.bank_rows(task)] if predictor.model.own else []
    seeds = list(dict.fromkeys(row["seed"] for row in runs))
    if len(seeds) > 1:
        say(f"task {runs[0]['task']!r} was trained under {len(seeds)} seeds: seed {seeds[0]} answers; eval gives the mean over all")


def _check(
    predictor: Predictor, rows: Iterable[Given], source: str, task: str | None, score: bool, method: str
) -> tuple[int, list[Given]]:
    """(number of rows, the rows of a source that is small enough to be kept)."""
    total, seen, kept = 0, set(), []
    keeps = not os.path.isfile(source) or os.path.getsize(source) <= KEPT_BYTES
    for given in rows:
        name = task_of_row(predictor, given.row, task, given.where)
        text = text_of_row(given, name)
        if not any(map(str.isalnum, text)):  # maybe nothing that the vocabulary writes
            queries.check_input(text, given.where, predictor.sources.find(name)[0])
        if name not in seen:
            predictor.check_task(name, score)
            _ranked(predictor, name, method)
            _tell_seed(predictor, name)
        seen.add(name)
        total += 1
        if keeps and total <= KEPT_ROWS:
            kept.append(given)
    if not total:
        raise UserError(f"--input {source!r} holds no rows.")
    return total, kept


def _predicted(
    predictor: Predictor, texts: list[str], task: str | None, progress: Callable[[int, int], None], search: Search, method: str
) -> list[str]:
    """The answers to texts of one task."""
    labels = _ranked(predictor, task, method)
    if not labels:
        return predictor.predict(texts, task, progress=progress, search=search)
    asked = queries.asked([Query(text, task) for text in texts], predictor.sources)
    return queries.label_of(asked, labels, method, predictor.spec, progress)


def _answered(
    predictor: Predictor, chunk: list[Given], task: str | None, score: bool, tell: Callable[[int], None], search: Search, method: str
) -> Iterable[dict]:
    """The rows of a chunk with their answers, in the order given; ``tell`` hears the rows answered, those scored counted again."""
    names = [task_of_row(predictor, given.row, task, given.where) for given in chunk]
    texts = [text_of_row(given, name) for given, name in zip(chunk, names, strict=True)]
    found: list[dict] = [{} for _ in chunk]
    answered = 0
    for name in dict.fromkeys(names):
        members = [n for n, other in enumerate(names) if other == name]
        chosen = [texts[n] for n in members]
        progress = functools.partial(_more, tell, answered)
        for n, prediction in zip(members, _predicted(predictor, chosen, name, progress, search, method), strict=True):
            found[n]["prediction"] = prediction
        answered += len(members)
        if score:
            labels = predictor.labels(name)
            scores = predictor.score_labels(chosen, labels, name, progress=functools.partial(_more, tell, answered))
            for n, logp_C in zip(members, scores, strict=True):
                found[n]["scores"] = {label: float(logp) for label, logp in zip(labels, logp_C, strict=True)}
            answered += len(members)
    for given, text, answer in zip(chunk, texts, found, strict=True):
        yield {**given.row, "inputs": text, **answer}
