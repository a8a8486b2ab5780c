"""The command: bad input, each with its message (errors.py, gin_messages.py), and every command over what the one before left.

Covers commands.py, gin_settings.py, infer/commands.py."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_data import shared_vocabulary_file
from tiny_model import tiny, weights
from tiny_world import arguments, write_world

import gin
import mpt_jax
from mpt_jax import tasks
from mpt_jax.checkpoint import load_trainable
from mpt_jax.config import (
    BackboneSettings,
    DataSettings,
    DistillationSettings,
    EvalSettings,
    MeshSettings,
    OptimizerSettings,
    PromptSettings,
    TaskSettings,
    TrainSettings,
)  # fmt: skip
from mpt_jax.gin_settings import configured, parse_gin
from mpt_jax.main import main
from mpt_jax.model import formats

PACKAGE = Path(mpt_jax.__file__).parent
PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


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
def chain():
    """Functions of the package that were under way when the gradient was asked for, the outermost first."""
    return []


@pytest.fixture(scope="module")
def teachers(folder, world, chain):
    """Trained with a text without quotes and a list without brackets."""
    run, grad = folder / "teachers", jax.grad

    def noted(*given, **more):
        codes = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe())]
        chain[:] = [code.co_name for code in reversed(codes) if Path(code.co_filename).is_relative_to(PACKAGE)]
        return grad(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "grad", noted)
        assert main([*arguments("train", "teacher.gin", world), "--gin.TASKS=vowel,long", f"--gin.MODEL_DIR={run}"]) == 0
    assert "TASKS = ['vowel', 'long']" in (run / "config.gin").read_text()
    return run


def test_from_the_command_to_the_gradient_there_are_three_jumps(teachers, chain):
    """And CONTRIBUTING.md names them; `main` only reads the command line and chooses the command."""
    assert chain == ["main", "command_train", "run_train", "__call__", "_accumulate_fn"]
    assert "to the gradient: command_train → run_train → TrainStep → accumulate, which calls jax.grad\n" in PAGE.read_text()


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
    fails(capsys, train(world, folder, TASKS=[]), "no task is named", "--tasks NAME")


def test_unknown_gin_names(capsys, world, folder):
    fails(capsys, train(world, folder, TRAIN_STEP=5), "unknown gin name 'TRAIN_STEP'", "'TRAIN_STEPS'")
    fails(capsys, train(world, folder, PromptSetting__length=5), "PromptSetting", "did you mean 'PromptSettings'")
    named = "--gin.PromptSettings.lenth=5: PromptSettings has no field 'lenth'; did you mean 'length'?"
    fails(capsys, train(world, folder, PromptSettings__lenth=5), named)
    fails(capsys, train(world, folder, gin_file="teachr.gin"), "teachr.gin", "teacher.gin")


def test_a_stage_is_asked_for_before_anything_else(capsys):
    fails(capsys, ["train", "--gin.MODEL_DIR='x'"], "train needs a stage: mpt-jax train teacher | source | target")
    fails(capsys, ["compile", "--gin.TOPOLOGY=cpu:2"], "compile needs a stage: mpt-jax compile teacher")


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
        ("MODEL_DIR='runs/a", ("--gin.MODEL_DIR='runs/a: a text with matching quotes is expected", "type --gin.MODEL_DIR=text")),
        ("TASK_FEATURE_LENGTHS=32,8", ("--gin.TASK_FEATURE_LENGTHS=32,8:", "inputs=256,targets=128")),
        ("SEED=1-3", ("SEED", "'1-3' is not a whole number")),
        ("MODEL_DIR=hdfs://bucket/run", ("hdfs:/", "cannot be used, only a local path")),
        ("MODEL_DIR=seeds[1,2]", ("seeds[1,2]' holds [ ], a pattern for Orbax",)),
        ("CACHE_DIR=hdfs://bucket", ("CACHE_DIR = 'hdfs://bucket'",)),
        ("SOURCE_DIR=~nobody_here/x", ("SOURCE_DIR", "there is no user 'nobody_here'")),
        ("K_SHOT=0", ("K_SHOT = 0: stage 'fewshot' trains on K_SHOT rows, 1 or more",)),
    ],
)
def test_bindings_that_cannot_be_used_are_named(capsys, world, folder, binding, messages):
    fails(capsys, [*train(world, folder, "fewshot.gin"), f"--gin.{binding}"], *messages)
    assert not (folder / "never").exists()


def test_addresses_and_home_folders_on_the_command_line(capsys, tmp_path):
    fails(capsys, ["report", "hdfs://bucket/run"], "run folder = 'hdfs://bucket/run'")
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


def test_a_current_folder_that_is_gone(capsys, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    fails(capsys, ["report", "x"], "the current folder is gone (No such file or directory): cd into one that exists")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"TRAIN_STEPS": "many"}, "--gin.TRAIN_STEPS='many': a whole number is expected; type --gin.TRAIN_STEPS=1"),
        ({"TRAIN_STEPS": 0}, "TrainSettings.train_steps = 0 is outside 1 .. 100000000. Type --train_steps 1000"),
        ({"LEARNING_RATE": "fast"}, "learning_rate"),
        ({"LEARNING_RATE": [0.1, -1]}, "a learning rate is a number in 0 .. 100"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 16}}, "it takes {'inputs': tokens, 'targets': tokens}"),
        ({"DataSettings__mixing": "random"}, "'random' is not one of 'stochastic', 'proportional', 'equal'"),
        ({"MODEL_DIR": ""}, "MODEL_DIR is empty; type --model_dir FOLDER"),
    ],
)
def test_gin_values(capsys, world, folder, changes, message):
    fails(capsys, train(world, folder, **changes), message)


@pytest.mark.parametrize("cls", [
    TaskSettings, BackboneSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings, MeshSettings, EvalSettings,
    TrainSettings,
])  # fmt: skip
def test_defaults_of_the_gin_files_are_those_of_the_settings(cls):
    """Each default is told twice, for `--help` and for code: the same."""
    fixed = {"stage": "target"} if cls is TrainSettings else {}
    try:
        parse_gin(["base.gin"], [])
        found = dataclasses.asdict(configured(cls, **fixed))
    finally:
        gin.clear_config()
    for name, default in dataclasses.asdict(cls(**fixed)).items():
        assert found[name] == (list(default) if isinstance(found[name], list) else default), name


def test_backbone_that_is_not_there(capsys, world, folder):
    fails(capsys, train(world, folder, BACKBONE="t5_bsae"), "BACKBONE = 't5_bsae' is neither a known backbone")


def test_vocabulary_of_another_backbone(capsys, world, folder):
    vocabulary = shared_vocabulary_file()
    fails(capsys, train(world, folder, VOCABULARY=vocabulary), "has 32,100 ids", "embeds 384", "--vocabulary")


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
    rows, backbone = folder / "long_validation.jsonl", folder / "backbone" / "model.safetensors"
    for path, message in ((rows, "rows of long, validation: "), (backbone, "weights of the backbone: ")):
        before = path.read_bytes()
        path.write_bytes(before.replace(b'"label": 1', b'"label": 0') if path.suffix == ".jsonl" else before[:-1] + b"\x01")
        fails(capsys, argv, "another configuration", message)
        path.write_bytes(before)
        assert (teachers / "run.json").read_bytes() == described
    assert main(argv) == 0  # as it was


def test_missing_teacher(capsys, world, folder, teachers):
    fails(capsys, train(world, folder, "source.gin", TASKS=["vowel", "digit"]), "type --teacher_dir")
    argv = train(world, folder, "source.gin", TASKS=["vowel", "digit"], TEACHER_DIR=str(teachers))
    fails(capsys, argv, "no teacher for source task digit", "mpt-jax train teacher --tasks digit")


def test_missing_source(capsys, world, folder):
    fails(capsys, train(world, folder, "target.gin", TASKS=["digit"]), "type --source_dir")
    fails(capsys, train(world, folder, "target.gin", TASKS=["digit"], SOURCE_DIR=str(folder)), "is not a run folder")
    fails(capsys, train(world, folder, "teacher.gin", TASKS=["digit"], SOURCE_DIR=str(folder)), "stage 'teacher' starts from no source run")


@pytest.mark.parametrize("name, change, message", [
    ("wide", {"d_model": 24}, ("prompts of width 16", "width 24")),
    ("other", {}, ("was trained on backbone",)),
])  # fmt: skip
def test_prompts_of_another_backbone(capsys, world, folder, teachers, tmp_path, name, change, message):
    config = tiny(**change)
    formats.write_backbone("own", str(tmp_path / name), config, weights(config, 1), "bytes")
    source = {"TASKS": ["digit"], "SOURCE_DIR": str(teachers), "BACKBONE": str(tmp_path / name)}
    fails(capsys, train(world, folder, "target.gin", **source), *message)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(capsys, world, folder):
    run = folder / "diverges"
    settings = {"OptimizerSettings__weight_decay": 1e9, "TRAIN_STEPS": 12, "TrainSettings__checkpoint_steps": 1}
    settings["TrainSettings__score_tasks"] = False
    fails(capsys, train(world, folder, MODEL_DIR=str(run), **settings), "not finite", "is the last good one", "Lower LEARNING_RATE")
    trained, _ = load_trainable(run, "last")
    assert trained and all(np.isfinite(array).all() for array in trained.values())


@pytest.fixture(scope="module")
def source(folder, world, teachers):
    run = folder / "source"
    assert main(arguments("train", "source.gin", world, TASKS=["vowel", "long"], TEACHER_DIR=str(teachers), MODEL_DIR=str(run))) == 0
    return run


@pytest.fixture(scope="module")
def target(folder, world, source):
    run = folder / "target"
    assert main(arguments("train", "target.gin", world, TASKS=["digit"], SOURCE_DIR=str(source), MODEL_DIR=str(run))) == 0
    return run


def test_a_source_run_holds_what_targets_need(source):
    run = json.loads((source / "run.json").read_text())
    assert run["stage"] == "source" and run["method"] == "prompt" and [row["group"] for row in run["runs"]] == [0, 0]
    trained, _ = load_trainable(source)
    assert {path: array.shape for path, array in trained.items()} == {
        "bank/shared": (1, 3, 16), "bank/cols": (2, 3, 1), "bank/rows": (2, 1, 16),
    }  # fmt: skip
    assert (source / "config.gin").is_file() and (source / "metrics.jsonl").is_file()


def test_few_shot_runs_draw_rows_of_their_own(folder, world, source, tmp_path, capsys):
    run = folder / "few"
    few = {"SEED": [1, 2], "K_SHOT": 4, "SOURCE_DIR": str(source), "MODEL_DIR": str(run)}
    assert main(arguments("train", "fewshot.gin", world, TASKS=["digit"], **few)) == 0
    described = json.loads((run / "run.json").read_text())
    assert [len(row["few_shot"]) for row in described["runs"]] == [4, 4]
    assert described["runs"][0]["few_shot"] != described["runs"][1]["few_shot"]
    assert described["parameters"]["per_task"] == 3 * 16 + 3 + 16
    (tmp_path / "rows.jsonl").write_text('{"inputs": "word: abc1"}\n')
    argv = arguments("infer", "", world, MODEL_DIR=str(run))
    assert main([*argv, f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'answers.jsonl'}"]) == 0
    assert "task 'digit' was trained under 2 seeds: seed 1 answers; eval gives the mean over all" in capsys.readouterr().err


def test_a_run_finds_its_backbone_from_any_folder_and_takes_another_place_of_it(world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world["BACKBONE"], tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    argv = arguments("train", "teacher.gin", world, BACKBONE="weights", MODEL_DIR="run", TASKS=["vowel"], TRAIN_STEPS=1)
    assert main(argv) == 0
    described = json.loads(Path("run/run.json").read_text())
    assert described["settings"]["backbone"]["path"] == str(tmp_path / "weights") and described["backbone"]["name"] == "weights"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluated = arguments("eval", "eval.gin", {**world, "BACKBONE": "nano"}, MODEL_DIR=str(tmp_path / "run"))
    assert main(evaluated) == 0
    (tmp_path / "weights").rename(tmp_path / "moved")
    fails(capsys, evaluated, f"the run's backbone was '{tmp_path}/weights', which no longer exists: give", "as --backbone")
    assert main([*evaluated, f"--backbone={tmp_path / 'moved'}"]) == 0
    (tmp_path / "rows.jsonl").write_text('{"inputs": "word: abc1"}\n')
    answers = ["infer", f"--model_dir={tmp_path / 'run'}", f"--input={tmp_path / 'rows.jsonl'}", f"--output={tmp_path / 'answers.jsonl'}"]
    assert main([*answers, f"--backbone={tmp_path / 'moved'}"]) == 0
    monkeypatch.chdir(tmp_path)  # a run that goes on may have it elsewhere too
    assert main([name.replace("'weights'", "'moved'") for name in argv]) == 0


@pytest.mark.parametrize("start", ["text", "file"])
def test_a_dry_run_of_prompts_that_start_from_a_text_or_a_file(start, world, tmp_path, capsys):
    np.save(tmp_path / "mood.npy", np.zeros((3, 16), np.float32))
    given = {"PromptSettings__init": start, f"PromptSettings__init_{start}": "good" if start == "text" else str(tmp_path / "mood.npy")}
    argv = arguments("train", "teacher.gin", world, MODEL_DIR=str(tmp_path / "run"), TASKS=["vowel"], **given)
    assert main([*argv, "--dry_run"]) == 0 and "48" in capsys.readouterr().out


def test_what_a_users_module_says_is_heard(world, tmp_path, caplog):
    module = tmp_path / "own_words.py"
    files = {split: f"{Path(world['MIXTURE_OR_TASK_MODULE']).parent}/vowel_{split}.jsonl" for split in ("train", "validation")}
    module.write_text(
        f"from mpt_jax import tasks\ntasks.jsonl('word_valence', files={files}, template='word: {{word}}', labels=('no', 'yes'), "
        "score='accuracy')\n"
    )
    assert main(["tasks", "word_valence", f"--mixture_or_task_module={module}", "--rows=1"]) == 0
    assert "Task word_valence replaces the shipped task of that name" in caplog.text


def test_a_gin_file_that_reads_the_stages_files_again_is_refused(capsys, tmp_path):
    (tmp_path / "own.gin").write_text("include 'base.gin'\nTRAIN_STEPS = 5\n")
    again = "reads base.gin again after teacher.gin, which would undo the settings of teacher.gin: take its include out of"
    fails(capsys, ["train", "teacher", f"--gin_file={tmp_path / 'own.gin'}"], again)
    fails(capsys, ["train", "teacher", "--gin_file=target.gin"], "--gin_file=target.gin reads base.gin again after teacher.gin")


def test_a_task_without_the_split_that_is_scored_says_how_to_name_it(capsys, world, tmp_path, teachers):
    folder = Path(world["MIXTURE_OR_TASK_MODULE"]).parent
    text = "from mpt_jax import tasks\ntasks.jsonl('mood', files={}, template='word: {{word}}', labels=('no', 'yes'), score='accuracy')\n"
    for splits in ({"train": "train", "validation": "validation"}, {"train": "train", "dev": "validation"}):  # the first are cached
        module = tmp_path / f"own_{list(splits)[-1]}.py"
        module.write_text(text.format({split: str(folder / f"vowel_{file}.jsonl") for split, file in splits.items()}))
        own = {**world, "MIXTURE_OR_TASK_MODULE": str(module), "CACHE_DIR": str(tmp_path / "cache")}
        argv = arguments("train", "teacher.gin", own, MODEL_DIR=str(tmp_path / "run"), TASKS=["mood"], TRAIN_STEPS=1)
        if "validation" in splits:
            assert main(["cache", *arguments("", "", own, TASKS=["mood"])[1:]]) == 0
            tasks.TABLE.pop("mood")
    call = "has no split 'validation' to score in training (it has train, {}): call it 'validation', or type --gin.TrainSettings."
    fails(capsys, argv, call.format("dev") + "eval_split=dev")
    fails(capsys, arguments("eval", "eval.gin", own, MODEL_DIR=str(teachers), TASKS=["mood"]), "mood")
    tasks.TABLE.pop("mood")
    module = tmp_path / "own_test.py"  # test rows are not advised: they would choose the step
    module.write_text(text.format({"train": str(folder / "vowel_train.jsonl"), "test": str(folder / "vowel_validation.jsonl")}))
    argv = [word.replace("own_dev.py", "own_test.py") for word in argv]
    fails(capsys, argv, call.format("test") + "score_tasks=False to train without")
    tasks.TABLE.pop("mood")


def test_weights_are_trained_in_their_own_stages(capsys, world, folder):
    fails(capsys, train(world, folder, METHOD="weights"), "METHOD = 'weights' is of the stages finetune, pretrain: type `mpt-jax")


def test_eval_writes_scores(world, target):
    assert main(arguments("eval", "eval.gin", world, MODEL_DIR=str(target))) == 0
    scores = json.loads((target / "eval" / "digit.json").read_text())
    assert scores["rows"] == 12 and 0 <= scores["scores"]["accuracy"] <= 100


def test_infer_answers_rows_of_a_file(world, target, tmp_path):
    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text('{"word": "abc1", "note": 7}\n{"inputs": "word: x"}\n')
    argv = arguments("infer", "", world, MODEL_DIR=str(target), TASKS=["digit"])
    assert main([*argv, f"--input={rows}", f"--output={answers}", "--score"]) == 0
    answered = [json.loads(line) for line in answers.read_text().splitlines()]
    assert answered[0]["inputs"] == "word: abc1" and answered[0]["note"] == 7 and answered[1]["inputs"] == "word: x"
    for row in answered:
        assert isinstance(row["prediction"], str) and set(row["scores"]) == {"no", "yes"}


def test_infer_answers_with_a_task_of_the_run_that_is_not_registered_here(world, teachers, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(tasks.TABLE, "vowel")
    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text('{"inputs": "word: abc1"}\n')
    argv = ["infer", f"--gin.MODEL_DIR={teachers}", f"--input={rows}", f"--output={answers}"]
    assert main([*argv, "--gin.TASKS=vowel"]) == 0
    (answered,) = map(json.loads, answers.read_text().splitlines())
    assert answered["prediction"] == mpt_jax.load(teachers).predict(["word: abc1"], task="vowel")[0]
    assert main([*argv, "--gin.TASKS=vowle"]) == 2
    assert "this run holds no prompt of task 'vowle'; nearest: vowel" in capsys.readouterr().err


def test_convert_writes_the_prompts_that_load_gives(source, tmp_path):
    prompts = tmp_path / "prompts.npz"
    assert main(["convert", "--from", str(source), "--to", "npz", "--output", str(prompts)]) == 0
    composed, predictor = np.load(prompts), mpt_jax.load(source)
    for name in ("vowel", "long"):
        np.testing.assert_array_equal(composed[name], predictor.prompt(name))
        assert composed[name].dtype == np.float32
    log_probability = predictor.score(["word: abc"], ["yes"], task="vowel")
    assert log_probability.shape == (1,) and log_probability[0] < 0


def test_report_makes_a_table_a_picture_and_a_page(teachers, target, tmp_path):
    assert main(["report", str(teachers), str(target), "--output", str(tmp_path)]) == 0
    assert {"table.md", "report.png", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert "| digit |" in (tmp_path / "table.md").read_text()


def test_tasks_lists_and_shows(capsys, world):
    assert main(arguments("tasks", "", world)) == 0
    assert "digit" in capsys.readouterr().out
    assert main([*arguments("tasks", "", world), "digit"]) == 0
    assert "word: " in capsys.readouterr().out


def test_cache_writes_what_training_reads(capsys, world, tmp_path):
    argv = arguments("cache", "", world, TASKS=["digit"], CACHE_DIR=str(tmp_path))
    assert main([*argv, "--splits=train"]) == 0
    assert "digit train: 40 rows" in capsys.readouterr().out
    assert len(list(tmp_path.rglob("meta.json"))) == 1


@pytest.mark.slow
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
