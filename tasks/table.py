"""The table of tasks: what a task is, the rows that are known, and looking one up by name. No TensorFlow, no SeqIO."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from string import Formatter

KINDS = ("file", "generated")
NAME = re.compile(r"\w[\w.:#]*")  # what both SeqIO and a folder of the token cache accept as a name


class TaskError(ValueError):
    """Wrong input to a task; the text names the place, the value, the limit and what to change."""


@dataclass(frozen=True)
class Task:
    """One row of the table: where its rows come from, how they become text, how predictions are scored.

    kind 'file': `files` and `format` say where. kind 'generated': `generate(split)` yields dicts, the same ones in
    the same order at every call; `version` must change when they do, `packages` are the distributions they are
    made of ('python' for the standard library). A generated dict holds the template's fields, or with no template
    `inputs`; and `label` (index or text of `labels`), or the fields of `target`, or `targets`.
    `embedding_size` E > 0: every dict also holds `embedding`, E floats. `tokens`: every dict holds `inputs_tokens`
    and `targets_tokens`, lists of ids with the end mark where it is wanted, in place of text.
    Raises TaskError where these do not fit together.
    """

    name: str
    kind: str
    splits: tuple[str, ...]
    template: str | None = None
    target: str | None = None
    labels: tuple[str, ...] | None = None
    score: str | tuple[str, ...] = "accuracy"
    group: str = "user"  # 'source', 'target', 'pretrain' or 'user': how lists of tasks are grouped
    description: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # split -> absolute path
    format: str = ""  # 'jsonl', 'tsv' or 'csv'
    generate: Callable[[str], Iterable[dict]] | None = field(default=None, compare=False, repr=False)
    version: str = ""
    packages: tuple[str, ...] = ()
    embedding_size: int = 0
    tokens: bool = False

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise TaskError(f"task name {self.name!r}: only letters, digits and . : # _ are possible")
        if self.kind not in KINDS:
            raise TaskError(f"task {self.name!r}: kind {self.kind!r} is none of {KINDS}")
        if not self.splits:
            raise TaskError(f"task {self.name!r} has no split: give at least one, for example 'train'")
        if self.kind == "generated" and not (self.generate and self.version):
            raise TaskError(f"task {self.name!r}: a generated task needs both `generate` and `version`")
        if self.kind == "file" and self.template is None:
            raise TaskError(f"task {self.name!r}: `template` is missing, for example 'question: {{sentence}}'")
        for text in (self.template, self.target):
            if text is not None:
                template_fields(self.name, text)
        self._check_targets()

    def _check_targets(self):
        if self.tokens:
            return
        if self.labels is not None and self.target is not None:
            raise TaskError(f"task {self.name!r} has both `labels` and `target`: give one of them")
        if self.kind == "file" and self.labels is None and self.target is None:
            raise TaskError(f"task {self.name!r}: give `labels` (a list of words) or `target` (a template)")
        if self.labels is None:
            return
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels):
            raise TaskError(f"task {self.name!r}: `labels` must be a list of texts, got {self.labels!r}")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise TaskError(f"task {self.name!r}: `labels` needs at least 2 different texts, got {self.labels!r}")
        if any(label != label.strip() or not label for label in self.labels):
            raise TaskError(f"task {self.name!r}: a label is empty or has blanks at an end: {self.labels!r}")

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the task's scores (keys of tasks.scores.SCORES)."""
        return (self.score,) if isinstance(self.score, str) else tuple(self.score)


def template_fields(name: str, template: str) -> list[tuple[str, str | None]]:
    """A template as [(literal text, field after it or None), ...]; raises TaskError if it is malformed."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise TaskError(f"task {name!r}: template {template!r}: {error}; write {{{{ for a brace") from error
    for _, key, spec, conversion in pieces:
        if key == "" or spec or conversion:
            raise TaskError(f"task {name!r}: template {template!r}: only plain {{field}} is possible")
    if all(key is None for _, key, _, _ in pieces):
        raise TaskError(f"task {name!r}: template {template!r} names no field, for example {{sentence}}")
    return [(literal, key) for literal, key, _, _ in pieces]


TABLE: dict[str, Task] = {}


def add(task: Task, replace: bool = False) -> Task:
    """Puts a task into TABLE. The same task again is fine (a module imported twice); another one under a name
    that is taken raises TaskError unless `replace`."""
    old = TABLE.get(task.name)
    if old is not None and old != task and not replace:
        changed = [key for key in vars(task) if key != "generate" and getattr(old, key) != getattr(task, key)]
        raise TaskError(
            f"task {task.name!r} is registered already with another {', '.join(changed)} "
            f"({changed[0]}: {getattr(old, changed[0])!r}, now {getattr(task, changed[0])!r}): "
            "choose another name or pass replace=True"
        )
    TABLE[task.name] = task
    return task


def unknown(name: str, known: Iterable[str], what: str = "task") -> TaskError:
    """The error for a name that is not known, with the nearest ones."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if not near:
        near = known[:10]
    hint = f"nearest: {', '.join(near)}" if near else "none is registered"
    return TaskError(
        f"unknown {what} {name!r}; {hint}. Known tasks: `mpt-jax tasks`; tasks of your own: MIXTURE_OR_TASK_MODULE"
    )


def check_split(task: Task, split: str) -> None:
    """Raises TaskError naming the splits there are if `split` is none of them."""
    if split not in task.splits:
        raise TaskError(f"task {task.name!r} has no split {split!r}, only {', '.join(task.splits)}")
