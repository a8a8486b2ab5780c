"""Decoding: prefill once, then one token a step over a key/value cache until every row has ended. Here greedily, or by any other choice.

B examples, L input tokens, P prompt positions, D model width, T target tokens, V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.network import decode_step, empty_cache, prefill
from mpt_jax.sharding import constrain


@functools.partial(jax.jit, static_argnames=("network", "max_length", "ends", "pad"))
def greedy_decode(
    network: Network, backbone: dict, own, rows: Rows, max_length: int, ends: tuple[int, ...], limit_B=None, pad: int = 0
) -> jax.Array:
    """The most likely token at each step, as ``token_by_token`` has it."""

    def choose(logits_BV, step):
        return jnp.argmax(logits_BV, axis=-1)

    return token_by_token(network, backbone, own, rows, max_length, ends, limit_B, pad, choose)


def token_by_token(
    network: Network, backbone: dict, own, rows: Rows, max_length: int, ends: tuple[int, ...], limit_B, pad: int, choose: Callable
) -> jax.Array:
    """Tokens that choose(logits (B, V), step) takes: (B, T) int32 with T = ``max_length``, ``pad`` after the first of the tokens ``ends``.

    A row also ends after ``limit_B`` (B,) int32 tokens; a row whose limit is 0 (padding of the batch) is never waited for. Limits are
    data, so one program, compiled once for each (B, L, T), serves short labels and long texts alike. ``own``: the method's parameters of
    each example.
    """
    batch = rows.inputs_BL.shape[0]
    if limit_B is None:
        limit_B = jnp.full((batch,), max_length, jnp.int32)
    prefilled = prefill(network, backbone, rows, own, max_length)

    def running(state):
        step, _, _, done_B, _ = state
        return (step < max_length) & ~jnp.all(done_B)

    def one_token(state):
        step, token_B, tokens_BT, done_B, cache = state
        logits_BV, cache = decode_step(network, backbone, prefilled, cache, token_B, step)
        token_B = jnp.where(done_B, pad, choose(logits_BV, step).astype(jnp.int32))
        tokens_BT = jax.lax.dynamic_update_slice_in_dim(tokens_BT, token_B[:, None], step, axis=1)
        done_B |= jnp.isin(token_B, jnp.array(ends)) | (step + 1 >= limit_B)
        return step + 1, token_B, tokens_BT, done_B, cache

    tokens_BT = jnp.full((batch, max_length), pad, jnp.int32)
    start = (0, prefilled.start_B, tokens_BT, limit_B <= 0, empty_cache(network, batch, max_length))
    return constrain(jax.lax.while_loop(running, one_token, start)[2])
