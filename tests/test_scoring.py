"""Scorers of tasks: labels, averages, answers, rows of the token cache, and bad input."""

import pytest

import tasks


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


@pytest.mark.parametrize(
    "field", [{"answers": ["cat", "dog"]}, {"answers": {"text": ["dog"]}}, {"references": ["dog"]}]
)
def test_all_right_answers_count(table, field):
    add("answers", score="squad")
    assert tasks.scorer("answers")([{"targets": "cat", **field}], ["Dog"])["em"] == 100
    assert tasks.main_score("answers") == "average"


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
