"""Greedy decoding: encode once, then one token a step over a key/value cache until every row has ended.

B examples, L input tokens, P prompt positions, D model width, T target tokens.
"""

import functools

import jax
import jax.numpy as jnp

from mpt_jax.config import T5Config
from mpt_jax.model import prompt_bank
from mpt_jax.model.prompt_bank import PromptBank
from mpt_jax.model.prompted_t5 import decode_step, empty_cache, encode
from mpt_jax.sharding import constrain

EOS = 1  # in every T5 vocabulary


@functools.partial(jax.jit, static_argnames=("config", "max_length"))
def greedy_decode(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, max_length: int, limit_B=None) -> jax.Array:
    """The most likely token at each step: (B, T) int32 with T = ``max_length``, 0 after EOS.

    A row also ends after ``limit_B`` (B,) int32 tokens; a row whose limit is 0 (padding of the batch) is never waited for. Limits are
    data, so one program, compiled once for each (B, L, T), serves short labels and long texts alike. ``prompt_BPD`` may be None.
    """
    batch = inputs_BL.shape[0]
    if limit_B is None:
        limit_B = jnp.full((batch,), max_length, jnp.int32)
    encoded = encode(config, backbone, prompt_BPD, inputs_BL, max_length)

    def running(state):
        step, _, _, done_B, _ = state
        return (step < max_length) & ~jnp.all(done_B)

    def one_token(state):
        step, token_B, tokens_BT, done_B, cache = state
        logits_BV, cache = decode_step(config, backbone, encoded, cache, token_B, step)
        token_B = jnp.where(done_B, 0, jnp.argmax(logits_BV, axis=-1).astype(jnp.int32))
        tokens_BT = jax.lax.dynamic_update_slice_in_dim(tokens_BT, token_B[:, None], step, axis=1)
        done_B |= (token_B == EOS) | (step + 1 >= limit_B)
        return step + 1, token_B, tokens_BT, done_B, cache

    tokens_BT = jnp.zeros((batch, max_length), jnp.int32)
    start = (
        0,
        jnp.zeros((batch,), jnp.int32),
        tokens_BT,
        limit_B <= 0,
        empty_cache(config, batch, max_length),
    )
    return constrain(jax.lax.while_loop(running, one_token, start)[2])


_compose = jax.jit(prompt_bank.compose)


def prompts_of(bank: PromptBank | None, task_id_B) -> jax.Array | None:
    """Prompts (B, P, D) of a batch, or None without a bank (a fine-tuned or bare backbone).

    Composed by a program of its own, so that banks of any number of tasks share the compiled network.
    """
    return None if bank is None else _compose(bank, task_id_B)
