"""The commands eval, infer, tasks and what training checks of labels and rows before its first step."""

import json

import pytest
from tiny_world import arguments, write_world

from mpt_jax import tasks
from mpt_jax.main import main

MORE = """
import tasks
from pathlib import Path

HERE = Path(__file__).parent
ROWS = {split: HERE / f"vowel_{split}.jsonl" for split in ("train", "validation")}
tasks.jsonl("cut", files=ROWS, template="{word}", labels=("a label of many letters", "a label of more letters"))
tasks.jsonl("same", files=ROWS, template="{word}", labels=("World", "world"))
CITY = {split: HERE / "city.jsonl" for split in ("train", "validation")}
tasks.jsonl("city", files=CITY, template="q: {q}", target="{a}", score="exact_match")
tasks.jsonl("a:b", files=ROWS, template="{word}", labels=("no", "yes"))
tasks.jsonl("a_b", files=ROWS, template="{word}", labels=("no", "yes"))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    macros = write_world(folder)
    (folder / "more.py").write_text((folder / "my_tasks.py").read_text() + MORE)
    (folder / "city.jsonl").write_text('{"q": "France?", "a": "Paris"}\n{"q": "3 + 4?", "a": "x²"}\n{"q": "end?", "a": "end"}\n')
    yield macros | {"MIXTURE_OR_TASK_MODULE": str(folder / "more.py"), "MODEL_DIR": str(folder / "run")}
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.fixture(scope="module")
def run(world):
    assert main(arguments("train", "teacher.gin", world, TASKS=["a:b", "a_b"])) == 0
    return {name: world[name] for name in ("MIXTURE_OR_TASK_MODULE", "CACHE_DIR", "MODEL_DIR")}


def fails(capsys, argv, *messages):
    assert main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("mpt-jax: ") and all(message in error for message in messages), error


def test_lengths_are_those_of_training_unless_they_are_given_be_they_the_default(world, run, capsys):
    for changes, said in (
        ({}, "input length 16, target length 8"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 256, "targets": 128}}, "input length 256, target length 128"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 8}}, "input length 32, target length 8"),
    ):
        assert main(arguments("eval", "", run, TASKS=["a_b"], **changes)) == 0
        assert said in capsys.readouterr().out


def test_results_of_names_that_a_file_cannot_hold_are_apart(run, tmp_path, capsys):
    assert main(arguments("eval", "", run)) == 0
    written = capsys.readouterr().out.rpartition("written: ")[2].strip().split(", ")
    assert sorted(json.loads(open(path).read())["task"] for path in written) == ["a:b", "a_b"] and len(set(written)) == 2
    assert written[1].endswith("/eval/a_b.json")


def test_labels_that_cannot_be_learned_stop_training_before_anything_is_written(world, tmp_path, capsys):
    never = world | {"MODEL_DIR": str(tmp_path / "never")}
    argv = arguments("train", "teacher.gin", never, TASKS=["cut"])
    fails(capsys, argv, "label 'a label of many letters' has 24 tokens, the limit is 8")
    argv = arguments("train", "teacher.gin", never | {"BACKBONE": "nano"}, TASKS=["same"])
    fails(capsys, argv, "labels 'World' and 'world' are the same to vocabulary")
    assert not (tmp_path / "never").exists()


def test_labels_that_cannot_be_answered_stop_scoring(run, capsys):
    short = {"TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 3}}
    for method in ("decode", "rank"):
        argv = arguments("eval", "", run, TASKS=["a_b"], EvalSettings__method=method, **short)
        fails(capsys, argv, "task 'a_b': label 'yes' has 4 tokens, the limit is 3")


def test_targets_that_are_cut_are_told_in_training_and_scoring(world, tmp_path, capsys):
    given = world | {"MODEL_DIR": str(tmp_path / "run"), "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 5}, "TRAIN_STEPS": 1}
    assert main(arguments("train", "teacher.gin", given, TASKS=["city"])) == 0
    assert "task city, train: 1 of 3 targets are longer than 5 tokens and are cut (the longest has 6)" in capsys.readouterr().err
    assert main(arguments("eval", "", {name: given[name] for name in ("MIXTURE_OR_TASK_MODULE", "CACHE_DIR", "MODEL_DIR")})) == 0
    assert "; targets cut: city 1 (TASK_FEATURE_LENGTHS)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "eval" / "city.json").read_text())["cut_targets"] == 1


def test_a_few_shot_run_of_no_rows_is_refused(world, tmp_path, capsys):
    never = {"MODEL_DIR": str(tmp_path / "never"), "K_SHOT": 0, "PromptSettings.transfer": "none"}
    fails(capsys, arguments("train", "fewshot.gin", world | never, TASKS=["a_b"]), "K_SHOT = 0", "1 or more")


def test_a_task_tells_how_many_targets_its_vocabulary_cannot_write(world, capsys):
    nano = {name: world[name] for name in ("MIXTURE_OR_TASK_MODULE",)} | {"BACKBONE": "nano"}
    assert main([*arguments("tasks", "", nano), "city"]) == 0
    said = "  2 targets lose letters, blanks or case in this vocabulary: for example 'Paris' comes back as 'paris'"
    assert said in capsys.readouterr().out
    assert main([*arguments("tasks", "", nano), "same"]) == 0
    assert "it cannot be trained: task 'same': labels 'World' and 'world' are the same" in capsys.readouterr().out


def test_answers_to_stdout_are_all_that_is_there(run, tmp_path, capfd):
    (tmp_path / "in.jsonl").write_text('{"word": "abc"}\n{"word": "xyz"}\n')
    assert main([*arguments("infer", "", run, TASKS=["a_b"]), "--input", str(tmp_path / "in.jsonl"), "--output", "/dev/stdout"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["word"] for line in out.splitlines()] == ["abc", "xyz"]
    assert "2 rows written to /dev/stdout" in err


def test_scores_that_cannot_be_written_stop_before_the_work(run, tmp_path, capsys):
    import shutil

    shutil.copytree(run["MODEL_DIR"], tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    (tmp_path / "run" / "eval").write_text("x")
    fails(capsys, arguments("eval", "", run | {"MODEL_DIR": str(tmp_path / "run")}), "eval' cannot be made, which scores are written to")


def test_arguments_that_name_nothing(world, capsys):
    some = {"MIXTURE_OR_TASK_MODULE": world["MIXTURE_OR_TASK_MODULE"]}
    fails(capsys, [*arguments("cache", "", some, TASKS=["a_b"]), "--splits", " , "], "--splits ' , ' names no split")
    fails(capsys, [*arguments("tasks", "", some), "others"], "'others' is a mixture of winogrande, yelp_polarity", "name one of them")
    fails(capsys, [*arguments("tasks", "", some), "a_b", "--rows=-1"], "--rows -1: must be 0 or more")
    fails(capsys, arguments("tasks", "", some, TASKS=["x" * 300]), "unknown task")
