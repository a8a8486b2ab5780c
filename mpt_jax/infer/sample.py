"""Sampling: each token is drawn from the network's distribution, sharpened by a temperature and cut to its most likely part.

B examples, L input tokens, T target tokens, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from mpt_jax.infer.decode import token_by_token
from mpt_jax.model.families.family import Network, Rows


@functools.partial(jax.jit, static_argnames=("network", "max_length", "ends", "pad", "cut"))
def sample_decode(
    network: Network, backbone: dict, own, rows: Rows, max_length: int, ends: tuple[int, ...], draw, row_B, limit_B=None, pad: int = 0,
    cut: bool = True,
) -> jax.Array:  # fmt: skip
    """Drawn tokens, as ``token_by_token`` has them. draw: (temperature, top_p, seed), numbers, so that one program serves all.

    row_B (B,) uint32: what stands for a row, which draws the same tokens by the same seed whichever rows share its batch. cut: False where
    top_p is 1, which saves sorting the vocabulary.
    """
    temperature, top_p, seed = draw
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), row_B)

    def choose(logits_BV, step):
        scaled_BV = logits_BV.astype(jnp.float32) / temperature
        scaled_BV = most_likely(scaled_BV, top_p) if cut else scaled_BV
        return jax.vmap(lambda key, logits_V: jax.random.categorical(jax.random.fold_in(key, step), logits_V))(key_B, scaled_BV)

    return token_by_token(network, backbone, own, rows, max_length, ends, limit_B, pad, choose)


def most_likely(logits_BV, top_p):
    """Logits of the smallest set of most likely tokens whose probabilities add up to ``top_p`` or more, at least one; -inf for others."""
    rising_BV = jnp.sort(logits_BV, axis=-1)
    # from the least likely one on, where small numbers add up exactly
    tail_BV = jnp.cumsum(jax.nn.softmax(rising_BV, axis=-1), axis=-1)
    kept_BV = (tail_BV > 1 - top_p) | (jnp.arange(logits_BV.shape[-1]) == logits_BV.shape[-1] - 1)
    least_B1 = jnp.min(jnp.where(kept_BV, rising_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
