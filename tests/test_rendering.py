"""Records to rows: templates, labels, and messages that name place, field and value."""

import pytest
from mpt_jax.tasks.rendering import inputs_text, render, right_texts
from mpt_jax.tasks.table import Task, TaskError

HERE = "data/x.jsonl:7"


def file_task(**settings) -> Task:
    settings = {"template": "q: {q} c: {c}", "labels": ("no", "yes")} | settings
    return Task("t", "file", ("train",), files={"train": "/x.jsonl"}, format="jsonl", **settings)


def generated(**settings) -> Task:
    return Task("t", "generated", ("train",), generate=lambda split: [], version="1", **settings)


def test_row_keeps_its_fields():
    row = render(file_task(), {"q": "a", "c": 2.5, "label": "yes", "idx": [1]}, HERE)
    assert row == {"q": "a", "c": 2.5, "label": 1, "idx": [1], "inputs": "q: a c: 2.5", "targets": "yes"}


def test_target_template_and_braces():
    task = file_task(template="{{{q}}}", labels=None, target="= {c}", score="exact_match")
    row = render(task, {"q": "a", "c": True}, HERE)
    assert (row["inputs"], row["targets"]) == ("{a}", "= true")


@pytest.mark.parametrize(
    ("labels", "value", "index"),
    [(("no", "yes"), 1, 1), (("no", "yes"), "yes", 1), (("no", "yes"), " no ", 0), (("no", "yes"), "1", 1)]
    + [(("1", "0"), "1", 0), (("1", "0"), 1, 0)],  # of labels that are numbers a number is one
)
def test_label_is_a_text_or_an_index(labels, value, index):
    assert render(file_task(labels=labels), {"q": "a", "c": "b", "label": value}, HERE)["label"] == index


@pytest.mark.parametrize("value", [2, -1, "maybe", "2", "-1", "1.0", 1.0, True, None, [1], ""])
def test_label_outside_the_list(value):
    with pytest.raises(TaskError) as error:
        render(file_task(), {"q": "a", "c": "b", "label": value}, HERE)
    assert str(error.value).startswith(
        f"{HERE}: field 'label' is {value!r}, which is none of the labels of task 't'"
    )
    assert "0 to 1 or no, yes" in str(error.value)


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        (
            file_task(),
            {"q": "a", "c": "b"},
            "no field 'label', which task 't' needs; the fields here are 'q', 'c'",
        ),
        (
            file_task(),
            {"q": "a", "label": 1},
            r"no field 'c', which the template 'q: \{q\} c: \{c\}' of task 't'",
        ),
        (
            file_task(labels=None, target="{d}"),
            {"q": "a", "c": "b"},
            r"no field 'd', which the template '\{d\}'",
        ),
        (file_task(), {"q": None, "c": "b", "label": 1}, "field 'q' is None, .* must be a text or a finite number"),
        (file_task(), {"q": ["a"], "c": "b", "label": 1}, r"field 'q' is \['a'\]"),
        (file_task(), {"q": " ", "c": "", "label": 1}, "zero-length input 'q:   c: '"),
        (
            file_task(labels=None, target="{q}"),
            {"q": "", "c": "b"},
            "the target is empty: correct the row or `target`",
        ),
        (generated(), {"targets": "a"}, "no field 'inputs'"),
        (generated(), {"inputs": "a"}, "no field 'targets'"),
        (generated(), {"inputs": " ", "targets": "a"}, "zero-length input ' '"),
        (
            generated(tokens=True),
            {"inputs_tokens": [3]},
            "'targets_tokens' of task 't' must be a list of ids, got None",
        ),
        (generated(tokens=True), {"inputs_tokens": [], "targets_tokens": [1]}, r"'inputs_tokens'.*got \[\]"),
        (
            generated(embedding_size=2),
            {"inputs": "a", "targets": "b"},
            "'embedding' has 0 numbers.*embedding_size=2",
        ),
        (generated(), {"inputs": "a", "targets": "b", "embedding": [1.0]}, "has 1 numbers.*embedding_size=0"),
        (file_task(), {"q": float("nan"), "c": "b", "label": 1}, "field 'q' is nan, .* must be a text or a finite number"),
        (file_task(), {"q": "a", "c": float("inf"), "label": 1}, "field 'c' is inf"),
        (file_task(labels=None, target="{t}"), {"q": "a", "c": "b", "t": float("nan")}, "field 't' is nan"),
        (file_task(), {"q": "a", "c": "b", "label": float("nan")}, "field 'label' is nan, which is none of the labels"),
        (file_task(), {"q": 10**5000, "c": "b", "label": 1}, "field 'q' is an integer of very many digits"),
        (file_task(), {"q": "a", "c": "b", "label": "9" * 5000}, "field 'label' is '999"),
        (file_task(), {"q": "fun \ud83d", "c": "b", "label": 1}, "field 'q' is not Unicode text .half of a surrogate pair"),
        (file_task(labels=None, target="{t}"), {"q": "a", "c": "b", "t": "\udc00"}, "field 't' is not Unicode text"),
        (generated(), {"inputs": "\ud83d", "targets": "b"}, "field 'inputs' is not Unicode text"),
        (generated(embedding_size=1), {"inputs": "a", "targets": "b", "embedding": ["x"]}, "must hold finite numbers"),
        (generated(embedding_size=1), {"inputs": "a", "targets": "b", "embedding": [float("nan")]}, "must hold finite numbers"),
        (generated(embedding_size=1), {"inputs": "a", "targets": "b", "embedding": [1e6]}, "within ±65504"),
        (file_task(labels=None, target="{c}", references="r"), {"q": "a", "c": "b"}, "field 'r' is None; `references` needs a list"),
    ],
)
def test_bad_rows_name_place_and_field(task, record, message):
    with pytest.raises(TaskError, match=message) as error:
        render(task, record, HERE)
    assert str(error.value).startswith(f"{HERE}: ")


