"""Products of bfloat16 matrices."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.model import layers
from mpt_jax.model.layers import bfloat16_product


def test_bfloat16_products_are_summed_in_float32_forwards_and_backwards():
    """Equal to the float32 product of the rounded inputs, rounded once: to half a step of bfloat16, 2^-8 of the value."""
    rng = np.random.default_rng(0)
    x, kernel, grad = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((2, 5, 64), (64, 7), (2, 5, 7)))

    def value_and_gradients(product, *arrays):
        value, backward = jax.vjp(product, *arrays)
        return value, *backward(grad.astype(value.dtype))

    exact = value_and_gradients(jnp.dot, *(array.astype(jnp.float32) for array in (x, kernel)))
    for ours, wide in zip(value_and_gradients(bfloat16_product, x, kernel), exact, strict=True):
        assert ours.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours, np.float32), wide, rtol=2**-8, atol=1e-4)


def test_gpus_are_asked_for_bfloat16_results(monkeypatch):
    """Where float32 results are asked for, XLA on GPUs writes them to memory and rounds them in a second pass."""
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    x, kernel = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 2), jnp.bfloat16)

    def products():
        text = str(jax.make_jaxpr(jax.value_and_grad(lambda x: layers.bfloat16_product(x, kernel).sum()))(x))
        return re.findall(r":(\w+)\[[0-9,]*\] = dot_general", text)

    assert set(products()) == {"f32"}
    monkeypatch.setattr(layers, "target_device", lambda: gpu)
    assert set(products()) == {"bf16"}
