"""The best weights of each group, sums of a window of steps, and groups that stop."""

import dataclasses
import types

import numpy as np
from tiny_data import sized_cache
from tiny_model import CONFIG, SPEC, make_step, new_bank, streams

from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.config import DistillationSettings, TrainSettings
from mpt_jax.data.batches import batch_iterator
from mpt_jax.metrics import MetricsWriter, read_metrics
from mpt_jax.train.loop import Loop, Window, stopped_groups, update_best
from mpt_jax.train.plan import Run
from mpt_jax.train.run import resume
from mpt_jax.train.step import Objective

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
    window = Window(Objective(CONFIG, np.zeros(2, np.int32), DistillationSettings(logits=False)), 3)
    for loss, finite in ((6.0, True), (2.0, False)):
        counts = {"target_tokens_N": np.array([2.0, 0.0]), "input_tokens_N": np.array([5.0, 0.0]), "examples_N": np.array([1.0, 0.0])}
        batch = types.SimpleNamespace(**counts, examples=1, cut_inputs=1, cut_targets=0)
        sums = {name: np.array([10.0, 0.0]) for name in window.objective.terms}
        sums["loss"] = np.array([loss, 0.0])
        window.add({**sums, "grad_norm": np.array([loss]), "finite": np.array([finite])}, batch)
    means, norm_G, finite_G = window.read()
    assert means["loss"].tolist() == [2.0, 0.0] and means["hidden_encoder"].tolist() == [2.0, 0.0]
    window.objective = window.objective._replace(distillation=DistillationSettings(logits=False, hidden_positions="all"))
    assert window.read()[0]["hidden_encoder"].tolist() == [20.0 / (10.0 + 3 * 2.0), 0.0]  # 2 examples of 3 prompt positions each
    assert norm_G.tolist() == [2.0] and finite_G.tolist() == [False] and window.cut_inputs == 2


SCORES = {2: (50, 50), 4: (50, 60), 6: (50, 70), 8: (99, 70), 10: (99, 70), 12: (99, 99)}  # of both groups, by step


def train_with_patience(folder, caches, last_step: int) -> tuple[list[dict], Best, int]:
    """Two groups, a task each, scored every second step by SCORES, patience 2: (lines of metrics, best, steps done)."""
    bank = new_bank(2, 1)
    step_fn, state, frozen = make_step(bank)
    rows = [dataclasses.replace(stream, bank_index=(group,)) for group, stream in enumerate(streams(caches, 2, 4))]
    checkpoints = Checkpoints(folder)
    state, best, start = resume(checkpoints, state)
    writer, batches = MetricsWriter(folder, start), batch_iterator(rows, SPEC, 2, start, 2)
    settings = TrainSettings("fewshot", str(folder), train_steps=last_step, log_steps=1, patience=2)
    seen = iter([score for step, score in SCORES.items() if step > start])
    evaluate = lambda trainable: scored(*next(seen))  # noqa: E731
    loop = Loop(
        settings, [Run(task, 0, group, 0.1, 0.1) for group, task in enumerate("ab")], step_fn, frozen, batches, rows,
        checkpoints, writer, evaluate, 2, 4, lambda step: False,
    )  # fmt: skip
    state, best = loop.run(state, best, start)
    batches.close()
    writer.close()
    checkpoints.close()
    return read_metrics(folder), best, int(state.step)


def test_a_group_without_a_better_score_draws_no_more_rows(tmp_path):
    """Group a stops at step 6, two scorings after its best; group b at 10; then the run ends, also when it was cut in between."""
    caches = [sized_cache(tmp_path, 40, name="rows", longest=14)]
    lines, best, steps = train_with_patience(tmp_path / "whole", caches, 20)
    drawn = {task: {line["step"] for line in lines if line["task"] == task and line["split"] == "train"} for task in "ab"}
    assert drawn == {"a": set(range(1, 7)), "b": set(range(1, 11))} and steps == 10
    assert best.step_G.tolist() == [2, 6] and best.score_G.tolist() == [50, 70]
    examples = {line["step"]: line["examples"] for line in lines if "examples" in line}
    assert examples[6] == 8 and examples[7] == 4
    train_with_patience(tmp_path / "cut", caches, 8)
    lines, resumed, steps = train_with_patience(tmp_path / "cut", caches, 20)
    assert steps == 10 and {line["step"] for line in lines if line["task"] == "a" and line["split"] == "train"} == set(range(1, 7))
    for path, array in best.trainable.items():
        np.testing.assert_array_equal(resumed.trainable[path], array)


def test_without_patience_nothing_stops():
    best = np.array([2])
    assert stopped_groups(best, 100, 2, 0) == frozenset() and stopped_groups(None, 100, 2, 3) == frozenset()
    assert stopped_groups(best, 7, 2, 2) == {0} and stopped_groups(best, 5, 2, 2) == frozenset()
