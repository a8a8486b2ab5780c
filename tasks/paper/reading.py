"""Rows of the paper's tasks: records of a set, prepared, in the split they were carved into."""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.paper import splits
from mpt_jax.tasks.paper.layouts import OTHER_LAYOUT
from mpt_jax.tasks.paper.location import Location, fingerprint, locate, read
from mpt_jax.tasks.paper.sets import DEV_ROWS, HALVES, OF_TRAIN, OWN, REFERENCES, PaperSet

log = logging.getLogger(__name__)
VERSION = "2"  # raise it when the same records are to become other rows or fall into other splits
SPLITS = ("train", "validation", "test")
# instead of what a record to predict for does not have
UNANSWERED = {"label": 0, "answers": [], "target": "", "idx": {"paragraph": 0, "question": 0}}


def generate(row: PaperSet, split: str, published: bool = False) -> Iterator[dict]:
    """The rows of a split as fields of the template, in the order of the files. Raises TaskError where data is missing."""
    where = locate(row)
    role, chosen = _published_selection(row, where, split) if published else _selection(row, where, split)
    if row.references and split != "train":
        yield from _one_row_an_input(row, where, role, published)
        return
    for number, record in enumerate(read(row, where, role)):
        if not chosen[number]:
            continue
        prepared = prepare(row, record, published)
        if row.references:
            prepared = [{**fields, REFERENCES: [fields[row.references[1]]]} for fields in prepared]
        # a record with several answers is several rows in training; published: in evaluation too
        yield from prepared if split == "train" or published else prepared[:1]


def origin(row: PaperSet, published: bool = False) -> dict:
    """What decides the rows of the set besides template and labels, JSON-able. Raises TaskError where data is missing."""
    found = fingerprint(row, locate(row))
    return {"set": row.name, "published": published, "carving": row.carving, "seed": splits.SEED, "cap": row.cap, **found}


def prepare(row: PaperSet, record: dict, published: bool = False) -> list[dict]:
    """The rows of a record: the template's fields, and `label` as an index."""
    try:
        found = row.prepare(record, published) if row.prepare else _own_fields(row, record)
    except TaskError:
        raise
    except KeyError as error:
        raise TaskError(f"task {row.name!r}: a row has no field {error}; its fields are {', '.join(record)}") from error
    except OTHER_LAYOUT as error:
        raise TaskError(f"task {row.name!r}: a row's fields are not those published ({error!s:.200})") from error
    rows = found if isinstance(found, list) else [found]
    if row.labels:
        for fields in rows:
            fields["label"] = _label(row, fields.get("label"))
    return rows


def fields_to_predict(row: PaperSet, published: bool, record: Mapping) -> Mapping:
    """The template's fields of a record without its answer; a record that holds other fields comes back as it is."""
    if row.prepare is None:
        return record
    try:
        found = row.prepare({**UNANSWERED, **record}, published)
    except KeyError:
        return record
    except TaskError:
        raise
    except OTHER_LAYOUT as error:
        raise TaskError(f"task {row.name!r}: the fields are not those published ({error!s:.200})") from error
    return {**record, **(found[0] if isinstance(found, list) else found)}


def _own_fields(row: PaperSet, record: Mapping) -> dict:
    """The record without what only costs space; a field that the template needs is missed when it is filled in."""
    return {key: value for key, value in record.items() if key not in ("start1", "start2", "end1", "end2", "version")}


def _label(row: PaperSet, value) -> int:
    if isinstance(value, bool | int | np.integer):
        index = int(value)
    else:
        text = str(value).strip()
        names = {word: number for number, word in enumerate(row.labels)} | dict(row.label_names)
        index = names.get(text, int(text) if text.isdecimal() else -1)
    if not 0 <= index < len(row.labels):
        words = ", ".join(row.labels)
        raise TaskError(f"task {row.name!r}: label {value!r} is none of {words} (0 to {len(row.labels) - 1}): a test set without labels?")
    return index


