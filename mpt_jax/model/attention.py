"""Attention: softmax of products and an additive float32 bias, over keys and values or over the states they would be made of.

B examples, T query positions, S key positions, D model width, H heads, G groups of heads that share keys, K head width.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import Computation
from mpt_jax.errors import UserError
from mpt_jax.model import fused_attention
from mpt_jax.model.layers import rounded_once
from mpt_jax.sharding import parts_of, target_device

MASKED = -1e9  # added to logits of keys that may not be seen; finite, so that a row without keys stays a number


class Bias(NamedTuple):
    """What is added to logits, float32: by position (1, H, T, S) or (1, 1, T, S), and by key (B, 1, 1, S); None adds nothing."""

    position_1HTS: jax.Array | None
    key_B11S: jax.Array | None

    @property
    def total(self):
        """Both, as far as they broadcast to (B, H, T, S)."""
        return functools.reduce(operator.add, [part for part in self if part is not None])


def float32_sums(spec: str, left, right):
    """An einsum summed and returned in float32. Gradients of bfloat16 arrays are products of bfloat16 arrays, as in fused_attention.py.

    JAX's own would multiply in float32, at a fifteenth of a GPU's rate.
    """
    if left.dtype == right.dtype == jnp.bfloat16:
        return _bfloat16_sums(spec, left, right)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _bfloat16_sums(spec: str, left, right):
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _bfloat16_sums_backward(spec: str, saved, grad):
    left, right = saved
    operands, of_sums = spec.split("->")
    of_left, of_right = operands.split(",")
    grad = grad.astype(left.dtype)
    return rounded_once(f"{of_sums},{of_right}->{of_left}", grad, right), rounded_once(f"{of_sums},{of_left}->{of_right}", grad, left)


_bfloat16_sums.defvjp(lambda spec, left, right: (_bfloat16_sums(spec, left, right), (left, right)), _bfloat16_sums_backward)


def attend(query_BTHK, key_BSHK, value_BSHK, bias: Bias):
    """softmax(query key^T + bias) value, softmax in float32. Returns (B, T, H, K).

    Heads go in front before the products, and sums of weights divide after them: less work for XLA on CPU (docs/performance.md).
    """
    query_BHTK, key_BHSK, value_BHSK = (jnp.swapaxes(x, 1, 2) for x in (query_BTHK, key_BSHK, value_BSHK))
    logits_BHTS = float32_sums("BHTK,BHSK->BHTS", query_BHTK, key_BHSK) + bias.total
    weights_BHTS = jnp.exp(logits_BHTS - jax.lax.stop_gradient(jnp.max(logits_BHTS, axis=-1, keepdims=True)))
    mixed_BHTK = float32_sums("BHTS,BHSK->BHTK", weights_BHTS.astype(value_BHSK.dtype), value_BHSK)
    mixed_BHTK /= jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    return jnp.swapaxes(mixed_BHTK, 1, 2).astype(value_BSHK.dtype)


KERNELS = {"einsum": attend, "fused": fused_attention.attend}


def kernel_for(computation: Computation, num_heads: int, head_dim: int, T: int, S: int) -> str:  # noqa: N803
    """The row of KERNELS for T query and S key positions on the devices of the program: the one place where it is chosen.

    A single position (decoding) has no logits worth keeping in the chip. Raises UserError where 'fused' is asked for and cannot be had.
    """
    if computation.attention == "einsum" or T == 1:
        return "einsum"
    device, heads = target_device(), num_heads // parts_of("heads", num_heads)
    needed = fused_attention.vmem_bytes(T, S, head_dim, heads, jnp.dtype(computation.dtype).itemsize)
    there = fused_attention.VMEM_BYTES.get(device.device_kind, 0)
    if needed <= there:
        return "fused"
    if computation.attention == "auto":
        return "einsum"
    if device.platform != "tpu":
        raise UserError(f"ATTENTION = 'fused' is a kernel of TPUs, and these devices are {device.platform}; 'auto' takes what they have.")
    sizes = f"{T} x {S} positions take {needed / 2**20:.1f} MiB of VMEM, and {device.device_kind} gives {there / 2**20:g}"
    raise UserError(f"ATTENTION = 'fused': {sizes}; set ATTENTION = 'auto' or 'einsum', or shorten TASK_FEATURE_LENGTHS.")


class KeysValues(NamedTuple):
    """Keys and values (B, S, H, K) to attend to."""

    key_BSHK: jax.Array
    value_BSHK: jax.Array

    def after(self, prefix: tuple[jax.Array, jax.Array] | None) -> "KeysValues":
        """These with keys and values (B or 1, P, H, K) in front; None: as they are."""
        if prefix is None:
            return self
        whole = [jnp.broadcast_to(first, (rest.shape[0], *first.shape[1:])) for first, rest in zip(prefix, self, strict=True)]
        return KeysValues(*(jnp.concatenate([first.astype(rest.dtype), rest], axis=1) for first, rest in zip(whole, self, strict=True)))

    def attend(self, computation: Computation, query_BTHK, bias: Bias):
        """softmax(query key^T + bias) value: (B, T, H, K)."""
        _, T, H, K = query_BTHK.shape  # noqa: N806
        return KERNELS[kernel_for(computation, H, K, T, self.key_BSHK.shape[1])](query_BTHK, *self, bias)


class States(NamedTuple):
    """States (B, S, D) to attend to, and the kernels (D, H, K) that would make keys and values of them."""

    states_BSD: jax.Array
    key_DHK: jax.Array
    value_DHK: jax.Array

    def attend(self, computation: Computation, query_BTHK, bias: Bias):
        """What KeysValues of ``states key`` and ``states value`` give, without making them: (B, T, H, K).

        The kernels go to the other side of both products: (query key^T) states^T, and (weights states) value. That is 4 T H S D
        operations instead of 4 S D H K: less where T < K, and no keys or values (B, S, H, K) are held.
        """
        del computation  # one way on every device
        folded_BHTD = jnp.einsum("BTHK,DHK->BHTD", query_BTHK, self.key_DHK)
        logits_BHTS = float32_sums("BHTD,BSD->BHTS", folded_BHTD, self.states_BSD)
        weights_BHTS = jax.nn.softmax(logits_BHTS + bias.total, axis=-1).astype(self.states_BSD.dtype)
        mixed_BHTD = jnp.einsum("BHTS,BSD->BHTD", weights_BHTS, self.states_BSD)
        return jnp.einsum("BHTD,DHK->BTHK", mixed_BHTD, self.value_DHK)


class Segment(NamedTuple):
    """Keys and values (B or 1, S, G, K) for groups of queries' heads, and which of them each query sees (B or 1, T or 1, S)."""

    key_BSGK: jax.Array
    value_BSGK: jax.Array
    visible_BTS: jax.Array


