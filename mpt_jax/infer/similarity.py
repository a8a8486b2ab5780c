"""Which tasks are alike, by their prompts and by their factors: a map for the report, and the nearest tasks of one.

Prompts are compared by the cosine of their means over positions, as SPoT does (Vu et al., ACL 2022, section 4.1): positions of prompts that
were started apart do not match. Factors of tasks that share a P* are compared position by position: W_n = cols_n @ rows_n, less the mean
over the group's tasks, without which all are alike.
N tasks (runs), G groups, P prompt positions, D model width, R rank.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpt_jax.checkpoint import load_trainable
from mpt_jax.errors import UserError
from mpt_jax.infer.history import best_dev, chosen_settings
from mpt_jax.methods.bank import PromptBank, compose, product, select
from mpt_jax.methods.prompt import METHOD, bank_alone
from mpt_jax.methods.table import METHODS
from mpt_jax.run_folder import folder_names, read_run_json, require

MOST_TASKS = 60  # of a map that can be read
FEWEST_FACTORS = 3  # tasks of a group: the mean of two leaves them opposite, whatever they are


class Task(NamedTuple):
    """A task of a run: the mean of its prompt over positions (D,), and its factor less the group's mean (P * D,), where it has one.

    run: the real path of its folder, since two runs may have one name. group: of tasks that share a P*, of all runs.
    """

    label: str
    name: str
    run: str
    backbone: str
    mean_D: np.ndarray
    factor: np.ndarray | None
    group: tuple[str, int]


def has_prompts(run_dir: str | Path) -> bool:
    """Whether a run folder holds trained prompts and nothing else, by whatever method."""
    method = METHODS.get(read_run_json(run_dir).get("method", ""))
    return method is not None and method.parts == METHOD.parts and os.path.isdir(Path(run_dir) / "checkpoints")


def tasks_of_runs(run_dirs: Sequence[str | Path], names: Sequence[str]) -> list[Task]:
    """The tasks of runs, each by its best rates and first seed. names: what the runs are called.

    Raises UserError for a run without prompts, and for runs of different backbones.
    """
    found = [task for folder, name in zip(run_dirs, names, strict=True) for task in _tasks(folder, name, len(run_dirs) > 1)]
    backbones = dict.fromkeys(task.backbone for task in found)
    if len(backbones) > 1:
        raise UserError(f"prompts of different backbones ({', '.join(backbones)}) cannot be compared: name runs of one.")
    return found


def _tasks(folder: str | Path, name: str, several: bool) -> list[Task]:
    trained, run = load_trainable(folder)
    bank = bank_alone(trained, run, str(folder))
    if bank is None:
        raise UserError(f"run {str(folder)!r} trained {run['method']!r}, not prompts: it has no place among tasks that are compared.")
    require(run, folder, "tasks", "backbone.fingerprint")
    place = os.path.realpath(folder)
    best, runs = best_dev(folder), run["runs"]
    rows = [chosen_settings(runs, [n for n, row in enumerate(runs) if row["task"] == task], best)[0] for task in run["tasks"]]
    *arrays, group_N = select(bank, rows)
    chosen = PromptBank(*(None if array is None else np.asarray(array, np.float32) for array in arrays), group_N)
    prompt_NPD, factors = np.asarray(compose(chosen, np.arange(len(rows)))), _factors(chosen)
    return [
        Task(
            f"{name}/{task}" if several else task, task, place, run["backbone"]["fingerprint"], prompt_NPD[n].mean(axis=0), factors[n],
            (place, int(chosen.group_N[n])),
        )
        for n, task in enumerate(run["tasks"])
    ]  # fmt: skip


def _factors(bank: PromptBank) -> list[np.ndarray | None]:
    """Each task's factor less the mean of its group, flat; None where there is none to compare with."""
    if bank.cols_NPR is None:
        return [None] * bank.num_tasks
    factor_NPD = np.asarray(product(np.ones((1, 1, 1), np.float32), bank.cols_NPR, bank.rows_NRD))
    found: list[np.ndarray | None] = []
    for n, group in enumerate(bank.group_N):
        mates = bank.group_N == group
        enough = mates.sum() >= FEWEST_FACTORS
        found.append((factor_NPD[n] - factor_NPD[mates].mean(axis=0)).reshape(-1) if enough else None)
    return found


def cosines(vectors: Sequence[np.ndarray | None], groups: Sequence[tuple] | None = None) -> np.ndarray:
    """Cosine of each pair, (N, N), nan where one is missing, is all zeros, or is of another group."""
    found = np.full((len(vectors), len(vectors)), np.nan)
    norms = [0.0 if vector is None else float(np.linalg.norm(vector)) for vector in vectors]
    for i, left in enumerate(vectors):
        for j, right in enumerate(vectors):
            if norms[i] and norms[j] and (groups is None or groups[i] == groups[j]):
                found[i, j] = float(np.dot(left, right)) / (norms[i] * norms[j])
    return found


def maps(tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """The maps (N, N) by title; that of factors where there are some."""
    found = {"Prompts (cosine of means over positions)": cosines([task.mean_D for task in tasks])}
    factors = cosines([task.factor for task in tasks], [task.group for task in tasks])
    return found | ({"Task factors (less their mean)": factors} if np.isfinite(factors).any() else {})


def nearest(run_dirs: Sequence[str | Path], task: str | None = None) -> str:
    """A Markdown table: for the tasks of the first run, or one of them, all other tasks of all runs, the nearest first."""
    first = str(run_dirs[0])
    source = ((read_run_json(first).get("settings") or {}).get("train") or {}).get("source_dir")
    # where this run started from is what one asks about first
    more = [source] if isinstance(source, str) and source and os.path.isdir(source) else []
    folders = list(dict.fromkeys(os.path.realpath(folder) for folder in (*run_dirs, *more)))
    found = tasks_of_runs(folders, folder_names(folders))
    own = [n for n, each in enumerate(found) if each.run == found[0].run and task in (None, each.name)]
    if not own:
        held = ", ".join(each.name for each in found if each.run == found[0].run)
        raise UserError(f"run {first!r} has no task {task!r}: it has {held}.")
    if len(found) < 2:
        raise UserError(f"run {first!r} has one task and nothing to compare it with: name more runs, --nearest RUN --nearest OTHER.")
    tables, lines = list(maps(found).values()), ["| task | nearest | by prompt | by factor |", "|---|---|---:|---:|"]
    for n in own:
        others = [other for other in range(len(found)) if other != n]
        for other in sorted(others, key=lambda other: -np.nan_to_num(tables[0][n, other], nan=-2.0)):
            cells = [f"{table[n, other]:.3f}" if np.isfinite(table[n, other]) else "–" for table in tables]
            lines.append(f"| {found[n].label} | {found[other].label} | {' | '.join([*cells, '–'][:2])} |")
    return "\n".join(lines) + "\n"
