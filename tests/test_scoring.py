"""Scorers of tasks: labels, averages, answers, rows of the token cache, and bad input."""

import pytest
from mpt_jax.tasks import scores, scoring

from mpt_jax import tasks


def add(name, **settings):
    return tasks.add(
        tasks.Task(name, "generated", ("train",), generate=lambda split: [], version="1", **settings)
    )


def test_label_task_counts_invalid_predictions(table):
    add("label", labels=("no", "yes"))
    rows = [{"targets": "no"}, {"targets_pretokenized": "yes"}, {"targets": "yes"}, {"targets": "no"}]
    found = tasks.scorer("label")(rows, ["no", "yes", "", "nope"])
    assert found == {"accuracy": 50.0, "invalid": 50.0}
    assert tasks.main_score("label") == "accuracy"


def test_label_task_ignores_a_field_called_answers(table):
    add("label", labels=("no", "yes"))
    assert tasks.scorer("label")([{"targets": "no", "answers": ["yes"]}], ["yes"])["accuracy"] == 0


def test_several_scores_have_an_average_without_falling_ones(table):
    add("pair", labels=("no", "yes"), score=("f1", "accuracy"))
    rows = [{"targets": "yes"}, {"targets": "yes"}, {"targets": "no"}]
    assert tasks.scorer("pair")(rows, ["yes", "no", "no"]) == pytest.approx(
        {"f1": 200 / 3, "accuracy": 200 / 3, "average": 200 / 3, "invalid": 0}
    )
    assert tasks.main_score("pair") == "average"
    add("text", score=("exact_match", "ter"))
    assert tasks.main_score("text") == "exact_match"
    assert tasks.scorer("text")([{"targets": "a b"}], ["a c"]) == {"exact_match": 0.0, "ter": 50.0}


@pytest.mark.parametrize("right", [["cat", "dog"], {"text": ["dog"]}])
def test_all_right_answers_count_where_the_task_says_where_they_are(table, right):
    add("answers", score="squad", target="{t}", references="others")
    assert tasks.scorer("answers")([{"targets": "cat", "others": right}], ["Dog"])["em"] == 100
    assert tasks.main_score("answers") == "average"
    with pytest.raises(tasks.TaskError, match="field 'others' is None"):
        tasks.scorer("answers")([{"targets": "cat", "answers": ["cat"]}], ["Dog"])


@pytest.mark.parametrize("field", ["answers", "references"])
def test_fields_that_no_setting_names_are_not_right_answers(table, field):
    add("choice", target="{correct}")
    rows = [{"targets": "green", field: ["red", "green"]}, {"targets": "red", field: ["red", "green"]}]
    assert tasks.scorer("choice")(rows, ["red", "red"]) == {"accuracy": 50.0}


def test_references_are_texts_or_an_error():
    assert scoring.references({"targets": "5", "answers": [5, "five"]}) == ["5", "five"]
    with pytest.raises(tasks.TaskError, match="field 'answers' is"):
        scoring.references({"targets": "a", "answers": [["a"], ["b"]]})


LOWER = {"World": "world", "Paris": "paris", "x²": "x2"}


def written(text):
    """What a lower-case vocabulary makes of the texts here."""
    return LOWER.get(text, text)


def test_right_texts_are_compared_as_the_vocabulary_writes_them(table):
    add("texts", score=("exact_match", "squad"), target="{t}")
    rows = [{"targets": "Paris"}, {"targets": "x²"}, {"targets": "end"}]
    assert tasks.scorer("texts", written)(rows, ["paris", "x2", "end"]) == {"exact_match": 100, "em": 100, "f1": 100, "average": 100}
    assert tasks.scorer("texts")(rows, ["paris", "x2", "end"])["exact_match"] == pytest.approx(100 / 3)
    add("several", score="exact_match", target="{t}", references="r")
    assert tasks.scorer("several", written)([{"targets": "Rome", "r": ["Rome", "Paris"]}], ["paris"]) == {"exact_match": 100.0}
    add("label", labels=("World", "sports"))
    assert tasks.scorer("label", written)([{"targets": "World"}], ["world"]) == {"accuracy": 100.0, "invalid": 0.0}


def test_numbers_are_compared_as_numbers_whatever_the_vocabulary_writes(table):
    add("numbers", score="pearson", target="{t}")
    assert tasks.scorer("numbers", lambda text: "?")([{"targets": "1"}, {"targets": "2"}], ["1", "2"])["pearson"] == pytest.approx(100)


