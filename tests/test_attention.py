"""Attention: by keys and values, and to the encoder's output itself, which is the same; the kernel is chosen in test_fused_attention.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import given, own, rows_of, tiny, weights

from mpt_jax.config import Computation
from mpt_jax.model.attention import MASKED, Bias, KeysValues, States, attend
from mpt_jax.model.families.t5_operations import FEW_POSITIONS
from mpt_jax.model.network import decode_targets, forward, prefill

CONFIG = tiny(vocab_size=60, head_dim=16, num_encoder_layers=2, num_decoder_layers=2)


def arrays(seed: int, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.slow
def test_attending_to_states_equals_attending_to_their_keys_and_values():
    """float32, values and gradients towards queries and states, with masked positions: within 1e-4 of values near 10."""
    query, states, key, value = arrays(0, (2, 3, 4, 8), (2, 7, 16), (16, 4, 8), (16, 4, 8))
    bias = Bias(None, jnp.where(jnp.arange(7) < jnp.array([[7], [4]]), 0.0, MASKED)[:, None, None, :])

    def by_keys(query, states):
        projected = (jnp.einsum("BSD,DHK->BSHK", states, kernel) for kernel in (key, value))
        return KeysValues(*projected).attend(Computation(), query, bias)

    def by_states(query, states):
        return States(states, key, value).attend(Computation(), query, bias)

    np.testing.assert_allclose(by_states(query, states), by_keys(query, states), atol=1e-4)
    weight = arrays(1, (2, 3, 4, 8))[0]
    grads = [jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weight), argnums=(0, 1))(query, states) for f in (by_keys, by_states)]
    for keyed, folded in zip(*grads, strict=True):
        np.testing.assert_allclose(folded, keyed, atol=1e-4)


def test_attention_is_a_softmax_over_the_keys_that_may_be_seen():
    """Against a loop over heads in NumPy, float64: within 1e-5."""
    query, key, value = arrays(3, (2, 3, 2, 8), (2, 5, 2, 8), (2, 5, 2, 8))
    seen = np.arange(5) < np.array([[5], [2]])
    position_1HYZ = arrays(4, (1, 2, 3, 5))[0]
    bias = Bias(position_1HYZ, jnp.where(jnp.asarray(seen), 0.0, MASKED)[:, None, None, :])
    found = np.asarray(attend(query, key, value, bias))
    for b in range(2):
        for h in range(2):
            logits = np.asarray(query[b, :, h], np.float64) @ np.asarray(key[b, :, h]).T + np.asarray(position_1HYZ[0, h])
            weight = np.exp(logits) * seen[b]
            np.testing.assert_allclose(found[b, :, h], weight @ np.asarray(value[b, :, h]) / weight.sum(1, keepdims=True), atol=1e-5)


@pytest.mark.slow
def test_few_target_positions_give_the_logits_of_many():
    """Teacher-forced logits of 4 = K / 4 targets, by keys and values and without; and no keys are made for few."""
    params, network = weights(CONFIG), given(CONFIG)
    rng = np.random.default_rng(0)
    inputs_BL, targets_BT = rng.integers(2, 60, (3, 9)).astype(np.int32), rng.integers(2, 60, (3, 4)).astype(np.int32)
    inputs_BL[1, 5:] = 0
    assert targets_BT.shape[1] == CONFIG.head_dim // FEW_POSITIONS
    prompts = own(arrays(2, (3, 5, CONFIG.d_model))[0])
    logits = {}
    for positions in (None, 4, 5):
        prefilled = prefill(network, params, rows_of(inputs_BL), prompts, positions)
        assert {type(cross) for cross in prefilled.cross} == {States if positions == 4 else KeysValues}
        logits[positions] = decode_targets(network, params, prefilled, targets_BT).logits_BTV
    np.testing.assert_allclose(logits[4], logits[None], atol=1e-5)
    np.testing.assert_array_equal(logits[5], logits[None])
    outputs = forward(network, params, rows_of(inputs_BL, targets_BT), prompts)
    np.testing.assert_allclose(outputs.logits_BTV, logits[None], atol=1e-5)
