"""Where answers come from: runs, and files of prompts, by name; which of them has a task, and which bank row answers for it.

P prompt positions, D model width.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer.history import chosen_settings, tried
from mpt_jax.infer.requests import Model
from mpt_jax.regular_files import shown


class Source(NamedTuple):
    """A run, or a file of prompts. run: its tasks and ``runs``, as run.json has them; rows: the model's bank row of each of these runs.

    vocabulary: with the run's cue. Lengths in tokens, EOS included. best: each run's score on the dev split (history.best_dev).
    step: that training had come to; None for a file of prompts.
    """

    name: str
    run: Mapping[str, Any]
    vocabulary: Vocabulary
    input_length: int
    target_length: int
    best: Mapping[int, float]
    model: Model
    rows: tuple[int, ...]
    step: int | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks."""
        return tuple(self.run["tasks"])

    def undecided(self) -> list[str]:
        """A line for each task that has several learning rates or sources, and no dev scores to tell which did best."""
        lines = []
        for task in self.tasks if self.model.own else ():
            rows = {n: row for n, row in enumerate(self.run["runs"]) if row["task"] == task}
            settings = list(dict.fromkeys(map(tried, rows.values())))
            if len(settings) > 1 and not all(n in self.best for n in rows):
                first = ", ".join(str(value) for value in settings[0] if value is not None)
                does = f"answers are those of {first}, eval averages over all"
                lines.append(f"no dev scores tell which of {len(settings)} learning rates or sources is best for task {task!r}: {does}")
        return lines

    def bank_rows(self, task: str | None) -> list[int]:
        """Bank rows of a task, those with the best learning rates; one row for a run that trained a backbone."""
        runs = self.run["runs"]
        numbers = [n for n, row in enumerate(runs) if row["task"] == task]
        if not self.model.own:
            return numbers[:1] or [0]
        return [self.rows[n] for n in chosen_settings(runs, numbers, dict(self.best))]

    def bank_row(self, task: str | None, seed: int | None) -> int:
        """The bank row that answers for a task. Raises UserError for an unknown seed."""
        rows = self.bank_rows(task)
        if seed is None or not self.model.own:
            return rows[0]
        seeds = {self.run["runs"][self.rows.index(row)]["seed"]: row for row in reversed(rows)}
        if seed not in seeds:
            raise UserError(f"seed = {seed}: the run holds seeds {', '.join(map(str, reversed(seeds)))} of task {task!r}.")
        return seeds[seed]


class Sources:
    """Sources by name, and by the tasks that they have. A task that several have is called SOURCE/TASK."""

    def __init__(self):
        self._by_name: dict[str, Source] = {}
        self._by_task: dict[str, dict[str, Source]] = {}

    def __iter__(self) -> Iterator[Source]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def add(self, source: Source) -> None:
        """Adds a source, or replaces the one of its name. Raises UserError as ``check_names``."""
        self.check_names(source)
        if source.name in self._by_name:
            self.remove(source.name)
        self._by_name[source.name] = source
        for task in source.tasks:
            self._by_task.setdefault(task, {})[source.name] = source

    def check_names(self, source: Source) -> None:
        """Raises UserError where, with this source, a task would have the name SOURCE/TASK of another one."""
        together = self._by_name | {source.name: source}
        for task in source.tasks:
            called = f"{source.name}/{task}"
            taken = any(name != source.name for name in self._by_task.get(called, ()))
            twice = task if _other(task, together) else called if taken else None
            if twice is not None:
                message = f"with source {shown(source.name)}, the name {shown(twice)} would stand for two tasks"
                raise UserError(f"{message}: give the source or the task another name.")

    def remove(self, name: str) -> Source:
        """Takes a source out. Raises UserError for a name that is not there."""
        if name not in self._by_name:
            raise UserError(f"there is no source {shown(name)}; nearest: {', '.join(_near(name, self._by_name)) or 'none'}.")
        source = self._by_name.pop(name)
        for task in source.tasks:
            del self._by_task[task][name]
            if not self._by_task[task]:
                del self._by_task[task]
        return source

    def tasks(self) -> tuple[str, ...]:
        """Every task by the name that asks for it, in the order of the sources."""
        names = (
            task if len(self._by_task[task]) == 1 else f"{source.name}/{task}" for source in self._by_name.values() for task in source.tasks
        )
        return tuple(names)

    def find(self, task: str | None) -> tuple[Source, str | None]:
        """(source, its task) of a task's name. None is the only task there is, or a run that trained a backbone.

        Raises UserError for a task that no source has or several have, and where none is named among several.
        """
        only = next(iter(self._by_name.values())) if len(self._by_name) == 1 else None
        if only and not only.model.own:
            return only, only.tasks[0] if task is None and len(only.tasks) == 1 else task
        if task is None:
            if len(self._by_task) != 1 or only is None:
                raise UserError(f"this run holds several tasks: name one of {_listed(self.tasks())} as `task`.")
            return only, only.tasks[0]
        if task in self._by_task:
            found = self._by_task[task]
            if len(found) > 1:
                ways = " or ".join(repr(f"{name}/{task}") for name in list(found)[:5])
                raise UserError(f"task {shown(task)} is in {len(found)} sources: name it as {ways}.")
            return next(iter(found.values())), task
        other = _other(task, self._by_name)
        if other is not None:
            return self._by_name[other[0]], other[1]
        near = _near(task, self._by_task) or list(self._by_task)
        raise UserError(f"this run holds no prompt of task {shown(task)}; nearest: {_listed(near)}.")


def _other(task: str, by_name: Mapping[str, Source]) -> tuple[str, str] | None:
    """(source, its task) that a name means as SOURCE/TASK, if there is one. Names of both may hold a /."""
    name, _, own = task.rpartition("/")
    while name and not (name in by_name and own in by_name[name].tasks):
        name, _, front = name.rpartition("/")
        own = f"{front}/{own}"
    return (name, own) if name else None


def _near(name: str, known: Mapping[str, Any]) -> list[str]:
    return difflib.get_close_matches(name, list(known)[:1000], 3, 0.4)


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def split(source: Source, task: str) -> tuple[Source, Source]:
    """(what a source has without a task, that task alone)."""
    runs = source.run["runs"]

    def part(keep: bool) -> Source:
        numbers = [n for n, row in enumerate(runs) if (row["task"] == task) == keep]
        best = {place: source.best[n] for place, n in enumerate(numbers) if n in source.best}
        names = [name for name in source.tasks if (name == task) == keep]
        run = {**source.run, "tasks": names, "runs": [runs[n] for n in numbers]}
        return source._replace(run=run, best=best, rows=tuple(source.rows[n] for n in numbers))

    return part(False), part(True)
