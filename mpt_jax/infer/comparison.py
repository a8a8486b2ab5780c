"""Our scores next to published ones: a table for each benchmark that a run has a task of."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpt_jax.infer import published
from mpt_jax.infer.columns import Scored, column_of, lines_of


class Comparison(NamedTuple):
    """A table, header first, with its title and what must be known to read it."""

    title: str
    rows: list[list[str]]
    note: str


def comparisons(records: Sequence[Scored]) -> list[Comparison]:
    """A table for each benchmark of which some record has a score: ours first, then the published lines.

    Runs of one method that differ in tasks and seeds fill one line. Few-shot runs stand in tables of their own, one for each number of
    training rows.
    """
    few = [record for record in records if record.run["stage"] == "fewshot"]
    whole = [record for record in records if record.run["stage"] != "fewshot"]
    tables = [(name, names, whole, published.ROWS) for name, names in published.BENCHMARKS.items()]
    for k in sorted({_k_shot(record) for record in few}):
        chosen = [record for record in few if _k_shot(record) == k]
        tables.append((f"Few-shot, {k} rows,", published.FEW_SHOT, chosen, published.FEW_SHOT_ROWS.get(k, ())))
    return [
        _comparison(name, names, members, lines)
        for name, names, members, lines in tables
        if any(_base(task) in names for record in members for task in record.scores)
    ]


def _k_shot(record: Scored) -> int:
    return record.run["settings"]["data"]["k_shot"]


def _base(task: str) -> str:
    """The task without its variant (NAME:index, NAME:published)."""
    return task.partition(":")[0]


def _comparison(benchmark: str, names: Sequence[str], records: Sequence[Scored], lines: Sequence[published.Row]) -> Comparison:
    rows = [["method", "trained params / task", *(name.removeprefix("superglue_") for name in names), "average", "from"]]
    missing = []
    for record in lines_of([record for record in records if any(_base(task) in names for task in record.scores)]):
        found = {_base(task): score for task, score in record.scores.items() if _base(task) in names}
        cells = [_cell(name, found.get(name)) for name in names]
        means = [_reported(name, found[name]) for name in names if name in found]
        average = f"{np.mean([mean for mean, _ in means]):.1f}" if len(means) == len(names) and None not in means else "–"
        column = column_of(record.run)
        label = f"ours: {record.name}" + (f" ({column})" if column else "")
        rows.append([label, _parameters(record.run), *cells, average, _backbone(record.run)])
        absent = [name for name in names if found.get(name) is None or _reported(name, found[name]) is None]
        if absent:
            missing.append(f"{record.name} has no score of {', '.join(absent)}")
    ours = len(rows)
    rows += [_published(line, benchmark, names) for line in lines if any(name in line.scores for name in names)]
    for method, parameters, source, averages in published.AVERAGES:
        if benchmark in averages:
            rows.append([method, parameters, *["–"] * len(names), f"{averages[benchmark]:.1f}", source])
    return Comparison(f"{benchmark} next to published numbers", rows, _note(benchmark, missing, rows[ours:]))


def _published(line: published.Row, benchmark: str, names: Sequence[str]) -> list[str]:
    """A published line; numbers that nobody could verify carry a mark."""
    mark = published.MARK if line.source == published.RECALLED else ""
    values = [f"{line.scores[name]:.1f}{mark}" if name in line.scores else "–" for name in names]
    average = _average(line, benchmark, names)
    return [line.method, line.parameters, *values, average if average == "–" else average + mark, line.source]


def _note(benchmark: str, missing: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = f"Missing: {'; '.join(missing)}. " if missing else "No row of ours is missing. "
    if not lines:
        text += f"No published line of {benchmark.rstrip(',')} is known here. "
    text += "Ours: mean ± standard deviation, number of seeds in brackets; the split where it is not test. " + published.NOTE
    text += f" {published.FEW_SHOT_NOTE}" if benchmark.startswith("Few-shot") else ""
    return f"{text} {published.MARK_NOTE}" if any(line[-1] == published.RECALLED for line in lines) else text


def _reported(task: str, score) -> tuple[float, float] | None:
    """(mean, std) of the score that the published tables give, or None where ours is only known by another."""
    wanted = published.REPORTED.get(task, score.name)
    if score.name == wanted:
        return score.mean, score.std
    return score.all.get(wanted)


def _cell(task: str, score) -> str:
    value = None if score is None else _reported(task, score)
    if value is None:
        return "–"
    split = "" if score.split == "test" else f", {score.split.split(',')[0]}"
    return f"{value[0]:.1f} ± {value[1]:.1f} ({score.runs}{split})"


def _average(line: published.Row, benchmark: str, names: Sequence[str]) -> str:
    if any(name not in line.scores for name in names):
        return "–"
    value = published.PRINTED.get((line.method, benchmark), float(np.mean([line.scores[name] for name in names])))
    return f"{value:.1f}"


def _parameters(run: dict) -> str:
    count = run["parameters"]["per_task"]
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}K"


def _backbone(run: dict) -> str:
    return f"{run['stage']}, {run['backbone']['name']} ({run['backbone']['parameters'] / 1e6:.1f} M)"