STARS = ("1", "2", "3", "4", "5")


@pytest.mark.parametrize("value", [4, "4", " 4 ", 4.0, "4.0", "٤", "４"])
def test_of_labels_that_are_numbers_a_number_is_the_label(value):
    row = render(file_task(labels=STARS), {"q": "a", "c": "b", "label": value}, HERE)
    assert (row["targets"], row["label"]) == ("4", 3)


@pytest.mark.parametrize("value", [0, "0", 6, 1.5, "", True, "1_0", [1]])
def test_a_number_that_is_none_of_the_labels_is_refused_and_never_an_index(value):
    with pytest.raises(TaskError, match=r"which is none of the labels of task 't': 1, 2, 3, 4, 5: correct"):
        render(file_task(labels=STARS), {"q": "a", "c": "b", "label": value}, HERE)


def test_numbers_among_words_are_labels_too():
    task = file_task(labels=("1", "2", "many"))
    assert [render(task, {"q": "a", "c": "b", "label": value}, HERE)["targets"] for value in (1, "2", "many")] == ["1", "2", "many"]
    with pytest.raises(TaskError, match="none of the labels"):
        render(task, {"q": "a", "c": "b", "label": 0}, HERE)


def test_halves_of_the_scale_are_numbers():
    task = file_task(labels=("0.0", "0.5", "1.0"))
    found = [render(task, {"q": "a", "c": "b", "label": value}, HERE)["targets"] for value in (0, 0.5, 1, "1")]
    assert found == ["0.0", "0.5", "1.0", "1.0"]


def test_one_text_for_a_row_in_training_and_prediction():
    own = file_task(template="Review: {inputs} Sentiment:")
    record = {"inputs": "bad film", "label": 1}
    assert inputs_text(own, record, HERE) == render(own, record, HERE)["inputs"] == "Review: bad film Sentiment:"
    other = {"inputs": "something else", "q": "a", "c": "b", "label": 1}
    assert inputs_text(file_task(), other, HERE) == render(file_task(), other, HERE)["inputs"] == "q: a c: b"
    assert inputs_text(file_task(), {"inputs": "as it is", "id": 5}, HERE) == "as it is"
    with pytest.raises(TaskError, match="no field 'more'"):
        inputs_text(file_task(template="{inputs} {more}"), record, HERE)
    with pytest.raises(TaskError, match="field 'inputs' is ''; it must be a text that is not empty"):
        inputs_text(file_task(), {"inputs": ""}, HERE)
    with pytest.raises(TaskError, match="field 'inputs' is not Unicode text"):
        inputs_text(file_task(), {"inputs": "\ud83d"}, HERE)


@pytest.mark.parametrize("given", [["5", "five"], [5, "five"], {"text": ["5", "five"], "answer_start": [0, 1]}, ("5", "five")])
def test_right_texts_are_texts_or_numbers(given):
    assert right_texts({"r": given}, "r", HERE) == ["5", "five"]
    task = file_task(labels=None, target="{c}", references="r")
    assert render(task, {"q": "a", "c": "b", "r": given}, HERE)["r"] == ["5", "five"]


@pytest.mark.parametrize("given", [[], [["a"], ["b"]], "five", None, [None], ["a", float("nan")], [{}], {"texts": ["a"]}])
def test_right_texts_that_are_not_texts_are_refused(given):
    with pytest.raises(TaskError, match="field 'r' is .*; `references` needs a list of one or more texts"):
        right_texts({"r": given}, "r", HERE)


def test_generated_rows():
    assert render(generated(), {"inputs": "a", "targets": "b"}, HERE) == {"inputs": "a", "targets": "b"}
    row = {"inputs_tokens": [3, 1], "targets_tokens": [4, 1], "embedding": [0.5]}
    assert render(generated(tokens=True, embedding_size=1), row, HERE) == row


def test_inputs_need_no_label():
    assert inputs_text(file_task(), {"q": "a", "c": "b"}, "request 1") == "q: a c: b"
