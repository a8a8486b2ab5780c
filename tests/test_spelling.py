"""Labels and texts as a vocabulary writes them; labels that can be neither learned nor answered are refused."""

import numpy as np
import pytest
from tiny_data import byte_vocabulary, piece_file, shared_vocabulary_file, sized_cache

from mpt_jax import tasks
from mpt_jax.data.spelling import check_labels, cut_notes, longest_label, spelling, writer
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.backbone import SHIPPED


@pytest.fixture(scope="module")
def nano():
    """A vocabulary of lower-case letters."""
    return load_vocabulary(SHIPPED / "nano")


def test_labels_that_the_vocabulary_spells_otherwise_are_still_labels(table, nano):
    tasks.jsonl("news", files={"train": "absent.jsonl"}, template="{text}", labels=("World", "sports"))
    assert spelling("news", nano) == {"world": "World", "sports": "sports"}
    assert spelling("unknown", nano) == {} and spelling(None, nano) == {}


SAME = (("World", "world"), ("東", "京"), ("a  b", "a b"), ("x²", "x2"), ("सकारात्मक", "नकारात्मक"), ("إيجابي", "سلبي"), ("no", "yes", "NO"))


@pytest.mark.parametrize("labels", SAME)
def test_labels_that_the_vocabulary_cannot_tell_apart_are_refused(labels, nano):
    with pytest.raises(UserError, match="task 't': labels .* and .* are the same to vocabulary .*spiece.model.*choose words"):
        check_labels("t", labels, nano)
    check_labels("t", labels, byte_vocabulary())


def test_t5_tells_upper_and_lower_case_apart_but_not_braces():
    t5 = load_vocabulary(shared_vocabulary_file())
    check_labels(None, ("World", "world"), t5)
    with pytest.raises(UserError, match="^labels '{' and '}' are the same"):
        check_labels(None, ("{", "}"), t5)


def test_a_label_that_the_vocabulary_cannot_write_at_all_is_refused(nano):
    with pytest.raises(UserError, match="cannot write label"):
        check_labels("t", ("no", "\u200b"), nano)


def test_a_label_beyond_the_target_length_is_refused_with_both_numbers():
    labels = ("no", "perhaps")
    assert longest_label(labels, byte_vocabulary()) == 8
    check_labels("t", labels, byte_vocabulary(), 8)
    with pytest.raises(UserError, match=r"task 't': label 'perhaps' has 8 tokens, the limit is 7: raise TASK_FEATURE_LENGTHS\['targets'\]"):
        check_labels("t", labels, byte_vocabulary(), 7)


def test_every_shipped_task_has_labels_that_nano_can_write(nano):
    for name, task in tasks.TABLE.items():
        assert len(spelling(name, nano, 24)) == len(task.labels or ())


def test_texts_as_the_vocabulary_writes_them(nano):
    write = writer(nano)
    assert [write(text) for text in ("Paris", "Wait…", "x²", "a  b")] == ["paris", "wait...", "x2", "a b"]
    assert write(write("Paris")) == "paris"
    assert writer(load_vocabulary(piece_file()))("東京") == "東京"


def test_rows_that_are_cut_are_told_with_their_number(tmp_path):
    cache = sized_cache(tmp_path, 12, longest=12)
    cache.input_lengths, cache.target_lengths = np.arange(1, 13), np.full(12, 9)
    notes = cut_notes([cache], {"inputs": 10, "targets": 8})
    assert notes == [
        "task toy, train: 2 of 12 inputs are longer than 10 tokens and are cut (the longest has 12): TASK_FEATURE_LENGTHS['inputs']",
        "task toy, train: 12 of 12 targets are longer than 8 tokens and are cut (the longest has 9): TASK_FEATURE_LENGTHS['targets']",
    ]
    assert cut_notes([cache], {"inputs": 12, "targets": 9}) == []
