"""Digests of arrays: any bit counts, and how an array lies on devices does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mpt_jax import digests


def test_names_are_the_same_for_tuples_lists_and_named_tuples():
    import optax

    array = jnp.ones(2)
    state = (optax.EmptyState(), optax.ScaleByAdamState(array, {"a/b": array}, {"a/b": array}))
    read = [None, {"count": array, "mu": {"a/b": array}, "nu": {"a/b": array}}]
    assert digests.names(state).keys() == digests.names(read).keys() == {"1/count", "1/mu/a/b", "1/nu/a/b"}


KINDS = [(digests._sha256, name) for name in ("float32", "bfloat16", "int32", "bool", "float64")]
KINDS += [(digests._sum, name) for name in ("float32", "bfloat16", "int32", "bool")]  # devices hold no 64 bits here


@pytest.mark.parametrize("digest, name", KINDS)
def test_every_bit_counts(digest, name):
    dtype = jnp.dtype(name)
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    bits = 1 if name == "bool" else 8 * dtype.itemsize
    seen = {digest(array)}
    for element in range(array.size):
        for bit in range(bits):
            changed = array.copy()
            changed.reshape(-1).view(np.uint8)[element * dtype.itemsize + bit // 8] ^= np.uint8(1 << bit % 8)
            seen.add(digest(changed))
    assert len(seen) == 1 + array.size * bits


@pytest.mark.parametrize("digest", [digests._sha256, digests._sum])
def test_places_count(digest):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    swapped = array.copy()
    swapped[0, 0], swapped[2, 3] = array[2, 3], array[0, 0]
    assert len({digest(jnp.asarray(each)) for each in (array, swapped, array[::-1], np.zeros((3, 4), np.float32))}) == 4
    assert digests._sha256(array) != digests._sha256(array.reshape(4, 3))


def test_the_sum_is_the_same_however_an_array_is_spread():
    devices = np.array(jax.devices())
    mesh = Mesh(devices.reshape(-1), ("x",))
    array = np.random.default_rng(1).normal(size=(len(devices) * 2, 3)).astype(np.float32)
    for spec in (PartitionSpec(), PartitionSpec("x")):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        assert digests._sum(placed) == digests._sum(jnp.asarray(array)) and digests._sum(placed).startswith("sum64:")


def test_what_changed_is_named():
    tree = {"a": np.ones(3), "b": [np.zeros(2, np.float32)]}
    kept = digests.digests(tree)
    assert digests.changed(tree, kept) == []
    assert digests.changed({"a": np.ones(3), "b": [np.full(2, -0.0, np.float32)]}, kept) == ["b/0"]
    assert digests.changed({"a": np.ones(3), "c": np.ones(1)}, kept) == ["b/0", "c"]
    assert digests.changed(tree, kept | {"b/0": digests._sum(tree["b"][0])}) == []  # whichever kind was kept
