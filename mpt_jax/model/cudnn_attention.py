"""T5's attention by cuDNN's fused kernel through JAX, for NVIDIA GPUs: logits and weights are never written to the card's memory.

cuDNN takes the bias by position once for all examples, in the dtype of the queries, and how many keys of each example are real.
B examples, Y positions that attend (queries), Z positions that are attended to (keys), H heads, K head width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mpt_jax.sharding import each_device

OLDEST = 8.0  # compute capability of Ampere [jax/_src/cudnn/fused_attention_stablehlo.py, as all limits here]
WIDEST = 128  # heads, before Hopper
_HEADS = ("batch", "length", "heads", "kv")


def _capability(device: Any) -> str:
    """Compute capability as JAX gives it; a mesh's device is not a real one and tells its kind alone, so one of that kind is asked."""
    alike = [device, *(one for one in jax.devices() if one.device_kind == device.device_kind)]
    return next((str(one.compute_capability) for one in alike if hasattr(one, "compute_capability")), "")


def why_not(device: Any, dtype: str, head_dim: int) -> str:
    """What keeps cuDNN from a network's attention on a device; '' where nothing does."""
    capability = _capability(device)
    if not capability.replace(".", "", 1).isdigit() or float(capability) < OLDEST:
        return f"cuDNN's kernel needs an NVIDIA GPU of compute capability {OLDEST} or later, and this is {device.device_kind}"
    if dtype != "bfloat16":
        return f"cuDNN's kernel takes DTYPE = 'bfloat16', and this is {dtype}"
    if head_dim > WIDEST or head_dim % 8:
        return f"cuDNN's kernel takes heads of at most {WIDEST} numbers that 8 divides, and these have {head_dim}"
    return ""


def fits(Y: int, Z: int) -> bool:
    """Whether cuDNN has gradients for these numbers of positions."""
    return Y % 2 == Z % 2 == 0


def attend(query_BYHK, key_BZHK, value_BZHK, bias, implementation: str = "cudnn"):
    """softmax(query key^T + bias) value, as attention.attend. Real keys of an example stand in front of the others.

    An example without real keys attends to its first one: its result is a number, and nothing reads it.
    """
    position, by_key = bias
    given = [query_BYHK, key_BZHK, value_BZHK]
    axes: list[tuple] = [_HEADS] * 3
    if by_key is not None:
        given.append(jnp.maximum(jnp.sum(by_key[:, 0, 0] == 0, axis=-1, dtype=jnp.int32), 1))
        axes.append(("batch",))
    if position is not None:
        given.append(position.astype(query_BYHK.dtype))
        axes.append((None, "heads" if position.shape[1] > 1 else None, None, None))

    def run(query_BYHK, key_BZHK, value_BZHK, *more):
        more = list(more)
        length_B = more.pop(0) if by_key is not None else None
        return [
            jax.nn.dot_product_attention(
                query_BYHK, key_BZHK, value_BZHK, *more, scale=1.0, key_value_seq_lengths=length_B, implementation=implementation
            )
        ]

    return each_device(run, axes, [_HEADS])(*given)[0]
