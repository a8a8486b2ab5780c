"""The table of tasks: declaring one, adding it twice, and what wrong settings are told."""

import subprocess
import sys
from dataclasses import replace

import pytest
from mpt_jax.tasks.table import TABLE, Task, TaskError, add, check_split, template_fields, unknown_name

GOOD = Task(
    "t", "file", ("train",), "x: {a}", labels=("no", "yes"), files={"train": "/t.jsonl"}, format="jsonl"
)


def test_importing_loads_nothing_heavy():
    code = (
        "import sys, tasks; "
        "print([m for m in ('tensorflow', 'seqio', 'jax', 'sklearn', 'scipy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_same_task_twice_is_fine_another_is_not(table):
    add(GOOD)
    add(replace(GOOD))
    with pytest.raises(
        TaskError, match=r"'t' is registered already.*`template`.*'x: \{a\}'.*'y: \{a\}'.*replace=True"
    ):
        add(replace(GOOD, template="y: {a}"))
    add(replace(GOOD, template="y: {a}"), replace=True)
    assert table["t"].template == "y: {a}"


def test_generated_tasks_are_compared_by_version(table):
    first = Task("g", "generated", ("train",), generate=lambda split: [], version="1")
    add(first)
    add(replace(first, generate=lambda split: []))
    with pytest.raises(TaskError, match=r"`version` \('1', now '2'\)"):
        add(replace(first, version="2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, r"task name 'a b': only letters, digits and \. : # _"),
        ({"name": "../x"}, "only letters"),
        ({"kind": "web"}, "kind 'web' is none of"),
        ({"splits": ()}, "no split"),
        ({"kind": "generated"}, "needs both `generate` and `version`"),
        ({"format": "xml"}, "format 'xml' is none of"),
        ({"template": None}, "`template` is missing"),
        ({"template": "x: {a"}, r"template 'x: \{a'.*brace is written twice"),
        ({"template": "x: {}"}, r"only a plain \{field\}"),
        ({"template": "x: {a!r}"}, r"only a plain \{field\}"),
        ({"template": "x: {a:>3}"}, r"only a plain \{field\}"),
        ({"template": "x"}, "names no field"),
        ({"target": "{b}"}, "both `labels` and `target`"),
        ({"labels": None}, "give `labels` .* or `target`"),
        ({"labels": "no"}, "must be a list of texts, got 'no'"),
        ({"labels": (0, 1)}, r"must be a list of texts, got \(0, 1\)"),
        ({"labels": ("no", "no")}, "2 or more different texts"),
        ({"labels": ("no",)}, "2 or more different texts"),
        ({"labels": ("no", " yes")}, "blanks at an end"),
        ({"score": "acuracy"}, "unknown score 'acuracy'; there are accuracy,"),
        ({"score": "f1", "labels": ("a", "b", "c")}, "'f1' needs 2 labels, not 3: try 'macro_f1'"),
        ({"score": "matthews", "labels": None, "target": "{b}"}, "'matthews' needs `labels`"),
        ({"score": ("squad", "f1")}, "share a name: em, f1, f1"),
        ({"score": "ter"}, "higher is better"),
        ({"score": ()}, "higher is better"),
        ({"name": 5}, "task name 5"),
        ({"template": 5}, "`template` must be a text, got 5"),
        ({"template": "x {a} \ud83d"}, "`template` is not Unicode text"),
        ({"labels": ("no", "\ud83d")}, "a label is not Unicode text"),
        ({"labels": ("1", "2", "1.0")}, "two of its labels are the same number: 1, 2, 1.0"),
        ({"references": "answers"}, "`references` is for a `target`"),
        ({"labels": None, "target": "{b}", "references": "targets"}, "is the name of the row's own text"),
        ({"splits": ("a/b",)}, "split 'a/b' must be a name"),
        ({"splits": "train"}, "`splits` must be a list of texts, got 'train'"),
        ({"columns": ("a", "b", "a"), "format": "csv"}, "two of its columns have the same name: a, b, a"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(TaskError, match=message):
        replace(GOOD, **change)


def test_lists_are_as_good_as_tuples():
    assert replace(GOOD, labels=["no", "yes"], splits=["train"]) == GOOD


def test_a_task_may_take_the_name_of_a_mixture_and_says_so(table, caplog):
    assert "superglue" not in TABLE
    with caplog.at_level("WARNING"):
        add(replace(GOOD, name="superglue"))
    assert "Task superglue replaces the shipped mixture of that name (superglue_multirc" in caplog.text


def test_a_stand_in_gives_way_to_the_task_itself(table):
    add(replace(GOOD, kind="cached", files={}, format=""))
    add(GOOD)
    assert table["t"] == GOOD


def test_template_fields():
    assert template_fields("t", "a {{b}} {c}: {d e}.") == (
        ("a {", None),
        ("b}", None),
        (" ", "c"),
        (": ", "d e"),
        (".", None),
    )


def test_unknown_name_gives_the_nearest():
    message = str(unknown_name("sst", ["sst2", "mrpc", "cola"]))
    assert "unknown task 'sst': the nearest names are sst2." in message
    assert "MIXTURE_OR_TASK_MODULE" in message
    assert "known are cola, mrpc" in str(unknown_name("zzz", ["mrpc", "cola"]))
    assert "known are none" in str(unknown_name("zzz", []))


def test_unknown_split():
    with pytest.raises(TaskError, match="task 't' has no split 'test'; it has train, validation"):
        check_split("t", "test", ("train", "validation"))


def test_embedded_tasks_are_there_on_import():
    assert {"source", "target"} <= {task.group for task in TABLE.values()}
