"""Ordinary SeqIO tasks: rows, scores by their own functions, ingredients."""

import functools
import json

import numpy as np
import pytest
from mpt_jax.tasks import seqio_tasks

from mpt_jax import tasks


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio")


@pytest.fixture
def registry(seqio, table):
    """SeqIO with what a test adds taken out afterwards."""
    before = dict(seqio.TaskRegistry._REGISTRY)
    yield seqio
    seqio.TaskRegistry._REGISTRY = before


def test_data_that_are_not_prepared_are_told_with_what_prepares_them(seqio, monkeypatch):
    class Task:
        class source:
            class tfds_dataset:
                name = "glue/sst2:2.0.0"

        @property
        def splits(self):
            raise ValueError("Task x has no splits")

    monkeypatch.setattr(seqio_tasks, "get", lambda name: Task())
    with pytest.raises(tasks.TaskError, match="data of SeqIO task 'x' are not there .*no splits.*: prepare `tfds build glue/sst2:2.0.0`"):
        tasks.describe("x", {}, {})


def test_splits_of_a_name_that_nobody_registered_are_an_unknown_task():
    with pytest.raises(tasks.UnknownTask, match="unknown task 'nothing_of_that_name'"):
        seqio_tasks.splits_of("nothing_of_that_name")


def split_line(dataset, mark):
    import tensorflow as tf

    def split(line):
        parts = tf.strings.split(line, mark)
        return {"inputs": parts[0], "targets": parts[1], "answers": parts[1:], "n": tf.strings.length(line)}

    return dataset.map(split)


def match(targets, predictions):
    return {
        "match": 100.0 * np.mean([text in right for right, text in zip(targets, predictions, strict=True)])
    }


def answers_or_text(text, example=None, is_target=False):
    return [answer.decode() for answer in example["answers"]] if is_target else text.strip()


@pytest.fixture
def lines(registry, tmp_path):
    (tmp_path / "a.txt").write_text("oak|leaf|tree\nfir|needle|tree\n")

    def make(mark="|", copy=True, metric_fns=(match,), **settings):
        feature = registry.Feature(registry.ByteVocabulary(), add_eos=True)
        registry.TaskRegistry.remove("lines")
        return registry.TaskRegistry.add(
            "lines",
            source=registry.TextLineDataSource({"train": str(tmp_path / "a.txt")}),
            preprocessors=[
                functools.partial(split_line, mark=mark),
                functools.partial(registry.preprocessors.tokenize, copy_pretokenized=copy),
                registry.preprocessors.append_eos,
            ],
            output_features={"inputs": feature, "targets": feature},
            postprocess_fn=answers_or_text,
            metric_fns=list(metric_fns),
            **settings,
        )

    return make


@pytest.mark.parametrize("copy", [True, False])
def test_rows(lines, copy):
    lines(copy=copy)
    assert list(tasks.rows("lines", "train")) == [
        {"inputs": "oak", "targets": "leaf", "answers": ["leaf", "tree"], "n": 13},
        {"inputs": "fir", "targets": "needle", "answers": ["needle", "tree"], "n": 15},
    ]
    with pytest.raises(tasks.TaskError, match="no split 'test'; it has train"):
        tasks.rows("lines", "test")


def test_own_postprocessing_and_scores(lines):
    lines()
    rows = list(tasks.rows("lines", "train"))
    assert tasks.scorer("lines")(rows, ["tree ", "leaf"]) == {"match": 50.0, "average": 50.0}
    cached = [
        {f"{key}_pretokenized" if key == "targets" else key: value for key, value in row.items()}
        for row in rows
    ]
    assert tasks.scorer("lines")(cached, ["tree", "tree"]) == {"match": 100.0, "average": 100.0}
    assert tasks.main_score("lines") == "average"


def metric(numbers, **attributes):
    def found(targets, predictions):
        return dict(numbers)

    vars(found).update(attributes)
    return found


@pytest.mark.parametrize(
    ("numbers", "average"),
    [
        ({"accuracy": 40.0, "loss": 3.0, "num_examples": 8, "cross_entropy_loss": 7.0}, 40.0),
        ({"em": 50.0, "f1": 70.0, "total": 900.0, "neg_log_perplexity": -2.5, "seconds": 3.0}, 60.0),
        ({"rouge1": 30.0, "right": 4, "rouge2": 10.0}, 20.0),  # integers count
        ({"accuracy": 100}, 100.0),  # but where there is nothing else
    ],
)
def test_counts_and_losses_choose_no_checkpoint(lines, numbers, average):
    lines(metric_fns=[metric(numbers)])
    found = tasks.scorer("lines")(list(tasks.rows("lines", "train")), ["a", "b"])
    assert found == {"average": average, **numbers} and next(iter(found)) == tasks.main_score("lines") == "average"