def test_the_score_that_selects_comes_first(table):
    add("rising", score=("ter", "exact_match"), target="{t}")
    assert next(iter(tasks.scorer("rising")([{"targets": "a"}], ["a"]))) == tasks.main_score("rising") == "exact_match"
    add("pair", labels=("no", "yes"), score=("f1", "accuracy"))
    assert next(iter(tasks.scorer("pair")([{"targets": "no"}], ["no"]))) == tasks.main_score("pair") == "average"


@pytest.mark.parametrize("score", ["f1", "macro_f1", "matthews"])
def test_a_target_that_is_not_a_label_is_named(table, score):
    add("label", labels=("no", "yes"), score=score)
    with pytest.raises(tasks.TaskError, match="row 1: the target 'maybe' is none of the labels no, yes"):
        tasks.scorer("label")([{"targets": "no"}, {"targets": "maybe"}], ["no", "no"])


def test_numbers_count_invalid(table):
    add("numbers", score=("pearson", "spearman"))
    found = tasks.scorer("numbers")([{"targets": "1"}, {"targets": "2"}, {"targets": "3"}], ["1", "2", "x"])
    assert found["invalid"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(("rows", "predictions"), [([], []), ([{"targets": "no"}], []), ([], ["no"])])
def test_unequal_or_no_rows(table, rows, predictions):
    add("label", labels=("no", "yes"))
    with pytest.raises(tasks.TaskError, match=rf"{len(rows)} rows and {len(predictions)} predictions"):
        tasks.scorer("label")(rows, predictions)


def test_row_without_target(table):
    add("label", labels=("no", "yes"))
    with pytest.raises(tasks.TaskError, match="a row to score has no target text; its fields are 'idx'"):
        tasks.scorer("label")([{"idx": 3}], ["no"])


def test_tasks_of_tokens_have_no_scores(table):
    add("spans", tokens=True)
    for ask in (tasks.scorer, tasks.main_score):
        with pytest.raises(tasks.TaskError, match="'spans' holds tokens, not text"):
            ask("spans")


def test_unknown_task(table):
    for ask in (tasks.scorer, tasks.main_score):
        with pytest.raises(tasks.TaskError, match="unknown task 'nothing'"):
            ask("nothing")


def test_groups_are_the_rows_own(table):
    add("grouped", labels=("no", "yes"), score="multirc")
    rows = [{"targets": "yes", "group": 1}, {"targets": "no", "group": 1}, {"targets": "yes", "group": 2}]
    found = tasks.scorer("grouped")(rows, ["yes", "yes", "yes"])
    assert found == pytest.approx({"f1a": 80.0, "em": 50.0, "average": 65.0, "invalid": 0.0})
    with pytest.raises(tasks.TaskError, match="row 0 has no field 'group'"):
        tasks.scorer("grouped")([{"targets": "yes"}], ["yes"])


def test_a_score_of_ones_own_is_named_by_a_task(table, monkeypatch):
    monkeypatch.setattr(scores, "SCORES", scores.SCORES | {})
    monkeypatch.setattr(scoring, "SCORES", scores.SCORES)
    with pytest.raises(tasks.TaskError, match="unknown score 'short'.*tasks.add_score"):
        add("answers", score="short")

    def short(golds, predictions, labels):
        return {"short": 100.0 * sum(len(text) < 4 for text in predictions) / len(predictions)}

    tasks.add_score("short", tasks.Score(short, ("short",)))
    add("answers", score="short")
    assert tasks.scorer("answers")([{"targets": "x"}] * 4, ["a", "bc", "long one", "def"]) == {"short": 75.0}
    tasks.add_score("short", tasks.Score(short, ("brief",)))
    with pytest.raises(tasks.TaskError, match="'short' gives short; it was added with the keys"):
        tasks.scorer("answers")([{"targets": "x"}], ["a"])


@pytest.mark.parametrize(
    "name, keys, words", [("accuracy", ("own",), "shipped already"), ("own", (), "no keys"), ("own", ("step", "own"), "step is in a line")]
)
def test_a_score_that_cannot_be_added_is_refused(name, keys, words):
    with pytest.raises(tasks.TaskError, match=words):
        tasks.add_score(name, tasks.Score(print, keys))
    assert "own" not in scores.SCORES
