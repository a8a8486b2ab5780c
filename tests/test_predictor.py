"""A run folder loaded for prediction, and rows in and out (rows.py)."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_model import CONFIG, given, own, run_forward, weights
from tiny_run import row, write_run

import mpt_jax
from mpt_jax import tasks
from mpt_jax.config import BackboneSettings
from mpt_jax.errors import UserError
from mpt_jax.infer import queries, requests, rows
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Rows
from mpt_jax.model.formats.arrays import flatten

RUNS = [row("sst2", 1, 0), row("mrpc", 1, 1), row("sst2", 2, 2)]


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    """A folder of weights larger than T5's."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    formats.write_backbone("own", str(folder), CONFIG, jax.tree.map(lambda array: 2.0 * array, weights(CONFIG)), "bytes")
    return str(folder)


@pytest.fixture(scope="module")
def described(backbone_folder):
    """What a run of this backbone says of it."""
    return {"backbone": backbone_folder, "fingerprint": load_backbone(BackboneSettings(backbone_folder)).fingerprint}


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return {which: 3 * rng.normal(size=(3, 4, 16)).astype(np.float32) for which in ("best", "last")}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, described, prompts):
    folder = tmp_path_factory.mktemp("runs") / "teachers"
    return write_run(folder, RUNS, {"bank/shared": prompts["last"]}, {"bank/shared": prompts["best"]}, **described)


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


def test_learning_rates_that_no_dev_score_decides_are_told(run_dir, tmp_path, capsys):
    """Without metrics.jsonl, or where nothing was scored, nothing says which rate did best."""
    mpt_jax.load(run_dir)
    assert capsys.readouterr().err == ""
    copied = tmp_path / "run"
    shutil.copytree(run_dir, copied)
    described = json.loads((copied / "run.json").read_text())
    described["runs"][2]["learning_rate"] = 5.0
    loaded = mpt_jax.load(run_dir)
    loaded.run["runs"] = described["runs"]
    (line,) = loaded.undecided()
    assert line.startswith("no dev scores tell which of 2 learning rates or sources is best for task 'sst2': answers are those of 0.3")
    for n, described_row in enumerate(described["runs"]):
        described_row.update({"learning_rate": 0.3, "source": f"source {n}"})
    assert "learning rates or sources is best for task 'sst2': answers are those of 0.3" in loaded.undecided()[0]


def test_scores_are_log_probabilities_of_the_forward_pass(run_dir, prompts):
    predictor = mpt_jax.load(run_dir)
    inputs, targets = ["a film", "good"], ["no", "yes!"]
    logp = predictor.score(inputs, targets, task="mrpc")
    padded = [array for texts in (inputs, targets) for array in requests.label_tokens(texts, predictor.vocabulary)]
    prompt_BPD = np.repeat(prompts["best"][1][None], 2, axis=0)
    outputs = run_forward(given(CONFIG), predictor.model.params, Rows(*padded), own(prompt_BPD))
    logp_BTV = jax.nn.log_softmax(outputs.logits_BTV)
    for number, (target, value) in enumerate(zip(targets, logp, strict=True)):
        wanted = np.array(predictor.vocabulary.target_tokens(target), np.int32)
        assert value == pytest.approx(float(logp_BTV[number, np.arange(len(wanted)), wanted].sum()), abs=1e-3)


def test_one_text_or_many_get_the_same_answers(run_dir, caplog):
    predictor = mpt_jax.load(run_dir)
    texts = ["a", "some longer words here", "b c d", "x" * 80]
    together = predictor.predict(texts, "sst2", max_tokens=5)
    assert "1 of 4 inputs are longer than 32 tokens" in caplog.text
    assert [predictor.predict([text], "sst2", max_tokens=5)[0] for text in texts] == together
    assert predictor.predict([], "sst2") == []


