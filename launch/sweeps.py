"""Several jobs from one command: a value of each swept setting, in all combinations, a run folder for each."""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from mpt_jax.launch.buckets import called, model_dir, without
from mpt_jax.launch.calls import LaunchError

MOST_JOBS = 1000  # of one sweep [ours]


class Job(NamedTuple):
    """One job of a sweep: what it is called in the name of its run folder, that folder, and its command."""

    label: str
    folder: str
    command: list[str]


def jobs_of(sweep: str, command: Sequence[str]) -> list[Job]:
    """The jobs of --sweep "NAME=VALUE,VALUE NAME=VALUE". Each trains in MODEL_DIR/LABEL. Raises LaunchError for what is not a sweep."""
    folder = model_dir(command)
    if folder is None:
        raise LaunchError("--sweep needs MODEL_DIR in the command: each job trains in a folder of its own there.")
    axes: dict[str, list[str]] = {}
    for part in sweep.split():
        name, _, values = part.partition("=")
        found = values.split(",")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or not all(re.fullmatch(r"[\w.+-]+", value) for value in found):
            raise LaunchError(f"--sweep {part!r}: it takes NAME=VALUE,VALUE with plain values, several of them separated by spaces.")
        if called(name) in {"MODEL_DIR", *map(called, axes)} or len(set(found)) < len(found):
            raise LaunchError(f"--sweep {part!r}: give each setting and each value once, and not MODEL_DIR.")
        axes[name] = found
    if len({_short(name) for name in axes}) < len(axes):
        raise LaunchError(f"--sweep {sweep!r}: two settings have the same last name; give one of them in the command alone.")
    combinations = list(itertools.product(*axes.values()))
    if not axes or len(combinations) > MOST_JOBS:
        raise LaunchError(f"--sweep {sweep!r} makes {len(combinations) if axes else 0:,} jobs; it takes 1 .. {MOST_JOBS:,}.")
    kept = without(command, [*axes, "MODEL_DIR"])
    jobs = []
    for combination in combinations:
        chosen = dict(zip(axes, combination, strict=True))
        label = "_".join(f"{_short(name)}-{value}" for name, value in chosen.items())
        place = f"{folder.rstrip('/')}/{label}"
        given = [f"--{name if name.islower() else f'gin.{name}'}={value}" for name, value in chosen.items()]
        jobs.append(Job(label, place, [*kept, f"--model_dir={place}", *given]))
    return jobs


def _short(name: str) -> str:
    """A setting in the name of a folder."""
    return name.rpartition(".")[2].lower()


def report_of(jobs: Sequence[Job], command: Sequence[str]) -> list[str]:
    """Arguments of mpt-jax that make one report of all jobs."""
    return ["report", *(job.folder for job in jobs), "--output", f"{model_dir(command).rstrip('/')}/report"]
