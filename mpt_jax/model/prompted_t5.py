"""The only place where prompt and network meet: pure functions of (config, backbone, prompt, tokens).

B examples, L input tokens, P prompt positions, S = P + L, T target tokens, D model width, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import T5Config
from mpt_jax.model.t5 import T5, Stack
from mpt_jax.sharding import constrain


class Outputs(NamedTuple):
    """logits (B, T, V); encoder and decoder states; mask (B, S) of real encoder positions, prompt included."""

    logits_BTV: jax.Array
    encoder: Stack
    decoder: Stack
    mask_BS: jax.Array


class Encoded(NamedTuple):
    """What decoding needs of an input: mask (B, S) and what each decoder layer attends to (T5.cross)."""

    mask_BS: jax.Array
    cross: tuple


def shift_right(targets_BT):
    """Decoder inputs: the start token 0, then the targets without their last token [T5X autoregressive_inputs]."""
    return jnp.pad(targets_BT, ((0, 0), (1, 0)))[:, :-1]


def forward(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, targets_BT, dropout_rng=None) -> Outputs:
    """Teacher-forced pass. ``prompt_BPD`` may be None; tokens are int32 with 0 as padding."""
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    arguments = (inputs_BL, shift_right(targets_BT), prompt_BPD)
    logits_BTV, encoder, decoder = T5(config).apply({"params": backbone}, *arguments, rngs=rngs)
    prompt_length = 0 if prompt_BPD is None else prompt_BPD.shape[1]
    mask_BS = jnp.pad(inputs_BL > 0, ((0, 0), (prompt_length, 0)), constant_values=True)
    return Outputs(logits_BTV, encoder, decoder, mask_BS)


def encode(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, positions: int | None = None) -> Encoded:
    """Runs the encoder and, unless few target ``positions`` will be decoded, makes the cross-attention's keys and values once."""
    model, variables = T5(config), {"params": backbone}
    encoder, mask_BS = model.apply(variables, inputs_BL, prompt_BPD, method=T5.encode)
    cross = model.apply(variables, encoder.output_BTD, positions, method=T5.cross)
    return Encoded(mask_BS, cross)


def empty_cache(config: T5Config, batch: int, length: int) -> tuple:
    """Key/value cache of the decoder's self-attention for ``length`` positions: zeros (B, T, H, K), a pair each layer."""
    zeros = jnp.zeros((batch, length, config.num_heads, config.head_dim), config.dtype)
    zeros = constrain(zeros, "batch", "length", "heads", "kv")
    return tuple((zeros, zeros) for _ in range(config.num_decoder_layers))


def decode_step(config: T5Config, backbone: dict, encoded: Encoded, cache: tuple, token_B, position):
    """One decoding step: the token at ``position`` (0 = start) -> logits (B, V) of the next one, and the cache."""
    model, variables = T5(config), {"params": backbone}
    arguments = (token_B[:, None], encoded.mask_BS, encoded.cross, cache, position)
    decoder, cache = model.apply(variables, *arguments, method=T5.decode)
    logits_BTV = model.apply(variables, decoder.output_BTD, method=T5.logits)
    return logits_BTV[:, 0], cache


def decode_targets(config: T5Config, backbone: dict, encoded: Encoded, targets_BT):
    """Logits (B, T, V) of teacher-forced targets over an encoded input."""
    model, variables = T5(config), {"params": backbone}
    decoder, _ = model.apply(variables, shift_right(targets_BT), encoded.mask_BS, encoded.cross, method=T5.decode)
    return model.apply(variables, decoder.output_BTD, method=T5.logits)


def init_backbone(config: T5Config, seed: int) -> dict:
    """Random float32 weights as T5 initialises them."""
    tokens = jnp.ones((1, 2), jnp.int32)
    config = dataclasses.replace(config, attention="einsum")  # of which the weights do not depend: no kernel is compiled for two tokens
    return T5(config).init(jax.random.PRNGKey(seed), tokens, tokens)["params"]
