"""Gradients of attention in bfloat16."""

import re

import jax
import jax.numpy as jnp
import pytest

from mpt_jax.model import attention


@pytest.mark.long
def test_gradients_of_bfloat16_attention_are_products_of_bfloat16_arrays():
    """A float32 operand would run at a fraction of an accelerator's rate; the results stay near those of float32."""
    keys = jax.random.split(jax.random.PRNGKey(0), 4)
    arrays = [jax.random.normal(key, (2, 12, 3, 16)) * scale for key, scale in zip(keys, (0.25, 1.0, 1.0, 1.0), strict=True)]
    whole, part = jnp.ones((2, 12, 12), bool), jnp.ones((2, 12, 5), bool)

    def biased(query, key, value):
        return attention.attend(query, key, value, attention.Bias(jnp.zeros((1, 3, 12, 12)), None))

    def segmented(query, key, value):
        segments = [attention.Segment(key[:1, :5], value[:1, :5], part), attention.Segment(key, value, whole)]
        return attention.attend_segments(query, segments, 0.25)

    for attend in (biased, segmented):

        def gradients(query, key, value, grad, attend=attend):
            return jax.vjp(attend, query, key, value)[1](grad)

        rounded = [array.astype(jnp.bfloat16) for array in arrays]
        text = str(jax.make_jaxpr(gradients)(*rounded))
        products = re.findall(r"dot_general\[.*?\] (\w+) (\w+)", text, re.DOTALL)
        assert products and all(re.search(rf"\b{name}:bf16\[", text) for pair in products for name in pair)
        for found, expected in zip(gradients(*rounded), gradients(*arrays), strict=True):
            assert found.dtype == jnp.bfloat16
            assert jnp.linalg.norm(found.astype(jnp.float32) - expected) < 0.02 * jnp.linalg.norm(expected)
