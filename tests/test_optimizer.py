"""Optimisers (train/optimizer.py): groups are independent, schedules by hand, parameters that diverge are held."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mpt_jax.config import OptimizerSettings
from mpt_jax.methods.method import GROUP, TASK, Part
from mpt_jax.methods.prompt import METHOD
from mpt_jax.train.optimizer import by_group, from_groups, make_optimizer, schedule

PARTS = METHOD.parts


def banks(groups=3, tasks_each=2, seed=0):
    rng = np.random.default_rng(seed)
    n = groups * tasks_each
    shapes = {"bank/shared": (groups, 4, 5), "bank/cols": (n, 4, 1), "bank/rows": (n, 1, 5)}
    return {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in shapes.items()}


def of_group(flat, g, groups=3):
    return {path: view[g].reshape(-1, *flat[path].shape[1:]) for path, view in by_group(flat, PARTS, groups).items()}


def test_views_by_group_and_back():
    flat = banks()
    views = by_group(flat, PARTS, 3)
    assert {path: view.shape for path, view in views.items()} == {
        "bank/shared": (3, 1, 4, 5), "bank/cols": (3, 2, 4, 1), "bank/rows": (3, 2, 1, 5),
    }  # fmt: skip
    for path, array in from_groups(views, PARTS).items():
        np.testing.assert_array_equal(array, flat[path])


def test_what_is_neither_a_tasks_nor_a_groups_belongs_to_the_only_group():
    parts = (Part("mine/task", TASK, "prompt"), Part("mine/group", GROUP, "prompt"), Part("mine/all", None, "weights"))
    flat = {"mine/task": jnp.ones((2, 3)), "mine/group": jnp.ones((1, 3)), "mine/all": jnp.ones((5, 7))}
    views = by_group(flat, parts, 1)
    assert {path: view.shape for path, view in views.items()} == {"mine/task": (1, 2, 3), "mine/group": (1, 1, 3), "mine/all": (1, 5, 7)}
    assert {path: array.shape for path, array in from_groups(views, parts).items()} == {path: array.shape for path, array in flat.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", pytest.param("adafactor", marks=pytest.mark.long)])
def test_a_group_among_others_is_the_group_alone(name):
    settings = OptimizerSettings(name=name, warmup_steps=2)
    rates = {"prompt": np.array([0.3, 0.1, 0.5]), "factors": np.array([0.4, 0.2, 0.1])}
    together = make_optimizer(settings, 10, 3, PARTS, rates)
    flat, state = banks(), together.init(banks())
    for step in range(3):
        flat, state, _, _ = together.update(banks(seed=step + 1), state, flat, step)
    for g in range(3):
        alone = make_optimizer(settings, 10, 1, PARTS, {name: rate[g : g + 1] for name, rate in rates.items()})
        one = of_group(banks(), g)
        one_state = alone.init(one)
        for step in range(3):
            one, one_state, _, _ = alone.update(of_group(banks(seed=step + 1), g), one_state, one, step)
        for path, array in one.items():
            np.testing.assert_allclose(array, of_group(flat, g)[path], rtol=1e-6)


@pytest.mark.slow
def test_adamw_is_optax_adamw_with_clipping():
    settings = OptimizerSettings(schedule="constant", warmup_steps=0, weight_decay=0.01, learning_rate=0.1)
    ours = make_optimizer(settings, 10, 1, PARTS, {"prompt": 0.1, "factors": 0.1})
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01))
    flat = expected = banks(1, 2)
    state, their_state = ours.init(flat), theirs.init(flat)
    for step in range(3):
        grads = banks(1, 2, seed=step + 5)
        flat, state, norm_G, _ = ours.update(grads, state, flat, step)
        updates, their_state = theirs.update(grads, their_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(norm_G, [optax.global_norm(grads)], rtol=1e-6)
    for path in flat:
        np.testing.assert_allclose(flat[path], expected[path], rtol=2e-6, atol=1e-7)


def test_a_group_that_is_not_finite_is_held_and_the_others_go_on():
    settings = OptimizerSettings()
    optimizer = make_optimizer(settings, 10, 3, PARTS, {"prompt": 0.3, "factors": 0.3})
    flat, grads = banks(), banks(seed=1)
    grads["bank/cols"] = grads["bank/cols"].at[3, 0, 0].set(jnp.nan)  # task 3 belongs to group 1
    state = optimizer.init(flat)
    new, new_state, _, finite_G = optimizer.update(grads, state, flat, 0)
    assert finite_G.tolist() == [True, False, True]
    for path in flat:
        np.testing.assert_array_equal(of_group(new, 1)[path], of_group(flat, 1)[path])
        assert not np.array_equal(of_group(new, 0)[path], of_group(flat, 0)[path])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new_state))


def test_linear_schedule_by_hand():
    value = schedule(OptimizerSettings(warmup_steps=4), 104)
    np.testing.assert_allclose([value(s) for s in (0, 2, 4, 54, 104)], [0.2, 0.6, 1.0, 0.5, 0.0], atol=1e-6)


def test_warm_up_is_never_more_than_a_tenth_and_constant_stays():
    value = schedule(OptimizerSettings(warmup_steps=500, schedule="constant"), 100)
    assert value(10) == value(99) == 1.0 and value(0) < 0.2
