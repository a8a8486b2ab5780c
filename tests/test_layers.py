"""Layers that families share, against plain NumPy; the whole networks are compared in test_t5.py."""

import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpt_jax.model import layers
from mpt_jax.model.layers import Dense, Embed, Mlp, RelativePositionBias, RMSNorm, bfloat16_product, relative_position_bucket

RNG = np.random.default_rng(0)
X_BTD = RNG.normal(size=(2, 3, 8)).astype(np.float32)


def run(module, *given):
    """(weights as the module draws them, made larger; its result with them)."""
    params = jax.tree.map(lambda array: 2.0 * array, module.init(jax.random.PRNGKey(0), *given))
    return jax.tree.map(np.asarray, params["params"]), np.asarray(module.apply(params, *given))


def test_bfloat16_products_are_summed_in_float32_forwards_and_backwards():
    """Equal to the float32 product of the rounded inputs, rounded once: to half a step of bfloat16, 2^-8 of the value."""
    x, kernel, grad = (jnp.asarray(RNG.normal(size=shape), jnp.bfloat16) for shape in ((2, 5, 64), (64, 7), (2, 5, 7)))

    def value_and_gradients(product, *arrays):
        value, backward = jax.vjp(product, *arrays)
        return value, *backward(grad.astype(value.dtype))

    exact = value_and_gradients(jnp.dot, *(array.astype(jnp.float32) for array in (x, kernel)))
    for ours, wide in zip(value_and_gradients(bfloat16_product, x, kernel), exact, strict=True):
        assert ours.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(ours, np.float32), wide, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_is_a_product_with_its_kernel(dtype):
    params, found = run(Dense(5, dtype, 0.3), X_BTD.astype(dtype))
    assert params["kernel"].shape == (8, 5) and params["kernel"].dtype == np.float32 and found.dtype == dtype
    expected = X_BTD.astype(dtype).astype(np.float32) @ params["kernel"].astype(dtype).astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2**-7 if dtype == "bfloat16" else 1e-5, atol=1e-5)


def test_a_norm_divides_by_the_root_mean_square():
    params, found = run(RMSNorm(1e-6, "float32"), X_BTD)
    np.testing.assert_array_equal(params["scale"], np.full(8, 2.0, np.float32))
    np.testing.assert_allclose(found, 2.0 * X_BTD / np.sqrt((X_BTD**2).mean(axis=-1, keepdims=True) + 1e-6), rtol=1e-5)


def test_embeddings_are_looked_up_and_serve_as_the_output_matrix():
    tokens_BT, embed = np.array([[4, 0], [2, 4]]), Embed(6, 8, "float32")
    params, found = run(embed, tokens_BT)
    np.testing.assert_array_equal(found, params["embedding"][tokens_BT])
    logits_BTV = embed.apply({"params": params}, X_BTD, method=Embed.attend)
    np.testing.assert_allclose(logits_BTV, X_BTD @ params["embedding"].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
def test_feed_forward_layers(activations):
    """T5 v1.0's, and the gated one of v1.1 with GELU by tanh."""
    params, found = run(Mlp(12, activations, "float32"), X_BTD, jnp.asarray)  # no dropout
    if len(activations) == 1:
        hidden = np.maximum(X_BTD @ params["wi"]["kernel"], 0.0)
    else:
        gate, linear = X_BTD @ params["wi_0"]["kernel"], X_BTD @ params["wi_1"]["kernel"]
        hidden = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * linear
    np.testing.assert_allclose(found, hidden @ params["wo"]["kernel"], rtol=1e-4, atol=1e-4)


def test_buckets_of_distances():
    """T5's appendix: half of the buckets exact, then logarithmic up to 128; in a decoder nothing lies ahead."""
    distance = np.arange(-200, 201)
    both = np.asarray(relative_position_bucket(distance, True, 32, 128))
    assert both[distance == 0] == 0 and both[distance == -3] == 3 and both[distance == 3] == 16 + 3
    assert both[distance == -7] == 7 and both[distance == -8] == 8 and both[distance == -127] == both[distance == -200] == 15
    assert both.min() == 0 and both.max() == 31
    back = np.asarray(relative_position_bucket(distance, False, 32, 128))
    assert not back[distance > 0].any() and back[distance == -15] == 15 and back[distance == -16] == 16 and back[distance == -200] == 31
    for near, far in itertools.pairwise(back[distance <= 0][::-1]):
        assert near <= far


def test_a_position_bias_looks_its_buckets_up_for_each_head():
    bias = RelativePositionBias(2, 32, 128, True, 1.0)
    params, found = run(bias, np.arange(3), np.arange(5))
    bucket_TS = relative_position_bucket(np.arange(5)[None] - np.arange(3)[:, None], True, 32, 128)
    np.testing.assert_array_equal(found, params["rel_embedding"][:, np.asarray(bucket_TS)][None])


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
