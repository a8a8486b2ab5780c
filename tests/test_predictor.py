"""A run folder loaded for prediction, and rows in and out."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import mpt_jax
import tasks
from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.config import T5Config
from mpt_jax.errors import UserError
from mpt_jax.infer import requests, rows
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.prompted_t5 import forward, init_backbone

CONFIG = T5Config("tiny", 384, 16, 2, 8, 32, 1, 1)
RUNS = [
    {"task": "sst2", "seed": 1, "group": 0, "learning_rate": 0.3, "factor_learning_rate": 0.3},
    {"task": "mrpc", "seed": 1, "group": 1, "learning_rate": 0.3, "factor_learning_rate": 0.3},
    {"task": "sst2", "seed": 2, "group": 2, "learning_rate": 0.3, "factor_learning_rate": 0.3},
]


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    weights = jax.tree.map(lambda array: 2.0 * array, jax.jit(init_backbone, static_argnums=0)(CONFIG, 0))
    formats.write_backbone("own", str(folder), CONFIG, weights, "bytes")
    return folder


def write_run(folder, backbone_folder, trainable, best, lines=()):
    """A run folder with one checkpoint."""
    backbone = load_backbone(str(backbone_folder))
    folder.mkdir()
    described = {
        "stage": "teacher",
        "tasks": ["sst2", "mrpc"],
        "runs": RUNS,
        "settings": {
            "train": {"backbone": str(backbone_folder), "dtype": "float32", "vocabulary": ""},
            "data": {"feature_lengths": {"inputs": 32, "targets": 12}},
        },
        "backbone": {"name": str(backbone_folder), "fingerprint": backbone.fingerprint, "parameters": 0},
    }
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoints = Checkpoints(folder)
    kept = Best(best, np.zeros(3), np.zeros(3, np.int64))
    checkpoints.save(5, {"trainable": trainable}, kept, {"step": 5, "has_best": True})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return {which: 3 * rng.normal(size=(3, 4, 16)).astype(np.float32) for which in ("best", "last")}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, backbone_folder, prompts):
    folder = tmp_path_factory.mktemp("runs") / "teachers"
    return write_run(folder, backbone_folder, {"bank/shared": prompts["last"]}, {"bank/shared": prompts["best"]})


@pytest.fixture
def sst2(table):
    labels = ("negative", "positive")
    task = tasks.Task("sst2", "generated", ("train",), "sentence: {sentence}", labels=labels, generate=lambda _: [], version="1")
    return tasks.add(task, replace=True)


def test_importing_the_package_loads_no_jax():
    code = "import sys, mpt_jax; assert 'jax' not in sys.modules and 'numpy' not in sys.modules; assert mpt_jax.load"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = mpt_jax.lod


def test_prompts_by_task_seed_and_checkpoint(run_dir, prompts):
    best, last = mpt_jax.load(run_dir), mpt_jax.load(run_dir, "last")
    assert best.tasks == ("sst2", "mrpc")
    np.testing.assert_array_equal(best.prompt("mrpc"), prompts["best"][1])
    np.testing.assert_array_equal(last.prompt("mrpc"), prompts["last"][1])
    np.testing.assert_array_equal(best.prompt("sst2"), prompts["best"][0])
    np.testing.assert_array_equal(best.prompt("sst2", seed=2), prompts["best"][2])
    assert best.prompt("sst2").dtype == np.float32


def test_scores_are_log_probabilities_of_the_forward_pass(run_dir, prompts):
    predictor = mpt_jax.load(run_dir)
    inputs, targets = ["a film", "good"], ["no", "yes!"]
    logp = predictor.score(inputs, targets, task="mrpc")
    padded = [requests.label_tokens(texts, predictor.vocabulary) for texts in (inputs, targets)]
    prompt_BPD = np.repeat(prompts["best"][1][None], 2, axis=0)
    outputs = jax.jit(forward, static_argnums=0)(predictor.model.config, predictor.model.params, prompt_BPD, *padded)
    logp_BTV = jax.nn.log_softmax(outputs.logits_BTV)
    for place, (target, value) in enumerate(zip(targets, logp, strict=True)):
        wanted = requests.tokens_of(target, predictor.vocabulary)
        assert value == pytest.approx(float(logp_BTV[place, np.arange(len(wanted)), wanted].sum()), abs=1e-3)


def test_one_text_or_many_get_the_same_answers(run_dir, caplog):
    predictor = mpt_jax.load(run_dir)
    texts = ["a", "some longer words here", "b c d", "x" * 80]
    together = predictor.predict(texts, "sst2", max_tokens=5)
    assert "1 of 4 inputs are longer than 32 tokens" in caplog.text
    assert [predictor.predict([text], "sst2", max_tokens=5)[0] for text in texts] == together
    assert predictor.predict([], "sst2") == []


def test_wrong_calls(run_dir, backbone_folder, tmp_path):
    predictor = mpt_jax.load(run_dir)
    for call, message in (
        (lambda: predictor.predict(["x"]), "several tasks: name one of sst2, mrpc"),
        (lambda: predictor.predict(["x"], "sst3"), "no prompt of task 'sst3'; nearest: sst2"),
        (lambda: predictor.predict("x", "sst2"), "must be a list of texts"),
        (lambda: predictor.predict(["x", " "], "sst2"), "zero-length input: text 1 of 2"),
        (lambda: predictor.prompt("sst2", seed=9), "seed = 9: the run holds seeds 1, 2"),
        (lambda: predictor.score(["x"], ["a", "b"], "sst2"), "1 inputs, 2 targets"),
        (lambda: predictor.score(["x"], ["a" * 12], "sst2"), "a target has 13 tokens, the limit is 12"),
        (lambda: predictor.labels("unheard"), "has no labels here"),
        (lambda: mpt_jax.load(run_dir, "newest"), "is not one of 'best', 'last'"),
        (lambda: mpt_jax.load(tmp_path), "is not a run folder"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    other = tmp_path / "other"
    formats.write_backbone("own", str(other), CONFIG, jax.jit(init_backbone, static_argnums=0)(CONFIG, 1), "bytes")
    with pytest.raises(UserError, match="was trained on backbone .* give the folder of the same weights"):
        mpt_jax.load(run_dir, backbone=str(other))


def test_rows_in_and_out(run_dir, tmp_path, sst2):
    predictor = mpt_jax.load(run_dir)
    given = [{"sentence": f"number {n}", "id": n} for n in range(5)] + [{"inputs": "as it is", "id": 5}]
    source, output = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert rows.infer(predictor, str(source), output, "sst2", score=True) == 6
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == list(range(6))
    assert written[0]["inputs"] == "sentence: number 0" and written[5]["inputs"] == "as it is"
    texts = [row["inputs"] for row in written]
    assert [row["prediction"] for row in written] == predictor.predict(texts, "sst2")
    for label in sst2.labels:
        expected = predictor.score(texts, [label] * 6, "sst2")
        np.testing.assert_allclose([row["scores"][label] for row in written], expected, atol=1e-3)
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


def test_an_output_that_cannot_be_written(run_dir, tmp_path):
    (tmp_path / "file").write_text("x")
    source = tmp_path / "in.jsonl"
    source.write_text('{"inputs": "a"}\n')
    with pytest.raises(UserError, match="--output .* cannot be written"):
        rows.infer(mpt_jax.load(run_dir), str(source), tmp_path / "file" / "out.jsonl", "sst2")


def test_each_row_may_name_its_task(run_dir, tmp_path):
    predictor = mpt_jax.load(run_dir)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"inputs": "a", "task": "mrpc"}\n\n{"inputs": "a", "task": "sst2"}\n')
    rows.infer(predictor, str(source), output)
    found = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    assert found == [predictor.predict(["a"], task)[0] for task in ("mrpc", "sst2")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sentence": "x"}\n{"text": "y"}\n', r"in\.jsonl:2: no field 'sentence'"),
        ('{"inputs": ""}\n', r"in\.jsonl:1: field 'inputs'"),
        ("{\n", r"in\.jsonl:1: no JSON"),
        ("[1]\n", r"in\.jsonl:1: .* is no object"),
        ("\n", "holds no rows"),
    ],
)
def test_bad_rows_stop_before_anything_is_written(run_dir, tmp_path, sst2, text, message):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(text)
    with pytest.raises((UserError, tasks.TaskError), match=message):
        rows.infer(mpt_jax.load(run_dir), str(source), output, "sst2")
    assert not output.exists()


def test_a_run_that_trained_the_backbone(tmp_path, backbone_folder):
    trained = flatten(jax.jit(init_backbone, static_argnums=0)(CONFIG, 3))
    trainable = {f"backbone/{path}": np.asarray(array) for path, array in trained.items()}
    predictor = mpt_jax.load(write_run(tmp_path / "tuned", backbone_folder, trainable, trainable))
    assert predictor.model.bank is None
    for path, array in flatten(predictor.model.params).items():
        np.testing.assert_array_equal(array, trained[path])
    assert len(predictor.predict(["x"], max_tokens=3)) == 1
    with pytest.raises(UserError, match="trained a backbone and holds no prompt"):
        predictor.prompt()
