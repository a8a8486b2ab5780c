"""Attention to the encoder's output itself is attention to its keys and values."""

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.config import T5Config
from mpt_jax.model import prompted_t5
from mpt_jax.model.attention import MASKED, Bias, attend, attend_to_states
from mpt_jax.model.t5 import FEW_POSITIONS

CONFIG = T5Config("tiny", 60, 16, 2, 16, 32, 2, 2)


def arrays(seed: int, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_attending_to_states_equals_attending_to_their_keys_and_values():
    """float32, values and gradients towards queries and states, with masked positions: within 1e-4 of values near 10."""
    query, states, key, value = arrays(0, (2, 3, 4, 8), (2, 7, 16), (16, 4, 8), (16, 4, 8))
    bias = Bias(None, jnp.where(jnp.arange(7) < jnp.array([[7], [4]]), 0.0, MASKED)[:, None, None, :])

    def by_keys(query, states):
        project = lambda kernel: jnp.einsum("BSD,DHK->BSHK", states, kernel)  # noqa: E731
        return attend(query, project(key), project(value), bias)

    def by_states(query, states):
        return attend_to_states(query, states, key, value, bias)

    np.testing.assert_allclose(by_states(query, states), by_keys(query, states), atol=1e-4)
    weight = arrays(1, (2, 3, 4, 8))[0]
    grads = [jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weight), argnums=(0, 1))(query, states) for f in (by_keys, by_states)]
    for keyed, folded in zip(*grads, strict=True):
        np.testing.assert_allclose(folded, keyed, atol=1e-4)


def test_few_target_positions_give_the_logits_of_many():
    """Teacher-forced logits of 4 = K / 4 targets, by keys and values and without; and no keys are made for few."""
    params = prompted_t5.init_backbone(CONFIG, 0)
    rng = np.random.default_rng(0)
    inputs_BL, targets_BT = rng.integers(2, 60, (3, 9)).astype(np.int32), rng.integers(2, 60, (3, 4)).astype(np.int32)
    inputs_BL[1, 5:] = 0
    assert targets_BT.shape[1] == CONFIG.head_dim // FEW_POSITIONS
    prompt_BPD = arrays(2, (3, 5, CONFIG.d_model))[0]
    logits = {}
    for positions in (None, 4, 5):
        encoded = prompted_t5.encode(CONFIG, params, prompt_BPD, inputs_BL, positions)
        assert isinstance(encoded.cross[0], tuple) == (positions != 4)
        logits[positions] = prompted_t5.decode_targets(CONFIG, params, encoded, targets_BT)
    np.testing.assert_allclose(logits[4], logits[None], atol=1e-5)
    np.testing.assert_array_equal(logits[5], logits[None])
    forward = prompted_t5.forward(CONFIG, params, prompt_BPD, inputs_BL, targets_BT)
    np.testing.assert_allclose(forward.logits_BTV, logits[None], atol=1e-5)
