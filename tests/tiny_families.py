"""Tiny backbones of many families: shapes, random weights from numpy alone, rows of unequal lengths, and what our networks make of them."""

import functools

import jax
import numpy as np

from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.families.t5_config import ACTIVATIONS, T5Config
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import unflatten
from mpt_jax.model.network import forward

V, D, P, STEPS = 60, 16, 5, 6
INPUT_LENGTHS, TARGET_LENGTHS = np.array([9, 6, 3], np.int32), np.array([4, 2, 3], np.int32)
ENDS = (1,)


def t5(**changes) -> T5Config:
    """A T5 of 3 + 2 layers."""
    return T5Config(**{"name": "custom", "vocab_size": V, "d_model": D, "num_heads": 2, "head_dim": 8, "d_ff": 32,
                       "num_encoder_layers": 3, "num_decoder_layers": 2, **changes})  # fmt: skip


T5S = {
    "ul2": t5(mlp_activations=ACTIVATIONS["gated-silu"]),
    "umt5": t5(relative_bias_per_layer=True),
    "umt5_tied": t5(relative_bias_per_layer=True, logits_via_embedding=True),
    # CodeT5+: T5 v1.0 with ids of its own
    "codet5p": t5(mlp_activations=("relu",), logits_via_embedding=True, decoder_start_id=5),
}


@functools.cache
def weights(config, seed: int = 0) -> dict:
    """Random weights, nested, larger than a network starts with, so that logits and tokens vary; not to be changed."""
    rng = np.random.default_rng(seed)

    def make(path, shape):
        centre = 0.0 if getattr(config, "norm_plus_one", False) else 1.0
        return rng.uniform(centre - 0.5, centre + 0.5, shape) if path.endswith("scale") else rng.normal(0.0, 0.25, shape)

    return unflatten((entry.ours, make(entry.ours, entry.shape).astype(np.float32)) for entry in names.entries(config))


def rows(config, seed: int = 1) -> Rows:
    """Three rows of unequal lengths, filled up with ids that are tokens, too."""
    rng = np.random.default_rng(seed)
    inputs_BL, targets_BT = (rng.integers(2, config.vocab_size, (3, size)).astype(np.int32) for size in (9, 4))
    return Rows(inputs_BL, INPUT_LENGTHS, targets_BT, TARGET_LENGTHS)


def prompts(config, seed: int = 2) -> np.ndarray:
    """A prompt for each row: (B, P, D)."""
    return np.random.default_rng(seed).normal(size=(3, P, config.d_model)).astype(np.float32)


def given(config, prompted: bool) -> tuple[Network, dict | None]:
    """(the network, the method's parameters of each row): a prompt each, or nothing."""
    return (Network(config, adaptation=GIVEN), {"prompt": prompts(config)}) if prompted else (Network(config), None)


def ours(config, prompted: bool) -> dict[str, np.ndarray]:
    """Logits at real target positions, one after the other, and greedy tokens (B, STEPS)."""
    network, own = given(config, prompted)
    batch, params = rows(config), weights(config)
    logits_BTV = np.asarray(jax.jit(forward, static_argnums=0)(network, params, batch, own).logits_BTV)
    tokens_BT = greedy_decode(network, params, own, batch._replace(targets_BT=None, target_length_B=None), STEPS, ENDS)
    return {"logits": real_only(logits_BTV), "tokens": np.asarray(tokens_BT)}


def real_only(logits_BTV) -> np.ndarray:
    """Of logits (B, T, V) those of real target positions, row after row."""
    return np.concatenate([np.asarray(row_TV)[:length] for row_TV, length in zip(logits_BTV, TARGET_LENGTHS, strict=True)])


def same(found: dict, expected: dict) -> None:
    """Logits within 1e-4, tokens equal."""
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
