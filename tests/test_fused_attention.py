"""The TPU kernel in Pallas' interpreter: what the plain products give, in values and gradients, on one device and on meshes."""

import dataclasses
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

from mpt_jax import sharding
from mpt_jax.compiling import hlo
from mpt_jax.compiling.chips import prepare, topology
from mpt_jax.config import MeshSettings, T5Config, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.model import attention, fused_attention, prompted_t5
from mpt_jax.model.attention import MASKED, Bias, attend, kernel_for

CONFIG = T5Config("tiny", 60, 32, 4, 8, 32, 2, 2, attention="fused")
V5E = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")


def arrays(B, T, S, H, K, dtype=jnp.float32):  # noqa: N803
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    bias = Bias(make(1, H, T, S).astype(jnp.float32), jnp.where(jnp.arange(S) < rng.integers(1, S + 1, (B, 1)), 0.0, MASKED)[:, None, None])
    return (make(B, T, H, K) / K**0.5, make(B, S, H, K), make(B, S, H, K)), bias, make(B, T, H, K)


def values_and_gradients(function, inputs, bias, weight):
    out, back = jax.vjp(lambda *inputs: function(*inputs, bias), *inputs)
    return jax.tree.map(lambda x: np.asarray(x, np.float32), (out, *back(weight)))


@pytest.mark.parametrize("H, K, parts", [(4, 64, "both"), (3, 64, "key"), (6, 32, "position"), (2, 128, "both")])
def test_the_kernel_gives_what_products_give(H, K, parts):  # noqa: N803
    """Lengths that no tile divides; heads two to a program, all in one, four that do not divide six, one each."""
    inputs, bias, weight = arrays(2, 13, 37, H, K)
    bias = Bias(bias.position_1HTS if parts != "key" else None, bias.key_B11S if parts != "position" else None)
    with pltpu.force_tpu_interpret_mode():
        found = values_and_gradients(fused_attention.attend, inputs, bias, weight)
    for array, expected in zip(found, values_and_gradients(attend, inputs, bias, weight), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


def test_bfloat16_is_as_near_to_float32_as_products_are():
    inputs, bias, weight = arrays(2, 24, 40, 2, 64)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (inputs, weight))
    with pltpu.force_tpu_interpret_mode():
        found = values_and_gradients(fused_attention.attend, half[0], bias, half[1])
    exact, products = (values_and_gradients(attend, *given) for given in ((inputs, bias, weight), (half[0], bias, half[1])))
    for array, by_products, expected in zip(found, products, exact, strict=True):
        assert np.abs(array - expected).max() <= 1.5 * np.abs(by_products - expected).max()


def loss_and_gradient(config, rows: int, mesh=None):
    """Mean squared logits of a T5 with a prompt and padded inputs, 5 target positions, and their gradient towards the prompt."""
    rng = np.random.default_rng(1)
    params = prompted_t5.init_backbone(config, 0)
    inputs_BL, targets_BT = rng.integers(2, 60, (rows, 9)).astype(np.int32), rng.integers(2, 60, (rows, 5)).astype(np.int32)
    inputs_BL[1, 5:] = 0
    prompt_BPD = jnp.asarray(rng.normal(size=(rows, 3, config.d_model)), jnp.float32)

    def loss(prompt_BPD, inputs_BL, targets_BT):
        outputs = prompted_t5.forward(config, params, prompt_BPD, inputs_BL, targets_BT)
        return jnp.mean(outputs.logits_BTV**2)

    place = lambda array: sharding.place_rows(mesh, array)  # noqa: E731
    with sharding.use(mesh):
        return jax.jit(jax.value_and_grad(loss))(place(prompt_BPD), place(inputs_BL), place(targets_BT))


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(found[1]), np.asarray(expected[1]), atol=1e-5 * float(jnp.abs(expected[1]).max()))


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_a_network_with_the_kernel_is_the_same_network(monkeypatch, remat):
    monkeypatch.setattr(attention, "target_device", lambda: V5E)
    calls = []
    monkeypatch.setitem(attention.KERNELS, "fused", lambda *given: calls.append(given[0].shape) or fused_attention.attend(*given))
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))  # TPU's interpreter knows no remat
    found = loss_and_gradient(dataclasses.replace(CONFIG, remat=remat), 2)
    assert {shape[1] for shape in calls} == {12, 5}  # encoder and decoder
    assert_same(found, loss_and_gradient(dataclasses.replace(CONFIG, attention="einsum"), 2))


