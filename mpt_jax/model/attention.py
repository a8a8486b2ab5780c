"""Attention: softmax of products and an additive float32 bias, over keys and values or over the states they would be made of.

B examples, Y positions that attend (queries), Z positions that are attended to (keys), D model width, H heads, J heads of keys and values
(as many as H, or each for H / J heads of queries), K head width, Q queries of heads that share keys.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import Computation
from mpt_jax.errors import UserError
from mpt_jax.model import cudnn_attention, fused_attention
from mpt_jax.model.layers import rounded_once
from mpt_jax.sharding import GPU_PLATFORMS, parts_of, target_device

MASKED = -1e9  # added to logits of keys that may not be seen; finite, so that a row without keys stays a number


class Bias(NamedTuple):
    """What is added to logits, float32: by position (1, H, Y, Z) or (1, 1, Y, Z), and by key (B, 1, 1, Z); None adds nothing."""

    position_1HYZ: jax.Array | None
    key_B11Z: jax.Array | None

    @property
    def total(self):
        """Both, as far as they broadcast to (B, H, Y, Z)."""
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


def attend(query_BYHK, key_BZHK, value_BZHK, bias: Bias):
    """softmax(query key^T + bias) value, softmax in float32. Returns (B, Y, H, K).

    Heads go in front before the products, and sums of weights divide after them: less work for XLA on CPU (docs/performance.md).
    """
    query_BHYK, key_BHZK, value_BHZK = (jnp.swapaxes(x, 1, 2) for x in (query_BYHK, key_BZHK, value_BZHK))
    logits_BHYZ = float32_sums("BHYK,BHZK->BHYZ", query_BHYK, key_BHZK) + bias.total
    weights_BHYZ = jnp.exp(logits_BHYZ - jax.lax.stop_gradient(jnp.max(logits_BHYZ, axis=-1, keepdims=True)))
    mixed_BHYK = float32_sums("BHYZ,BHZK->BHYK", weights_BHYZ.astype(value_BHZK.dtype), value_BHZK)
    mixed_BHYK /= jnp.sum(weights_BHYZ, axis=-1, keepdims=True)
    return jnp.swapaxes(mixed_BHYK, 1, 2).astype(value_BZHK.dtype)


KERNELS = {"einsum": attend, "fused": fused_attention.attend, "cudnn": cudnn_attention.attend}


def kernel_for(computation: Computation, num_heads: int, head_dim: int, Y: int, Z: int) -> str:
    """The row of KERNELS for Y queries and Z keys on the devices of the program: chosen here and nowhere else.

    A single position (decoding) has no logits worth keeping in the chip. 'auto' takes no kernel of GPUs: no whole step was measured with
    it. Raises UserError where 'fused' is asked for and cannot be had.
    """
    asked = computation.attention
    if asked == "einsum" or Y == 1:
        return "einsum"
    device = target_device()
    if device.platform in GPU_PLATFORMS and asked == "fused":
        missing = cudnn_attention.why_not(device, computation.dtype, head_dim)
        if missing:
            raise UserError(f"ATTENTION = 'fused': {missing}; change that, or set ATTENTION = 'auto'.")
        return "cudnn" if cudnn_attention.fits(Y, Z) else "einsum"
    heads = num_heads // parts_of("heads", num_heads)
    needed = fused_attention.vmem_bytes(Y, Z, head_dim, heads, jnp.dtype(computation.dtype).itemsize)
    there = fused_attention.VMEM_BYTES.get(device.device_kind, 0)
    if needed <= there:
        return "fused"
    if asked == "auto":
        return "einsum"
    if device.platform != "tpu":
        raise UserError(f"ATTENTION = 'fused' is a kernel of TPUs and GPUs, and these devices are {device.platform}; set 'auto'.")
    sizes = f"{Y} x {Z} positions take {needed / 2**20:.1f} MiB of VMEM, and {device.device_kind} gives {there / 2**20:g}"
    raise UserError(f"ATTENTION = 'fused': {sizes}; set ATTENTION = 'auto' or 'einsum', or shorten TASK_FEATURE_LENGTHS.")


class KeysValues(NamedTuple):
    """Keys and values (B, Z, J, K) to attend to. ``attend`` is for J = H; ``attend_segments`` for fewer."""

    key_BZJK: jax.Array
    value_BZJK: jax.Array

    def after(self, prefix: tuple[jax.Array, jax.Array] | None) -> "KeysValues":
        """These with keys and values (B or 1, P, H, K) in front; None: as they are."""
        if prefix is None:
            return self
        whole = [jnp.broadcast_to(first, (rest.shape[0], *first.shape[1:])) for first, rest in zip(prefix, self, strict=True)]
        return KeysValues(*(jnp.concatenate([first.astype(rest.dtype), rest], axis=1) for first, rest in zip(whole, self, strict=True)))

    def attend(self, computation: Computation, query_BYHK, bias: Bias):
        """softmax(query key^T + bias) value: (B, Y, H, K)."""
        _, Y, H, K = query_BYHK.shape
        return KERNELS[kernel_for(computation, H, K, Y, self.key_BZJK.shape[1])](query_BYHK, *self, bias)


class States(NamedTuple):
    """States (B, Z, D) to attend to, and the kernels (D, H, K) that would make keys and values of them."""

    states_BZD: jax.Array
    key_DHK: jax.Array
    value_DHK: jax.Array

    def attend(self, computation: Computation, query_BYHK, bias: Bias):
        """What KeysValues of ``states key`` and ``states value`` give, without making them: (B, Y, H, K).

        The kernels go to the other side of both products: (query key^T) states^T, and (weights states) value. That is 4 Y H Z D
        operations instead of 4 Z D H K: less where Y < K, and no keys or values (B, Z, H, K) are held.
        """
        del computation  # one way on every device
        folded_BHYD = jnp.einsum("BYHK,DHK->BHYD", query_BYHK, self.key_DHK)
        logits_BHYZ = float32_sums("BHYD,BZD->BHYZ", folded_BHYD, self.states_BZD)
        weights_BHYZ = jax.nn.softmax(logits_BHYZ + bias.total, axis=-1).astype(self.states_BZD.dtype)
        mixed_BHYD = jnp.einsum("BHYZ,BZD->BHYD", weights_BHYZ, self.states_BZD)
        return jnp.einsum("BHYD,DHK->BYHK", mixed_BHYD, self.value_DHK)


class Segment(NamedTuple):
    """Keys and values (B or 1, Z, J, K) and which of them each query sees (B or 1, Y or 1, Z)."""

    key_BZJK: jax.Array
    value_BZJK: jax.Array
    visible_BYZ: jax.Array


def attend_segments(query_BYHK, segments: Sequence[Segment], scale: float, cap: float = 0.0):
    """softmax over the positions of all segments of ``scale`` query key^T, where visible: (B, Y, H, K). Softmax in float32.

    Segments are not joined: keys that all rows share (a prefix, B = 1) are held once, and a cache is not copied. ``cap``: logits become
    cap * tanh(logits / cap). Heads stand in front of rows: then shared keys meet the queries of all rows in one product a head, and its
    result needs no transposing.
    """
    (B, Y, H, K), J = query_BYHK.shape, segments[0].key_BZJK.shape[2]
    query_JBQK = query_BYHK.reshape(B, Y, J, H // J, K).transpose(2, 0, 3, 1, 4).reshape(J, B, -1, K)

    def products(spec: str, left, right_BZJK):
        """An einsum over rows; the right side's are one that serves all, or as many as the left side's."""
        if right_BZJK.shape[0] == 1 and B > 1:
            return float32_sums(spec.replace(",JB", ",J"), left, jnp.swapaxes(right_BZJK[0], 0, 1))
        return float32_sums(spec, left, right_BZJK.transpose(2, 0, 1, 3))

    logits = []
    for segment in segments:
        logits_JBQZ = products("JBQK,JBZK->JBQZ", query_JBQK, segment.key_BZJK) * scale
        logits_JBQZ = cap * jnp.tanh(logits_JBQZ / cap) if cap else logits_JBQZ
        alike = segment.visible_BYZ.shape[1] == 1  # for all queries
        visible_BQZ = segment.visible_BYZ if alike else jnp.tile(segment.visible_BYZ, (1, H // J, 1))
        logits.append(jnp.where(visible_BQZ, logits_JBQZ, MASKED))
    top_JBQ1 = functools.reduce(jnp.maximum, [jnp.max(part, axis=-1, keepdims=True) for part in logits])
    weights = [jnp.exp(part - jax.lax.stop_gradient(top_JBQ1)) for part in logits]
    total_JBQ1 = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
    mixed = [
        products("JBQZ,JBZK->JBQK", part.astype(segment.value_BZJK.dtype), segment.value_BZJK)
        for part, segment in zip(weights, segments, strict=True)
    ]
    mixed_JBQK = sum(mixed) / total_JBQ1
    return mixed_JBQK.reshape(J, B, H // J, Y, K).transpose(1, 3, 0, 2, 4).reshape(B, Y, H, K).astype(query_BYHK.dtype)
