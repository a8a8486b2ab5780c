"""The TPU kernel in Pallas' interpreter: what the plain products give, in values and gradients, on one device and on meshes."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec
from tiny_methods import FAMILIES, settings_of
from tiny_model import given, own, rows_of, tiny, weights

from mpt_jax import sharding
from mpt_jax.compiling import hlo
from mpt_jax.compiling.chips import prepare, topology
from mpt_jax.config import BackboneSettings, Computation, MeshSettings
from mpt_jax.errors import UserError
from mpt_jax.model import attention, fused_attention
from mpt_jax.model.attention import MASKED, Bias, attend, kernel_for
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.network import forward
from mpt_jax.train.program import assemble

CONFIG = tiny(vocab_size=60, d_model=32, num_heads=4, num_encoder_layers=2, num_decoder_layers=2)
V5E = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def arrays(B, T, S, H, K, dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def make(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    bias = Bias(make(1, H, T, S).astype(jnp.float32), jnp.where(jnp.arange(S) < rng.integers(1, S + 1, (B, 1)), 0.0, MASKED)[:, None, None])
    return (make(B, T, H, K) / K**0.5, make(B, S, H, K), make(B, S, H, K)), bias, make(B, T, H, K)


def values_and_gradients(function, inputs, bias, weight):
    out, back = jax.vjp(lambda *inputs: function(*inputs, bias), *inputs)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), (out, *back(weight)))


LONG_CASES = [pytest.param(*case, marks=pytest.mark.long) for case in ((3, 64, "key"), (6, 32, "position"), (2, 128, "both"))]


@pytest.mark.parametrize("H, K, parts", [pytest.param(4, 64, "both", marks=pytest.mark.slow), *LONG_CASES])
def test_the_kernel_gives_what_products_give(H, K, parts):
    """Lengths that no tile divides; heads two to a program, all in one, four that do not divide six, one each."""
    inputs, bias, weight = arrays(2, 13, 37, H, K)
    bias = Bias(bias.position_1HYZ if parts != "key" else None, bias.key_B11Z if parts != "position" else None)
    with pltpu.force_tpu_interpret_mode():
        found = values_and_gradients(fused_attention.attend, inputs, bias, weight)
    for array, expected in zip(found, values_and_gradients(attend, inputs, bias, weight), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


@pytest.mark.long
def test_bfloat16_is_as_near_to_float32_as_products_are():
    inputs, bias, weight = arrays(2, 24, 40, 2, 64)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (inputs, weight))
    with pltpu.force_tpu_interpret_mode():
        found = values_and_gradients(fused_attention.attend, half[0], bias, half[1])
    exact, products = (values_and_gradients(attend, *given) for given in ((inputs, bias, weight), (half[0], bias, half[1])))
    for array, by_products, expected in zip(found, products, exact, strict=True):
        assert np.abs(array - expected).max() <= 1.5 * np.abs(by_products - expected).max()


def loss_and_gradient(rows: int, mesh=None, **computation):
    """Mean squared logits of a T5 with a prompt and padded inputs, 5 target positions, and their gradient towards the prompt."""
    rng = np.random.default_rng(1)
    network, params = given(CONFIG, **computation), weights(CONFIG)
    inputs_BL, targets_BT = rng.integers(2, 60, (rows, 9)).astype(np.int32), rng.integers(2, 60, (rows, 5)).astype(np.int32)
    inputs_BL[1, 5:] = 0
    prompt_BPD = jnp.asarray(rng.normal(size=(rows, 3, CONFIG.d_model)), jnp.float32)

    def loss(prompt_BPD, tokens):
        return jnp.mean(forward(network, params, tokens, own(prompt_BPD)).logits_BTV ** 2)

    prompt_BPD, tokens = jax.tree.map(lambda array: sharding.put_rows(mesh, array), (prompt_BPD, rows_of(inputs_BL, targets_BT)))
    with sharding.use(mesh):
        return jax.jit(jax.value_and_grad(loss))(prompt_BPD, tokens)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found[1]), np.asarray(expected[1]), atol=1e-5 * float(jnp.abs(expected[1]).max()))


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "layers"])
def test_a_network_with_the_kernel_is_the_same_network(monkeypatch, remat):
    monkeypatch.setattr(attention, "target_device", lambda: V5E)
    calls = []
    monkeypatch.setitem(attention.KERNELS, "fused", lambda *given: calls.append(given[0].shape) or fused_attention.attend(*given))
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))  # TPU's interpreter knows no remat
    found = loss_and_gradient(2, attention="fused", remat=remat)
    assert {shape[1] for shape in calls} == {12, 5}  # encoder and decoder
    assert_same(found, loss_and_gradient(2, attention="einsum"))


def on_meshes() -> None:
    """Run as a program with 8 pretend devices: raises where a mesh gives something else than one device."""
    pl.pallas_call = functools.partial(pl.pallas_call, interpret=True)
    same_on_meshes(V5E)


def same_on_meshes(device) -> None:
    """Runs as if every device were this one."""
    attention.target_device = lambda: device
    expected = loss_and_gradient(8, attention="einsum")
    for shape in ((8, 1, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8)):  # 8 tensor parts do not divide 4 heads
        assert_same(loss_and_gradient(8, sharding.make_mesh(MeshSettings(*shape)), attention="fused"), expected)
    print(json.dumps({"devices": len(jax.devices())}))


@pytest.mark.long
def test_the_kernel_on_meshes():
    run_on_eight_devices("test_fused_attention")


def run_on_eight_devices(module: str) -> None:
    """Calls ``on_meshes`` of a test module in a process with 8 pretend devices."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    command = [sys.executable, "-c", f"import {module}; {module}.on_meshes()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {"devices": 8}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'mpt_jax[tpu]'")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_kernel_compiles_for_tpus(name):
    """Forward and backward, a length that no tile divides, two tensor parts of T5-Base's heads: no collective."""
    prepare(name)
    mesh = sharding.make_mesh(MeshSettings(2, 1, 2), topology(name).devices)
    (query, *_), bias, _ = jax.eval_shape(lambda: arrays(4, 357, 357, 12, 64, jnp.bfloat16))

    def placed(leaf, spec):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    inputs = [placed(query, PartitionSpec("data", None, "tensor"))] * 3
    bias = Bias(placed(bias.position_1HYZ, PartitionSpec(None, "tensor")), placed(bias.key_B11Z, PartitionSpec("data")))
    with sharding.use(mesh):
        assert kernel_for(Computation("bfloat16"), 12, 64, 357, 357) == "fused"
        gradient = jax.grad(lambda inputs, bias: jnp.sum(fused_attention.attend(*inputs, bias).astype(jnp.float32) ** 2))
        program = jax.jit(gradient).lower(inputs, bias).compile().as_text()
    assert program.count("tpu_custom_call") >= 2 and not hlo.collectives(program, 4)