def test_wrong_calls(run_dir, tmp_path):
    predictor = mpt_jax.load(run_dir)
    for call, message in (
        (lambda: predictor.predict(["x"]), "several tasks: name one of sst2, mrpc"),
        (lambda: predictor.predict(["x"], "sst3"), "no prompt of task 'sst3'; nearest: sst2"),
        (lambda: predictor.predict("x", "sst2"), "must be a list of texts"),
        (lambda: predictor.predict(["x", " "], "sst2"), "zero-length input: text 1 of 2"),
        (lambda: predictor.prompt("sst2", seed=9), "seed = 9: the run holds seeds 1, 2"),
        (lambda: predictor.score(["x"], ["a", "b"], "sst2"), "1 inputs, 2 targets"),
        (lambda: predictor.score(["x"], ["a" * 16], "sst2"), "target 0 of 1 has 17 tokens, the limit is 16"),
        (lambda: predictor.labels("unheard"), "has no labels here"),
        (lambda: predictor.predict(["x"], "sst2", max_tokens=10**9), "max_tokens = 1000000000: must be 0 .. 131,072"),
        (lambda: mpt_jax.load(run_dir, batch_size=10**9), "micro_batch_size = 1000000000: must be 1 .. 65,536"),
        (lambda: mpt_jax.load(run_dir, feature_lengths={"inputs": 5}), "it takes {'inputs': tokens, 'targets': tokens}"),
        (lambda: mpt_jax.load(run_dir, "newest"), "is not one of 'best', 'last'"),
        (lambda: mpt_jax.load(tmp_path), "is not a run folder"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    other = tmp_path / "other"
    formats.write_backbone("own", str(other), CONFIG, weights(CONFIG, 1), "bytes")
    with pytest.raises(UserError, match="was trained on backbone .* put those weights back there, or give their folder"):
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


def test_rows_are_answered_by_the_method_that_is_set(run_dir, tmp_path, sst2, caplog):
    """'rank_probability': the best of the labels' scores; 'rank': what greedy decoding among the labels gives. Cut inputs are told."""
    predictor, source, output = mpt_jax.load(run_dir), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given = [*({"sentence": f"{n}" * (n + 1)} for n in range(8)), {"inputs": "x" * 99}]
    source.write_text("".join(json.dumps(row) + "\n" for row in given))
    answers = {}
    for method in ("decode", "rank", "rank_probability"):
        rows.infer(predictor, str(source), output, "sst2", score=True, method=method)
        written = [json.loads(line) for line in output.read_text().splitlines()]
        answers[method] = [row["prediction"] for row in written]
        assert "1 of 9 inputs are longer than 32 tokens" in caplog.text
        caplog.clear()
    assert answers["rank_probability"] == [max(row["scores"], key=row["scores"].get) for row in written]
    given = queries.asked([mpt_jax.Query(row["inputs"], "sst2") for row in written], predictor.sources)
    inputs = requests.Requests([one.tokens for one in given], [one.row for one in given], [1] * 9)
    tokens = requests.label_tokens(sst2.labels, predictor.vocabulary)
    chosen = requests.choose_label(predictor.model, inputs, tokens, predictor.spec)
    assert answers["rank"] == [sst2.labels[number] for number in chosen]
    assert answers["decode"] == predictor.predict([row["inputs"] for row in written], "sst2") != answers["rank"]


def test_labels_are_ranked_for_tasks_that_have_some(run_dir, tmp_path, table):
    predictor, source, output = mpt_jax.load(run_dir), tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"inputs": "a"}\n')
    with pytest.raises(UserError, match="task 'mrpc' has no labels here: register it"):
        tasks.TABLE.pop("mrpc", None)
        rows.infer(predictor, str(source), output, "mrpc", method="rank")
    tasks.jsonl("sst2", files={"train": "x"}, template="{s}", target="{t}", replace=True)
    rows.infer(predictor, str(source), output, "sst2", method="rank")
    assert json.loads(output.read_text())["prediction"] == predictor.predict(["a"], "sst2")[0]


def test_input_files_are_read_as_tasks_read_theirs(run_dir, tmp_path, sst2):
    predictor, output = mpt_jax.load(run_dir), tmp_path / "out.jsonl"
    (tmp_path / "bom.jsonl").write_bytes(b'\xef\xbb\xbf{"sentence": "caf\xc3\xa9"}\n')
    assert rows.infer(predictor, str(tmp_path / "bom.jsonl"), output, "sst2") == 1
    assert json.loads(output.read_text())["inputs"] == "sentence: café"
    os.mkfifo(tmp_path / "pipe")
    for name, content, message in (
        ("latin1", b'{"sentence": "caf\xe9"}\n', "latin1:1: not UTF-8"),
        ("deep", b'{"sentence": "x", "a": ' + b"[" * 9999 + b"]" * 9999 + b"}\n", "deep:1: more than 100 levels"),
        ("digits", b'{"sentence": "x", "n": ' + b"1" * 5000 + b"}\n", "digits:1: a number of more digits"),
        ("nan", b'{"sentence": NaN}\n', "nan:1: field 'sentence' is nan"),
        ("half", b'{"sentence": "x \\ud83d"}\n', "half:1: field 'sentence' is not Unicode text"),
        ("half_ready", b'{"inputs": "x \\ud83d"}\n', "half_ready:1: field 'inputs' is not Unicode text"),
        ("pipe", None, "pipe: is a pipe or device"),
        ("folder/..", None, "is a folder|there is no such file"),
        ("none:train", None, "there is no such file, and as TASK:SPLIT: unknown task"),
    ):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises((UserError, tasks.TaskError), match=message):
            rows.infer(predictor, str(tmp_path / name), tmp_path / "never.jsonl", "sst2")
    assert not (tmp_path / "never.jsonl").exists()


def test_half_a_surrogate_pair_that_is_passed_through_is_written_as_it_was(run_dir, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"inputs": "fun", "user": "\\ud83d"}\n{"inputs": "é", "user": "日"}\n')
    rows.infer(mpt_jax.load(run_dir), str(source), output, "sst2")
    first, second = output.read_text(encoding="utf-8").splitlines()
    assert json.loads(first)["user"] == "\ud83d" and first.isascii()
    assert "日" in second and json.loads(second)["inputs"] == "é"


def test_rows_whose_own_field_is_called_inputs_go_through_the_template(run_dir, tmp_path, table):
    tasks.add(
        tasks.Task(
            "sst2", "generated", ("train",), "Review: {inputs} Sentiment:", labels=("no", "yes"), generate=lambda split: [], version="9"
        ),
        replace=True,
    )
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"inputs": "bad film", "label": 0}\n')
    predictor = mpt_jax.load(run_dir)
    rows.infer(predictor, str(source), output, "sst2")
    assert json.loads(output.read_text())["inputs"] == predictor.format({"inputs": "bad film"}, "sst2") == "Review: bad film Sentiment:"


