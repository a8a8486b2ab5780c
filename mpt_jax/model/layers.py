"""Layers that families share, with the parameter names and shapes of T5X's minimal T5 (t5x/examples/t5/layers.py).

B examples, Y positions of a stack (queries), Z keys, D model width, F feed-forward width, V vocabulary, H heads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mpt_jax.model.changes import of_module
from mpt_jax.model.int8 import SCALE
from mpt_jax.sharding import GPU_PLATFORMS, constrain, target_device

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}


@jax.custom_vjp
def bfloat16_product(x, kernel):
    """x (..., in) @ kernel (in, out), both bfloat16, summed in float32 and rounded once, forwards and backwards.

    Asking for a bfloat16 result makes XLA on CPU convert to float32 first: 250 instead of 1,500 x 10^9 operations a second where the cores
    multiply bfloat16 in hardware (AMX). TPU and GPU sum in float32 either way; a GPU would write the float32 sums to memory.
    """
    return rounded_once("...i,io->...o", x, kernel)


def rounded_once(spec: str, left, right):
    """An einsum summed in float32 whose result has the arrays' dtype."""
    if target_device().platform in GPU_PLATFORMS:
        return jnp.einsum(spec, left, right)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32).astype(left.dtype)


def _bfloat16_product_backward(saved, grad):
    x, kernel = saved
    return rounded_once("...o,io->...i", grad, kernel), rounded_once("...i,...o->io", x, grad)


bfloat16_product.defvjp(lambda x, kernel: (bfloat16_product(x, kernel), (x, kernel)), _bfloat16_product_backward)


@jax.custom_vjp
def _bfloat16_row_product(x, kernel):
    return rounded_once("byi,bio->byo", x, kernel)


def _bfloat16_row_product_backward(saved, grad):
    x, kernel = saved
    return rounded_once("byo,bio->byi", grad, kernel), rounded_once("byi,byo->bio", x, grad)


_bfloat16_row_product.defvjp(lambda x, kernel: (_bfloat16_row_product(x, kernel), (x, kernel)), _bfloat16_row_product_backward)


def product(x, kernel):
    """x (..., in) @ kernel (in, out), in the dtype of x where that is the kernel's."""
    return bfloat16_product(x, kernel) if x.dtype == kernel.dtype == jnp.bfloat16 else jnp.dot(x, kernel)


@jax.custom_vjp
def int8_product(x, kernel, scale):
    """x (..., in) by int8 columns (in, out) times their scales (out,), in the dtype of x.

    What is kept for the backward pass is the int8 matrix: it is converted once more there, so that no converted copies of all layers live
    from one pass to the other.
    """
    return _converted("...i,io->...o", x, kernel) * scale.astype(x.dtype)


def _converted(spec: str, x, kernel):
    kernel = kernel.astype(x.dtype)
    return rounded_once(spec, x, kernel) if x.dtype == jnp.bfloat16 else jnp.einsum(spec, x, kernel)


def _int8_product_backward(saved, grad):
    kernel, scale = jax.lax.optimization_barrier(saved)  # or the compiler would keep the forward pass's conversion
    gradient = _converted("...o,io->...i", grad * scale.astype(grad.dtype), kernel)
    return gradient, np.zeros(kernel.shape, jax.dtypes.float0), jnp.zeros_like(scale)


int8_product.defvjp(lambda x, kernel, scale: (int8_product(x, kernel, scale), (kernel, scale)), _int8_product_backward)


def row_product(x, kernel):
    """x (rows, positions, in) by a kernel of each row (rows, in, out), or by one (1, in, out) that serves all; in the dtype of x."""
    kernel = kernel.astype(x.dtype)
    if kernel.shape[0] == 1:
        return product(x, kernel[0])
    return _bfloat16_row_product(x, kernel) if x.dtype == jnp.bfloat16 else jnp.einsum("byi,bio->byo", x, kernel)


def _row_vector(vector, x):
    """A vector of each row (rows, width), or of all (1, width), as it is added to x (rows, …, width) or multiplied with it."""
    return vector.reshape(vector.shape[0], *[1] * (x.ndim - 2), vector.shape[1]).astype(x.dtype)


def _changed(change, x, found):
    """The result of a Dense after what a method changes (changes.py); x: its inputs."""
    if "down" in change:
        found = found + row_product(row_product(x, change["down"]), change["up"])
    if "bias" in change:
        found = found + _row_vector(change["bias"], found)
    if "scale_out" in change:
        found = found * _row_vector(change["scale_out"], found)
    if "block_down" in change:
        hidden = row_product(found, change["block_down"]) + _row_vector(change["block_down_bias"], found)
        block = row_product(ACTIVATIONS["gelu"](hidden), change["block_up"])
        found = found + block + _row_vector(change["block_up_bias"], found)
    return found


