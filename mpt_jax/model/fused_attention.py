"""T5's attention as one TPU kernel: products, biases and softmax of a few heads of one example stay in the chip's fast memory (VMEM).

Written in Pallas for what prompt tuning asks of attention: up to about a thousand positions, so that no softmax is cut into blocks and any
length needs no padding; a position bias that all examples share and that gets no gradient. Nothing of size (Y, Z) is written to HBM, and
the backward pass computes the weights again.
B examples, Y positions that attend (queries), Z positions that are attended to (keys), H heads, K head width.
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


def vmem_bytes(Y: int, Z: int, head_dim: int, num_heads: int, itemsize: int) -> int:
    """VMEM that the backward pass takes at most: blocks twice (one is fetched while the other is worked on), and six arrays (Y, Z)."""
    heads = _heads_of_a_program(num_heads, head_dim)

    def tile(rows: int, columns: int, size: int) -> int:
        return -(-rows // 8) * 8 * -(-columns // LANES) * LANES * size

    blocks = 3 * tile(Y, heads * head_dim, itemsize) + 4 * tile(Z, heads * head_dim, itemsize) + heads * tile(Y, Z, 4)
    return 2 * blocks + 6 * tile(Y, Z, 4)


def attend(query_BYHK, key_BZHK, value_BZHK, bias):
    """softmax(query key^T + bias) value on a TPU, as attention.attend. Raises UserError where a bias would need a gradient."""
    biases = tuple(part for part in bias if part is not None)
    return _attend(query_BYHK, key_BZHK, value_BZHK, biases)


@jax.custom_vjp
def _attend(query_BYHK, key_BZHK, value_BZHK, biases):
    return _on_devices(_forward_kernel, (query_BYHK, key_BZHK, value_BZHK), biases, (), 1)[0]


def _attend_forward(query_BYHK, key_BZHK, value_BZHK, biases):
    if any(part.perturbed for part in biases):
        advice = "ATTENTION = 'einsum' gives it one"
        raise UserError(f"ATTENTION = 'fused': the relative position bias is trained, and the kernel has no gradient for it; {advice}.")
    arrays, biases = jax.tree.map(lambda part: part.value, ((query_BYHK, key_BZHK, value_BZHK), biases), is_leaf=_is_primal)
    return _on_devices(_forward_kernel, arrays, biases, (), 1)[0], (arrays, biases)


def _is_primal(leaf) -> bool:
    return hasattr(leaf, "perturbed")


def _attend_backward(saved, grad_BYHK):
    arrays, biases = saved
    if isinstance(grad_BYHK, jax.custom_derivatives.SymbolicZero):
        return None, None, None, None
    return *_on_devices(_backward_kernel, arrays, biases, (grad_BYHK,), 3), None


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
    query_BYHK, key_BZHK = arrays[:2]
    B, Y, H, K = query_BYHK.shape
    Z, heads = key_BZHK.shape[1], _heads_of_a_program(H, K)

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
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_bytes(Y, Z, K, H, query_BYHK.dtype.itemsize)
        ),
        cost_estimate=pl.CostEstimate(flops=2 * products * B * Y * Z * H * K, transcendentals=B * H * Y * Z, bytes_accessed=moved),
    )(*operands)
    return [result.reshape(array.shape) for result, array in zip(found, arrays, strict=False)]


def _product(left, right, dimensions=_PLAIN):
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _weights(query_YK, key_ZK, biases):
    """softmax(query key^T + biases) (Y, Z), float32."""
    logits_YZ = _product(query_YK, key_ZK, _RIGHT_TURNED)
    for part in biases:
        logits_YZ += part
    raised_YZ = jnp.exp(logits_YZ - jnp.max(logits_YZ, axis=1, keepdims=True))
    return raised_YZ / jnp.sum(raised_YZ, axis=1, keepdims=True)


def _each_head(query_ref, bias_refs, head_dim: int):
    """(columns of a head, its biases (Y, Z) or (1, Z)) for the heads of this program."""
    for head in range(query_ref.shape[2] // head_dim):
        yield slice(head * head_dim, (head + 1) * head_dim), [ref[0, head % ref.shape[1]] for ref in bias_refs]


def _forward_kernel(query_ref, key_ref, value_ref, *refs, head_dim: int):
    *bias_refs, out_ref = refs
    for at, biases in _each_head(query_ref, bias_refs, head_dim):
        weights_YZ = _weights(query_ref[0, :, at], key_ref[0, :, at], biases)
        out_ref[0, :, at] = _product(weights_YZ.astype(value_ref.dtype), value_ref[0, :, at]).astype(out_ref.dtype)


def _backward_kernel(query_ref, key_ref, value_ref, *refs, head_dim: int):
    *bias_refs, grad_ref, grad_query_ref, grad_key_ref, grad_value_ref = refs
    for at, biases in _each_head(query_ref, bias_refs, head_dim):
        query_YK, key_ZK, value_ZK, grad_YK = (ref[0, :, at] for ref in (query_ref, key_ref, value_ref, grad_ref))
        weights_YZ = _weights(query_YK, key_ZK, biases)
        grad_weights_YZ = _product(grad_YK, value_ZK, _RIGHT_TURNED)
        mean_Y1 = jnp.sum(weights_YZ * grad_weights_YZ, axis=1, keepdims=True)
        grad_logits_YZ = (weights_YZ * (grad_weights_YZ - mean_Y1)).astype(query_YK.dtype)
        grad_query_ref[0, :, at] = _product(grad_logits_YZ, key_ZK).astype(grad_query_ref.dtype)
        grad_key_ref[0, :, at] = _product(grad_logits_YZ, query_YK, _LEFT_TURNED).astype(grad_key_ref.dtype)
        grad_value_ref[0, :, at] = _product(weights_YZ.astype(grad_YK.dtype), grad_YK, _LEFT_TURNED).astype(grad_value_ref.dtype)
