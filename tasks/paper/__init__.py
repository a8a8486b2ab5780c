"""All tasks of the paper as rows of the table: published files or TFDS, carved splits, words or indices as targets.

Importing this module adds rows and reads nothing. `NAME` has label words, `NAME:index` label indices as targets;
`NAME:published` repeats ATTEMPT's pipeline with its defects (sets.py, prepare.py, reading.py say which).
"""

import os
from collections.abc import Sequence
from functools import partial

from mpt_jax.tasks.paper import location
from mpt_jax.tasks.paper.reading import SPLITS, VERSION, fields_to_predict, generate, origin
from mpt_jax.tasks.paper.sets import ALIASES, MIXTURES, REFERENCES, SETS, PaperSet
from mpt_jax.tasks.table import TABLE, Task, add, add_mixture

INDEX, PUBLISHED = "index", "published"
VARIANTS = (INDEX, PUBLISHED)


def _task(row: PaperSet, variant: str = "") -> Task:
    published = variant == PUBLISHED
    labels = tuple(map(str, range(len(row.labels)))) if variant else row.labels
    about = {INDEX: "label indices as targets", PUBLISHED: "text, targets and splits as in ATTEMPT", "": row.description}
    return Task(
        name=f"{row.name}:{variant}" if variant else row.name,
        kind="generated",
        splits=SPLITS,
        template=row.published_template if published and row.published_template else row.template,
        labels=labels or None,
        target=row.target or None,
        score=row.score,
        references=row.answers or (REFERENCES if row.references else None),
        group="source" if row.source else "target",
        description=about[variant] or f"{row.mixture or 'source task'}; {row.tfds}",
        generate=partial(generate, row, published=published),
        prepare=partial(fields_to_predict, row, published),
        origin=partial(origin, row, published),
        version=f"paper {VERSION}",
    )


def variant_of(name: str, label_targets: str = "words", as_published: bool = False) -> str:
    """The name of the variant that the settings ask for; a task that is none of the paper's, or has no such variant, keeps its own."""
    if name not in SETS or TABLE[name].origin is None:  # none of the paper's, or a user's task of that name
        return name
    if as_published:
        return f"{name}:{PUBLISHED}"
    return f"{name}:{INDEX}" if label_targets == "indices" and SETS[name].labels else name


def configure(data_dir: str = "", download: bool = False) -> None:
    """Where the published files are (TASK_DATA_DIR), and whether TFDS may download; nothing given changes nothing."""
    if data_dir:
        os.environ[location.DATA_FOLDER] = data_dir
    if download:
        os.environ[location.DOWNLOAD] = "1"


def _add(names: Sequence[str]) -> None:
    for name in names:
        row = SETS[name]
        add(_task(row))
        if row.labels:
            add(_task(row, INDEX))
        add(_task(row, PUBLISHED))


_add(tuple(SETS))
for _name, _members in MIXTURES.items():
    add_mixture(_name, _members)
for _alias, _name in ALIASES.items():
    add_mixture(_alias, (_name,))
