"""T5's attention as one TPU kernel: products, biases and softmax of a few heads of one example stay in the chip's fast memory (VMEM).

Written in Pallas for what prompt tuning asks of attention: up to about a thousand positions, so that no softmax is cut into blocks and any
length needs no padding; a position bias that all examples share and that gets no gradient. Nothing of size (T, S) is written to HBM, and
the backward pass computes the weights again.
B examples, T query positions, S key positions, H heads, K head width.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mpt_jax.errors import UserError
from mpt_jax.sharding import each_device

LANES = 128  # numbers side by side in a TPU's vector registers: blocks of a joined width are multiples of it, or all of it
MIB = 2**20
# by JAX's name of the device's kind: what a kernel may take [jax/_src/pallas/mosaic/tpu_info.py, less what the compiler keeps]
VMEM_BYTES = {"TPU v4": 16 * MIB, "TPU v5 lite": 128 * MIB, "TPU v5": 64 * MIB, "TPU v6 lite": 128 * MIB}
# dimensions that a product sums over, of the left and of the right matrix [jax.lax.dot_general]
_PLAIN = (((1,), (0,)), ((), ()))
_RIGHT_TURNED = (((1,), (1,)), ((), ()))
_LEFT_TURNED = (((0,), (0,)), ((), ()))
_HEADS = ("batch", "length", "heads", "kv")


def vmem_bytes(T: int, S: int, head_dim: int, num_heads: int, itemsize: int) -> int:  # noqa: N803
    """VMEM that the backward pass takes at most: blocks twice (one is fetched while the other is worked on), and six arrays (T, S)."""
    heads = _heads_of_a_program(num_heads, head_dim)

    def tile(rows: int, columns: int, size: int) -> int:
        return -(-rows // 8) * 8 * -(-columns // LANES) * LANES * size

    blocks = 3 * tile(T, heads * head_dim, itemsize) + 4 * tile(S, heads * head_dim, itemsize) + heads * tile(T, S, 4)
    return 2 * blocks + 6 * tile(T, S, 4)


def attend(query_BTHK, key_BSHK, value_BSHK, bias):
    """softmax(query key^T + bias) value on a TPU, as attention.attend. Raises UserError where a bias would need a gradient."""
    biases = tuple(part for part in bias if part is not None)
    return _attend(query_BTHK, key_BSHK, value_BSHK, biases)


@jax.custom_vjp
def _attend(query_BTHK, key_BSHK, value_BSHK, biases):
    return _on_devices(_forward_kernel, (query_BTHK, key_BSHK, value_BSHK), biases, (), 1)[0]


def _attend_forward(query_BTHK, key_BSHK, value_BSHK, biases):
    if any(part.perturbed for part in biases):
        advice = "ATTENTION = 'einsum' gives it one"
        raise UserError(f"ATTENTION = 'fused': the relative position bias is trained, and the kernel has no gradient for it; {advice}.")
    arrays, biases = jax.tree.map(lambda part: part.value, ((query_BTHK, key_BSHK, value_BSHK), biases), is_leaf=_is_primal)
    return _on_devices(_forward_kernel, arrays, biases, (), 1)[0], (arrays, biases)


def _is_primal(leaf) -> bool:
    return hasattr(leaf, "perturbed")


def _attend_backward(saved, grad_BTHK):
    arrays, biases = saved
    if isinstance(grad_BTHK, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    return *_on_devices(_backward_kernel, arrays, biases, (grad_BTHK,), 3), None


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _on_devices(kernel, arrays, biases, grads, results: int):
    """Runs the kernel on every device's own examples and heads; results shaped as the first arrays."""
    bias_axes = [("batch" if part.shape[0] > 1 else None, "heads" if part.shape[1] > 1 else None, None, None) for part in biases]
    run = functools.partial(_run, kernel, len(biases), results)
    return each_device(run, [*[_HEADS] * 3, *bias_axes, *[_HEADS] * len(grads)], [_HEADS] * results)(*arrays, *biases, *grads)


