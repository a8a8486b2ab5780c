"""Runs of a program: combinations, groups, few-shot rows, streams, what they start from."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import LENGTH, new_bank, tiny_backbone
from tiny_run import row, write_run

from mpt_jax.checkpoint import Loaded, load, load_trainable
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods.bank import compose_all
from mpt_jax.methods.prompt import paths_of, source_runs
from mpt_jax.methods.table import method_of, own_settings
from mpt_jax.train.plan import (
    check_folders,
    draw_few_shot,
    is_finished,
    make_streams,
    plan_runs,
    read_source,
    source_folder,
    teacher_prompts,
)

TASKS = ("a", "b")


def settings(stage="target", prompt=None, distillation=None, optimizer=None, **train) -> Settings:
    made = prompt or PromptSettings(length=LENGTH), distillation or DistillationSettings(), optimizer or OptimizerSettings()
    train = TrainSettings(stage, "/somewhere", **train)
    return own_settings(Settings(train, prompt=made[0], distillation=made[1], optimizer=made[2]), method_of(train))


def save_run(folder, bank, names, seeds, **described) -> str:
    """A run folder with this bank; finished if its settings, among ``described``, do not say otherwise."""
    runs = [row(name, seed, int(g)) for name, seed, g in zip(names, seeds, bank.group_N, strict=True)]
    return write_run(folder, runs, paths_of(bank), **described)


def test_independent_stages_give_every_combination_its_own_group():
    plan = plan_runs(settings(seeds=[1, 2], optimizer=OptimizerSettings(learning_rate=[0.1, 0.3])), TASKS)
    assert plan.group_N.tolist() == list(range(8)) and plan.num_groups == 8
    assert {(run.task, run.seed, run.learning_rate) for run in plan.runs} == {(t, s, r) for t in TASKS for s in (1, 2) for r in (0.1, 0.3)}


@pytest.mark.parametrize("stage, prompt", [("source", PromptSettings()), ("target", PromptSettings(shared_over_targets=True))])
def test_stages_that_share_a_prompt_group_the_tasks_of_a_seed(stage, prompt):
    plan = plan_runs(settings(stage, prompt, seeds=[1, 2]), TASKS)
    assert [(run.seed, run.task, run.group) for run in plan.runs] == [(1, "a", 0), (1, "b", 0), (2, "a", 1), (2, "b", 1)]
    assert plan.num_groups == 2 and plan.members(1) == [2, 3] and [run.seed for run in plan.first_runs] == [1, 2]


def test_few_shot_rows_depend_on_task_and_seed_alone(tmp_path):
    caches = {name: sized_cache(tmp_path, 40 + n, name) for n, name in enumerate(TASKS)}
    plan = plan_runs(settings("fewshot", seeds=[1, 2], optimizer=OptimizerSettings(learning_rate=[0.1, 0.3])), TASKS)
    drawn = draw_few_shot(plan, caches, DataSettings(k_shot=4))
    rows = {}
    for run in drawn.runs:
        assert len(run.few_shot) == 4
        assert rows.setdefault((run.task, run.seed), run.few_shot) == run.few_shot
    assert len(set(rows.values())) == 4
    streams = make_streams(drawn, caches, DataSettings(batch_size=3))
    assert [stream.bank_index for stream in streams] == [(n,) for n in range(8)]
    np.testing.assert_array_equal(streams[5].subset[0], drawn.runs[5].few_shot)
    assert draw_few_shot(plan, {}, DataSettings()) is plan


def test_a_group_mixes_its_tasks_with_the_settings_of_mixing(tmp_path):
    caches = {name: sized_cache(tmp_path, 40 + n, name) for n, name in enumerate(TASKS)}
    plan = plan_runs(settings("source", seeds=[3, 4]), TASKS)
    streams = make_streams(plan, caches, DataSettings(batch_size=5, mixing="proportional", mixing_cap=41))
    assert [(stream.seed, stream.bank_index) for stream in streams] == [(3, (0, 1)), (4, (2, 3))]
    for stream in streams:
        assert stream.caches == tuple(caches.values()) and stream.subset == (None, None)
        assert (stream.batch_size, stream.mixing, stream.cap) == (5, "proportional", 41)


def test_targets_read_the_arrays_of_their_source(tmp_path):
    source = new_bank(2, 2)
    folder = save_run(tmp_path / "source", source, ["s", "t"] * 2, [9, 9, 7, 7], stage="source")
    arrays, run = read_source(settings(source_dir=folder), tiny_backbone())
    assert run["tasks"] == ["s", "t"] and arrays.keys() == paths_of(source).keys()
    for path, array in paths_of(source).items():
        np.testing.assert_array_equal(arrays[path], array)
    assert read_source(settings("teacher", source_dir=folder), tiny_backbone()) is None
    assert read_source(settings(prompt=PromptSettings(transfer="none")), tiny_backbone()) is None
    with pytest.raises(UserError, match=r"type --source_dir.*or train prompts from scratch with .*transfer"):
        read_source(settings(), tiny_backbone())


@pytest.mark.parametrize(
    "stage, given, message",
    [
        ("teacher", {"source_dir": "x"}, "SOURCE_DIR = 'x' is given, and stage 'teacher' starts from no source run: leave it out, or take"),
        ("source", {"source_dir": "x"}, "stage 'source' starts from no source run"),
        ("target", {"source_dir": "x", "prompt": PromptSettings(transfer="none")}, "transfer = 'none' takes nothing from a source run"),
        ("target", {"source_dir": "x", "method": "lora"}, "METHOD = 'lora' starts from no source run"),
        ("fewshot", {"teacher_dir": "x"}, "TEACHER_DIR = 'x' is given, and stage 'fewshot' has no teachers: leave it out"),
        ("source", {"teacher_dir": "x", "distillation": DistillationSettings(weight=0.0)}, "weight = 0.0 takes nothing from teachers"),
        ("target", {"prompt": PromptSettings(transfer_task="a")}, "transfer_task = 'a' is given, .* = 'mean' does not read it: add --gin"),
        ("target", {"source_dir": "x", "prompt": PromptSettings(init="uniform")}, "init = 'uniform' is given, and stage 'target' starts"),
        ("target", {"prompt": PromptSettings(transfer="shared"), "method": "attempt"}, "transfer = 'shared' takes none of them"),
        ("target", {"prompt": PromptSettings(init="uniform"), "method": "spot"}, "'spot' starts from prompts of SOURCE_DIR: leave it"),
        ("target", {"prompt": PromptSettings(init="uniform"), "method": "vectors"}, "'vectors' starts from prompts of SOURCE_DIR"),
        ("teacher", {"prompt": PromptSettings(init="uniform"), "method": "lora"}, "init = 'uniform' .*, and METHOD = 'lora' has no prompt"),
        ("source", {"prompt": PromptSettings(init="text", init_text={"a": "A"})}, "with stage 'source' all tasks start from one prompt"),
        (
            "target",
            {"prompt": PromptSettings(transfer="task", transfer_task={"a": "s"}, shared_over_targets=True), "source_dir": "x"},
            "with PromptSettings.shared_over_targets all tasks start from one prompt: give one for all",
        ),
    ],
)
def test_folders_and_source_tasks_that_nothing_reads_are_refused(stage, given, message):
    chosen = settings(stage, **given)
    with pytest.raises(UserError, match=message):
        check_folders(chosen, method_of(chosen.train))


def test_prompts_of_other_weights_another_width_or_none_are_refused(tmp_path):
    source = new_bank(1, 1)
    other = save_run(tmp_path / "other", source, ["s"], [1], fingerprint="0" * 16)
    with pytest.raises(UserError, match="SOURCE_DIR = .* was trained on backbone tiny .0{16}., this is tiny .f{16}.; set BACKBONE"):
        read_source(settings(source_dir=other), tiny_backbone())
    wide = source._replace(shared_GPD=np.zeros((1, LENGTH, 24), np.float32), cols_NPR=None, rows_NRD=None)
    with pytest.raises(UserError, match="holds prompts of width 24, the backbone 'tiny' has width 16"):
        read_source(settings(source_dir=save_run(tmp_path / "wide", wide, ["s"], [1])), tiny_backbone())
    weights = write_run(tmp_path / "weights", [row("s")], {"backbone/x": np.zeros(3)}, stage="finetune")
    with pytest.raises(UserError, match="SOURCE_DIR = .* trained a backbone, not prompts"):
        read_source(settings(source_dir=weights), tiny_backbone())


def test_a_teacher_for_each_run_of_the_same_seed_where_there_is_one(tmp_path):
    teachers = new_bank(3, 1, rank=0)
    folder = save_run(tmp_path / "teachers", teachers, ["a", "b", "a"], [1, 1, 2])
    aligned = settings("source", distillation=DistillationSettings(hidden_positions="all"), seeds=[2], teacher_dir=folder)
    plan = plan_runs(aligned, TASKS)
    prompts = teacher_prompts(plan, aligned, tiny_backbone())
    np.testing.assert_array_equal(prompts, np.asarray(compose_all(teachers))[[2, 1]])
    with pytest.raises(UserError, match="compares prompts of one length; teachers have 3, method .prompt. puts 5 in front"):
        teacher_prompts(plan, aligned._replace(prompt=PromptSettings(length=5)), tiny_backbone())
    with pytest.raises(UserError, match="no teacher for source task c .it has a, b."):
        teacher_prompts(plan_runs(aligned, ("a", "c")), aligned, tiny_backbone())
    with pytest.raises(UserError, match="the source stage distils from teachers: type --teacher_dir"):
        teacher_prompts(plan, settings("source"), tiny_backbone())
    assert teacher_prompts(plan, aligned._replace(distillation=DistillationSettings(weight=0.0)), tiny_backbone()) is None
    assert teacher_prompts(plan, settings("target"), tiny_backbone()) is None


def scored(folder, scores) -> str:
    """A run folder with dev scores of its bank rows."""
    lines = [{"step": 1, "split": "dev", "task": task, "run": n, "accuracy": score} for n, (task, score) in enumerate(scores)]
    (Path(folder) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_of_several_learning_rates_teachers_and_sources_are_those_that_did_best(tmp_path, capsys):
    """Each teacher by itself; tasks that share a prompt together."""
    teachers = new_bank(4, 1, rank=0)
    runs = [row(task, 1, 2 * number + n, rate) for number, rate in enumerate((0.1, 0.3)) for n, task in enumerate(TASKS)]
    folder = write_run(tmp_path / "teachers", runs, paths_of(teachers))
    aligned = settings("source", seeds=[1], teacher_dir=folder)
    plan = plan_runs(aligned, TASKS)
    np.testing.assert_array_equal(teacher_prompts(plan, aligned, tiny_backbone()), np.asarray(compose_all(teachers))[[0, 1]])
    said = capsys.readouterr().err
    assert "no dev scores tell which of its learning rates or sources is best for task 'b'; the first is taken (0.1, 0." in said
    scored(folder, [("a", 60.0), ("b", 50.0), ("a", 40.0), ("b", 70.0)])
    np.testing.assert_array_equal(teacher_prompts(plan, aligned, tiny_backbone()), np.asarray(compose_all(teachers))[[0, 3]])
    source = new_bank(2, 2)
    runs = [row(task, 1, group, 0.1 * (group + 1)) for group in range(2) for task in TASKS]
    folder = scored(write_run(tmp_path / "source", runs, paths_of(source)), [("a", 60.0), ("b", 50.0), ("a", 40.0), ("b", 80.0)])
    arrays, run = read_source(settings(source_dir=folder), tiny_backbone())
    found, names = source_runs(arrays, run, 1)
    assert names == list(TASKS) and len(found.shared_GPD) == 1
    np.testing.assert_array_equal(compose_all(found), np.asarray(compose_all(source))[[2, 3]])


def test_a_run_that_is_not_finished_is_refused_as_source_and_as_teacher(tmp_path):
    folder = save_run(tmp_path / "run", new_bank(1, 2), TASKS, [1, 1], step=120, train_steps=300)
    plan = plan_runs(settings("source"), TASKS)
    for setting, read in (
        ("SOURCE_DIR", lambda **allowed: read_source(settings(source_dir=folder, **allowed), tiny_backbone())),
        ("TEACHER_DIR", lambda **allowed: teacher_prompts(plan, settings("source", teacher_dir=folder, **allowed), tiny_backbone())),
    ):
        with pytest.raises(UserError, match=f"{setting} = .*run' is not finished: step 120 of 300.*--allow_unfinished"):
            read()
        assert read(allow_unfinished=True) is not None


@pytest.mark.parametrize(
    "best_step_G, train, finished",
    [
        ([30, 60], {"train_steps": 300, "eval_steps": 30, "patience": 2}, True),
        ([30, 90], {"train_steps": 300, "eval_steps": 30, "patience": 2}, False),  # the second group goes on
        ([60, 60], {"train_steps": 300, "eval_steps": 0, "patience": 2}, True),  # scored every 30 steps
        ([30, 60], {"train_steps": 300, "eval_steps": 30, "patience": 0}, False),
        (None, {"train_steps": 120}, True),
        (None, {"train_steps": 121}, False),
    ],
)
def test_a_run_that_its_patience_stopped_is_finished(tmp_path, best_step_G, train, finished):
    bank = new_bank(2, 1)
    best = None if best_step_G is None else paths_of(bank)
    folder = save_run(tmp_path / "run", bank, TASKS, [1, 1], best=best, best_step_G=best_step_G, step=120, **train)
    assert is_finished(load(folder)) is finished


def test_a_run_that_does_not_say_how_many_steps_it_wanted_is_finished():
    longer = {"settings": {"train": {"train_steps": 9}}}
    for run in ({}, {"settings": None}, {"settings": {"train": {"train_steps": None}}}, {**longer, "converted": True}):
        assert is_finished(Loaded({}, run, 7, None))
    assert not is_finished(Loaded({}, longer, 7, None))


def test_more_runs_than_one_program_takes_are_refused_before_anything_is_made():
    many = settings(seeds=list(range(5_000)), optimizer=OptimizerSettings(learning_rate=[0.1, 0.3]))
    with pytest.raises(UserError, match="make 20,000 runs; one program takes 10,000"):
        plan_runs(many, TASKS)


def test_a_source_whose_run_json_is_of_another_run_is_refused(tmp_path):
    """A checkpoint without digests: nothing else ties it to its run.json."""
    folder = save_run(tmp_path / "run", new_bank(1, 2), TASKS, [1, 1])
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**described, "runs": described["runs"] * 2}))
    meta = tmp_path / "run" / "checkpoints" / "5" / "meta" / "metadata"
    meta.write_text(json.dumps({"step": 5}))
    with pytest.raises(UserError, match="run.json names 4 runs in 1 groups, 'bank/cols' of the checkpoint has shape .2, .*another run"):
        read_source(settings(source_dir=folder), tiny_backbone())


def test_a_group_trains_at_the_rates_of_its_first_run():
    optimizer = OptimizerSettings(learning_rate=[0.1, 0.3], factor_learning_rate=0.4)
    plan = plan_runs(settings("source", optimizer=optimizer), TASKS)
    assert {name: rate_G.tolist() for name, rate_G in plan.rates().items()} == {
        "prompt": [np.float32(0.1), np.float32(0.3)], "weights": [np.float32(0.1), np.float32(0.3)],
        "factors": [np.float32(0.4)] * 2,
    }  # fmt: skip


def test_the_bank_that_the_package_brings_is_a_source_by_name(tmp_path, monkeypatch):
    folder = source_folder("smollm2")
    arrays, run = load_trainable(folder)
    assert arrays["bank/shared"].shape == (1, 20, 576) and len(run["tasks"]) == len(run["runs"]) == 9
    assert all(np.isfinite(array).all() for array in arrays.values())
    with pytest.raises(UserError, match="SOURCE_DIR = .*smollm2.* width 576"):
        read_source(settings(source_dir="smollm2"), tiny_backbone())
    for name in ("nothing", "../banks/smollm2", "a/b", "", "."):
        assert source_folder(name) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert source_folder("smollm2") == "smollm2"  # the user's own folder
