"""The command line: what mistyped ones are told, help, and that flags and gin's own way are the same settings. Covers macros.py,
dry_run.py."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_world import arguments, write_world

from mpt_jax import gin_settings, tasks
from mpt_jax.command_line import COMMANDS, macros_of, parse_arguments
from mpt_jax.config import STAGES, DataSettings, OptimizerSettings, TrainSettings
from mpt_jax.errors import EXIT_CODES, UserError
from mpt_jax.gin_settings import configured
from mpt_jax.macros import macro_of, macros, stages
from mpt_jax.main import main

ROOT = Path(__file__).parent.parent
GOOD = ["train", "teacher", "--tasks=word_valence", "--model_dir=never"]
# a wrong command line, and parts of the one line that answers: the value, what was expected, what to type
WRONG = [
    (["trian", "teacher"], ("'trian' is not a command", "did you mean train?")),
    (["--tasks", "sst2"], ("--tasks: a command comes first", "mpt-jax train --tasks")),
    (["train", "--model_dir", "x"], ("train needs a stage", "mpt-jax train teacher | source | target")),
    (["train", "techer", "--model_dir", "x"], ("'techer' is not a stage", "did you mean teacher?", "stages: teacher, source")),
    ([*GOOD, "--trian_steps", "5"], ("--trian_steps: train has no such flag", "did you mean --train_steps?")),
    ([*GOOD, "--train_steps=5", "--gin.TrainSettings.train_steps=6"], ("--train_steps is not read", "TrainSettings.train_steps is given")),
    ([*GOOD, "--gin.TRAIN_STEP=5"], ("unknown gin name 'TRAIN_STEP'", "did you mean 'TRAIN_STEPS'?")),
    ([*GOOD, "--gin.PromptSettings.lenth=5"], ("PromptSettings has no field 'lenth'", "did you mean 'length'?")),
    ([*GOOD, "--gin.PromptSetting.length=5"], ("unknown gin name 'PromptSetting'", "did you mean 'PromptSettings'?")),
    ([*GOOD, "--train_steps", "many"], ("--train_steps=many", "a whole number is expected", "type --train_steps=1")),
    ([*GOOD, "--train_steps", "0"], ("train_steps = 0 is outside 1 ..", "Type --train_steps 1000")),
    ([*GOOD, "--train_steps"], ("--train_steps needs a value", "type --train_steps 1000")),
    ([*GOOD, "--train_steps", "--seed", "1"], ("--train_steps needs a value, not the flag --seed", "type --train_steps 1000")),
    ([*GOOD, "--top_p", "0.9"], ("--top_p: train has no such flag", "it is one of eval, infer", "leave it out")),
    (["train", "teacher", "--tasks", "word_valence", "past_tense"], ("'past_tense' is one word too many", "--tasks sst2,mrpc")),
    (["train", "teacher", "tasks=word_valence"], ("'tasks=word_valence' is not a flag", "type --tasks=word_valence")),
    (["train", "teacher", "-tasks", "word_valence"], ("-tasks: a flag starts with two dashes", "type --tasks")),
    ([*GOOD, "--gin.TRAIN_STEPS", "5"], ("--gin.TRAIN_STEPS: a binding is --gin.NAME=VALUE", "or --train_steps 1000")),
    ([*GOOD, "--dtype", "float16"], ("'float16' is not one of 'float32', 'bfloat16'",)),
    ([*GOOD, "--task_feature_lengths", "256"], ("--task_feature_lengths=256", "type --task_feature_lengths=inputs=256,targets=128")),
    ([*GOOD, "--trust_caches=perhaps"], ("--trust_caches=perhaps", "True or False is expected", "type --trust_caches=True")),
    ([*GOOD[:2], "--tasks=word_valense", "--model_dir=never"], ("'word_valense'", "word_valence")),
    (GOOD[:2], ("no task is named", "type --tasks NAME,NAME", "`mpt-jax tasks` lists them")),
    (GOOD[:3], ("MODEL_DIR is empty", "type --model_dir FOLDER")),
    (["train", "source", *GOOD[2:]], ("the source stage distils from teachers", "type --teacher_dir FOLDER")),
    (["infer", "--model_dir", "x", "--output", "y"], ("infer needs --input", "mpt-jax infer --help")),
    (["eval", "--model_dir", "never"], ("'never'", "is not a run folder")),
    (["report"], ("report needs a run folder", "type mpt-jax report runs/target")),
    (["tasks", "--rows", "few"], ("--rows: 'few' is not a whole number", "for example 3")),
    (["convert", "--gin.TASKS=a"], ("--gin.TASKS=a: convert takes no gin bindings", "mpt-jax convert --help")),
    (["compile", "teacher"], ("TOPOLOGY) is empty", "type --topology v5e:4x4")),
]


@pytest.mark.parametrize("argv, said", WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_a_wrong_command_line_gets_one_line(argv, said, capsys, monkeypatch, tmp_path):
    """It names the value, what was expected, and what to type."""
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("mpt-jax: ") and len(line) < 500 and "Traceback" not in "".join(before)
    assert [part for part in said if part not in line] == []
    assert not (tmp_path / "never").exists()


def settings_of(*argv):
    parsed = parse_arguments(argv)
    gin_settings.parse_gin(parsed.gin_file, parsed.gin_bindings)
    try:
        return [configured(cls) for cls in (TrainSettings, DataSettings, OptimizerSettings)] + [gin_settings.operative()]
    finally:
        gin_settings.gin.clear_config()


def test_flags_are_the_same_settings_as_gin_bindings():
    gins = settings_of(
        "train", "--gin_file=fewshot.gin", "--gin.SEED=[1, 2]", "--gin.MODEL_DIR='runs/a'", "--gin.TRUST_CACHES=True",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}", "--gin.OptimizerSettings.clip_norm=0.5",
    )  # fmt: skip
    both = "--task_feature_lengths", "inputs=32,targets=8", "--gin.OptimizerSettings.clip_norm=0.5"
    flags = settings_of("train", "fewshot", "--seed", "1,2", "--model_dir=runs/a", *both, "--trust_caches")
    spelled = settings_of("train", "--MODEL_DIR=runs/a", "--SEED=1,2", *both, "fewshot", "--trust-caches", "true")
    assert gins == flags == spelled
    assert flags[0].seeds == [1, 2] and flags[0].stage == "fewshot" and "SEED = [1, 2]" in flags[3]


@pytest.mark.parametrize(
    "typed", [("--cue", r"\nAnswer: "), ("--cue=\nAnswer: ",), ("--gin.CUE=\nAnswer: ",), (r"--gin.DataSettings.cue='\nAnswer: '",)]
)
def test_a_cue_keeps_its_line_break_and_blanks(typed):
    _, data, *_ = settings_of(*GOOD, *typed)
    assert data.cue == "\nAnswer: "


def test_what_is_typed_last_counts_and_files_come_after_the_stage(tmp_path):
    (tmp_path / "own.gin").write_text("TRAIN_STEPS = 7\nK_SHOT = 3\n")
    train, data, *_ = settings_of("train", "fewshot", "--gin.K_SHOT=4", f"--gin_file={tmp_path / 'own.gin'}", "--k_shot=5", "--model_dir=a")
    assert (train.train_steps, data.k_shot) == (7, 5)


@pytest.mark.parametrize("binding", ["BACKBONE=x", "PromptSettings.length=5", "DataSettings.batch_size=3"])
def test_a_binding_that_a_command_does_not_read_is_told(binding, capsys):
    parse_arguments(["train", "teacher", f"--gin.{binding}"])
    assert capsys.readouterr().err == ""
    parse_arguments(["eval", f"--gin.{binding}", "--gin.MODEL_DIR=x", "--gin.EvalSettings.split=test", "--gin.DataSettings.cache_dir=c"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"--gin.{binding.partition('=')[0]}: eval does not read this setting, it changes nothing here"


def test_infer_says_that_it_reads_the_rows_of_its_input(capsys):
    argv = ["infer", "--model_dir=x", "--input=a", "--output=b"]
    with pytest.raises(UserError, match="--split: infer has no such flag, it is one of eval; leave it out"):
        parse_arguments([*argv, "--split", "test"])
    parse_arguments([*argv, "--gin.EvalSettings.method=rank", "--gin.EvalSettings.max_rows=10"])
    assert capsys.readouterr().err == "--gin.EvalSettings.max_rows: infer does not read this setting, it changes nothing here\n"


def test_a_field_may_be_bound_instead_of_the_macro_that_fills_it(tmp_path):
    train, *_ = settings_of(*GOOD, "--gin.TrainSettings.train_steps=6")
    assert train.train_steps == 6
    (tmp_path / "mine.gin").write_text("include 'teacher.gin'\nDataSettings.batch_size = 7\n")
    _, data, *_ = settings_of("train", f"--gin_file={tmp_path}/mine.gin", *GOOD[2:])
    assert data.batch_size == 7


@pytest.mark.parametrize("command", [name for name, row in COMMANDS.items() if row.gin is not None])
def test_help_lists_every_setting_that_a_command_reads(command, capsys):
    stage = ["source"] if COMMANDS[command].gin == "" else []
    with pytest.raises(SystemExit) as ended:
        main([command, *stage, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0 and "exit codes:" in text
    for macro in macros_of(command).values():
        assert macro.flag in text and macro.meaning and " ".join(macro.meaning.split()[:3]) in text
        if macro.default not in ("", [], {}, None):
            assert f"(default: {macro.default})" in text


def test_every_setting_is_a_flag_of_some_command_and_fills_a_field():
    assert set(macros()) == {macro.name for command in COMMANDS for macro in macros_of(command).values()}
    assert all(macro.fields and macro.heading for macro in macros().values()) and len(macro_of()) >= len(macros())


def test_the_defaults_of_a_stage_are_those_of_its_file(capsys):
    for stage, shown in (("target", "(default: 1)"), ("teacher", "(default: 0)")):
        with pytest.raises(SystemExit):
            main(["train", stage, "--help"])
        assert shown in capsys.readouterr().out.partition("--prompt_rank")[2].partition("--learning_rate")[0]


def test_a_run_folder_of_report_is_the_same_as_a_flag():
    for given in ("gs://bucket/run", "s3://bucket/run", "~/run"):
        assert parse_arguments(["report", "--model_dir", given]).run_dirs == parse_arguments(["report", given]).run_dirs


def test_help_and_version_start_quickly_and_load_no_jax():
    """Below 0.5 s on a machine that is not busy; here the libraries that would take longer must not be there."""
    code = "import sys, mpt_jax.main as m\ntry: m.main(sys.argv[1:])\n"
    code += "finally: print([n for n in ('jax', 'numpy', 'gin', 'seqio') if n in sys.modules])"
    for argv, expected in ((["--help"], "stages of train:"), (["train", "--help"], "--train_steps"), (["--version"], "mpt-jax ")):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        best = 10.0
        for _ in range(3):
            start = time.monotonic()
            done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment, cwd="/")
            best = min(best, time.monotonic() - start)
        assert expected in done.stdout and done.stdout.splitlines()[-1] == "[]", done.stderr
        assert best < 2.0


def test_the_overview_names_commands_stages_and_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in (*COMMANDS, *STAGES, *map(str, EXIT_CODES)))
    assert set(stages()) == set(STAGES) and all(meaning.endswith(".") for meaning in stages().values())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    yield write_world(folder) | {"MODEL_DIR": str(folder / "run")}
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


def test_a_dry_run_says_what_would_happen_and_writes_no_run_folder(world, capsys):
    lengths = {"inputs": 11, "targets": 8}
    argv = arguments("train", "", world, TASKS=["vowel", "digit"], TASK_FEATURE_LENGTHS=lengths)
    assert main([*argv, "teacher", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.startswith("vowel")][0][:3] == ["vowel", "train", "40"]
    cut = sum(int(line.split()[3]) for line in out.splitlines() if line.startswith(("vowel", "digit")))
    assert cut > 0  # "word: " and a word of six letters have 13 tokens
    for said in ("trainable parameters  96", "4 of 16 examples", "memory per device", "GiB", "nothing was trained"):
        assert said in " ".join(out.split()) or said in out, out
    assert not Path(world["MODEL_DIR"]).exists()


@pytest.mark.parametrize("words", [["tasks", "vowel", ""], ["serve", ""], ["train", "teacher", "", ""], ["report", "a", ""]])
def test_an_empty_word_is_told_in_a_line(words, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_name_that_no_file_can_have_is_told_in_a_line(capsys):
    for words in (["train", "x" * 5000], ["train", f"--gin_file={'x' * 5000}"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_task_that_cannot_be_scored_is_known_before_the_first_step(world, tmp_path, capsys):
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation")}
    for split, last in (("train", "3"), ("validation", "three")):
        files[split].write_text("".join(f'{{"word": "a", "size": "{size}"}}\n' for size in ("1", "2", last)))
    tasks.jsonl("sizes", files=files, template="word: {word}", target="{size}", score="pearson")
    argv = arguments("train", "", world, TASKS=["sizes"], MODEL_DIR=str(tmp_path / "run"))
    for more in (["--dry_run"], []):
        assert main([*argv, "teacher", *more]) == 2
        assert "'three' is not a number" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main([*argv, "teacher", "--gin.TrainSettings.score_tasks=False", "--dry_run"]) == 0


def test_a_dry_run_of_a_few_shot_stage_names_its_rows(world, capsys):
    argv = ["fewshot", "--dry_run", "--k_shot", "4", "--gin.PromptSettings.transfer=none"]
    assert main([*arguments("train", "", world, TASKS=["vowel"]), *argv]) == 0
    assert "4 drawn (K_SHOT)" in capsys.readouterr().out


def test_settings_of_a_method_are_read_where_the_method_is_chosen(capsys):
    """No note says that the command leaves them alone: which method reads them is known once gin has named one."""
    parse_arguments(["train", "teacher", "--method=lora", "--gin.LoraSettings.rank=4", "--tasks=a", "--model_dir=x"])
    assert "does not read" not in capsys.readouterr().err
