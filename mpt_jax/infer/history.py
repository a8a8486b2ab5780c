"""What a run folder tells of a training: curves, each bank row's best score on the dev split, and what its time went to."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from mpt_jax import tasks
from mpt_jax.goodput import KINDS, spent
from mpt_jax.metrics import read_metrics

ABOUT = ("step", "split", "task", "run")  # what a line says besides numbers


def selecting_score(task: str, names: Iterable[str]) -> str:
    """Name of the score that selects checkpoints of a task; by its name alone where the task registered here is none or another."""
    names = list(names)
    if task in tasks.TABLE and not tasks.TABLE[task].tokens and (not names or tasks.main_score(task) in names):
        return tasks.main_score(task)
    return "average" if "average" in names or not names else names[0]


def curves(lines: Sequence[dict], split: str) -> dict[tuple[str | None, int | None, str], list[tuple[int, float]]]:
    """(task, run, name of the number) -> [(step, value), ...] of one split, in the order written."""
    found: dict[tuple[str | None, int | None, str], list[tuple[int, float]]] = {}
    for line in lines:
        if line["split"] != split:
            continue
        for name, value in line.items():
            if name not in ABOUT and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault((line["task"], line["run"], name), []).append((line["step"], float(value)))
    return found


def dev_curves(lines: Sequence[dict]) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """(task, number of the run) -> [(step, selecting score), ...]."""
    by_name = curves(lines, "dev")
    names: dict[tuple, list[str]] = {}
    for task, number, name in by_name:
        names.setdefault((task, number), []).append(name)
    chosen = {key: selecting_score(key[0], found) for key, found in names.items()}
    return {key: by_name[*key, name] for key, name in chosen.items() if (*key, name) in by_name}


def best_dev(run_dir: str | Path) -> dict[int, float]:
    """Bank row -> its best selecting score on the dev split in training; empty where nothing was scored."""
    return {number: max(value for _, value in points) for (_, number), points in dev_curves(read_metrics(run_dir)).items()}


def tried(row: dict) -> tuple:
    """What runs of a task try in order to keep the best: learning rates, and the source that they start from."""
    return tuple(row.get(name) for name in ("learning_rate", "factor_learning_rate", "source"))


def chosen_settings(rows: Sequence[dict], numbers: Sequence[int], best: dict[int, float]) -> list[int]:
    """Bank rows of a task whose learning rates and source did best on the dev split, on the mean over seeds; all where none differ.

    rows: ``runs`` of run.json. numbers: the task's bank rows. best: ``best_dev``.
    """
    by_rates: dict[tuple, list[int]] = {}
    for n in numbers:
        by_rates.setdefault(tried(rows[n]), []).append(n)
    groups = list(by_rates.values())
    if len(groups) == 1 or not all(n in best for n in numbers):
        return list(numbers)
    return max(groups, key=lambda group: sum(best[n] for n in group) / len(group))


def time_rows(folders: Sequence[tuple[str, str | Path]]) -> list[list[str]]:
    """Cells of the table of what the time of trainings went to, header first, from (name, run folder); empty where no run tells it."""
    kinds = (*KINDS, "lost_to_restarts")
    rows = [["run", "seconds", *(kind.replace("_", " ") for kind in kinds), "restarts", "seconds not running"]]
    for name, folder in folders:
        found = spent(folder)
        if not found:
            continue
        total = sum(found[kind] for kind in kinds)
        shares = [f"{100 * found[kind] / max(total, 1e-9):.1f} %" for kind in kinds]
        rows.append([name, f"{total:,.0f}", *shares, str(found["restarts"]), f"{found['not_running']:,.0f}"])
    return rows if len(rows) > 1 else []
