"""Multi-head attention of T5: no scaling by 1/sqrt(K) (it is in the query's initialiser), additive float32 bias.

B examples, T query positions, S key positions, D model width, H heads, K head width.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import T5Config
from mpt_jax.model.layers import Dense
from mpt_jax.sharding import constrain

MASKED = -1e9  # added to logits of keys that may not be seen; finite, so that a row without keys stays a number


def attend(query_BTHK, key_BSHK, value_BSHK, bias_BHTS):
    """softmax(query key^T + bias) value, softmax in float32. Returns (B, T, H, K). The one place to choose a kernel."""
    logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=jnp.float32)
    weights_BHTS = jax.nn.softmax(logits_BHTS + bias_BHTS, axis=-1).astype(value_BSHK.dtype)
    return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, value_BSHK)


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

    def __call__(self, x_BTD, keys_values, bias_BHTS):
        """Attends from x to keys and values of ``keys_values``. Returns (B, T, D)."""
        mixed_BTHK = attend(self._split(self.query(x_BTD)), *keys_values, bias_BHTS)
        return self.out(mixed_BTHK.reshape(*x_BTD.shape[:-1], -1))
