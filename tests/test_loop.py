"""The best weights of each group, and sums of a window of steps."""

import types

import numpy as np

from mpt_jax.train.loop import Window, update_best
from mpt_jax.train.plan import Run

RUNS = [Run(task, 0, group, 0.1, 0.1) for group in range(2) for task in ("a", "b")]


def bank(value: float) -> dict:
    return {"bank/shared": np.full((2, 1, 3), value), "bank/cols": np.full((4, 1, 1), value), "bank/rows": np.full((4, 1, 3), value)}


def scored(*values):
    return [None if value is None else ({"accuracy": value}, value) for value in values]


def test_each_group_keeps_its_own_best_step():
    best = update_best(None, bank(1.0), scored(50, 60, 10, 10), RUNS, 5)
    best = update_best(best, bank(2.0), scored(54, 54, 30, 10), RUNS, 10)  # group 0: mean 54 < 55; group 1: 20 > 10
    best = update_best(best, bank(3.0), scored(55, 55, None, None), RUNS, 15)  # group 0: equal is not better
    assert best.score_G.tolist() == [55, 20] and best.step_G.tolist() == [5, 10]
    assert best.trainable["bank/shared"][:, 0, 0].tolist() == [1, 2]
    assert best.trainable["bank/cols"][:, 0, 0].tolist() == [1, 1, 2, 2]


def test_best_of_finetuning_is_the_whole_tree():
    runs = [Run("a", 0, 0, 0.1, 0.1)]
    best = update_best(None, {"backbone/x": np.ones(3)}, scored(1), runs, 1)
    best = update_best(best, {"backbone/x": np.full(3, 2.0)}, scored(2), runs, 2)
    assert best.trainable["backbone/x"].tolist() == [2, 2, 2]


def test_a_window_divides_sums_by_what_they_count():
    window = Window(("loss", "hidden_encoder"))
    for loss, finite in ((6.0, True), (2.0, False)):
        counts = {"target_tokens_N": np.array([2.0, 0.0]), "input_tokens_N": np.array([5.0, 0.0]), "examples_N": np.array([1.0, 0.0])}
        batch = types.SimpleNamespace(**counts, examples=1, cut_inputs=1, cut_targets=0)
        sums = {"loss": np.array([loss, 0.0]), "hidden_encoder": np.array([10.0, 0.0])}
        window.add({**sums, "grad_norm": np.array([loss]), "finite": np.array([finite])}, batch)
    means, norm_G, finite_G = window.read()
    assert means["loss"].tolist() == [2.0, 0.0] and means["hidden_encoder"].tolist() == [2.0, 0.0]
    assert norm_G.tolist() == [2.0] and finite_G.tolist() == [False] and window.cut_inputs == 2
