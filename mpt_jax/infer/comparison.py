"""Our scores beside published ones: a table for each benchmark that a run has a task of."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from mpt_jax.infer import published


class Scored(Protocol):
    """What is read of a report.RunRecord."""

    name: str
    run: dict
    scores: dict


class Comparison(NamedTuple):
    """A table, header first, with its title and what must be known to read it."""

    title: str
    rows: list[list[str]]
    note: str


def comparisons(records: Sequence[Scored]) -> list[Comparison]:
    """A table for each benchmark of which some record has a score: ours first, then the published lines."""
    return [
        _comparison(name, names, records)
        for name, names in published.BENCHMARKS.items()
        if any(_base(task) in names for record in records for task in record.scores)
    ]


def _base(task: str) -> str:
    """The task without its variant (NAME:index, NAME:published)."""
    return task.partition(":")[0]


def _comparison(benchmark: str, names: Sequence[str], records: Sequence[Scored]) -> Comparison:
    rows = [["method", "trained a task", *(name.removeprefix("superglue_") for name in names), "average", "from"]]
    missing = []
    for record in records:
        found = {_base(task): score for task, score in record.scores.items() if _base(task) in names}
        if not found:
            continue
        cells = [_cell(name, found.get(name)) for name in names]
        means = [_reported(name, found[name]) for name in names if name in found]
        average = f"{np.mean([mean for mean, _ in means]):.1f}" if len(means) == len(names) and None not in means else "–"
        rows.append([f"ours: {record.name}", _parameters(record.run), *cells, average, _backbone(record.run)])
        absent = [name for name in names if found.get(name) is None or _reported(name, found[name]) is None]
        if absent:
            missing.append(f"{record.name} has no score of {', '.join(absent)}")
    for line in published.ROWS:
        if any(name in line.scores for name in names):
            values = [f"{line.scores[name]:.1f}" if name in line.scores else "–" for name in names]
            rows.append([line.method, line.parameters, *values, _average(line, benchmark, names), line.source])
    for method, parameters, source, averages in published.AVERAGES:
        if benchmark in averages:
            rows.append([method, parameters, *["–"] * len(names), f"{averages[benchmark]:.1f}", source])
    return Comparison(f"{benchmark} beside published numbers", rows, _note(benchmark, missing, len(rows), records))


def _note(benchmark: str, missing: Sequence[str], rows: int, records: Sequence[Scored]) -> str:
    text = f"Missing: {'; '.join(missing)}. " if missing else "No row of ours is missing. "
    if rows == 1 + len(records):
        text += f"No published line of {benchmark} is at hand. "
    return text + "Ours: mean ± standard deviation, number of seeds in brackets; the split where it is not test. " + published.NOTE


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
