"""The table of tasks: what a task is, the rows that are known, looking one up. No TensorFlow, no SeqIO."""

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter

from mpt_jax.tasks.errors import TaskError, UnknownTask
from mpt_jax.tasks.scores import check_scores, number

log = logging.getLogger(__name__)
KINDS = ("file", "generated", "cached")
FORMATS = ("jsonl", "tsv", "csv")
NAME = re.compile(r"\w[\w.:#]*")  # what both SeqIO and a folder of the token cache accept as a name


@dataclass(frozen=True)
class Task:
    """One row of the table: where its rows come from, how they become text, how predictions are scored.

    kind 'file': `files` and `format` say where. kind 'generated': `generate(split)` yields dicts, the same
    ones in the same order at every call; `version` must change when they do, `packages` are the
    distributions they are made of ('python' for the standard library), `origin()` the files. A generated dict holds the template's
    fields, or with no template `inputs`; and `label` (index or text of `labels`), or the fields of `target`,
    or `targets`. `embedding_size` E > 0: every dict also holds `embedding`, E floats. `tokens`: every dict
    holds `inputs_tokens` and `targets_tokens`, lists of ids with the end mark where it is wanted, instead
    of text. kind 'cached': what a token cache says of a task whose module is not given; its rows are in the cache alone.
    `references` names a row's field with a list of all right answers; without it the target is the only one.
    Raises TaskError where these do not fit together.
    """

    name: str
    kind: str
    splits: tuple[str, ...]
    template: str | None = None
    target: str | None = None
    labels: tuple[str, ...] | None = None
    score: str | tuple[str, ...] = "accuracy"
    references: str | None = None
    group: str = "user"  # 'source', 'target', 'pretrain' or 'user': how a list of tasks is grouped
    description: str = ""
    # split -> absolute path or pattern, or several, read one after the other
    files: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    format: str = ""
    columns: tuple[str, ...] | None = None  # names of the columns of a TSV or CSV file without a header
    generate: Callable[[str], Iterable[dict]] | None = field(default=None, compare=False, repr=False)
    # a record as its set publishes it, without its answer -> the template's fields, for prediction
    prepare: Callable[[Mapping], Mapping] | None = field(default=None, compare=False, repr=False)
    origin: Callable[[], dict] | None = field(default=None, compare=False, repr=False)  # files that `generate` reads, JSON-able
    version: str = ""
    packages: tuple[str, ...] = ()
    embedding_size: int = 0
    tokens: bool = False

    def __post_init__(self):
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise TaskError(f"task name {self.name!r}: only letters, digits and . : # _ are possible")
        if self.kind not in KINDS:
            raise TaskError(f"task {self.name!r}: kind {self.kind!r} is none of {KINDS}")
        for setting in ("splits", "labels", "columns"):  # a list would not do as a key, a text is a list of letters
            given = getattr(self, setting)
            if isinstance(given, list):
                object.__setattr__(self, setting, tuple(given))
            elif given is not None and not isinstance(given, tuple):
                raise TaskError(f"task {self.name!r}: `{setting}` must be a list of texts, got {given!r:.80}")
        if not self.splits:
            raise TaskError(f"task {self.name!r} has no split: give at least one, for example 'train'")
        if self.columns and len(set(self.columns)) != len(self.columns):
            raise TaskError(f"task {self.name!r}: two of its columns have the same name: {', '.join(self.columns)}")
        for split in self.splits:
            if not isinstance(split, str) or not split or "/" in split:
                raise TaskError(f"task {self.name!r}: split {split!r} must be a name, for example 'train'")
        if self.kind == "generated" and not (self.generate and self.version):
            raise TaskError(f"task {self.name!r}: a generated task needs both `generate` and `version`")
        if self.kind == "file":
            self._check_file()
        for setting in ("template", "target"):
            text = getattr(self, setting)
            if text is not None:
                check_text(f"task {self.name!r}: `{setting}`", text)
                template_fields(self.name, text)
        if self.references in ("inputs", "targets"):
            raise TaskError(f"task {self.name!r}: references={self.references!r} is the name of the row's own text: rename that field")
        if not self.tokens:
            self._check_targets()
            check_scores(self.name, self.scores, self.labels)

    def _check_file(self):
        if self.format not in FORMATS:
            raise TaskError(f"task {self.name!r}: format {self.format!r} is none of {FORMATS}")
        if self.template is None:
            raise TaskError(f"task {self.name!r}: `template` is missing, e.g. 'question: {{sentence}}'")
        if self.labels is None and self.target is None:
            raise TaskError(f"task {self.name!r}: give `labels` (a list of words) or `target` (a template)")

    def _check_targets(self):
        if self.labels is not None and self.target is not None:
            raise TaskError(f"task {self.name!r} has both `labels` and `target`: give one of them")
        if self.labels is None:
            return
        if not all(isinstance(label, str) for label in self.labels):
            raise TaskError(f"task {self.name!r}: `labels` must be a list of texts, got {self.labels!r}")
        for label in self.labels:
            check_text(f"task {self.name!r}: a label", label)
        if len(set(self.labels)) != len(self.labels) or len(self.labels) < 2:
            raise TaskError(f"task {self.name!r}: `labels` needs 2 or more different texts: {self.labels!r}")
        if any(label != label.strip() or not label for label in self.labels):
            raise TaskError(f"task {self.name!r}: a label is empty or has blanks at an end: {self.labels!r}")
        if self.references is not None:
            raise TaskError(f"task {self.name!r}: `references` is for a `target`; of `labels` one is right")
        if len(self.label_numbers) < sum(number(label) is not None for label in self.labels):
            raise TaskError(f"task {self.name!r}: two of its labels are the same number: {', '.join(self.labels)}: keep one of them")

    @functools.cached_property
    def label_numbers(self) -> dict[float, int]:
        """The labels that are numbers: value -> index. Where there are any, a number in a row is a label and never an index."""
        values = {index: number(label) for index, label in enumerate(self.labels or ())}
        return {value: index for index, value in values.items() if value is not None}

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the task's scores (keys of tasks.scores.SCORES); none for a task of tokens."""
        if self.tokens:
            return ()
        return (self.score,) if isinstance(self.score, str) else tuple(self.score)


