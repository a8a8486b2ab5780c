"""Greedy decoding: the cached loop against full forward passes, end of sequence, prompts of mixed tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax.config import T5Config
from mpt_jax.infer.decode import EOS, greedy_decode, prompts_of
from mpt_jax.model import prompt_bank
from mpt_jax.model.prompted_t5 import forward, init_backbone

CONFIG = T5Config("tiny", 40, 16, 2, 8, 32, 1, 2)
STEPS = 6
plain_forward = jax.jit(lambda *arrays: forward(CONFIG, *arrays).logits_BTV)


@pytest.fixture(scope="module")
def backbone():
    # larger weights than T5's, so that answers differ from row to row
    return jax.tree.map(lambda array: 3.0 * array, jax.jit(init_backbone, static_argnums=0)(CONFIG, 0))


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(1)
    cols, rows = rng.normal(size=(3, 5, 1)), rng.normal(size=(3, 1, 16))
    shared = 3.0 * rng.normal(size=(1, 5, 16))
    arrays = (jnp.asarray(array, jnp.float32) for array in (shared, cols, rows))
    return prompt_bank.PromptBank(*arrays, np.zeros(3, np.int32))


@pytest.fixture(scope="module")
def inputs_BL():
    inputs = np.random.default_rng(2).integers(2, 40, (6, 9)).astype(np.int32)
    inputs[3, 5:] = 0
    return inputs


def decode_without_cache(backbone, prompt_BPD, inputs_BL, steps):
    """The same by a full forward pass for each token."""
    batch = len(inputs_BL)
    tokens_BT, done_B = np.zeros((batch, steps), np.int32), np.zeros(batch, bool)
    for step in range(steps):
        logits_BTV = np.asarray(plain_forward(backbone, prompt_BPD, inputs_BL, tokens_BT))
        tokens_BT[:, step] = np.where(done_B, 0, logits_BTV[:, step].argmax(-1))
        done_B |= tokens_BT[:, step] == EOS
    return tokens_BT


def test_cache_gives_the_tokens_of_full_forward_passes(backbone, bank, inputs_BL):
    task_id_B = np.array([0, 1, 2, 0, 1, 2], np.int32)
    prompt_BPD = prompts_of(bank, task_id_B)
    expected = decode_without_cache(backbone, prompt_BPD, inputs_BL, STEPS)
    assert len(np.unique(expected)) > 3  # not one token throughout
    np.testing.assert_array_equal(greedy_decode(CONFIG, backbone, prompt_BPD, inputs_BL, STEPS), expected)


def test_without_a_prompt(backbone, inputs_BL):
    expected = decode_without_cache(backbone, None, inputs_BL, STEPS)
    assert prompts_of(None, np.zeros(6, np.int32)) is None
    np.testing.assert_array_equal(greedy_decode(CONFIG, backbone, None, inputs_BL, STEPS), expected)


def test_each_row_gets_its_own_task_prompt(backbone, bank, inputs_BL):
    task_id_B = np.array([2, 0, 1, 1, 0, 2], np.int32)
    mixed = np.asarray(greedy_decode(CONFIG, backbone, prompts_of(bank, task_id_B), inputs_BL, STEPS))
    for task in range(3):
        alone = prompts_of(bank, np.full(6, task, np.int32))
        of_task = np.asarray(greedy_decode(CONFIG, backbone, alone, inputs_BL, STEPS))
        np.testing.assert_array_equal(mixed[task_id_B == task], of_task[task_id_B == task])
    other = np.asarray(greedy_decode(CONFIG, backbone, prompts_of(bank, task_id_B[::-1].copy()), inputs_BL, STEPS))
    assert (mixed[[0, 1, 4, 5]] == other[[0, 1, 4, 5]]).all()  # a palindrome but for the middle
    assert (mixed != greedy_decode(CONFIG, backbone, None, inputs_BL, STEPS)).any()


def test_nothing_follows_the_end_of_sequence(backbone, bank, inputs_BL):
    prompt_BPD = prompts_of(bank, np.array([0, 1, 2, 0, 1, 2], np.int32))
    plain = np.asarray(greedy_decode(CONFIG, backbone, prompt_BPD, inputs_BL, STEPS))
    # rename the vocabulary so that a token that row 0 gives second is the end of sequence
    token = int(plain[0, 1])
    swap = np.arange(CONFIG.vocab_size)
    swap[[EOS, token]] = token, EOS
    swapped = {**backbone, "decoder": {**backbone["decoder"]}}
    swapped["decoder"]["logits_dense"] = {"kernel": backbone["decoder"]["logits_dense"]["kernel"][:, swap]}
    tokens = np.asarray(greedy_decode(CONFIG, swapped, prompt_BPD, inputs_BL, STEPS))
    assert (tokens[0] == EOS).sum() == 1
    for row in tokens:
        ends = np.flatnonzero(row == EOS)
        assert not len(ends) or (row[ends[0] + 1 :] == 0).all()
    np.testing.assert_array_equal(tokens, decode_without_cache(swapped, prompt_BPD, inputs_BL, STEPS))


def test_limits_end_rows_one_by_one(backbone, inputs_BL):
    full = np.asarray(greedy_decode(CONFIG, backbone, None, inputs_BL, STEPS))
    limit_B = np.array([0, 1, 2, 3, STEPS, 5], np.int32)
    tokens = np.asarray(greedy_decode(CONFIG, backbone, None, inputs_BL, STEPS, limit_B))
    for row, limit in enumerate(limit_B):
        np.testing.assert_array_equal(tokens[row, :limit], full[row, :limit])
        assert (tokens[row, limit:] == 0).all()


def test_compiled_once_for_any_bank_and_limits(backbone, bank, inputs_BL):
    before = greedy_decode._cache_size()
    for number in (1, 2, 3):
        part = prompt_bank.select(bank, list(range(number)))
        limit_B = np.full(6, number, np.int32)
        greedy_decode(CONFIG, backbone, prompts_of(part, np.zeros(6, np.int32)), inputs_BL, 7, limit_B)
    assert greedy_decode._cache_size() == before + 1
