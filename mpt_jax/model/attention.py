"""Multi-head attention of T5: no scaling by 1/sqrt(K) (it is in the query's initialiser), additive float32 bias.

B examples, T query positions, S key positions, D model width, H heads, K head width.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import T5Config
from mpt_jax.errors import UserError
from mpt_jax.model import fused_attention
from mpt_jax.model.layers import Dense
from mpt_jax.sharding import constrain, parts_of, target_device

MASKED = -1e9  # added to logits of keys that may not be seen; finite, so that a row without keys stays a number


class Bias(NamedTuple):
    """What is added to logits, float32: by position (1, H, T, S) or (1, 1, T, S), and by key (B, 1, 1, S); None adds nothing."""

    position_1HTS: jax.Array | None
    key_B11S: jax.Array | None

    @property
    def total(self):
        """Both, as far as they broadcast to (B, H, T, S)."""
        return functools.reduce(operator.add, [part for part in self if part is not None])


def attend(query_BTHK, key_BSHK, value_BSHK, bias: Bias):
    """softmax(query key^T + bias) value, softmax in float32. Returns (B, T, H, K).

    Heads go in front before the products, and sums of weights divide after them: less work for XLA on CPU (docs/performance.md).
    """
    query_BHTK, key_BHSK, value_BHSK = (jnp.swapaxes(x, 1, 2) for x in (query_BTHK, key_BSHK, value_BSHK))
    logits_BHTS = jnp.einsum("BHTK,BHSK->BHTS", query_BHTK, key_BHSK, preferred_element_type=jnp.float32) + bias.total
    weights_BHTS = jnp.exp(logits_BHTS - jax.lax.stop_gradient(jnp.max(logits_BHTS, axis=-1, keepdims=True)))
    products = functools.partial(jnp.einsum, "BHTS,BHSK->BHTK", preferred_element_type=jnp.float32)
    mixed_BHTK = products(weights_BHTS.astype(value_BHSK.dtype), value_BHSK) / jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    return jnp.swapaxes(mixed_BHTK, 1, 2).astype(value_BSHK.dtype)


KERNELS = {"einsum": attend, "fused": fused_attention.attend}


def kernel_for(config: T5Config, T: int, S: int) -> str:  # noqa: N803
    """The row of KERNELS for T query and S key positions on the devices of the program: the one place where it is chosen.

    A single position (decoding) has no logits worth keeping in the chip. Raises UserError where 'fused' is asked for and cannot be had.
    """
    if config.attention == "einsum" or T == 1:
        return "einsum"
    device, heads = target_device(), config.num_heads // parts_of("heads", config.num_heads)
    needed = fused_attention.vmem_bytes(T, S, config.head_dim, heads, jnp.dtype(config.dtype).itemsize)
    there = fused_attention.VMEM_BYTES.get(device.device_kind, 0)
    if needed <= there:
        return "fused"
    if config.attention == "auto":
        return "einsum"
    if device.platform != "tpu":
        raise UserError(f"ATTENTION = 'fused' is a kernel of TPUs, and these devices are {device.platform}; 'auto' takes what they have.")
    sizes = f"{T} x {S} positions take {needed / 2**20:.1f} MiB of VMEM, and {device.device_kind} gives {there / 2**20:g}"
    raise UserError(f"ATTENTION = 'fused': {sizes}; set ATTENTION = 'auto' or 'einsum', or shorten TASK_FEATURE_LENGTHS.")


def attend_to_states(query_BTHK, states_BSD, key_DHK, value_DHK, bias: Bias):
    """What ``attend`` gives for keys ``states key`` and values ``states value``, without making them. Returns (B, T, H, K).

    The kernels go to the other side of both products: (query key^T) states^T, and (weights states) value. That is 4 T H S D operations in
    place of 4 S D H K: less where T < K, and no keys or values (B, S, H, K) are held.
    """
    folded_BHTD = jnp.einsum("BTHK,DHK->BHTD", query_BTHK, key_DHK)
    logits_BHTS = jnp.einsum("BHTD,BSD->BHTS", folded_BHTD, states_BSD, preferred_element_type=jnp.float32)
    weights_BHTS = jax.nn.softmax(logits_BHTS + bias.total, axis=-1).astype(states_BSD.dtype)
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

    def __call__(self, x_BTD, attended, bias: Bias):
        """Attends from x to ``attended``: keys and values of ``keys_values``, or the states (B, S, D) themselves. Returns (B, T, D)."""
        query_BTHK = self._split(self.query(x_BTD))
        if isinstance(attended, tuple):
            kernel = KERNELS[kernel_for(self.config, x_BTD.shape[1], attended[0].shape[1])]
            mixed_BTHK = kernel(query_BTHK, *attended, bias)
        else:
            mixed_BTHK = attend_to_states(query_BTHK, attended, self._kernel(self.key), self._kernel(self.value), bias)
        return self.out(mixed_BTHK.reshape(*x_BTD.shape[:-1], -1))

    def _kernel(self, dense: Dense):
        kernel_DX = dense.variables["params"]["kernel"].astype(self.config.dtype)
        kernel_DHK = kernel_DX.reshape(-1, self.config.num_heads, self.config.head_dim)
        return constrain(kernel_DHK, "activation_embed", "heads", "kv")
