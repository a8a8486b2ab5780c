"""Records to rows: templates, labels, and messages that name place, field and value."""

import pytest

from tasks.rendering import inputs_text, render
from tasks.table import Task, TaskError

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
    + [(("1", "0"), "1", 0), (("1", "0"), 1, 1)],  # a text is a label first, a number always an index
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
        (file_task(), {"q": None, "c": "b", "label": 1}, "field 'q' is None, .* must be a text or a number"),
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
    ],
)
def test_bad_rows_name_place_and_field(task, record, message):
    with pytest.raises(TaskError, match=message) as error:
        render(task, record, HERE)
    assert str(error.value).startswith(f"{HERE}: ")


def test_generated_rows():
    assert render(generated(), {"inputs": "a", "targets": "b"}, HERE) == {"inputs": "a", "targets": "b"}
    row = {"inputs_tokens": [3, 1], "targets_tokens": [4, 1], "embedding": [0.5]}
    assert render(generated(tokens=True, embedding_size=1), row, HERE) == row


def test_inputs_need_no_label():
    assert inputs_text(file_task(), {"q": "a", "c": "b"}, "request 1") == "q: a c: b"