def on_meshes() -> None:
    """Run as a program with 8 pretend devices: raises where a mesh gives something else than one device."""
    attention.target_device = lambda: V5E
    pl.pallas_call = functools.partial(pl.pallas_call, interpret=True)
    expected = loss_and_gradient(dataclasses.replace(CONFIG, attention="einsum"), 8)
    for shape in ((8, 1, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8)):  # 8 tensor parts do not divide 4 heads
        assert_same(loss_and_gradient(CONFIG, 8, sharding.make_mesh(MeshSettings(*shape))), expected)
    print(json.dumps({"devices": len(jax.devices())}))


@pytest.mark.slow
def test_the_kernel_on_meshes():
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    command = [sys.executable, "-c", "import test_fused_attention; test_fused_attention.on_meshes()"]
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
    placed = lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
    given = [placed(query, PartitionSpec("data", None, "tensor"))] * 3
    bias = Bias(placed(bias.position_1HTS, PartitionSpec(None, "tensor")), placed(bias.key_B11S, PartitionSpec("data")))
    with sharding.use(mesh):
        assert kernel_for(T5Config("t5_base", 60, 768, 12, 64, 32, 1, 1, dtype="bfloat16"), 357, 357) == "fused"
        gradient = jax.grad(lambda inputs, bias: jnp.sum(fused_attention.attend(*inputs, bias).astype(jnp.float32) ** 2))
        program = jax.jit(gradient).lower(given, bias).compile().as_text()
    assert program.count("tpu_custom_call") >= 2 and not hlo.collectives(program, 4)


def test_where_the_kernel_is_taken(monkeypatch):
    config = dataclasses.replace(CONFIG, attention="auto", num_heads=12, head_dim=64, dtype="bfloat16")
    assert kernel_for(config, 356, 356) == "einsum"  # these devices are no TPUs
    with pytest.raises(UserError, match="'fused' is a kernel of TPUs, and these devices are cpu"):
        kernel_for(dataclasses.replace(config, attention="fused"), 356, 356)
    monkeypatch.setattr(attention, "target_device", lambda: V5E)
    assert kernel_for(config, 356, 356) == kernel_for(config, 128, 356) == "fused"
    assert kernel_for(config, 1, 356) == kernel_for(dataclasses.replace(config, attention="einsum"), 356, 356) == "einsum"
    assert kernel_for(config, 4096, 4096) == "einsum"
    with pytest.raises(UserError, match="4096 x 4096 positions take .* MiB of VMEM, and TPU v5 lite gives 128"):
        kernel_for(dataclasses.replace(config, attention="fused"), 4096, 4096)


def test_a_trained_bias_is_refused():
    inputs, bias, _ = arrays(1, 4, 4, 2, 8)
    with pytest.raises(UserError, match="bias is trained.*ATTENTION = 'einsum'"), pltpu.force_tpu_interpret_mode():
        jax.grad(lambda position: fused_attention.attend(*inputs, bias._replace(position_1HTS=position)).sum())(bias.position_1HTS)
    with pytest.raises(UserError, match="ATTENTION.*'finetune'"):
        TrainSettings("finetune", "x", attention="fused")
    assert TrainSettings("finetune", "x").configured(CONFIG).attention == "einsum"
    assert TrainSettings("target", "x").configured(CONFIG).attention == "auto"