def attend_segments(query_BTHK, segments: Sequence[Segment], scale: float, cap: float = 0.0):
    """softmax over the positions of all segments of ``scale`` query key^T, where visible: (B, T, H, K). Softmax in float32.

    Segments are not joined: keys that all rows share (a prefix, B = 1) are held once, and a cache is not copied. ``cap``: logits become
    cap * tanh(logits / cap). G groups of R heads each, H = G R.
    """
    (B, T, H, K), G = query_BTHK.shape, segments[0].key_BSGK.shape[2]  # noqa: N806
    query_BGQK = query_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, -1, K)

    def products(spec: str, left, right):
        """An einsum over rows; the right side's are one that serves all, or as many as the left side's."""
        if right.shape[0] == 1 and B > 1:
            spec, right = spec.replace(",B", ","), right[0]
        return float32_sums(spec, left, right)

    logits = []
    for segment in segments:
        logits_BGQS = products("BGQK,BSGK->BGQS", query_BGQK, segment.key_BSGK) * scale
        logits_BGQS = cap * jnp.tanh(logits_BGQS / cap) if cap else logits_BGQS
        alike = segment.visible_BTS.shape[1] == 1  # for all queries
        visible_BGQS = (segment.visible_BTS if alike else jnp.tile(segment.visible_BTS, (1, H // G, 1)))[:, None]
        logits.append(jnp.where(visible_BGQS, logits_BGQS, MASKED))
    top_BGQ1 = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in logits])
    weights = [jnp.exp(part - jax.lax.stop_gradient(top_BGQ1)) for part in logits]
    total_BGQ1 = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
    mixed = [
        products("BGQS,BSGK->BGQK", part.astype(segment.value_BSGK.dtype), segment.value_BSGK)
        for part, segment in zip(weights, segments, strict=True)
    ]
    mixed_BGQK = sum(mixed) / total_BGQ1
    return mixed_BGQK.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K).astype(query_BTHK.dtype)