def test_a_metric_function_may_declare_its_main_score(lines):
    lines(metric_fns=[metric({"em": 50.0, "f1": 70.0}, main_score="f1"), metric({"more": 1.0})])
    found = tasks.scorer("lines")(list(tasks.rows("lines", "train")), ["a", "b"])
    assert found == {"f1": 70.0, "em": 50.0, "more": 1.0} and next(iter(found)) == tasks.main_score("lines") == "f1"


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ([metric({"loss": 1.0, "count": 3})], "none of its numbers is a score .loss, count; counts and losses are not"),
        ([metric({})], "none of its numbers is a score .there are none"),
        ([metric({"em": 1.0}, main_score="f1")], "`main_score` = 'f1' is none of its numbers: em"),
        ([metric({"em": 1.0}, main_score="em"), metric({"f1": 1.0}, main_score="f1")], r"several main scores \(em, f1\)"),
        ([metric({"em": 1.0, "step": 2.0, "average": 3.0})], "give a number called average, step"),
    ],
)
def test_metric_functions_that_choose_nothing(lines, functions, message):
    lines(metric_fns=functions)
    rows = list(tasks.rows("lines", "train"))
    with pytest.raises(tasks.TaskError, match=message):
        tasks.scorer("lines")(rows, ["a", "b"])


def test_scalars_count_and_clashes_are_told(lines, seqio):
    def scalar(targets, predictions):
        return {"s": seqio.metrics.Scalar(3.0), "note": seqio.metrics.Text("x")}

    lines(metric_fns=[match, scalar])
    rows = list(tasks.rows("lines", "train"))
    assert tasks.scorer("lines")(rows, ["tree", "tree"]) == {"match": 100.0, "s": 3.0, "average": 51.5}
    lines(metric_fns=[match, lambda targets, predictions: {"match": 1.0}])
    with pytest.raises(tasks.TaskError, match="'lines': two metric_fns give match"):
        tasks.scorer("lines")(rows, ["tree", "tree"])


def test_functions_that_cannot_be_used(lines):
    def likelihood(targets, scores):
        return {"likelihood": 0.0}

    lines(metric_fns=[likelihood])
    with pytest.raises(tasks.TaskError, match=r"no metric function of \(targets, predictions\)"):
        tasks.scorer("lines")
    lines(metric_fns=[match, likelihood])
    with pytest.warns(UserWarning, match="'lines': only its metric_fns"):
        tasks.scorer("lines")


def test_ingredients_follow_files_functions_and_settings(lines, tmp_path):
    lines()
    first = tasks.ingredients("lines", "train")
    assert json.loads(json.dumps(first)) == first
    lines()
    assert tasks.ingredients("lines", "train") == first
    lines(mark=";")
    assert tasks.ingredients("lines", "train") != first
    lines()
    (tmp_path / "a.txt").write_text("one|more|line\n")
    assert tasks.ingredients("lines", "train") != first


def test_describe(lines):
    lines()
    found = tasks.describe("lines", dict.fromkeys(("inputs", "targets"), lambda text: [*text, "end"]), {"inputs": 4, "targets": 4})
    assert found["kind"] == "seqio"
    assert found["scores"] == ["match"]
    assert found["splits"]["train"]["targets"]["cut"] == 2
    assert found["examples"][0]["inputs"] == "oak"


def test_task_without_inputs(registry, tmp_path):
    feature = registry.Feature(registry.ByteVocabulary())
    registry.TaskRegistry.add(
        "language_model",
        source=registry.TextLineDataSource({"train": str(tmp_path / "a.txt")}),
        output_features={"targets": feature},
    )
    with pytest.raises(
        tasks.TaskError, match="'language_model' has no output feature 'inputs', only targets"
    ):
        tasks.rows("language_model", "train")


def test_example_of_row_is_what_seqio_gives():
    row = {
        "targets": "b",
        "t": "é",
        "n": 2,
        "list": [1, 2],
        "texts": ["a", "b"],
        "deep": {"x": [["a"], ["b", "c"]]},
    }
    example = seqio_tasks.example_of_row(row)
    assert example["targets_pretokenized"] == b"b"
    assert example["t"] == "é".encode()
    assert example["n"] == 2
    assert example["list"].tolist() == [1, 2]
    assert example["texts"].tolist() == [b"a", b"b"]
    assert [inner.tolist() for inner in example["deep"]["x"]] == [[b"a"], [b"b", b"c"]]
