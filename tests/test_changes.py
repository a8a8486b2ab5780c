"""Rows of slots: what each row takes, and whose gradient a row's is."""

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.model.changes import rows_of_slots

SLOT_B = np.array([1, 0, 1, 2], np.int32)


def gradient(array_U, weight_B):
    return jax.grad(lambda array_U: jnp.sum(rows_of_slots(array_U, SLOT_B) * weight_B))(array_U)


def test_rows_and_gradients_are_those_of_a_gather():
    array_U, weight_B = (np.random.default_rng(n).standard_normal((size, 5, 2)).astype(np.float32) for n, size in enumerate((3, 4)))
    np.testing.assert_array_equal(rows_of_slots(array_U, SLOT_B), array_U[SLOT_B])
    expected = np.zeros_like(array_U)
    np.add.at(expected, SLOT_B, weight_B)
    np.testing.assert_allclose(gradient(array_U, weight_B), expected, rtol=1e-6)
    assert rows_of_slots(array_U[:1], SLOT_B) is not None and rows_of_slots(array_U[:1], SLOT_B).shape == (1, 5, 2)


def test_what_is_not_finite_stays_with_its_own_slot():
    array_U, weight_B = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)
    weight_B[2, 1] = np.inf  # a row of slot 1
    found = np.asarray(gradient(array_U, weight_B))
    assert np.isfinite(found[[0, 2]]).all() and not np.isfinite(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], np.ones((2, 2)))
    array_U[1] = np.nan
    assert np.isfinite(np.asarray(rows_of_slots(array_U, SLOT_B))[[1, 3]]).all()
