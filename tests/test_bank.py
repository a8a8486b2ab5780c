"""The prompt bank's arrays against plain loops."""

import numpy as np
import pytest
from tiny_model import random_bank

from mpt_jax.config import PromptSettings
from mpt_jax.methods.bank import PromptBank, bank_from, compose, compose_all, product, select, stack_groups
from mpt_jax.methods.prompt import init_factors


def same(found: PromptBank, expected: PromptBank) -> None:
    for array, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_compose_is_the_loop_over_examples():
    bank = random_bank()
    task_id_B = np.array([5, 0, 3, 3])
    expected = [bank.shared_GPD[bank.group_N[n]] * (bank.cols_NPR[n] @ bank.rows_NRD[n]) for n in task_id_B]
    np.testing.assert_allclose(compose(bank, task_id_B), expected, rtol=1e-6)


def test_compose_without_factors_gives_the_group_prompt():
    bank = PromptBank(random_bank().shared_GPD, None, None, np.array([0, 1, 1], np.int32))
    np.testing.assert_array_equal(compose(bank, np.array([2, 0])), bank.shared_GPD[[1, 0]])
    np.testing.assert_array_equal(product(bank.shared_GPD), bank.shared_GPD)


def test_the_arrays_that_train_make_the_bank_again():
    for bank in (random_bank(), random_bank()._replace(cols_NPR=None, rows_NRD=None)):
        assert set(bank.trainable()) == ({"shared", "cols", "rows"} if bank.cols_NPR is not None else {"shared"})
        same(bank_from(bank.trainable(), bank.group_N), bank)


def test_select_keeps_the_prompts():
    bank = random_bank()
    chosen = select(bank, [4, 1])
    np.testing.assert_array_equal(compose_all(chosen), np.asarray(compose_all(bank))[[4, 1]])
    assert len(select(bank, [4, 5]).shared_GPD) == 1


def test_stacked_banks_keep_their_prompts_and_number_their_groups_on():
    bank = random_bank()
    parts = [select(bank, [0, 1, 2]), select(bank, [3, 4, 5])]
    same(stack_groups(parts), bank)
    plain = [part._replace(cols_NPR=None, rows_NRD=None) for part in parts]
    assert stack_groups(plain).cols_NPR is None and stack_groups(plain).group_N.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("tasks, expected", [(1, 77_668), (8, 10_468)])
def test_parameter_counts_of_the_paper(tasks, expected):
    """77,668 = 100 * 768 + 100 + 768 for one target; 10,468 each for eight that share P* [MPT table 1]."""
    shared = np.zeros((1, 100, 768), np.float32)
    bank = PromptBank(shared, *init_factors(PromptSettings(length=100), tasks, 768, 0), np.zeros(tasks, np.int32))
    total = sum(array.size for array in bank.trainable().values())
    assert total // tasks == expected and total == 100 * 768 + tasks * 868