def test_a_failure_in_a_later_chunk_keeps_what_was_answered(run_dir, tmp_path, monkeypatch):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"inputs": f"text {n}"}) + "\n" for n in range(6)))
    predictor = mpt_jax.load(run_dir)
    monkeypatch.setattr(rows, "CHUNK", 2)
    predict, calls = predictor.predict, []

    def fails_third(texts, *arguments, **settings):
        calls.append(texts)
        if len(calls) == 3:
            raise UserError("the third chunk")
        return predict(texts, *arguments, **settings)

    monkeypatch.setattr(predictor, "predict", fails_third)
    with pytest.raises(UserError, match="the third chunk"):
        rows.infer(predictor, str(source), output, "sst2")
    kept = [json.loads(line)["inputs"] for line in (tmp_path / "out.jsonl.partial").read_text().splitlines()]
    assert kept == [f"text {n}" for n in range(4)] and not output.exists()


def test_what_an_earlier_command_left_is_not_written_over_while_it_is_read(run_dir, tmp_path):
    left = tmp_path / "out.jsonl.partial"
    left.write_text('{"inputs": "a"}\n')
    with pytest.raises(UserError, match="is what an earlier command left of --output .* give it another name"):
        rows.infer(mpt_jax.load(run_dir), str(left), tmp_path / "out.jsonl", "sst2")
    assert left.read_text() == '{"inputs": "a"}\n'


