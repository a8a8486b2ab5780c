"""Products of bfloat16 matrices."""

import jax
import jax.numpy as jnp
import numpy as np

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
