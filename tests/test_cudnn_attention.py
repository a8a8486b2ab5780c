"""cuDNN's attention: its arguments through XLA's form of the same function, where it is taken, and what is refused."""

import functools
import types

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice
from test_fused_attention import arrays, assert_same, loss_and_gradient, run_on_eight_devices, same_on_meshes, values_and_gradients

from mpt_jax.config import Computation
from mpt_jax.errors import UserError
from mpt_jax.model import attention, cudnn_attention
from mpt_jax.model.attention import MASKED, Bias, kernel_for

H200 = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", compute_capability="9.0")
by_xla = functools.partial(cudnn_attention.attend, implementation="xla")


@pytest.mark.parametrize("parts", ["both", "key", "position", "one head"])
def test_the_arguments_mean_what_the_products_compute(parts):
    inputs, bias, weight = arrays(3, 8, 12, 4, 16)
    position = bias.position_1HYZ[:, :1] if parts == "one head" else bias.position_1HYZ
    bias = Bias(position if parts != "key" else None, bias.key_B11Z if parts != "position" else None)
    found = values_and_gradients(by_xla, inputs, bias, weight)
    for array, expected in zip(found, values_and_gradients(attention.attend, inputs, bias, weight), strict=True):
        np.testing.assert_allclose(array, expected, atol=2e-5)


def test_an_example_without_real_keys_stays_a_number():
    inputs, bias, weight = arrays(2, 4, 6, 2, 8)
    bias = Bias(bias.position_1HYZ, bias.key_B11Z.at[1].set(MASKED))
    assert all(np.isfinite(array).all() for array in values_and_gradients(by_xla, inputs, bias, weight))


def test_a_network_with_it_is_the_same_network(monkeypatch):
    """5 target positions are odd: products; the encoder's 12 are cuDNN's."""
    calls = []
    monkeypatch.setattr(attention, "target_device", lambda: H200)
    monkeypatch.setattr(cudnn_attention, "why_not", lambda *_: "")  # float32 here
    monkeypatch.setitem(attention.KERNELS, "cudnn", lambda *given: calls.append(given[0].shape) or by_xla(*given))
    found = loss_and_gradient(2, attention="fused")
    assert {shape[1] for shape in calls} == {12}
    assert_same(found, loss_and_gradient(2, attention="einsum"))


def test_where_it_is_taken(monkeypatch):
    def chosen(setting, Y, Z, head_dim=64, dtype="bfloat16"):
        return kernel_for(Computation(dtype, attention=setting), 16, head_dim, Y, Z)

    monkeypatch.setattr(attention, "target_device", lambda: H200)
    assert chosen("fused", 356, 356) == "cudnn"
    assert chosen("auto", 356, 356) == chosen("fused", 5, 356) == chosen("fused", 1, 356) == "einsum"
    with pytest.raises(UserError, match="takes DTYPE = 'bfloat16', and this is float32; change that, or set ATTENTION = 'auto'"):
        chosen("fused", 356, 356, dtype="float32")
    with pytest.raises(UserError, match="at most 128 numbers that 8 divides, and these have 20"):
        chosen("fused", 356, 356, head_dim=20)
    monkeypatch.setattr(jax, "devices", lambda: [H200])
    monkeypatch.setattr(attention, "target_device", lambda: AbstractDevice("NVIDIA H200", 132, "gpu"))  # on a mesh
    assert chosen("fused", 356, 356) == "cudnn"
    for capability in ("7.5", "gfx90a"):
        old = types.SimpleNamespace(platform="gpu", device_kind="an older card", compute_capability=capability)
        monkeypatch.setattr(attention, "target_device", lambda old=old: old)
        with pytest.raises(UserError, match="capability 8.0 or later, and this is an older card"):
            chosen("fused", 356, 356)


def on_meshes() -> None:
    """Run as a program with 8 pretend devices: raises where a mesh gives something else than one device."""
    cudnn_attention.why_not = lambda *_: ""
    attention.KERNELS["cudnn"] = by_xla
    same_on_meshes(H200)


@pytest.mark.long
def test_it_on_meshes():
    run_on_eight_devices("test_cudnn_attention")
