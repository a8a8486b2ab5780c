"""Runs that belong together: those of one method, made alike, which differ in tasks and seeds fill one line of a table."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mpt_jax.infer import published
from mpt_jax.run_folder import FREE_TO_CHANGE

# settings in which the runs of one line may differ, besides those that change no number: tasks' lengths, steps, rates and starts
FREE = {
    "train": ("train_steps", "seeds", "eval_steps", "eval_rows", "patience"),
    "data": ("feature_lengths",),
    "prompt": ("init_text", "transfer_task"),
    "optimizer": ("learning_rate", "factor_learning_rate", "warmup_steps"),
}
UNREAD = ("mesh",)


class Scored(Protocol):
    """What is read of a report.RunRecord."""

    name: str
    run: dict
    scores: dict


class Line(NamedTuple):
    """Runs that fill one line: their names together, run.json of the first, their scores by task."""

    name: str
    run: dict
    scores: dict


def lines_of(records: Sequence[Scored]) -> list[Line]:
    """The records, those made alike together. Records that both have a task under the same seed stay apart."""
    groups: list[list[Scored]] = []
    for record in records:
        alike = (group for group in groups if _made(group[0].run) == _made(record.run) and not any(_overlap(record, one) for one in group))
        group = next(alike, None)
        if group is None:
            groups.append([record])
        else:
            group.append(record)
    return [Line(", ".join(record.name for record in group), group[0].run, _together(group)) for group in groups]


def _made(run: dict) -> str:
    """How a run was made, apart from its tasks and seeds."""
    settings = {part: values for part, values in (run.get("settings") or {}).items() if part not in UNREAD}
    kept = {
        part: {name: value for name, value in values.items() if name not in (*FREE_TO_CHANGE, *FREE.get(part, ()))}
        if isinstance(values, dict) else values
        for part, values in settings.items()
    }  # fmt: skip
    backbone = run["backbone"].get("fingerprint")
    told = [run["stage"], run.get("method"), backbone, run["parameters"].get("per_task"), kept]
    return json.dumps(told, sort_keys=True)


def _overlap(one: Scored, other: Scored) -> bool:
    pairs = [{(row["task"], row["seed"]) for row in record.run["runs"]} for record in (one, other)]
    return bool(pairs[0] & pairs[1])


def _together(records: Sequence[Scored]) -> dict[str, Any]:
    """Scores by task; of a task that several records have, over all their seeds."""
    found: dict[str, Any] = {}
    for record in records:
        for task, score in record.scores.items():
            found[task] = _joined(found[task], score) if task in found else score
    return found


def _joined(one: Any, other: Any) -> Any:
    """Mean and standard deviation over the seeds of both. Of scores with other names or of other splits the first stands."""
    if (one.name, one.split) != (other.name, other.split):
        return one
    runs = one.runs + other.runs
    every = {name: _moments((*one.all[name], one.runs), (*other.all[name], other.runs)) for name in one.all if name in other.all}
    mean, std = _moments((one.mean, one.std, one.runs), (other.mean, other.std, other.runs))
    fields = {"mean": mean, "std": std, "runs": runs, "all": every, "outdated": one.outdated or other.outdated}
    return dataclasses.replace(one, **fields)


def _moments(*parts: tuple[float, float, int]) -> tuple[float, float]:
    """Mean and standard deviation of numbers that come in parts: (mean, standard deviation, how many) each."""
    counts = np.array([count for _, _, count in parts], float)
    means, stds = (np.array([part[n] for part in parts]) for n in (0, 1))
    mean = float(np.average(means, weights=counts))
    return mean, float(np.sqrt(np.average(np.square(stds) + np.square(means - mean), weights=counts)))


def column_of(run: dict) -> str:
    """The published line that a run is of; empty where run.json does not say enough of its method."""
    method, settings = run.get("method"), run.get("settings") or {}
    prompt, train = settings.get("prompt") or {}, settings.get("train") or {}
    several = len(run["tasks"]) > 1
    if method == "prompt" and "rank" not in prompt:  # a run.json of before, that does not tell
        return ""
    if method == "prompt":
        name = "MPT" if prompt.get("rank") and train.get("source_dir") else "prompt" if train.get("source_dir") else "PT"
    elif method == "adapter" and (settings.get("method") or {}).get("drop_layers"):
        name = "AdapterDrop"
    else:
        name = published.COLUMNS.get(method, method or "")
    together = prompt.get("shared_over_targets") and run["stage"] in ("target", "fewshot") or method == "weights"
    return f"{name}, multi-target" if name and several and together else name
