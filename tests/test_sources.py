"""Rows of a split, and the ingredients that key the token cache."""

import json
import platform
from dataclasses import replace

import pytest
from mpt_jax.tasks.sources import version

from mpt_jax import tasks


@pytest.fixture
def trees(table, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "oak", "label": 0}\n{"a": "fir", "label": 5}\n')
    return tasks.jsonl(
        "trees", files={"train": tmp_path / "a.jsonl"}, template="tree: {a}", labels=("leaf", "needle")
    )


def test_unknown_names_at_once_bad_rows_when_reached(trees):
    with pytest.raises(tasks.TaskError, match="unknown task 'tree': the nearest names are trees"):
        tasks.rows("tree", "train")
    with pytest.raises(tasks.TaskError, match="no split 'test'; it has train"):
        tasks.rows("trees", "test")
    found = tasks.rows("trees", "train")
    assert next(found)["targets"] == "leaf"
    with pytest.raises(tasks.TaskError, match=r"a\.jsonl:2: field 'label' is 5"):
        next(found)


def test_generator_without_rows(table):
    tasks.add(tasks.Task("none", "generated", ("train",), generate=lambda split: [], version="1"))
    with pytest.raises(tasks.TaskError, match="task 'none' split 'train': the generator gave no row"):
        list(tasks.rows("none", "train"))


def test_bad_generated_row_is_named(table):
    rows = [{"inputs": "a", "targets": "b"}, {"inputs": "", "targets": "b"}]
    tasks.add(tasks.Task("some", "generated", ("train",), generate=lambda split: rows, version="1"))
    with pytest.raises(tasks.TaskError, match="^task 'some' split 'train' row 1: zero-length input"):
        list(tasks.rows("some", "train"))


def test_ingredients_follow_content_not_place(trees, tmp_path):
    first = tasks.ingredients("trees", "train")
    assert json.loads(json.dumps(first)) == first
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    tasks.add(replace(trees, files={"train": str(tmp_path / "b.jsonl")}, score="matthews"), replace=True)
    assert tasks.ingredients("trees", "train") == first
    (tmp_path / "b.jsonl").write_text('{"a": "yew", "label": 1}\n')
    assert tasks.ingredients("trees", "train") != first


@pytest.mark.parametrize("change", [{"template": "{a}"}, {"labels": ("a", "b")}, {"format": "csv"}])
def test_ingredients_see_every_setting(trees, change):
    first = tasks.ingredients("trees", "train")
    tasks.add(replace(trees, **change), replace=True)
    assert tasks.ingredients("trees", "train") != first


def test_ingredients_of_generated_rows(table):
    task = tasks.Task(
        "made", "generated", ("train",), generate=lambda split: [], version="3", packages=("python", "numpy")
    )
    tasks.add(task)
    found = tasks.ingredients("made", "train")
    assert found["version"] == "3"
    assert found["packages"] == {"python": platform.python_version(), "numpy": version("numpy")}
    with pytest.raises(tasks.TaskError, match="package 'no-such-thing' is not installed"):
        version("no-such-thing")


def test_missing_file(trees, tmp_path):
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(tasks.TaskError, match="a.jsonl: there is no such file"):
        tasks.ingredients("trees", "train")
    with pytest.raises(tasks.TaskError, match="a.jsonl: there is no such file"):
        list(tasks.rows("trees", "train"))