def check_text(what: str, text: str) -> None:
    """Raises TaskError for what is not text, and for half of a surrogate pair, which no vocabulary can read."""
    if not isinstance(text, str):
        raise TaskError(f"{what} must be a text, got {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{what} is not Unicode text (half of a surrogate pair, {text[error.start]!r}): correct it") from error


@functools.lru_cache
def template_fields(name: str, template: str) -> tuple[tuple[str, str | None], ...]:
    """A template as ((literal text, field after it or None), ...). Raises TaskError if it is malformed."""
    try:
        pieces = tuple(Formatter().parse(template))
    except ValueError as error:
        raise TaskError(f"task {name!r}: template {template!r}: {error}; a brace is written twice") from error
    for _, key, spec, conversion in pieces:
        if key == "" or spec or conversion:
            raise TaskError(f"task {name!r}: template {template!r}: only a plain {{field}} is possible")
    if all(key is None for _, key, _, _ in pieces):
        raise TaskError(f"task {name!r}: template {template!r} names no field, for example {{sentence}}")
    return tuple((literal, key) for literal, key, _, _ in pieces)


TABLE: dict[str, Task] = {}
MIXTURES: dict[str, tuple[str, ...]] = {}  # a name for several tasks, or a second name for one
SHIPPED = ("source", "target")  # groups of rows that come with this package


def add(task: Task, replace: bool = False) -> Task:
    """Puts a task into TABLE.

    The same task again is fine (a module imported twice); raises TaskError for another one under a name that
    is taken, unless `replace`. A user's task replaces a shipped task or mixture of the same name, with a warning.
    """
    old = TABLE.get(task.name)
    if old is not None and old.kind == "cached":  # it only stood in for the real one
        old = None
    if task.name in MIXTURES and old is None and not replace:
        log.warning("Task %s replaces the shipped mixture of that name (%s)", task.name, ", ".join(MIXTURES[task.name]))
    elif old is not None and old.group in SHIPPED and task.group not in SHIPPED and not replace:
        log.warning("Task %s replaces the shipped task of that name", task.name)
    elif old is not None and old != task and not replace:
        key = next(key for key in vars(task) if key != "generate" and getattr(old, key) != getattr(task, key))
        raise TaskError(
            f"task {task.name!r} is registered already with another `{key}` ({getattr(old, key)!r}, now "
            f"{getattr(task, key)!r}): choose another name or pass replace=True"
        )
    TABLE[task.name] = task
    return task


def add_mixture(name: str, members: Sequence[str]) -> None:
    """A name for several tasks of TABLE. Raises TaskError if it is taken by a task or by other members."""
    missing = [member for member in members if member not in TABLE]
    if missing:
        raise unknown_name(missing[0], TABLE)
    if name in TABLE or MIXTURES.get(name, tuple(members)) != tuple(members):
        raise TaskError(f"mixture {name!r}: the name is taken already: choose another")
    MIXTURES[name] = tuple(members)


def unknown_name(name: str, known: Iterable[str]) -> UnknownTask:
    """The error for a task that is not known, with the nearest names."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = (
        f"the nearest names are {', '.join(near)}" if near else f"known are {', '.join(known[:12]) or 'none'}"
    )
    return UnknownTask(
        f"unknown task {name!r}: {hint}. `mpt-jax tasks` lists all; MIXTURE_OR_TASK_MODULE adds your own"
    )


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raises TaskError naming the splits there are if `split` is none of them."""
    if split not in splits:
        raise TaskError(f"task {name!r} has no split {split!r}; it has {', '.join(splits)}")
