"""The command: bad input, each with its message, and all commands one after the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_world import arguments, write_world

import tasks
from mpt_jax.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def world(folder):
    before = dict(tasks.TABLE)
    yield write_world(folder)
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.fixture(scope="module")
def teachers(folder, world):
    """Trained with a text without quotes and a list without brackets."""
    run = folder / "teachers"
    assert main([*arguments("train", "teacher.gin", world), "--gin.TASKS=vowel,long", f"--gin.MODEL_DIR={run}"]) == 0
    assert "TASKS = ['vowel', 'long']" in (run / "config.gin").read_text()
    return run


def fails(capsys, argv, *messages):
    assert main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mpt-jax: ")
    for message in messages:
        assert message in error
    assert "Traceback" not in error


def train(world, folder, gin_file="teacher.gin", **changes):
    return arguments("train", gin_file, world, **{"TASKS": ["vowel"], "MODEL_DIR": str(folder / "never"), **changes})


def test_unknown_task_gives_the_nearest_names(capsys, world, folder):
    fails(capsys, train(world, folder, TASKS=["vowels"]), "'vowels'", "vowel")


def test_no_task(capsys, world, folder):
    fails(capsys, train(world, folder, TASKS=[]), "no task is named", "--gin.TASKS")


def test_unknown_gin_names(capsys, world, folder):
    fails(capsys, train(world, folder, TRAIN_STEP=5), "unknown gin name 'TRAIN_STEP'", "'TRAIN_STEPS'")
    fails(capsys, train(world, folder, PromptSetting__length=5), "PromptSetting", "did you mean 'PromptSettings'")
    named = "--gin.PromptSettings.lenth=5: PromptSettings has no field 'lenth'; did you mean 'length'?"
    fails(capsys, train(world, folder, PromptSettings__lenth=5), named)
    fails(capsys, train(world, folder, gin_file="teachr.gin"), "teachr.gin", "teacher.gin")


def test_a_stage_is_asked_for_before_anything_else(capsys):
    fails(capsys, ["train", "--gin.MODEL_DIR='x'"], "train needs a stage: --gin_file=teacher.gin | source.gin | target.gin")
    fails(capsys, ["compile", "--gin.TOPOLOGY=cpu:2"], "compile needs a stage: --gin_file=teacher.gin")


@pytest.mark.parametrize(
    "text, messages",
    [
        ("MODEL_DIR = runs/a\n", ("line 2, 'MODEL_DIR = runs/a'", "a text needs quotes")),
        ("SEED = 1,2\n", ("line 2, 'SEED = 1,2'", "a list brackets")),
        ("PromptSettings.lenth = 5\n", ("PromptSettings has no field 'lenth'; did you mean 'length'?", "line 2")),
        ("PromptSettings.length = %LENGHT\n", ("%LENGHT is used and nothing defines it",)),
        ("include 'again.gin'\n", ("include one another without end",)),
        ("SEED = [1,\n", ("--gin_file=",)),
        ("\udcff\n", ("--gin_file=", "utf-8")),
    ],
)
def test_a_gin_file_is_named_with_its_line(capsys, tmp_path, text, messages):
    file = tmp_path / ("again.gin" if "again" in text else "own.gin")
    file.write_bytes(f"include 'teacher.gin'\n{text}".encode(errors="surrogateescape"))
    fails(capsys, ["train", f"--gin_file={file}", f"--gin_search_paths={tmp_path}"], *messages)


@pytest.mark.parametrize(
    "binding, messages",
    [
        ("MODEL_DIR='runs/a", ("--gin.MODEL_DIR='runs/a: the value cannot be read", "--gin.MODEL_DIR=text")),
        ("TASK_FEATURE_LENGTHS=32,8", ("--gin.TASK_FEATURE_LENGTHS=32,8:", "'targets': 128")),
        ("SEED=1-3", ("SEED", "'1-3' is not a whole number")),
        ("MODEL_DIR=gs://bucket/run", ("gs://… cannot be used",)),
        ("MODEL_DIR=seeds[1,2]", ("seeds[1,2]' holds [ ], a pattern for Orbax",)),
        ("CACHE_DIR=s3://bucket", ("CACHE_DIR = 's3://bucket'",)),
        ("SOURCE_DIR=~nobody_here/x", ("SOURCE_DIR", "there is no user 'nobody_here'")),
        ("K_SHOT=0", ("K_SHOT = 0 in the stage 'fewshot'",)),
    ],
)
def test_bindings_that_cannot_be_used_are_named(capsys, world, folder, binding, messages):
    fails(capsys, [*train(world, folder, "fewshot.gin"), f"--gin.{binding}"], *messages)
    assert not (folder / "never").exists()


def test_addresses_and_home_folders_on_the_command_line(capsys, tmp_path):
    fails(capsys, ["report", "gs://bucket/run"], "run folder = 'gs://bucket/run'")
    fails(capsys, ["convert", "--from", "nano", "--to", "npz", "--output", "s3://b/x"], "--output = 's3://b/x'")
    fails(capsys, ["report", "~/no_run_here"], f"{Path.home()}/no_run_here' is not a run folder")


def test_an_output_that_nobody_takes(monkeypatch, capfd):
    """`mpt-jax tasks | head -1` ends quietly, a full disk is named."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert main(["tasks"]) == 141
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))
    assert main(["tasks"]) == 2
    said = capfd.readouterr().err
    assert said.splitlines() == ["mpt-jax: the output cannot be written: No space left on device."]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"TRAIN_STEPS": "many"}, "TrainSettings.train_steps = 'many' is of type str"),
        ({"TRAIN_STEPS": 0}, "TrainSettings.train_steps = 0 is outside 1"),
        ({"LEARNING_RATE": "fast"}, "learning_rate"),
        ({"LEARNING_RATE": [0.1, -1]}, "a learning rate is a number in 0 .. 100"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 16}}, "it takes {'inputs': tokens, 'targets': tokens}"),
        ({"DataSettings__mixing": "random"}, "'random' is not one of 'stochastic', 'proportional', 'equal'"),
        ({"MODEL_DIR": ""}, "model_dir is empty"),
    ],
)
def test_gin_values(capsys, world, folder, changes, message):
    fails(capsys, train(world, folder, **changes), message)


