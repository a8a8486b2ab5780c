"""The quickstart's tasks: known facts, splits without overlap, same rows in every process, balance."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest
from mpt_jax.tasks import TABLE
from mpt_jax.tasks.embedded import SOURCES, TARGETS, splitting
from mpt_jax.tasks.embedded.materials import is_plain, package_folder
from mpt_jax.tasks.embedded.prose import shuffled_words, turned_inner
from mpt_jax.tasks.errors import TaskError

from mpt_jax import tasks

SPLITS = ("train", "validation", "test")
ALL = SOURCES + TARGETS


@cache
def rows(name: str, split: str) -> list[dict]:
    return list(TABLE[name].generate(split))


def all_rows(name: str) -> list[dict]:
    return [row for split in SPLITS for row in rows(name, split)]


@cache
def inputs(name: str, split: str) -> list[str]:
    return [TABLE[name].template.format(**row) for row in rows(name, split)]


# What identifies the content of a row; the template's text for the rest.
KEYS = {
    "summary_match": ("summary",),
    "journey_check": ("context",),
    "journey_question": ("context",),
    "purchase_check": ("context",),
    "purchase_question": ("context",),
    "same_text": ("first",),
}


def contents(name: str, split: str) -> set[str]:
    if name not in KEYS:
        return set(inputs(name, split))
    return {" ".join(str(row[key]) for key in KEYS[name]) for row in rows(name, split)}


def test_groups_are_large_enough():
    assert len(SOURCES) >= 6 and len(TARGETS) >= 6 and len(set(ALL)) == len(ALL)
    assert {TABLE[name].group for name in SOURCES} == {"source"}
    assert {TABLE[name].group for name in TARGETS} == {"target"}


@pytest.mark.parametrize("name", ALL)
def test_counts(name):
    least = {"train": 500, "validation": 75, "test": 90}
    if name in TARGETS:
        least = {"train": 300, "validation": 150, "test": 200}
    if name == "module_topic" and importlib.util.find_spec("tkinter") is None:
        least = {"train": 250, "validation": 120, "test": 180}  # most of its sentences about windows: Debian's python3 has no tkinter
    for split in SPLITS:
        assert len(rows(name, split)) >= least[split], split


@pytest.mark.parametrize("name", ALL)
def test_no_content_in_two_splits(name):
    train, validation, test = (contents(name, split) for split in SPLITS)
    assert not train & validation and not train & test and not validation & test


@pytest.mark.parametrize("name", ALL)
def test_no_input_twice(name):
    texts = [text for split in SPLITS for text in inputs(name, split)]
    assert len(set(texts)) == len(texts)


def test_sources_and_targets_share_no_input():
    source = {text for name in SOURCES for split in SPLITS for text in inputs(name, split)}
    for name in TARGETS:
        assert not source & {text for split in SPLITS for text in inputs(name, split)}, name


@pytest.mark.parametrize(
    "source,target,fields",
    [
        ("word_order", "turned_words", ("sentence",)),
        ("science_topic", "module_topic", ("sentence",)),
        ("past_tense", "plural", ("word",)),
        ("number_words", "ordinal_words", ("number",)),
    ],
)
def test_sources_and_targets_share_no_content(source, target, fields):
    for field in fields:
        assert not {row[field] for row in all_rows(source)} & {row[field] for row in all_rows(target)}


@pytest.mark.parametrize("name", [name for name in ALL if TABLE[name].labels])
def test_classes_are_equally_large(name):
    for split in SPLITS:
        counts = Counter(row["label"] for row in rows(name, split))
        assert set(counts) == set(TABLE[name].labels) and len(set(counts.values())) == 1, split


@pytest.mark.parametrize("name", [name for name in ALL if TABLE[name].labels])
def test_order_says_nothing_about_the_class(name):
    labels = [row["label"] for row in rows(name, "train")]
    same = sum(a == b for a, b in zip(labels, labels[1:], strict=False)) / (len(labels) - 1)
    assert abs(same - 1 / len(set(labels))) < 0.1


@pytest.mark.parametrize("name", ALL)
def test_texts_are_short(name):
    task = TABLE[name]
    assert max(len(text.split()) for split in SPLITS for text in inputs(name, split)) <= 30
    if task.target:
        answers = [task.target.format(**row) for row in all_rows(name)]
        assert max(len(answer.replace("-", " ").split()) for answer in answers) <= 7
        assert all(answer == answer.strip() and answer for answer in answers)


@pytest.mark.parametrize("name", ["journey_question", "purchase_question"])
def test_answers_are_in_the_context_once(name):
    for row in all_rows(name):
        assert row["context"].count(row["answer"]) >= 1 and row["answer"] not in row["question"]


@pytest.mark.parametrize("name", ["journey_check", "purchase_check"])
def test_statements_hold_or_not(name):
    """A true statement's last word is in the report, a false one's filler is not."""
    for row in rows(name, "test"):
        words = set(row["context"].lower().replace(".", "").replace(",", "").replace(":", "").split())
        said = set(row["statement"].rstrip(".").lower().split())
        if row["label"] == "yes":
            assert said & words


GOLDEN = [
    ("word_valence", {"word": "wonderful"}, {"label": "positive"}),
    ("word_valence", {"word": "murder"}, {"label": "negative"}),
    ("word_class", {"word": "quickly"}, {"label": "adverb"}),
    ("name_kind", {"name": "Portugal"}, {"label": "country"}),
    ("past_tense", {"word": "get"}, {"past": "got"}),
    ("past_tense", {"word": "walk"}, {"past": "walked"}),
    ("plural", {"word": "mouse"}, {"plural": "mice"}),
    ("plural", {"word": "prognosis"}, {"plural": "prognoses"}),
    ("number_words", {"number": 473}, {"words": "four hundred and seventy-three"}),
    ("number_words", {"number": 740}, {"words": "seven hundred and forty"}),
    ("ordinal_words", {"number": 248}, {"words": "two hundred and forty-eighth"}),
    ("definition_valence", {"definition": "causing or marked by grief or anguish"}, {"label": "negative"}),
]


@pytest.mark.parametrize("name,fields,answer", GOLDEN)
def test_known_facts(name, fields, answer):
    found = [row for row in all_rows(name) if fields.items() <= row.items()]
    assert found and answer.items() <= found[0].items()


@pytest.mark.parametrize("name", ALL)
def test_rows_as_the_model_sees_them(name):
    row = next(iter(tasks.rows(name, "test")))
    assert row["inputs"] == inputs(name, "test")[0]
    if TABLE[name].labels:
        assert row["targets"] == TABLE[name].labels[row["label"]]
    assert set(TABLE[name].packages) <= set(str(tasks.ingredients(name, "test")).replace("'", " ").split())


def test_word_order_changes_nothing_but_order():
    for row in rows("word_order", "validation"):
        assert row["sentence"].islower() and len(row["sentence"].split()) >= 6


def test_disturbances():
    words = "a sentence of six plain words".split()
    assert sorted(shuffled_words(words)) == sorted(words) and shuffled_words(words) != words
    assert turned_inner(words) == "a plain six of sentence words".split()


def test_summary_is_a_plain_sentence():
    for row in rows("summary_match", "test"):
        assert is_plain(row["summary"])


def test_digests_are_fixed():
    """Splits must never move: these numbers are sha256's, computed apart from this code."""
    expected = int.from_bytes(hashlib.sha256(b"split\x1fwalk").digest()[:8], "big")
    assert splitting.digest("split", "walk") == expected
    assert [splitting.half(number) for number in range(8)] == [
        splitting.half(str(number)) for number in range(8)
    ]


def test_shares_cover_everything():
    for target in (False, True):
        parts = [splitting.within(range(500), split, target) for split in SPLITS]
        assert sorted(item for part in parts for item in part) == list(range(500))


FINGERPRINT = """
import hashlib, json
from mpt_jax.tasks import TABLE
from mpt_jax.tasks.embedded import SOURCES, TARGETS
for name in SOURCES + TARGETS:
    rows = [list(TABLE[name].generate(split)) for split in ("train", "validation", "test")]
    print(name, hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


@pytest.mark.slow
def test_same_rows_whatever_the_hash_seed():
    outputs = []
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", FINGERPRINT]
        outputs.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert outputs[0] == outputs[1] and len(outputs[0].splitlines()) == len(ALL)


def test_importing_reads_nothing():
    code = (
        "import sys; import mpt_jax.tasks.embedded; from mpt_jax.tasks.embedded import materials;"
        "heavy = ('babel', 'num2words', 'lemminflect', 'textblob', 'sklearn', 'scipy', 'jax', 'tensorflow');"
        "print([m for m in heavy if m in sys.modules], materials.docstrings.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 0"


def test_missing_package_is_named():
    with pytest.raises(TaskError, match="'no_such_package' is not installed"):
        package_folder("no_such_package")