def parameter(module: nn.Module, name: str, initializer: Callable, shape: tuple[int, ...]):
    """A float32 parameter of the module, taken as it is where it is given.

    ``param`` would trace its initialiser to compare shapes, which readers of weights have compared before: a sixth of tracing a train step.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, initializer, shape, jnp.float32)


class Dense(nn.Module):
    """A matrix product: (..., in) -> (..., features), parameters ``kernel`` (in, features) and, where asked for, ``bias`` (features,).

    A kernel of int8 has its scales beside it (model/int8.py).
    """

    features: int
    dtype: str
    stddev: float  # of the normal initialiser; T5 folds its scalings into the initialiser
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        change = of_module(self)
        x = x * _row_vector(change["scale_in"], x) if "scale_in" in change else x
        if self.is_int8:
            found = int8_product(x, self.get_variable("params", "kernel"), self.get_variable("params", SCALE))
        else:
            found = product(x, self.kernel(x.shape[-1]))
        if self.use_bias:
            found = found + parameter(self, "bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return _changed(change, x, found)

    @property
    def is_int8(self) -> bool:
        """Whether its kernel is kept as int8."""
        return self.has_variable("params", SCALE)

    def kernel(self, width: int):
        """The matrix (width, features) that inputs are multiplied with, in the dtype of computation."""
        return parameter(self, "kernel", nn.initializers.normal(self.stddev), (width, self.features)).astype(self.dtype)


class RMSNorm(nn.Module):
    """Root mean square norm: no mean, no bias, computed in float32. Parameter ``scale`` (D,); ``plus_one``: it multiplies by 1 + scale."""

    epsilon: float
    dtype: str
    plus_one: bool = False

    @nn.compact
    def __call__(self, x_BYD):
        start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale_D = parameter(self, "scale", start, (x_BYD.shape[-1],))
        x32_BYD = x_BYD.astype(jnp.float32)
        mean_square_BY1 = jnp.mean(jnp.square(x32_BYD), axis=-1, keepdims=True)
        normed_BYD = x32_BYD * jax.lax.rsqrt(mean_square_BY1 + self.epsilon)
        scale_D = scale_D.astype(jnp.float32) + 1.0 if self.plus_one else scale_D.astype(jnp.float32)
        change = of_module(self)
        scale = scale_D + _row_vector(change["scale"], x32_BYD) if "scale" in change else scale_D
        found_BYD = normed_BYD * scale
        found_BYD = found_BYD + _row_vector(change["bias"], found_BYD) if "bias" in change else found_BYD
        return found_BYD.astype(self.dtype)


class Embed(nn.Module):
    """Token embeddings, parameter ``embedding`` (V, D); also the output matrix of models whose output is tied to it."""

    vocab_size: int
    width: int
    dtype: str

    def setup(self):
        self.embedding = parameter(self, "embedding", nn.initializers.normal(1.0), (self.vocab_size, self.width))

    def __call__(self, tokens_BY):
        # split over the vocabulary alone for the look-up: with its width split as well the compiler gathers all of it
        table_VD = constrain(self.embedding, "vocab", "activation_embed")
        x_BYD = jnp.take(table_VD, tokens_BY, axis=0).astype(self.dtype)
        return constrain(x_BYD, "batch", "length", "activation_embed")

    def attend(self, x_BYD):
        """Logits (B, Y, V) against the embeddings."""
        logits_BYV, change = jnp.dot(x_BYD, self.embedding.astype(self.dtype).T), of_module(self)
        return logits_BYV + _row_vector(change["bias"], logits_BYV) if "bias" in change else logits_BYV


class Mlp(nn.Module):
    """Feed-forward layer: ``wi`` for one activation, ``wi_0``, ``wi_1`` (gated) for two, whose results are multiplied, then ``wo``."""

    width: int  # F
    activations: tuple[str, ...]
    dtype: str

    @nn.compact
    def __call__(self, x_BYD, dropout):
        names = ("wi",) if len(self.activations) == 1 else ("wi_0", "wi_1")
        hidden_BYF = 1
        for name, activation in zip(names, self.activations, strict=True):
            wi = Dense(self.width, self.dtype, x_BYD.shape[-1] ** -0.5, name=name)
            hidden_BYF = hidden_BYF * ACTIVATIONS[activation](wi(x_BYD))
        hidden_BYF = constrain(dropout(hidden_BYF), "batch", "length", "mlp")
        return Dense(x_BYD.shape[-1], self.dtype, self.width**-0.5, name="wo")(hidden_BYF)


def relative_position_bucket(relative_position, bidirectional: bool, num_buckets: int, max_distance: int):
    """Bucket of each distance key - query: half of them exact, the others logarithmic up to max_distance.

    Source: the T5 paper's appendix as in t5x/examples/t5/layers.py:RelativePositionBiases. Same shape out, int32.
    """
    bucket = jnp.zeros_like(relative_position)
    distance = -relative_position
    if bidirectional:
        num_buckets //= 2
        bucket += (distance < 0).astype(jnp.int32) * num_buckets
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    # + eps: log(0) is chosen away below, but must not be nan
    log_ratio = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps) / jnp.log(max_distance / exact)
    large = exact + (log_ratio * (num_buckets - exact)).astype(jnp.int32)
    large = jnp.minimum(large, num_buckets - 1)
    return bucket + jnp.where(distance < exact, distance, large)


class RelativePositionBias(nn.Module):
    """Bias of attention logits by distance, shared by the layers of a stack. Parameter ``rel_embedding`` (H, buckets)."""

    num_heads: int
    buckets: int
    max_distance: int
    bidirectional: bool
    stddev: float

    @nn.compact
    def __call__(self, query_position_Y, key_position_Z):
        """Positions (Y,) and (Z,) -> bias (1, H, Y, Z) in float32."""
        shape = (self.num_heads, self.buckets)
        rel_embedding = parameter(self, "rel_embedding", nn.initializers.normal(self.stddev), shape)
        relative_YZ = key_position_Z[None, :] - query_position_Y[:, None]
        bucket_YZ = relative_position_bucket(relative_YZ, self.bidirectional, self.buckets, self.max_distance)
        return jnp.take(rel_embedding, bucket_YZ, axis=1)[None].astype(jnp.float32)