def test_backbone_that_is_not_there(capsys, world, folder):
    fails(capsys, train(world, folder, BACKBONE="t5_bsae"), "BACKBONE = 't5_bsae' is neither a shipped backbone")


def test_vocabulary_of_another_backbone(capsys, world, folder):
    from tiny_data import shared_vocabulary_file

    vocabulary = shared_vocabulary_file()
    fails(capsys, train(world, folder, VOCABULARY=vocabulary), "has 32,100 ids", "embeds 384", "--gin.VOCABULARY")


def test_backbone_folder_that_is_incomplete(capsys, world, folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "backbone" / "config.json").read_bytes())
    fails(capsys, train(world, folder, BACKBONE=str(tmp_path)), str(tmp_path), "model.safetensors")


@pytest.mark.parametrize(
    "rows, template, message",
    [
        ([{"word": "a", "label": 2}], "word: {word}", ("bad.jsonl:1", "label", "2")),
        ([{"word": "a", "label": 0}, {"label": 1}], "word: {word}", ("bad.jsonl:2", "'word'")),
        ([{"word": "a", "label": 0}], "word: {text}", ("'text'",)),
        ([], "word: {word}", ("bad.jsonl", "holds no row")),
        ([{"word": "", "label": 0}], "{word}", ("bad.jsonl:1", "zero-length input")),
    ],
)
def test_bad_rows(capsys, world, folder, tmp_path, table, rows, template, message):
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "bad"
    files = {"train": str(tmp_path / "bad.jsonl")}
    code = f"import tasks\ntasks.jsonl({name!r}, files={files!r}, template={template!r}, labels=('no', 'yes'))\n"
    (tmp_path / "module.py").write_text(code)
    argv = train(world, folder, TASKS=[name], MIXTURE_OR_TASK_MODULE=str(tmp_path / "module.py"), TrainSettings__score_tasks=False)
    fails(capsys, argv, *message)