def test_a_task_without_labels_has_no_scores_of_labels(run_dir, tmp_path, table):
    tasks.jsonl("sst2", files={"train": "x"}, template="{s}", target="{t}", replace=True)
    (tmp_path / "in.jsonl").write_text('{"s": "a"}\n')
    with pytest.raises(UserError, match="task 'sst2' has a target and no labels: leave out --score"):
        rows.infer(mpt_jax.load(run_dir), str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl", "sst2", score=True)


def test_labels_that_cannot_be_answered_stop_before_the_first_row(run_dir, tmp_path, table):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"inputs": "a"}\n')
    predictor = mpt_jax.load(run_dir, feature_lengths={"inputs": 32, "targets": 4})
    tasks.jsonl("sst2", files={"train": "x"}, template="{s}", labels=("no", "absolutely"), replace=True)
    for call in (lambda: predictor.predict(["x"], "sst2"), lambda: rows.infer(predictor, str(source), output, "sst2")):
        with pytest.raises(UserError, match="label 'absolutely' has 11 tokens, the limit is 4"):
            call()
    for labels, message in ((["a", "a"], "labels 'a' and 'a' are the same"), (["a", "\ud83d"], "label 1 of 2 is not Unicode text")):
        with pytest.raises(UserError, match=message):
            predictor.score_labels(["x"], labels, "sst2")
    with pytest.raises(UserError, match="text 0 of 1 is not Unicode text"):
        mpt_jax.load(run_dir).predict(["\ud83d"], "sst2")


def test_a_long_source_is_read_again_and_answered_alike(run_dir, tmp_path, monkeypatch):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"inputs": f"text {n}"}) + "\n" for n in range(7)))
    predictor = mpt_jax.load(run_dir)
    rows.infer(predictor, str(source), tmp_path / "kept.jsonl", "sst2")
    for name in ("KEPT_ROWS", "KEPT_BYTES"):
        with monkeypatch.context() as changed:
            changed.setattr(rows, name, 3)
            rows.infer(predictor, str(source), tmp_path / f"{name}.jsonl", "sst2")
        assert (tmp_path / f"{name}.jsonl").read_text() == (tmp_path / "kept.jsonl").read_text()


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


def test_the_rows_of_a_split_are_answered_with_their_own_task_or_it_is_said(run_dir, tmp_path, table, capsys):
    for name in ("mrpc", "other"):
        given = {"template": "{a}", "labels": ("no", "yes"), "version": "1"}
        tasks.add(tasks.Task(name, "generated", ("test",), generate=lambda _: [{"a": "x", "label": 0}], **given), replace=True)
    predictor, output = mpt_jax.load(run_dir), tmp_path / "out.jsonl"
    rows.infer(predictor, "mrpc:test", output)
    assert json.loads(output.read_text())["prediction"] == predictor.predict(["x"], "mrpc")[0]
    assert "answered with" not in capsys.readouterr().err
    rows.infer(predictor, "other:test", output, task="sst2")
    assert "--input 'other:test': its rows are answered with the prompt of task 'sst2'\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sentence": "x"}\n{"text": "y"}\n', r"in\.jsonl:2: no field 'sentence'"),
        ('{"inputs": ""}\n', r"in\.jsonl:1: field 'inputs'"),
        ("{\n", r"in\.jsonl:1: not JSON"),
        ("[1]\n", r"in\.jsonl:1: a JSON object is needed"),
        ("\n", "holds no rows"),
    ],
)
def test_bad_rows_stop_before_anything_is_written(run_dir, tmp_path, sst2, text, message):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(text)
    with pytest.raises((UserError, tasks.TaskError), match=message):
        rows.infer(mpt_jax.load(run_dir), str(source), output, "sst2")
    assert not output.exists()


