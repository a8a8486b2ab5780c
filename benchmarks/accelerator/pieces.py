"""Pieces of a step alone: a large product (what the card reaches), and T5's attention and dense layers in the forms that could be used.

B examples, S positions, H heads, K head width, D model width, F feed-forward width.
"""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.cases import Scale
from mpt_jax.model import attention
from mpt_jax.model.layers import bfloat16_product

REPEATS, TIMES = 5, 10


def timed(run: Callable, *arguments: Any) -> float:
    """Median seconds of a call, over REPEATS series of TIMES calls that do not wait for one another."""
    jax.block_until_ready(run(*arguments))
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(TIMES):
            last = run(*arguments)
        jax.block_until_ready(last)
        found.append((time.perf_counter() - start) / TIMES)
    return statistics.median(found)


def _random(seed: int, *shape: int, spread: float = 1.0) -> jax.Array:
    return (spread * jax.random.normal(jax.random.PRNGKey(seed), shape)).astype(jnp.bfloat16)


def product(scale: Scale) -> dict[str, Any]:
    """The rate of one large bfloat16 product, in operations a second."""
    size = scale.product
    seconds = timed(jax.jit(jnp.dot), _random(0, size, size), _random(1, size, size))
    return {"size": size, "seconds": seconds, "rate": 2.0 * size**3 / seconds}


def _plain(query_BTHK, key_BSHK, value_BSHK, bias):
    """attention.attend as most write it: jax.nn.softmax between two products."""
    logits_BHTS = jnp.einsum("BTHK,BSHK->BHTS", query_BTHK, key_BSHK, preferred_element_type=jnp.float32) + bias.total
    return jnp.einsum("BHTS,BSHK->BTHK", jax.nn.softmax(logits_BHTS).astype(value_BSHK.dtype), value_BSHK)


def _cudnn(query_BTHK, key_BSHK, value_BSHK, bias, whole: bool):
    """cuDNN's fused attention; ``whole``: the bias of all examples at once, else by position, with lengths of the keys."""
    arrays = query_BTHK, key_BSHK, value_BSHK
    if whole:
        return jax.nn.dot_product_attention(*arrays, bias.total.astype(query_BTHK.dtype), scale=1.0, implementation="cudnn")
    length_B = jnp.sum(bias.key_B11Z[:, 0, 0] > attention.MASKED / 2, axis=-1, dtype=jnp.int32)
    more = {"key_value_seq_lengths": length_B, "scale": 1.0, "implementation": "cudnn"}
    return jax.nn.dot_product_attention(*arrays, bias.position_1HYZ.astype(query_BTHK.dtype), **more)


FORMS = {
    "package": attention.attend,
    "plain": _plain,
    "cudnn": functools.partial(_cudnn, whole=False),
    "cudnn_whole_bias": functools.partial(_cudnn, whole=True),
}


def _with_gradients(form: Callable, query_BTHK, key_BSHK, value_BSHK, bias, grad_BTHK):
    out_BTHK, pull = jax.vjp(lambda *arrays: form(*arrays, bias), query_BTHK, key_BSHK, value_BSHK)
    return out_BTHK, pull(grad_BTHK)


def attend(scale: Scale, config: Any, failures: tuple[type[Exception], ...]) -> dict[str, Any]:
    """Milliseconds of the encoder's attention of one layer, forward and with gradients of queries, keys and values, by form.

    'error': largest difference from the package's result, as a share of its largest value; a form that this device lacks says why.
    """
    B, S, H, K = scale.micro, scale.prompt + scale.buckets[-1], config.num_heads, config.head_dim
    query_BSHK, key_BSHK, value_BSHK, grad_BSHK = (_random(n, B, S, H, K, spread=K**-0.5 if n == 0 else 1.0) for n in range(4))
    length_B = jnp.linspace(S // 2, S, B).astype(jnp.int32)
    real_BS = jnp.arange(S) < length_B[:, None]
    position_1HSS = jax.random.normal(jax.random.PRNGKey(4), (1, H, S, S))
    bias = attention.Bias(position_1HSS, jnp.where(real_BS, 0.0, attention.MASKED)[:, None, None, :])
    found: dict[str, Any] = {"shape": [B, S, H, K]}
    expected = None
    for name, form in FORMS.items():
        forward, both = jax.jit(form), jax.jit(functools.partial(_with_gradients, form))
        arrays = query_BSHK, key_BSHK, value_BSHK, bias
        try:
            made = both(*arrays, grad_BSHK)
            expected = made if expected is None else expected
            errors = jax.tree.map(_error, made, expected)
            times = {"forward_ms": 1e3 * timed(forward, *arrays), "both_ms": 1e3 * timed(both, *arrays, grad_BSHK)}
        except failures as error:
            found[name] = {"why_not": " ".join(str(error).split())[:300]}
            continue
        found[name] = {part: round(value, 4) for part, value in times.items()} | {"error": max(map(float, jax.tree.leaves(errors)))}
    return found


def _error(made, expected):
    made, expected = made.astype(jnp.float32), expected.astype(jnp.float32)
    return jnp.max(jnp.abs(made - expected)) / jnp.max(jnp.abs(expected))


def dense(scale: Scale, config: Any) -> dict[str, Any]:
    """Teraflops of both feed-forward products of the encoder, by how the result becomes bfloat16: 'package', 'rounded', 'direct'."""
    rows = scale.micro * (scale.prompt + scale.buckets[-1])

    def rounded(x, kernel):
        return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)

    found: dict[str, Any] = {}
    for inner, outer in ((config.d_model, config.d_ff), (config.d_ff, config.d_model), (config.d_model, config.d_model)):
        arrays, operations = (_random(0, rows, inner), _random(1, inner, outer, spread=inner**-0.5)), 2.0 * rows * inner * outer
        forms = {"package": bfloat16_product, "rounded": rounded, "direct": jnp.dot}
        times = {name: timed(jax.jit(form), *arrays) for name, form in forms.items()}
        found[f"{rows}x{inner}x{outer}"] = {name: round(operations / seconds / 1e12, 2) for name, seconds in times.items()}
    return {"tflops": found}