def test_model_dir_of_another_run(capsys, world, folder, teachers):
    argv = train(world, folder, TASKS=["vowel", "long"], MODEL_DIR=str(teachers), TRAIN_STEPS=5)
    fails(capsys, argv, "another configuration", "train_steps: 4 there, 5 now")
    described = (teachers / "run.json").read_bytes()
    fails(capsys, train(world, folder, TASKS=["digit"], MODEL_DIR=str(teachers)), "tasks: ['vowel', 'long'] there, ['digit'] now")
    assert (teachers / "run.json").read_bytes() == described


def test_model_dir_of_a_run_on_other_rows_or_weights(capsys, world, folder, teachers):
    """The file of a task, or the backbone, is another one under the same name."""
    argv = train(world, folder, TASKS=["vowel", "long"], MODEL_DIR=str(teachers))
    described = (teachers / "run.json").read_bytes()
    for path, message in ((folder / "long_validation.jsonl", "rows of long, validation: "), (weights(folder), "weights of the backbone: ")):
        before = path.read_bytes()
        path.write_bytes(before.replace(b'"label": 1', b'"label": 0') if path.suffix == ".jsonl" else before[:-1] + b"\x01")
        fails(capsys, argv, "another configuration", message)
        path.write_bytes(before)
        assert (teachers / "run.json").read_bytes() == described
    assert main(argv) == 0  # as it was


def weights(folder: Path) -> Path:
    return folder / "backbone" / "model.safetensors"


def test_missing_teacher(capsys, world, folder, teachers):
    fails(capsys, train(world, folder, "source.gin", TASKS=["vowel", "digit"]), "give --gin.TEACHER_DIR")
    argv = train(world, folder, "source.gin", TASKS=["vowel", "digit"], TEACHER_DIR=str(teachers))
    fails(capsys, argv, "no teacher for source task digit", "teacher.gin")


def test_missing_source(capsys, world, folder):
    fails(capsys, train(world, folder, "target.gin", TASKS=["digit"]), "give --gin.SOURCE_DIR")
    fails(capsys, train(world, folder, "target.gin", TASKS=["digit"], SOURCE_DIR=str(folder)), "is not a run folder")


def test_prompts_of_another_backbone(capsys, world, folder, teachers, tmp_path):
    import dataclasses

    from tiny_model import CONFIG

    from mpt_jax.model import formats
    from mpt_jax.model.prompted_t5 import init_backbone

    for name, config, seed in (("wide", dataclasses.replace(CONFIG, d_model=24), 0), ("other", CONFIG, 1)):
        formats.write_backbone("own", str(tmp_path / name), config, init_backbone(config, seed), "bytes")
    source = {"TASKS": ["digit"], "SOURCE_DIR": str(teachers)}
    fails(capsys, train(world, folder, "target.gin", **source, BACKBONE=str(tmp_path / "wide")), "prompts of width 16", "width 24")
    fails(capsys, train(world, folder, "target.gin", **source, BACKBONE=str(tmp_path / "other")), "was trained on backbone")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(capsys, world, folder):
    run = folder / "diverges"
    settings = {"OptimizerSettings__weight_decay": 1e9, "TRAIN_STEPS": 12, "TrainSettings__checkpoint_steps": 1}
    settings["TrainSettings__score_tasks"] = False
    fails(capsys, train(world, folder, MODEL_DIR=str(run), **settings), "not finite", "is the last good one", "Lower LEARNING_RATE")
    from mpt_jax.checkpoint import load_bank

    bank, _ = load_bank(run, "last")
    assert np.isfinite(bank.shared_GPD).all()


