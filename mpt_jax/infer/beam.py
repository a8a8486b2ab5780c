"""Beam search: the best of several answers that are written side by side, as transformers' ``generate(num_beams=…)`` finds it.

A hypothesis that ends scores the sum of its tokens' log-probabilities divided by its number of tokens to the power of the length penalty.
A row's search ends when its best open hypothesis, scored at its present length, is no better than the worst of its finished ones, once
there are as many of those as beams (``early_stopping=False`` there). Only the best ``beams`` candidates of a step can finish.
B examples, W beams, C candidates, L input tokens, T target tokens, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.network import decode_step, empty_cache, prefill
from mpt_jax.sharding import constrain

NEVER = -1e9  # added to scores of what may not be chosen; finite, as in transformers


class Beams(NamedTuple):
    """Hypotheses of each row: their tokens and scores, best first."""

    tokens_BWT: jax.Array
    score_BW: jax.Array


class State(NamedTuple):
    """A search under way: open hypotheses and their last tokens, finished ones, which of those are there, rows whose search goes on."""

    step: jax.Array
    token_WB: jax.Array
    running: Beams
    finished: Beams
    there_BW: jax.Array
    open_B: jax.Array
    cache: tuple  # (W, B, ...)


@functools.partial(jax.jit, static_argnames=("network", "max_length", "ends", "pad", "beams"))
def beam_decode(
    network: Network, backbone: dict, own, rows: Rows, max_length: int, ends: tuple[int, ...], beams: int, limit_B=None, pad: int = 0,
    length_penalty=1.0,
) -> jax.Array:  # fmt: skip
    """The best hypothesis of each row: (B, T) int32 with T = ``max_length``, ``pad`` after its end.

    A hypothesis also ends after ``limit_B`` (B,) tokens; rows whose limit is 0 are never waited for. ``own``: the method's parameters of
    each example. The inputs are prefilled once for all beams.
    """
    batch = rows.inputs_BL.shape[0]
    if limit_B is None:
        limit_B = jnp.full((batch,), max_length, jnp.int32)
    prefilled = prefill(network, backbone, rows, own, max_length)
    next_logits = jax.vmap(functools.partial(decode_step, network, backbone, prefilled), in_axes=(0, 0, None))

    def one_token(state: State) -> State:
        logits_WBV, cache = next_logits(state.cache, state.token_WB, state.step)
        logp_BWV = jax.nn.log_softmax(jnp.swapaxes(logits_WBV, 0, 1).astype(jnp.float32), axis=-1)
        return _advance(state, logp_BWV, cache, ends, limit_B, length_penalty)

    def running(state: State):
        return (state.step < max_length) & jnp.any(state.open_B)

    cache = jax.tree.map(lambda array: jnp.broadcast_to(array, (beams, *array.shape)), empty_cache(network, batch, max_length))
    token_WB = jnp.broadcast_to(prefilled.start_B, (beams, batch))
    empty = jnp.full((batch, beams, max_length), pad, jnp.int32)
    # all beams start alike: only the first one counts, so that they part
    first_BW = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER), (batch, beams))
    none_BW = jnp.full((batch, beams), NEVER)
    start = State(jnp.int32(0), token_WB, Beams(empty, first_BW), Beams(empty, none_BW), none_BW > 0, limit_B > 0, cache)
    return constrain(jax.lax.while_loop(running, one_token, start).finished.tokens_BWT[:, 0])


def _advance(state: State, logp_BWV, cache: tuple, ends: tuple[int, ...], limit_B, length_penalty) -> State:
    """The search one token further, by the log-probabilities of the next tokens."""
    beams, vocabulary = logp_BWV.shape[1:]
    # enough that as many beams go on even if the most likely next token of each is an end
    kept = min(max(2, 1 + len(ends)) * beams, beams * vocabulary)
    total_BWV = state.running.score_BW[:, :, None] + logp_BWV
    score_BC, found_BC = jax.lax.top_k(total_BWV.reshape(len(total_BWV), -1), kept)
    beam_BC, token_BC = found_BC // vocabulary, found_BC % vocabulary
    tokens_BCT = jnp.take_along_axis(state.running.tokens_BWT, beam_BC[:, :, None], axis=1)
    tokens_BCT = jax.lax.dynamic_update_slice_in_dim(tokens_BCT, token_BC[:, :, None], state.step, axis=2)
    length = state.step + 1
    ended_BC = jnp.isin(token_BC, jnp.array(ends)) | (length >= limit_B)[:, None]

    running, chosen_BW = _best(Beams(tokens_BCT, score_BC + NEVER * ended_BC), beams)
    beam_BW, token_BW = (jnp.take_along_axis(array_BC, chosen_BW, axis=1) for array_BC in (beam_BC, token_BC))

    penalty = length.astype(jnp.float32) ** length_penalty
    just_BC = ended_BC & (jnp.arange(kept) < beams)
    ended_score_BC = score_BC / penalty + NEVER * ~just_BC + NEVER * ~state.open_B[:, None]
    joined = Beams(*(jnp.concatenate(pair, axis=1) for pair in zip(state.finished, (tokens_BCT, ended_score_BC), strict=True)))
    finished, best_BW = _best(joined, beams)
    there_BW = jnp.take_along_axis(jnp.concatenate([state.there_BW, just_BC], axis=1), best_BW, axis=1)

    worst_BW = jnp.where(there_BW, finished.score_BW[:, -1:], NEVER)
    better_B = jnp.any(running.score_BW[:, :1] / penalty > worst_BW, axis=1)
    open_B = state.open_B & better_B & (length < limit_B)
    return State(length, token_BW.T, running, finished, there_BW, open_B, _reordered(cache, beam_BW))


def _best(found: Beams, beams: int) -> tuple[Beams, jax.Array]:
    """The best hypotheses, best first, and their numbers before (B, W)."""
    score_BW, index_BW = jax.lax.top_k(found.score_BW, beams)
    return Beams(jnp.take_along_axis(found.tokens_BWT, index_BW[:, :, None], axis=1), score_BW), index_BW


def _reordered(cache: tuple, beam_BW) -> tuple:
    """Keys and values (W, B, ...) of the hypotheses that go on, taken from those that they continue."""

    def take(array):
        return jnp.take_along_axis(array, beam_BW.T.reshape(*beam_BW.T.shape, *[1] * (array.ndim - 2)), axis=0)

    return jax.tree.map(take, cache)
