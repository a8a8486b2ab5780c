"""The prompt bank against plain loops, its initialisations, and transfer to targets."""

import numpy as np
import pytest

from mpt_jax.config import PromptSettings
from mpt_jax.errors import UserError
from mpt_jax.model import prompt_bank
from mpt_jax.model.prompt_bank import PromptBank


def random_bank(groups=2, tasks_each=3, length=4, width=5, rank=2) -> PromptBank:
    rng = np.random.default_rng(0)
    n = groups * tasks_each
    group_N = np.repeat(np.arange(groups), tasks_each).astype(np.int32)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((groups, length, width), (n, length, rank), (n, rank, width))]
    return PromptBank(*arrays, group_N)


def test_compose_is_the_loop_over_examples():
    bank = random_bank()
    task_id_B = np.array([5, 0, 3, 3])
    expected = [bank.shared_GPD[bank.group_N[n]] * (bank.cols_NPR[n] @ bank.rows_NRD[n]) for n in task_id_B]
    np.testing.assert_allclose(prompt_bank.compose(bank, task_id_B), expected, rtol=1e-6)


def test_compose_without_factors_gives_the_group_prompt():
    bank = PromptBank(random_bank().shared_GPD, None, None, np.array([0, 1, 1], np.int32))
    np.testing.assert_array_equal(prompt_bank.compose(bank, np.array([2, 0])), bank.shared_GPD[[1, 0]])


def test_select_keeps_the_prompts():
    bank = random_bank()
    chosen = prompt_bank.select(bank, [4, 1])
    np.testing.assert_array_equal(prompt_bank.compose_all(chosen), np.asarray(prompt_bank.compose_all(bank))[[4, 1]])
    assert len(prompt_bank.select(bank, [4, 5]).shared_GPD) == 1


@pytest.mark.parametrize("rank", [1, 3])
def test_factors_start_at_the_shared_prompt(rank):
    settings = PromptSettings(length=4, rank=rank)
    bank = PromptBank(random_bank(1, 3).shared_GPD, *prompt_bank.init_factors(settings, 3, 5, 7), np.zeros(3, np.int32))
    np.testing.assert_allclose(prompt_bank.compose_all(bank), np.repeat(bank.shared_GPD, 3, axis=0), rtol=1e-6)


def test_further_ranks_are_not_all_alike():
    cols, rows = prompt_bank.init_factors(PromptSettings(length=4, rank=3), 2, 5, 7)
    assert np.all(cols[:, :, 1:] == 0) and len(np.unique(rows[:, 1:])) == 2 * 2 * 5


def test_parameter_counts_of_the_paper():
    """77,668 = 100 * 768 + 100 + 768 for one target; 10,468 each for eight that share P* [MPT table 1]."""
    settings = PromptSettings(length=100)
    for tasks, expected in ((1, 77_668), (8, 10_468)):
        shared = np.zeros((1, 100, 768), np.float32)
        bank = PromptBank(shared, *prompt_bank.init_factors(settings, tasks, 768, 0), np.zeros(tasks, np.int32))
        assert prompt_bank.count_parameters(bank)[1] == expected


def test_init_from_vocabulary_draws_different_rows_of_the_first_ones():
    embedding = np.arange(50 * 3, dtype=np.float32).reshape(50, 3)
    settings = PromptSettings(length=8, init_vocabulary_rows=20)
    prompt = prompt_bank.init_prompt(settings, embedding, seed=1)
    rows = (prompt[:, 0] / 3).astype(int)
    assert len(set(rows)) == 8 and max(rows) < 20
    np.testing.assert_array_equal(prompt, embedding[rows])
    assert not np.array_equal(prompt, prompt_bank.init_prompt(settings, embedding, seed=2))


def test_init_from_text_repeats_its_tokens():
    embedding = np.arange(12, dtype=np.float32).reshape(6, 2)
    prompt = prompt_bank.init_prompt(PromptSettings(length=5, init="text", init_text="x"), embedding, 0, text_ids=[4, 2])
    np.testing.assert_array_equal(prompt, embedding[[4, 2, 4, 2, 4]])


def test_init_from_file_checks_the_shape(tmp_path):
    path = tmp_path / "prompt.npy"
    np.save(path, np.ones((4, 5), np.float32))
    settings = PromptSettings(length=4, init="file", init_file=str(path))
    assert prompt_bank.init_prompt(settings, np.zeros((9, 5)), 0).shape == (4, 5)
    with pytest.raises(UserError, match=r"\(4, 5\); PROMPT_LENGTH and backbone need \(4, 6\)"):
        prompt_bank.init_prompt(settings, np.zeros((9, 6)), 0)


NAMES = ["a", "b", "c"]


def test_transfer_by_mean_gives_the_mean_factors():
    source = random_bank(1, 3, rank=1)
    target = prompt_bank.transfer(source, NAMES, PromptSettings(length=4), 2, seed=0)
    np.testing.assert_array_equal(target.shared_GPD, source.shared_GPD)
    for got, mean in ((target.cols_NPR, source.cols_NPR.mean(0)), (target.rows_NRD, source.rows_NRD.mean(0))):
        np.testing.assert_allclose(got, np.stack([mean, mean]), rtol=1e-6)


def test_transfer_of_one_task_gives_its_prompt():
    source = random_bank(1, 3, rank=1)
    target = prompt_bank.transfer(source, NAMES, PromptSettings(length=4, transfer="task", transfer_task="b"), 1, seed=0)
    np.testing.assert_array_equal(prompt_bank.compose_all(target)[0], prompt_bank.compose_all(source)[1])


def test_transfer_of_the_shared_prompt_starts_at_it():
    source = random_bank(1, 3, rank=1)
    target = prompt_bank.transfer(source, NAMES, PromptSettings(length=4, transfer="shared"), 2, seed=0)
    np.testing.assert_array_equal(prompt_bank.compose_all(target), np.repeat(source.shared_GPD, 2, axis=0))


def test_transfer_to_plain_prompts_composes():
    source = random_bank(1, 3, rank=1)
    target = prompt_bank.transfer(source, NAMES, PromptSettings(length=4, rank=0), 1, seed=0)
    assert target.cols_NPR is None
    np.testing.assert_allclose(target.shared_GPD[0], np.mean(prompt_bank.compose_all(source), axis=0), rtol=1e-6)


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
        prompt_bank.transfer(random_bank(1, 3, rank=1), NAMES, settings, 1, seed=0)