def test_where_the_kernel_is_taken(monkeypatch):
    def chosen(attention_setting, queries, keys):
        return kernel_for(Computation("bfloat16", attention=attention_setting), 12, 64, queries, keys)

    assert chosen("auto", 356, 356) == "einsum"  # these devices are no TPUs
    with pytest.raises(UserError, match="'fused' is a kernel of TPUs and GPUs, and these devices are cpu"):
        chosen("fused", 356, 356)
    monkeypatch.setattr(attention, "target_device", lambda: V5E)
    assert chosen("auto", 356, 356) == chosen("auto", 128, 356) == "fused"
    assert chosen("auto", 1, 356) == chosen("einsum", 356, 356) == "einsum"
    assert chosen("auto", 4096, 4096) == "einsum"
    with pytest.raises(UserError, match="4096 x 4096 positions take .* MiB of VMEM, and TPU v5 lite gives 128"):
        chosen("fused", 4096, 4096)


@pytest.mark.parametrize("family", ["causal", "t5gemma", "t5gemma2"])
def test_families_without_a_kernel_say_so(family):
    config = FAMILIES[family]
    settings = settings_of("prompt", config=config)._replace(backbone=BackboneSettings(attention="fused"))
    with pytest.raises(UserError, match="ATTENTION = 'fused': 'tiny' has no place for a kernel.*; set ATTENTION = 'auto'"):
        assemble(settings, ("a",), Backbone("tiny", config, {}, "bytes", "f" * 16))


def test_a_trained_bias_is_refused():
    inputs, bias, _ = arrays(1, 4, 4, 2, 8)
    with pytest.raises(UserError, match="bias is trained.*ATTENTION = 'einsum'"), pltpu.force_tpu_interpret_mode():
        jax.grad(lambda position: fused_attention.attend(*inputs, bias._replace(position_1HYZ=position)).sum())(bias.position_1HYZ)
