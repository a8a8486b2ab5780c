"""Runs of a program: combinations, groups, few-shot rows, streams, where prompts start."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_data import byte_vocabulary, sized_cache
from tiny_model import CONFIG, LENGTH, backbone, new_bank

from mpt_jax.checkpoint import Best, Checkpoints, load
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.formats.arrays import unflatten
from mpt_jax.model.prompt_bank import compose_all
from mpt_jax.train import plan

TASKS = ("a", "b")


def settings(stage="target", **changes) -> TrainSettings:
    return TrainSettings(stage, "/somewhere", **changes)


def frozen(fingerprint="f" * 16) -> Backbone:
    params = unflatten((path.removeprefix("backbone/"), array) for path, array in backbone().items())
    return Backbone("tiny", CONFIG, params, "bytes", fingerprint)


def save_run(folder, bank, names, seeds, fingerprint="f" * 16, best_step_G=None, step=1, **train) -> str:
    """A run folder with this bank; finished if ``train``, its settings, does not say otherwise."""
    runs = [{"task": name, "seed": seed, "group": int(g)} for name, seed, g in zip(names, seeds, bank.group_N, strict=True)]
    described = {"runs": runs, "backbone": {"name": "tiny", "fingerprint": fingerprint}, "settings": {"train": train}}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(described))
    checkpoints = Checkpoints(folder)
    trainable = {f"bank/{name}": array for name, array in bank.trainable().items()}
    best = None if best_step_G is None else Best(trainable, np.zeros(len(best_step_G)), np.array(best_step_G))
    checkpoints.save(step, {"step": np.asarray(step), "trainable": trainable, "opt_state": ()}, best, {})
    checkpoints.close()
    return str(folder)


def test_independent_stages_give_every_combination_its_own_group():
    runs = plan.plan_runs(settings(seeds=[1, 2]), PromptSettings(), OptimizerSettings(learning_rate=[0.1, 0.3]), TASKS)
    assert [run.group for run in runs] == list(range(8))
    assert {(run.task, run.seed, run.learning_rate) for run in runs} == {(t, s, r) for t in TASKS for s in (1, 2) for r in (0.1, 0.3)}


@pytest.mark.parametrize("stage, prompt", [("source", PromptSettings()), ("target", PromptSettings(shared_over_targets=True))])
def test_stages_that_share_a_prompt_group_the_tasks_of_a_seed(stage, prompt):
    runs = plan.plan_runs(settings(stage, seeds=[1, 2]), prompt, OptimizerSettings(), TASKS)
    assert [(run.seed, run.task, run.group) for run in runs] == [(1, "a", 0), (1, "b", 0), (2, "a", 1), (2, "b", 1)]


def test_finetuning_trains_one_set_of_weights():
    with pytest.raises(UserError, match="one seed and one learning rate, not 2"):
        plan.plan_runs(settings("finetune", seeds=[1, 2]), PromptSettings(), OptimizerSettings(), TASKS)


def test_few_shot_rows_depend_on_task_and_seed_alone(tmp_path):
    caches = {name: sized_cache(tmp_path, 40 + n, name) for n, name in enumerate(TASKS)}
    runs = plan.plan_runs(settings("fewshot", seeds=[1, 2]), PromptSettings(), OptimizerSettings(learning_rate=[0.1, 0.3]), TASKS)
    drawn = plan.draw_few_shot(runs, caches, DataSettings(k_shot=4))
    rows = {}
    for run in drawn:
        assert len(run.few_shot) == 4
        assert rows.setdefault((run.task, run.seed), run.few_shot) == run.few_shot
    assert len(set(rows.values())) == 4
    streams = plan.make_streams(drawn, caches, DataSettings(batch_size=3))
    assert [stream.bank_index for stream in streams] == [(n,) for n in range(8)]
    np.testing.assert_array_equal(streams[5].subset[0], drawn[5].few_shot)


def test_targets_start_from_the_source_group_of_their_seed(tmp_path):
    source = new_bank(2, 2)
    train = settings(seeds=[7, 9], source_dir=save_run(tmp_path / "source", source, ["s", "t"] * 2, [9, 9, 7, 7]))
    prompt = PromptSettings(length=LENGTH)
    runs = plan.plan_runs(train, prompt, OptimizerSettings(), ("a",))
    bank = plan.make_bank(runs, train, prompt, frozen(), byte_vocabulary())
    np.testing.assert_array_equal(bank.shared_GPD, source.shared_GPD[[1, 0]])
    np.testing.assert_allclose(bank.cols_NPR[0], source.cols_NPR[2:].mean(0), rtol=1e-6)


def test_a_teacher_for_each_run_of_the_same_seed_where_there_is_one(tmp_path):
    teachers = new_bank(3, 1, rank=0)
    folder = save_run(tmp_path / "teachers", teachers, ["a", "b", "a"], [1, 1, 2])
    train = settings("source", seeds=[2], teacher_dir=folder)
    aligned = DistillationSettings(hidden_positions="all")
    runs = plan.plan_runs(train, PromptSettings(), OptimizerSettings(), TASKS)
    prompts = plan.teacher_prompts(runs, train, aligned, PromptSettings(length=LENGTH), frozen())
    np.testing.assert_array_equal(prompts, np.asarray(compose_all(teachers))[[2, 1]])
    with pytest.raises(UserError, match="compares prompts of one length; teachers have 3, PROMPT_LENGTH is 5"):
        plan.teacher_prompts(runs, train, aligned, PromptSettings(length=5), frozen())
    with pytest.raises(UserError, match="no teacher for source task c .it has a, b."):
        other = plan.plan_runs(train, PromptSettings(), OptimizerSettings(), ("a", "c"))
        plan.teacher_prompts(other, train, DistillationSettings(), PromptSettings(length=LENGTH), frozen())
    assert plan.teacher_prompts(runs, train, DistillationSettings(weight=0.0), PromptSettings(), frozen()) is None


def test_a_run_that_is_not_finished_is_refused_as_source_and_as_teacher(tmp_path):
    folder = save_run(tmp_path / "run", new_bank(1, 2), TASKS, [1, 1], step=120, train_steps=300)
    prompt = PromptSettings(length=LENGTH)
    source, teacher = settings(source_dir=folder), settings("source", teacher_dir=folder)
    runs = plan.plan_runs(teacher, prompt, OptimizerSettings(), TASKS)
    for train, setting, read in (
        (source, "SOURCE_DIR", lambda train: plan.make_bank(runs, train, prompt, frozen(), byte_vocabulary())),
        (teacher, "TEACHER_DIR", lambda train: plan.teacher_prompts(runs, train, DistillationSettings(), prompt, frozen())),
    ):
        with pytest.raises(UserError, match=f"{setting} = .*run' is not finished: step 120 of 300.*--gin.ALLOW_UNFINISHED=True"):
            read(train)
        assert read(dataclasses.replace(train, allow_unfinished=True)) is not None


@pytest.mark.parametrize(
    "best_step_G, train, finished",
    [
        ([30, 60], {"train_steps": 300, "eval_steps": 30, "patience": 2}, True),
        ([30, 90], {"train_steps": 300, "eval_steps": 30, "patience": 2}, False),  # the second group goes on
        ([60, 60], {"train_steps": 300, "eval_steps": 0, "patience": 2}, True),  # scored every 30 steps
        ([30, 60], {"train_steps": 300, "eval_steps": 30, "patience": 0}, False),
        (None, {"train_steps": 120}, True),
        (None, {"train_steps": 121}, False),
        (None, {}, True),
    ],
)
def test_a_run_that_its_patience_stopped_is_finished(tmp_path, best_step_G, train, finished):
    folder = save_run(tmp_path / "run", new_bank(2, 1), TASKS, [1, 1], best_step_G=best_step_G, step=120, **train)
    assert plan.is_finished(load(folder)) is finished


def test_more_runs_than_one_program_takes_are_refused_before_anything_is_made():
    train, optimizer = settings(seeds=list(range(5_000))), OptimizerSettings(learning_rate=[0.1, 0.3])
    with pytest.raises(UserError, match="make 20,000 runs; one program takes 10,000"):
        plan.plan_runs(train, PromptSettings(), optimizer, TASKS)


def test_a_group_trains_at_the_rates_of_its_first_run():
    optimizer = OptimizerSettings(learning_rate=[0.1, 0.3], factor_learning_rate=0.4)
    runs = plan.plan_runs(settings("source"), PromptSettings(), optimizer, TASKS)
    assert {name: rate_G.tolist() for name, rate_G in plan.rates(runs).items()} == {
        "prompt": [np.float32(0.1), np.float32(0.3)], "weights": [np.float32(0.1), np.float32(0.3)], "factors": [np.float32(0.4)] * 2,
    }  # fmt: skip


def test_without_transfer_prompts_start_from_the_vocabulary():
    prompt = PromptSettings(length=LENGTH, rank=0, transfer="none")
    runs = plan.plan_runs(settings(seeds=[1, 2]), prompt, OptimizerSettings(), ("a",))
    bank = plan.make_bank(runs, settings(), prompt, frozen(), byte_vocabulary())
    embedding = np.asarray(backbone()["backbone/token_embedder/embedding"])
    for vector in bank.shared_GPD.reshape(-1, CONFIG.d_model):
        assert np.any(np.all(embedding == vector, axis=1))
    assert not np.array_equal(bank.shared_GPD[0], bank.shared_GPD[1])