def _heads_of_a_program(num_heads: int, head_dim: int) -> int:
    heads = max(LANES // head_dim, 1)
    return heads if heads * head_dim % LANES == 0 and num_heads % heads == 0 else num_heads


def _run(kernel, num_biases: int, results: int, *arrays):
    """The kernel over a grid of (groups of heads, examples): the position bias of a group is fetched once for all examples."""
    query_BTHK, key_BSHK = arrays[:2]
    B, T, H, K = query_BTHK.shape  # noqa: N806
    S, heads = key_BSHK.shape[1], _heads_of_a_program(H, K)  # noqa: N806

    def spec(array):
        return pl.BlockSpec((1, array.shape[1], heads * K), lambda group, example: (example, 0, group))

    def bias_spec(part):
        many_examples, many_heads = (size > 1 for size in part.shape[:2])

        def where(group, example):
            return example * many_examples, group * many_heads, 0, 0

        return pl.BlockSpec((1, heads if many_heads else 1, *part.shape[2:]), where)

    joined = [array.reshape(*array.shape[:2], H * K) for array in (*arrays[:3], *arrays[3 + num_biases :])]
    biases = list(arrays[3 : 3 + num_biases])
    operands = [*joined[:3], *biases, *joined[3:]]
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in joined[:results]]
    moved = sum(math.prod(array.shape) * array.dtype.itemsize for array in (*operands, *shapes))
    products = 2 if results == 1 else 5
    found = pl.pallas_call(
        functools.partial(kernel, head_dim=K),
        grid=(H // heads, B),
        in_specs=[*map(spec, joined[:3]), *map(bias_spec, biases), *map(spec, joined[3:])],
        out_specs=[spec(shape) for shape in shapes],
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes(T, S, K, H, query_BTHK.dtype.itemsize)
        ),
        cost_estimate=pl.CostEstimate(flops=2 * products * B * T * S * H * K, transcendentals=B * H * T * S, bytes_accessed=moved),
    )(*operands)
    return [result.reshape(array.shape) for result, array in zip(found, arrays, strict=False)]


def _product(left, right, dimensions=_PLAIN):
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _weights(query_TK, key_SK, biases):
    """softmax(query key^T + biases) (T, S), float32."""
    logits_TS = _product(query_TK, key_SK, _RIGHT_TURNED)
    for part in biases:
        logits_TS += part
    raised_TS = jnp.exp(logits_TS - jnp.max(logits_TS, axis=1, keepdims=True))
    return raised_TS / jnp.sum(raised_TS, axis=1, keepdims=True)


def _each_head(query_ref, bias_refs, head_dim: int):
    """(columns of a head, its biases (T, S) or (1, S)) for the heads of this program."""
    for head in range(query_ref.shape[2] // head_dim):
        yield slice(head * head_dim, (head + 1) * head_dim), [ref[0, head % ref.shape[1]] for ref in bias_refs]


def _forward_kernel(query_ref, key_ref, value_ref, *refs, head_dim: int):
    *bias_refs, out_ref = refs
    for at, biases in _each_head(query_ref, bias_refs, head_dim):
        weights_TS = _weights(query_ref[0, :, at], key_ref[0, :, at], biases)
        out_ref[0, :, at] = _product(weights_TS.astype(value_ref.dtype), value_ref[0, :, at]).astype(out_ref.dtype)


def _backward_kernel(query_ref, key_ref, value_ref, *refs, head_dim: int):
    *bias_refs, grad_ref, grad_query_ref, grad_key_ref, grad_value_ref = refs
    for at, biases in _each_head(query_ref, bias_refs, head_dim):
        query_TK, key_SK, value_SK, grad_TK = (ref[0, :, at] for ref in (query_ref, key_ref, value_ref, grad_ref))
        weights_TS = _weights(query_TK, key_SK, biases)
        grad_weights_TS = _product(grad_TK, value_SK, _RIGHT_TURNED)
        mean_T1 = jnp.sum(weights_TS * grad_weights_TS, axis=1, keepdims=True)
        grad_logits_TS = (weights_TS * (grad_weights_TS - mean_T1)).astype(query_TK.dtype)
        grad_query_ref[0, :, at] = _product(grad_logits_TS, key_SK).astype(grad_query_ref.dtype)
        grad_key_ref[0, :, at] = _product(grad_logits_TS, query_TK, _LEFT_TURNED).astype(grad_key_ref.dtype)
        grad_value_ref[0, :, at] = _product(weights_TS.astype(grad_TK.dtype), grad_TK, _LEFT_TURNED).astype(grad_value_ref.dtype)
