"""Multi-head attention of T5: no scaling by 1/sqrt(K) (it is in the query's initialiser), additive float32 bias.

B examples, T query positions, S key positions, D model width, H heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import T5Config
from mpt_jax.model.layers import Dense
from mpt_jax.sharding import constrain

MASKED = -1e9  # added to logits of keys that may not be seen; finite, so that a row without keys stays a number


def attend(query_BTHK, key_BSHK, value_BSHK, bias_BHTS):
    """softmax(query key^T + bias) value, softmax in float32. Returns (B, T, H, K). The one place to choose a kernel.

    Heads go in front before the products, and sums of weights divide after them: XLA on CPU takes 4.7 ms where products of (B, T, H, K) and
    normalised weights take 24 ms, with gradients 18.6 in place of 29.8 (8 x 148 positions, 12 heads).
    """
    query_BHTK, key_BHSK, value_BHSK = (jnp.swapaxes(x, 1, 2) for x in (query_BTHK, key_BSHK, value_BSHK))
    logits_BHTS = jnp.einsum("BHTK,BHSK->BHTS", query_BHTK, key_BHSK, preferred_element_type=jnp.float32) + bias_BHTS
    weights_BHTS = jnp.exp(logits_BHTS - jax.lax.stop_gradient(jnp.max(logits_BHTS, axis=-1, keepdims=True)))
    products = functools.partial(jnp.einsum, "BHTS,BHSK->BHTK", preferred_element_type=jnp.float32)
    mixed_BHTK = products(weights_BHTS.astype(value_BHSK.dtype), value_BHSK) / jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    return jnp.swapaxes(mixed_BHTK, 1, 2).astype(value_BSHK.dtype)


def attend_to_states(query_BTHK, states_BSD, key_DHK, value_DHK, bias_BHTS):
    """What ``attend`` gives for keys ``states key`` and values ``states value``, without making them. Returns (B, T, H, K).

    The kernels go to the other side of both products: (query key^T) states^T, and (weights states) value. That is 4 T H S D operations in
    place of 4 S D H K: less where T < K, and no keys or values (B, S, H, K) are held.
    """
    folded_BHTD = jnp.einsum("BTHK,DHK->BHTD", query_BTHK, key_DHK)
    logits_BHTS = jnp.einsum("BHTD,BSD->BHTS", folded_BHTD, states_BSD, preferred_element_type=jnp.float32)
    weights_BHTS = jax.nn.softmax(logits_BHTS + bias_BHTS, axis=-1).astype(states_BSD.dtype)
    mixed_BHTD = jnp.einsum("BHTS,BSD->BHTD", weights_BHTS, states_BSD)
    return jnp.einsum("BHTD,DHK->BTHK", mixed_BHTD, value_DHK)


class MultiHeadAttention(nn.Module):
    """Attention with kernels ``query``, ``key``, ``value`` (D, H*K) and ``out`` (H*K, D)."""

    config: T5Config

    def setup(self):
        config = self.config
        width = config.num_heads * config.head_dim
        self.query = Dense(width, config.dtype, (config.d_model * config.head_dim) ** -0.5)
        self.key = Dense(width, config.dtype, config.d_model**-0.5)
        self.value = Dense(width, config.dtype, config.d_model**-0.5)
        self.out = Dense(config.d_model, config.dtype, width**-0.5)

    def _split(self, x_BTX):
        x_BTHK = x_BTX.reshape(*x_BTX.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x_BTHK, "batch", "length", "heads", "kv")

    def keys_values(self, x_BSD):
        """Keys and values (B, S, H, K) of the positions attended to."""
        return self._split(self.key(x_BSD)), self._split(self.value(x_BSD))

    def __call__(self, x_BTD, attended, bias_BHTS):
        """Attends from x to ``attended``: keys and values of ``keys_values``, or the states (B, S, D) themselves. Returns (B, T, D)."""
        query_BTHK = self._split(self.query(x_BTD))
        if isinstance(attended, tuple):
            mixed_BTHK = attend(query_BTHK, *attended, bias_BHTS)
        else:
            mixed_BTHK = attend_to_states(query_BTHK, attended, self._kernel(self.key), self._kernel(self.value), bias_BHTS)
        return self.out(mixed_BTHK.reshape(*x_BTD.shape[:-1], -1))

    def _kernel(self, dense: Dense):
        kernel_DX = dense.variables["params"]["kernel"].astype(self.config.dtype)
        kernel_DHK = kernel_DX.reshape(-1, self.config.num_heads, self.config.head_dim)
        return constrain(kernel_DHK, "activation_embed", "heads", "kv")
