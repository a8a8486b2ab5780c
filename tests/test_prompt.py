"""Prompt tuning and MPT as a method: what it puts in front of the input, where prompts start, and transfer to targets."""

import numpy as np
import pytest
from tiny_model import random_bank

from mpt_jax.config import PromptSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt
from mpt_jax.methods.bank import PromptBank, compose_all
from mpt_jax.methods.method import take


def test_each_example_has_its_composed_prompt_in_front_of_its_unchanged_input():
    bank = random_bank()
    task_id_B, embedded_BLD = np.array([5, 0, 3]), np.ones((3, 7, 5), np.float32)
    own = take(prompt.paths_of(bank), prompt.METHOD.parts, bank.group_N, task_id_B)
    adapted = prompt.adapt(own, embedded_BLD, np.ones((3, 7), bool))
    np.testing.assert_array_equal(adapted.prefix_UPD, np.asarray(compose_all(bank))[task_id_B])
    assert adapted.embedded_BLD is embedded_BLD
    given = prompt.GIVEN.adapt({"prompt": adapted.prefix_UPD}, embedded_BLD, None)
    assert given.prefix_UPD is adapted.prefix_UPD and given.embedded_BLD is embedded_BLD


def test_the_bank_among_arrays_by_path():
    bank = random_bank()
    found = prompt.bank_of(prompt.paths_of(bank) | {"backbone/x": 0}, bank.group_N)
    for array, wanted in zip(found, bank, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert prompt.bank_of({"backbone/x": 0}, bank.group_N) is None


def test_the_bank_of_a_run_is_taken_alone_where_it_is_all_that_was_trained():
    """run.json must be of the run: nothing else gives a row of the bank its task."""
    bank = random_bank(groups=1, tasks_each=4)
    trained, run = prompt.paths_of(bank), {"runs": [{"task": "a", "group": 0, "seed": 0}] * 4}
    np.testing.assert_array_equal(prompt.bank_alone(trained, run, "x").cols_NPR, bank.cols_NPR)
    assert prompt.bank_alone({"backbone/x": np.ones(3)}, run, "x") is None
    with pytest.raises(UserError, match="run 'x' trained weights of the backbone together with its prompts"):
        prompt.bank_alone({**trained, "backbone/x": np.ones(3)}, run, "x")
    with pytest.raises(UserError, match=r"names 3 runs in 1 groups, 'bank/cols' of the checkpoint has shape \(4, "):
        prompt.bank_alone(trained, {"runs": run["runs"][:3]}, "x")
    with pytest.raises(UserError, match="run.json' lacks runs"):
        prompt.bank_alone(trained, {}, "x")


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_start_at_the_shared_prompt(rank):
    settings = PromptSettings(length=4, rank=rank)
    bank = PromptBank(random_bank(1, 3).shared_GPD, *prompt.init_factors(settings, 3, 5, 7), np.zeros(3, np.int32))
    np.testing.assert_allclose(compose_all(bank), np.repeat(bank.shared_GPD, 3, axis=0), rtol=1e-6)


def test_further_ranks_are_not_all_alike():
    cols, rows = prompt.init_factors(PromptSettings(length=4, rank=3), 2, 5, 7)
    assert np.all(cols[:, :, 1:] == 0) and len(np.unique(rows[:, 1:])) == 2 * 2 * 5


def test_normal_factors_have_the_spread_that_was_set():
    cols, rows = prompt.init_factors(PromptSettings(length=100, rank=2, factor_init="normal", factor_init_scale=0.5), 4, 200, 7)
    assert cols.shape == (4, 100, 2) and rows.shape == (4, 2, 200)
    assert abs(cols.std() - 0.5) < 0.05 and abs(rows.std() - 0.5) < 0.05


def test_init_from_vocabulary_draws_different_rows_of_the_first_ones():
    embedding = np.arange(50 * 3, dtype=np.float32).reshape(50, 3)
    settings = PromptSettings(length=8, init_vocabulary_rows=20)
    drawn = prompt.init_prompt(settings, embedding, seed=1)
    rows = (drawn[:, 0] / 3).astype(int)
    assert len(set(rows)) == 8 and max(rows) < 20
    np.testing.assert_array_equal(drawn, embedding[rows])
    assert not np.array_equal(drawn, prompt.init_prompt(settings, embedding, seed=2))


def test_init_from_uniform_numbers_stays_in_its_range():
    drawn = prompt.init_prompt(PromptSettings(length=40, init="uniform", init_uniform_scale=0.25), np.zeros((9, 30)), seed=1)
    assert drawn.shape == (40, 30) and drawn.dtype == np.float32
    assert 0.24 < np.abs(drawn).max() <= 0.25


def test_init_from_text_repeats_its_tokens():
    embedding = np.arange(12, dtype=np.float32).reshape(6, 2)
    settings = PromptSettings(length=5, init="text", init_text="x")
    np.testing.assert_array_equal(prompt.init_prompt(settings, embedding, 0, text_ids=[4, 2]), embedding[[4, 2, 4, 2, 4]])
    with pytest.raises(UserError, match="needs a text: set PromptSettings.init_text"):
        prompt.init_prompt(settings, embedding, 0, text_ids=[])


def test_init_from_file_checks_the_shape(tmp_path):
    path = tmp_path / "prompt.npy"
    np.save(path, np.ones((4, 5), np.float32))
    settings = PromptSettings(length=4, init="file", init_file=str(path))
    assert prompt.init_prompt(settings, np.zeros((9, 5)), 0).shape == (4, 5)
    with pytest.raises(UserError, match=r"\(4, 5\); PROMPT_LENGTH and backbone need \(4, 6\)"):
        prompt.init_prompt(settings, np.zeros((9, 6)), 0)


NAMES = ["a", "b", "c"]


def test_transfer_by_mean_gives_the_mean_factors():
    source = random_bank(1, 3, rank=1)
    target = prompt.transfer(source, NAMES, PromptSettings(length=4), 2, seed=0)
    np.testing.assert_array_equal(target.shared_GPD, source.shared_GPD)
    for got, mean in ((target.cols_NPR, source.cols_NPR.mean(0)), (target.rows_NRD, source.rows_NRD.mean(0))):
        np.testing.assert_allclose(got, np.stack([mean, mean]), rtol=1e-6)


def test_transfer_of_one_task_gives_its_prompt():
    source = random_bank(1, 3, rank=1)
    target = prompt.transfer(source, NAMES, PromptSettings(length=4, transfer="task", transfer_task="b"), 1, seed=0)
    np.testing.assert_array_equal(compose_all(target)[0], compose_all(source)[1])


def test_transfer_of_the_shared_prompt_starts_at_it():
    source = random_bank(1, 3, rank=1)
    target = prompt.transfer(source, NAMES, PromptSettings(length=4, transfer="shared"), 2, seed=0)
    np.testing.assert_array_equal(compose_all(target), np.repeat(source.shared_GPD, 2, axis=0))


def test_transfer_to_plain_prompts_composes():
    source = random_bank(1, 3, rank=1)
    target = prompt.transfer(source, NAMES, PromptSettings(length=4, rank=0), 1, seed=0)
    assert target.cols_NPR is None
    np.testing.assert_allclose(target.shared_GPD[0], np.mean(compose_all(source), axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    "settings, message",
    [
        (PromptSettings(length=9), "set --gin.PROMPT_LENGTH=4"),
        (PromptSettings(length=4, rank=2), "PromptSettings.rank=1"),
        (PromptSettings(length=4, transfer="task", transfer_task="z"), "'z' is not a task of SOURCE_DIR: a, b, c"),
    ],
)
def test_transfer_that_does_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        prompt.transfer(random_bank(1, 3, rank=1), NAMES, settings, 1, seed=0)


def test_transfer_of_several_tasks_takes_the_mean_of_their_factors():
    source = random_bank(1, 3, rank=1)
    target = prompt.transfer(source, NAMES, PromptSettings(length=4, transfer="task", transfer_task=["a", "c"]), 1, seed=0)
    np.testing.assert_allclose(target.cols_NPR[0], source.cols_NPR[[0, 2]].mean(0), rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_teachers_with_prompts_of_their_own_are_a_source(rank):
    """Each task of a teacher run is a group of its own, under each seed and rate."""
    bank = random_bank(groups=6, tasks_each=1)._replace(cols_NPR=None, rows_NRD=None)
    rows = [
        {"task": task, "group": number, "seed": seed, "learning_rate": 0.1}
        for number, (seed, task) in enumerate((seed, task) for seed in (3, 4) for task in NAMES)
    ]
    for seed, first in ((4, 3), (9, 0)):  # its own seed's, or the first seed's
        found, names = prompt.source_runs(prompt.paths_of(bank), {"runs": rows}, seed)
        settings = PromptSettings(length=bank.shared_GPD.shape[1], rank=rank, transfer="task", transfer_task="c")
        target = prompt.transfer(found, names, settings, 1, seed=0)
        assert names == NAMES
        np.testing.assert_allclose(compose_all(target)[0], bank.shared_GPD[first + 2], rtol=1e-6)


def test_texts_and_source_tasks_may_be_given_for_each_task():
    settings = PromptSettings(init="text", init_text={"a": "one", "b": "two"}, transfer_task={"a": ["x", "y"], "b": "x"})
    assert settings.init_texts == ("one", "two")
    own = prompt.settings_of_task(settings, "a")
    assert own.init_text == "one" and own.transfer_task == ["x", "y"]
    with pytest.raises(UserError, match="init_text has nothing for task 'c': it has a, b"):
        prompt.settings_of_task(settings, "c")
    with pytest.raises(UserError, match=r"init_text = \{'a': 3\} holds 3, which is not a text"):
        PromptSettings(init_text={"a": 3})
    with pytest.raises(UserError, match="transfer_task = .* holds 5, which is not a text"):
        PromptSettings(transfer_task={"a": ["x", 5]})