def test_every_command_one_after_the_other(capsys, world, folder, teachers, tmp_path):
    """Teachers to report on a tiny random backbone; what is checked is that each hands on what the next needs."""
    where = {name: str(folder / name) for name in ("source", "target", "few")}
    run = lambda *argv, **changes: main(arguments(*argv, world, **changes))  # noqa: E731
    assert run("train", "source.gin", TASKS=["vowel", "long"], TEACHER_DIR=str(teachers), MODEL_DIR=where["source"]) == 0
    assert run("train", "target.gin", TASKS=["digit"], SOURCE_DIR=where["source"], MODEL_DIR=where["target"]) == 0
    few = {"SEED": [1, 2], "K_SHOT": 4, "SOURCE_DIR": where["source"], "MODEL_DIR": where["few"]}
    assert run("train", "fewshot.gin", TASKS=["digit"], **few) == 0
    described = json.loads((folder / "few" / "run.json").read_text())
    assert [len(row["few_shot"]) for row in described["runs"]] == [4, 4]
    assert described["runs"][0]["few_shot"] != described["runs"][1]["few_shot"]
    assert described["parameters"]["per_task"] == 3 * 16 + 3 + 16

    assert run("eval", "eval.gin", MODEL_DIR=where["target"]) == 0
    scores = json.loads((folder / "target" / "eval" / "digit.json").read_text())
    assert scores["rows"] == 12 and 0 <= scores["scores"]["accuracy"] <= 100

    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text('{"word": "abc1", "note": 7}\n{"inputs": "word: x"}\n')
    argv = arguments("infer", "", world, MODEL_DIR=where["target"], TASKS=["digit"])
    assert main([*argv, f"--input={rows}", f"--output={answers}", "--score"]) == 0
    answered = [json.loads(line) for line in answers.read_text().splitlines()]
    assert answered[0]["inputs"] == "word: abc1" and answered[0]["note"] == 7 and answered[1]["inputs"] == "word: x"
    assert all("prediction" in row and set(row["scores"]) == {"no", "yes"} for row in answered)

    prompts = tmp_path / "prompts.npz"
    assert main(["convert", "--from", where["source"], "--to", "npz", "--output", str(prompts)]) == 0
    composed = np.load(prompts)
    import mpt_jax

    predictor = mpt_jax.load(where["source"])
    for name in ("vowel", "long"):
        np.testing.assert_array_equal(composed[name], predictor.prompt(name))
        assert composed[name].dtype == np.float32
    log_probability = predictor.score(["word: abc"], ["yes"], task="vowel")
    assert log_probability.shape == (1,) and log_probability[0] < 0

    assert main(["report", str(teachers), where["target"], "--output", str(tmp_path)]) == 0
    assert {"table.md", "report.png", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert main(arguments("tasks", "", world)) == 0 and main([*arguments("tasks", "", world), "digit"]) == 0
    assert "word: " in capsys.readouterr().out


def test_finetuning_writes_a_backbone_that_can_be_used(capsys, world, folder):
    run = folder / "finetuned"
    assert main(arguments("train", "finetune.gin", world, TASKS=["digit"], MODEL_DIR=str(run))) == 0
    assert main(arguments("eval", "eval.gin", world, MODEL_DIR=str(run))) == 0
    again = arguments("train", "teacher.gin", world, TASKS=["digit"], MODEL_DIR=str(folder / "on_top"), BACKBONE=str(run))
    assert main(again) == 0
    before, after = (json.loads((folder / name / "run.json").read_text()) for name in ("finetuned", "on_top"))
    assert before["backbone"]["fingerprint"] != after["backbone"]["fingerprint"]


def test_training_imports_neither_tensorflow_nor_seqio(world, folder):
    code = "import sys; sys.modules['tensorflow'] = sys.modules['seqio'] = None; from mpt_jax.main import main; "
    code += "sys.exit(main(sys.argv[1:]))"
    argv = train(world, folder, TASKS=["digit"], MODEL_DIR=str(folder / "without"), TRAIN_STEPS=1)
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "without" / "checkpoints" / "1").is_dir()
