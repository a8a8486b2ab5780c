"""Greedy decoding: the cached loop against full forward passes, end of sequence, prompts of mixed tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import rows_of, run_forward, tiny, weights

from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.bank import PromptBank, select
from mpt_jax.methods.method import take
from mpt_jax.methods.prompt import METHOD, paths_of
from mpt_jax.model.families.family import Network, Rows

CONFIG = tiny(vocab_size=40, num_decoder_layers=2)
STEPS, EOS = 6, 1
WITH_PROMPTS, ALONE = Network(CONFIG, adaptation=METHOD.adaptation), Network(CONFIG)


def prompts_of(bank, task_id_B) -> dict:
    """The bank's arrays of each example."""
    return take(paths_of(bank), METHOD.parts, bank.group_N, np.asarray(task_id_B, np.int32))


def greedy(backbone, own, inputs, steps=STEPS, limit_B=None, ends=(EOS,), pad=0):
    """Tokens (B, T) of the network with prompts, or without where there are none."""
    network, rows = (WITH_PROMPTS if own else ALONE), inputs if isinstance(inputs, Rows) else rows_of(inputs)
    return np.asarray(greedy_decode(network, backbone, own or {}, rows, steps, ends, limit_B, pad))


@pytest.fixture(scope="module")
def backbone():
    # larger weights than T5's, so that answers differ from row to row
    return jax.tree.map(lambda array: 3.0 * array, weights(CONFIG))


@pytest.fixture(scope="module")
def bank():
    rng = np.random.default_rng(1)
    cols, rows = rng.normal(size=(3, 5, 1)), rng.normal(size=(3, 1, 16))
    shared = 3.0 * rng.normal(size=(1, 5, 16))
    arrays = (jnp.asarray(array, jnp.float32) for array in (shared, cols, rows))
    return PromptBank(*arrays, np.zeros(3, np.int32))


@pytest.fixture(scope="module")
def inputs_BL():
    inputs = np.random.default_rng(2).integers(2, 40, (6, 9)).astype(np.int32)
    inputs[3, 5:] = 0
    return inputs


def decode_without_cache(backbone, own, inputs_BL, steps, ends=(EOS,)):
    """The same by a full forward pass for each token."""
    batch = len(inputs_BL)
    tokens_BT, done_B = np.zeros((batch, steps), np.int32), np.zeros(batch, bool)
    for step in range(steps):
        rows = rows_of(inputs_BL)._replace(targets_BT=tokens_BT, target_length_B=np.full(batch, steps, np.int32))
        logits_BTV = np.asarray(run_forward(WITH_PROMPTS if own else ALONE, backbone, rows, own).logits_BTV)
        tokens_BT[:, step] = np.where(done_B, 0, logits_BTV[:, step].argmax(-1))
        done_B |= np.isin(tokens_BT[:, step], ends)
    return tokens_BT


def test_cache_gives_the_tokens_of_full_forward_passes(backbone, bank, inputs_BL):
    own = prompts_of(bank, [0, 1, 2, 0, 1, 2])
    expected = decode_without_cache(backbone, own, inputs_BL, STEPS)
    assert len(np.unique(expected)) > 3  # not one token throughout
    np.testing.assert_array_equal(greedy(backbone, own, inputs_BL), expected)


def test_without_a_prompt(backbone, inputs_BL):
    np.testing.assert_array_equal(greedy(backbone, None, inputs_BL), decode_without_cache(backbone, None, inputs_BL, STEPS))


def test_each_row_gets_its_own_task_prompt(backbone, bank, inputs_BL):
    task_id_B = np.array([2, 0, 1, 1, 0, 2], np.int32)
    mixed = greedy(backbone, prompts_of(bank, task_id_B), inputs_BL)
    for task in range(3):
        of_task = greedy(backbone, prompts_of(bank, [task] * 6), inputs_BL)
        np.testing.assert_array_equal(mixed[task_id_B == task], of_task[task_id_B == task])
    other = greedy(backbone, prompts_of(bank, [0, 1, 2, 2, 1, 0]), inputs_BL)
    assert (mixed != other).any(axis=1).sum() >= 4
    assert (mixed != greedy(backbone, None, inputs_BL)).any()


def test_padding_may_be_any_id(backbone, bank, inputs_BL):
    own, rows = prompts_of(bank, [0, 1, 2, 0, 1, 2]), rows_of(inputs_BL)
    other = rows._replace(inputs_BL=np.where(inputs_BL == 0, 17, inputs_BL))
    np.testing.assert_array_equal(greedy(backbone, own, other), greedy(backbone, own, rows))


def test_nothing_follows_an_end_of_sequence(backbone, bank, inputs_BL):
    """With any tokens as ends, and any id for padding."""
    own = prompts_of(bank, [0, 1, 2, 0, 1, 2])
    plain = greedy(backbone, own, inputs_BL, ends=())
    ends = int(plain[0, 1]), int(plain[1, 2])
    tokens = greedy(backbone, own, inputs_BL, ends=ends)
    np.testing.assert_array_equal(tokens, decode_without_cache(backbone, own, inputs_BL, STEPS, ends))
    padded = greedy(backbone, own, inputs_BL, ends=ends, pad=39)
    stopped = 0
    for row, other, free in zip(tokens, padded, plain, strict=True):
        first = np.flatnonzero(np.isin(free, ends))
        kept = first[0] + 1 if len(first) else STEPS
        np.testing.assert_array_equal(row[:kept], free[:kept])
        assert (row[kept:] == 0).all() and (other[kept:] == 39).all() and (other[:kept] == row[:kept]).all()
        stopped += kept < STEPS
    assert stopped >= 2


def test_limits_end_rows_one_by_one(backbone, inputs_BL):
    full = greedy(backbone, None, inputs_BL)
    limit_B = np.array([0, 1, 2, 3, STEPS, 5], np.int32)
    tokens = greedy(backbone, None, inputs_BL, limit_B=limit_B)
    for row, limit in enumerate(limit_B):
        np.testing.assert_array_equal(tokens[row, :limit], full[row, :limit])
        assert (tokens[row, limit:] == 0).all()


def test_compiled_once_for_any_bank_and_limits(backbone, bank, inputs_BL):
    before = greedy_decode._cache_size()
    for number in (1, 2, 3):
        part = select(bank, list(range(number)))
        greedy(backbone, prompts_of(part, [0] * 6), inputs_BL, 7, np.full(6, number, np.int32))
    assert greedy_decode._cache_size() == before + 1
