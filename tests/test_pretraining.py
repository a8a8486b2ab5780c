"""The nano backbone's pretraining data: span corruption, what may not enter, and that it comes out the same twice."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mpt_jax.tasks import TABLE, TaskError
from mpt_jax.tasks.embedded import SOURCES, TARGETS

from benchmarks.nano import embedded_rows, entailment, labelled, short_texts, spans, text, text_rows, wordnet, wordnet_rows
from benchmarks.nano import pretraining as nano
from benchmarks.nano.registration import register
from mpt_jax import tasks

DATA = Path(os.environ.get("MPT_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "tasks").is_dir(), reason=f"no data folder at {DATA}: set MPT_DATA_DIR")

WORDNET_LINES = """\
  1 a licence line, which starts with two blanks
00001740 05 n 02 cat 0 true_cat 0 002 @ 00002137 n 0000 ;c 00003553 n 0000 | (zoology) feline mammal; a pet; "the cat sat"; "two cats"
00002137 05 n 01 animal 0 000 | a living organism that moves
00003553 09 n 01 zoology 0 000 | the study of animals
"""


class FixedParts(random.Random):
    """Cuts where the test says."""

    def __init__(self, cuts):
        super().__init__(0)
        self.cuts = iter(cuts)

    def sample(self, population, k, *, counts=None):
        chosen = next(self.cuts)
        assert len(chosen) == k and all(cut in population for cut in chosen)
        return chosen


def test_spans_by_hand():
    # 20 tokens, 15 % noise: 3 noise tokens; mean span 1.5: 2 spans. Noise lengths 1 and 2, kept lengths 5 and 12.
    inputs, targets = spans.corrupt(list(range(100, 120)), 8192, FixedParts([[1], [5]]), 0.15, 1.5)
    assert inputs == [100, 101, 102, 103, 104, 8191, *range(106, 118), 8190]
    assert targets == [8191, 105, 8190, 118, 119, 8189]


@pytest.mark.parametrize("length", [4, 5, 16, 64, 96])
def test_spans_rebuild_the_text(length):
    tokens = [random.Random(length).randrange(3, 8092) for _ in range(length)]
    for seed in range(50):
        inputs, targets = spans.corrupt(tokens, 8192, random.Random(seed))
        assert spans.rebuild(inputs, targets, 8092) == tokens
        sentinels = [token for token in inputs if token >= 8092]
        assert sentinels == [8191 - i for i in range(len(sentinels))]
        assert targets[-1] == 8191 - len(sentinels)
        assert len(tokens) - (len(inputs) - len(sentinels)) == max(round(0.15 * length), 1)


def test_spans_refuse_a_short_segment():
    with pytest.raises(ValueError, match="at least 4 tokens, got 3"):
        spans.corrupt([5, 6, 7], 8192, random.Random(0))


def test_partition_is_uniform():
    seen = Counter(tuple(spans.partition(4, 2, random.Random(seed))) for seed in range(3000))
    assert set(seen) == {(1, 3), (2, 2), (3, 1)}
    assert all(900 < count < 1100 for count in seen.values())


def test_segments_keep_every_token_in_order():
    pieces = [list(range(start, start + 30)) for start in range(0, 900, 30)]
    made = list(text.segments(pieces, 20, 40, random.Random(0)))
    assert all(20 <= len(segment) <= 40 for segment in made)
    joined = [token for segment in made for token in segment]
    assert joined == sorted(joined) and len(set(joined)) == len(joined)


def test_wordnet_lines(tmp_path):
    for name in ("verb", "adj", "adv"):
        (tmp_path / f"data.{name}").write_text("")
    (tmp_path / "data.noun").write_text(WORDNET_LINES)
    synsets = wordnet.read_synsets(tmp_path)
    cat = synsets["n00001740"]
    assert (cat.part, cat.category, cat.words) == ("noun", "animal", ("cat", "true cat"))
    assert cat.gloss == "feline mammal; a pet"
    assert cat.examples == ("the cat sat", "two cats")
    assert cat.pointers == (("hypernym", "n00002137", -1, -1), ("topic", "n00003553", -1, -1))
    assert wordnet_rows.gloss_of(cat) == "feline mammal"


def test_gcide_senses():
    body = '(n[=o]), n. [L. nodus.] 1. (Zo["o]l.) A small fish of the rivers of {Asia}. [1913 Webster]\n'
    body += " 2. A knot or a hard lump of wood. --Bacon."
    senses = list(text._senses("Node", body))
    assert [sense.field for sense in senses] == ["zoology", ""]
    assert senses[0].text == "A small fish of the rivers of Asia."
    assert senses[1].text == "A knot or a hard lump of wood."


def test_question_stands_before_the_text_and_options_are_complete():
    asked = labelled.asked(random.Random(0), "good or bad?", ("bad", "good"), "text: fine film", 1.0)
    assert asked.startswith("good or bad? ") and asked.endswith("text: fine film")
    assert {"bad", "good"} <= set(asked.replace(".", " ").replace(",", " ").split())


def test_sst2_wordings_agree_with_the_label(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.jsonl").write_text(json.dumps({"sentence": "a fine film", "label": 1}) + "\n")
    rows = list(labelled.sst2_rows(tmp_path, random.Random(0), copies=len(labelled.SST2)))
    assert rows[0] == {"inputs": rows[0]["inputs"], "targets": "positive", "text": "a fine film"}
    by_question = {row["inputs"].split("?")[0]: row["targets"] for row in rows}
    assert by_question["does the writer like it"] == "yes" and by_question["does the writer dislike it"] == "no"


def test_finding_rows_answer_what_is_asked():
    sentences = ["the old man went down to the river bank", "she saw seven white birds over the house"]
    rows = list(text_rows.finding_rows(sentences * 40, random.Random(1), 80))
    for row in rows:
        if row["inputs"].startswith("last word."):
            assert row["inputs"].endswith(row["targets"])
        if row["inputs"].startswith("repeat:"):
            assert row["inputs"] == f"repeat: {row['targets']}"


def test_slot_rows_name_the_value():
    for row in text_rows.slot_rows(random.Random(0), 100):
        assert row["targets"] in row["inputs"]


def test_rows_that_show_a_banned_text_are_dropped():
    banned = frozenset({"causing pain"})
    material = nano.Material(DATA, {}, [], {}, None, [], banned)
    made = [
        {"inputs": "word for: causing pain", "targets": "sore", "text": "causing pain"},
        {"inputs": "does sore mean this? causing pain", "targets": "yes"},
        {"inputs": "meaning of sore", "targets": "yes", "definition": "Causing pain."},
        {"inputs": "word for: full of joy", "targets": "glad", "text": "full of joy"},
    ]
    recipe = nano.Recipe("nano_x", "", lambda material, rng: iter(made))
    assert [row["targets"] for row in nano.make_rows(recipe, material, 0)] == ["glad"]


def test_clauses_find_a_definition_in_its_longer_form():
    assert "sorrow caused by loss" in nano.clauses('sorrow caused by loss (especially by death); "her grief"')
    assert "a feline" in nano.clauses("(zoology) a feline; a pet")


def test_no_embedded_target_has_a_recipe():
    names = {recipe.name.removeprefix("nano_") for recipe in nano.all_recipes()}
    assert not names & set(TARGETS)
    assert set(SOURCES) <= names


@needs_data
def test_forbidden_files_are_never_read_as_rows(monkeypatch):
    read = []
    real = labelled.read_jsonl
    for module in (labelled, short_texts):
        monkeypatch.setattr(module, "read_jsonl", lambda path: read.append(path) or real(path))
    rng = random.Random(0)
    more = (short_texts.emotion_rows, short_texts.domain_rows)
    for rows in (labelled.sst2_rows, labelled.ag_news_rows, labelled.qnli_rows, labelled.mrpc_rows, *more):
        next(rows(DATA / "tasks", rng))
    assert {path.parent.name for path in read} | {"mnli_small", "snli_small"} == set(nano.SOURCES)
    assert {path.name for path in read} == {"train.jsonl"}


def test_a_held_out_pair_is_no_training_row_in_either_order(tmp_path):
    rows = [("a man runs", "a man moves", 0), ("a dog sleeps", "a dog runs", 2)]
    for split, kept in (("train", rows), ("test", [("A dog runs.", "a dog sleeps", 2)])):
        lines = [json.dumps({"premise": premise, "hypothesis": hypothesis, "label": label}) for premise, hypothesis, label in kept]
        (tmp_path / "sick").mkdir(exist_ok=True)
        (tmp_path / "sick" / f"{split}.jsonl").write_text("\n".join(lines))
    made = list(entailment.rows_of(tmp_path, "sick", random.Random(0), copies=len(entailment.WORDINGS)))
    assert len(made) == len(entailment.WORDINGS) and not any("dog" in row["inputs"] for row in made)
    assert made[0]["targets"] == "entailment" and made[0]["inputs"].startswith("sick")
    assert next(row for row in made if "contradict" in row["inputs"])["targets"] == "no"


def test_requests_and_tweets_agree_with_their_labels(tmp_path):
    flight = {"sentence": "book me a flight", "label": 7, "intent": "book_flight"}
    for name, row in (("tweet_emotion", {"sentence": "so angry", "label": 0}), ("clinc_domain", flight)):
        (tmp_path / name).mkdir()
        others = [dict(row, intent=intent) for intent in ("a_b", "c_d", "e_f")] if "intent" in row else []
        (tmp_path / name / "train.jsonl").write_text("\n".join(map(json.dumps, [row, *others])))
    rng = random.Random(0)
    made = short_texts.emotion_rows(tmp_path, rng, copies=len(short_texts.EMOTION))
    emotion = {row["inputs"].split("?")[0]: row["targets"] for row in made}
    assert emotion["is the writer angry"] == "yes" and emotion["is the writer sad"] == "no"
    made = list(short_texts.domain_rows(tmp_path, rng))[: len(short_texts.DOMAIN) + 1]
    assert made[0]["targets"] == "travel" and "book flight" in {row["targets"] for row in made}


@pytest.mark.slow
@needs_data
def test_same_rows_twice(monkeypatch):
    monkeypatch.setattr(embedded_rows, "target_texts", lambda: {"causing pain"})
    banned = frozenset(nano.forbidden_texts(DATA / "tasks"))
    held_out = labelled.read_jsonl(DATA / "tasks" / "sst2" / "validation.jsonl")[0]["sentence"]
    assert text.normalised(held_out) in banned and "causing pain" in banned
    material = nano.Material(DATA / "tasks", {}, [], {}, None, [], banned)
    recipe = nano.RECIPES[0]
    first, second = nano.make_rows(recipe, material, 0), nano.make_rows(recipe, material, 0)
    assert first == second != nano.make_rows(recipe, material, 1)
    assert all(text.normalised(row["text"]) not in banned for row in first)


def test_registered_rows_bring_their_vectors(tmp_path, monkeypatch):
    folder = tmp_path / "tasks" / "nano_tiny"
    digest = nano.write_jsonl(folder / "train.jsonl", [{"inputs": "a", "targets": "b"}, {"inputs": "c", "targets": "d"}])
    np.save(folder / "train.npy", np.array([[1.0, 0.5], [0.0, 0.0]], np.float16))
    facts = {"rows": {"train": digest[0]}, "sha256": digest[1], "embedding_size": 2, "tokens": False, "description": "tiny"}
    (tmp_path / "index.json").write_text(json.dumps({"tasks": {"nano_tiny": facts}}))
    monkeypatch.setenv("NANO_DATA", str(tmp_path))
    tasks.import_module("benchmarks.nano.pretraining_tasks")
    try:
        rows = list(tasks.rows("nano_tiny", "train"))
        assert [row["targets"] for row in rows] == ["b", "d"]
        assert rows[0]["embedding"] == [1.0, 0.5]
    finally:
        TABLE.pop("nano_tiny", None)


def test_missing_pretraining_data_is_named(tmp_path):
    with pytest.raises(TaskError, match="python -m benchmarks.nano.pretraining"):
        register(tmp_path)