def test_a_row_of_which_the_vocabulary_writes_nothing_is_named_before_the_first_answer(run_dir, tmp_path, monkeypatch):
    source, output, predictor = tmp_path / "in.jsonl", tmp_path / "out.jsonl", mpt_jax.load(run_dir)
    source.write_text('{"inputs": "x"}\n{"inputs": "\\u200b"}\n')
    monkeypatch.setattr(type(predictor.vocabulary), "input_tokens", lambda self, text: [7] * text.count("x") + [1])
    with pytest.raises(UserError, match=r"in\.jsonl:2 is '.u200b', of which vocabulary 'bytes' can write nothing"):
        rows.infer(predictor, str(source), output, "sst2")
    assert not list(tmp_path.glob("out*"))


def test_a_task_is_named_with_its_run_too(run_dir, sst2):
    predictor = mpt_jax.load(run_dir)
    assert predictor.labels("teachers/sst2") == predictor.labels("sst2") == ("negative", "positive")
    assert predictor.format({"sentence": "x"}, "teachers/sst2") == "sentence: x"


@pytest.mark.slow
def test_a_run_that_trained_the_backbone(tmp_path, described, table):
    trained = flatten(weights(CONFIG, 3))
    trainable = {f"backbone/{path}": np.asarray(array) for path, array in trained.items()}
    trainable["head/kernel"] = np.ones((16, 4), np.float32)  # what taught the encoder answers nothing
    predictor = mpt_jax.load(write_run(tmp_path / "tuned", RUNS, trainable, trainable, stage="pretrain", **described))
    assert not predictor.model.own and predictor.model.network.adaptation is None
    for path, array in flatten(predictor.model.params).items():
        np.testing.assert_array_equal(array, trained[path])
    assert len(predictor.predict(["x"], max_tokens=3)) == 1
    with pytest.raises(UserError, match="trained a backbone, or another method's parameters, and holds no prompt"):
        predictor.prompt()
    given = {"template": "{a}", "labels": ("cat", "dog"), "version": "1", "generate": lambda _: [{"a": "x", "label": 0}]}
    tasks.add(tasks.Task("other", "generated", ("test",), **given), replace=True)
    rows.infer(predictor, "other:test", tmp_path / "out.jsonl", score=True)  # no prompt is another task's
    assert list(json.loads((tmp_path / "out.jsonl").read_text())["scores"]) == ["cat", "dog"]


def test_a_run_of_the_version_before_is_read(run_dir, prompts, tmp_path):
    """0.1 kept the backbone's settings among those of training, and named no method."""
    folder = tmp_path / "old"
    shutil.copytree(run_dir, folder)
    run = json.loads((folder / "run.json").read_text())
    old = run["settings"].pop("backbone")
    run["settings"]["train"] |= {"backbone": old.pop("path"), **old}
    del run["method"]
    (folder / "run.json").write_text(json.dumps(run))
    np.testing.assert_array_equal(mpt_jax.load(folder).prompt("mrpc"), prompts["best"][1])


def test_weights_that_came_with_a_methods_arrays_answer_too(run_dir, described, prompts, tmp_path):
    """A method may train weights of the backbone beside arrays of its own: none is dropped in silence."""
    path = "backbone/encoder/encoder_norm/scale"
    changed = {"bank/shared": prompts["best"], path: np.full(16, 3.0, np.float32)}
    predictor = mpt_jax.load(write_run(tmp_path / "both", RUNS, changed, **described))
    np.testing.assert_array_equal(predictor.model.params["encoder"]["encoder_norm"]["scale"], changed[path])
    np.testing.assert_array_equal(predictor.prompt("mrpc"), prompts["best"][1])
    assert not np.allclose(predictor.score(["x"], ["y"], "mrpc"), mpt_jax.load(run_dir).score(["x"], ["y"], "mrpc"))
