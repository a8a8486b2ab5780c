"""Tiny backbones of many families: shapes, random weights from numpy alone, rows of unequal lengths, and what our networks make of them."""

import functools

import numpy as np
from tiny_model import run_forward

from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.families.t5_config import ACTIVATIONS, T5Config
from mpt_jax.model.families.t5gemma_config import T5GemmaConfig
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import unflatten
from mpt_jax.model.rotary import Rotary

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


def gemma(name: str, width: int, **changes) -> CausalConfig:
    """A stack of Gemma 2's layers: the first and the last see a window of 4, and caps that bind."""
    return CausalConfig(**{
        "name": name, "vocab_size": V, "d_model": width, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 32,
        "activation": "gelu", "norm_epsilon": 1e-6, "norm_plus_one": True, "scaled_embedding": True, "post_norms": True,
        "attention_cap": 5.0, "logits_cap": 3.0, "window": 4, "layer_kinds": ("window", "full", "window"), "query_scale": 0.25, **changes,
    })  # fmt: skip


_GEMMA_3 = {"attention_cap": 0.0, "logits_cap": 0.0, "query_key_norm": True, "rotary": Rotary(1e6), "window_rotary": Rotary(1e4)}
T5GEMMAS = {
    # another width, number of layers and of heads on either side, as in 9b-2b
    "t5gemma": T5GemmaConfig("custom", gemma("encoder", D), gemma("decoder", 24, num_layers=2, num_heads=2, num_kv_heads=1,
                                                                   layer_kinds=("window", "full"))),
    "t5gemma_untied": T5GemmaConfig("custom", gemma("encoder", D), gemma("decoder", D, logits_via_embedding=False), decoder_start_id=5),
    "t5gemma2": T5GemmaConfig("custom", gemma("encoder", D, **_GEMMA_3), gemma("decoder", D, **_GEMMA_3), True, True, True),
}  # fmt: skip
LLAMA = CausalConfig("custom", V, D, 3, 4, 2, 8, 32, logits_via_embedding=False)


@functools.cache
def weights(config, seed: int = 2) -> dict:
    """Random weights, nested, larger than a network starts with, so that logits and tokens vary; not to be changed."""
    rng = np.random.default_rng(seed)

    gemma_like = getattr(getattr(config, "encoder", config), "norm_plus_one", False)
    centre = 0.0 if gemma_like else 1.0

    def make(path, shape):
        if path.endswith("scale"):
            return rng.uniform(centre - 0.5, centre + 0.5, shape)
        # Gemma's embedding is scaled, and its output: larger ones would have every token follow itself
        return rng.normal(0.0, 0.1 if gemma_like and path.endswith("embedding") else 0.25, shape)

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
    logits_BTV = np.asarray(run_forward(network, params, batch, own).logits_BTV)
    tokens_BT = greedy_decode(network, params, own, batch._replace(targets_BT=None, target_length_B=None), STEPS, ENDS)
    return {"logits": real_only(logits_BTV), "tokens": np.asarray(tokens_BT)}


def real_only(logits_BTV) -> np.ndarray:
    """Of logits (B, T, V) those of real target positions, row after row."""
    return np.concatenate([np.asarray(row_TV)[:length] for row_TV, length in zip(logits_BTV, TARGET_LENGTHS, strict=True)])


def same(found: dict, expected: dict) -> None:
    """Logits within 1e-4, tokens equal."""
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