def _keys(row: PaperSet, where: Location, role: str) -> list[splits.Key]:
    """For each record of a published split the key of what must not be in two splits."""
    template = row.group or row.template
    found = []
    for number, record in enumerate(read(row, where, role)):
        try:
            found.append(splits.key_of(template.format_map(prepare(row, record)[0])))
        except KeyError as error:
            raise TaskError(f"task {row.name!r}, {role} row {number}: no field {error}; there are {', '.join(record)}") from error
    if not found:
        raise TaskError(f"task {row.name!r}: the published {role} split holds no row")
    return found


def _selection(row: PaperSet, where: Location, split: str) -> tuple[str, np.ndarray]:
    """(published split to read, which of its rows), such that no two splits share what a row says."""
    if row.carving == HALVES:
        keys = _keys(row, where, "validation")
        if split == "train":
            return "train", _apart(row, _keys(row, where, "train"), keys, split)
        dev = splits.pick(keys, len(keys) // 2, f"{row.name}:dev")
        return "validation", dev if split == "validation" else ~dev
    tested = _keys(row, where, "test")
    if split == "test":
        return "test", np.ones(len(tested), bool)
    if row.carving == OWN:
        dev = _keys(row, where, "validation")
        if split == "validation":
            return "validation", _apart(row, dev, tested, split)
        return "train", _apart(row, _keys(row, where, "train"), [*dev, *tested], split)
    return "train", _part_of_train(row, _keys(row, where, "train"), tested, split)


def _part_of_train(row: PaperSet, keys: list[splits.Key], tested: list[splits.Key], split: str) -> np.ndarray:
    """DEV_ROWS rows of train that are not in test are dev, the others train, `cap` of them at most."""
    free = np.flatnonzero(_apart(row, keys, tested, split))
    dev = splits.pick([keys[n] for n in free], DEV_ROWS, f"{row.name}:dev")
    rest = free[~dev]
    if row.cap and len(rest) > row.cap:
        rest = rest[splits.pick([keys[n] for n in rest], row.cap, f"{row.name}:cap")]
    chosen = np.zeros(len(keys), bool)
    chosen[free[dev] if split == "validation" else rest] = True
    if not chosen.any():
        raise TaskError(f"task {row.name!r}: {len(keys)} training rows are too few: {DEV_ROWS} of them are the dev split, the rest train")
    return chosen


def _apart(row: PaperSet, keys: list[splits.Key], others: list[splits.Key], split: str) -> np.ndarray:
    """Rows whose key is in no later split; says how many are left out."""
    chosen = splits.without(keys, set(others))
    left_out = len(keys) - int(chosen.sum())
    if left_out:
        log.warning("Task %s: %d rows of %s are also in a later split and left out of %s", row.name, left_out, len(keys), split)
    if not chosen.any():
        raise TaskError(f"task {row.name!r}: every row of {split} is also in a later split: are the files copies of one another?")
    return chosen


def _published_selection(row: PaperSet, where: Location, split: str) -> tuple[str, np.ndarray]:
    """As ATTEMPT carved them: torch's permutation of the rows in the order of the files, row by row."""
    whole = {HALVES: "train", OF_TRAIN: "test"}.get(row.carving, split)
    role = split if split == whole else {HALVES: "validation", OF_TRAIN: "train"}[row.carving]
    size = sum(1 for _ in read(row, where, role))
    if split == whole:
        return role, np.ones(size, bool)
    if row.carving == HALVES:
        start, stop = (0, size // 2) if split == "validation" else (size // 2, None)
    else:
        start, stop = (0, DEV_ROWS) if split == "validation" else (DEV_ROWS, DEV_ROWS + row.cap if row.cap else None)
    return role, splits.standing(splits.torch_permutation(size), start, stop)


def _one_row_an_input(row: PaperSet, where: Location, role: str, published: bool) -> Iterator[dict]:
    """Generation is scored against all texts of an input: its first record with the list `references`."""
    key, text = row.references
    found: dict[str, dict] = {}
    for record in read(row, where, role):
        for fields in prepare(row, record, published):
            first = found.setdefault(fields[key], {**fields, REFERENCES: []})
            texts = record.get(REFERENCES) or [fields[text]]
            first[REFERENCES] += [text for text in texts if text not in first[REFERENCES]]
    yield from found.values()
