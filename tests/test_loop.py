"""The best weights of each group, sums of a window of steps, and groups that stop."""

import types

import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import LENGTH, new_bank, objective_of, tiny_backbone

from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.data.batches import batch_iterator
from mpt_jax.metrics import MetricsWriter, read_metrics
from mpt_jax.train.loop import Loop, Window, stopped_groups, update_best
from mpt_jax.train.plan import make_streams
from mpt_jax.train.program import assemble
from mpt_jax.train.run import resume
from mpt_jax.train.terms import terms

PROMPT = PromptSettings(length=LENGTH, transfer="none")


def bank(value: float) -> dict:
    return {"bank/shared": np.full((2, 1, 3), value), "bank/cols": np.full((4, 1, 1), value), "bank/rows": np.full((4, 1, 3), value)}


def scored(*values):
    return [None if value is None else ({"accuracy": value}, value) for value in values]


@pytest.fixture(scope="module")
def program():
    """Two groups (seeds) of two tasks."""
    settings = Settings(TrainSettings("source", seeds=[0, 1]), prompt=PROMPT, distillation=DistillationSettings(weight=0.0))
    return assemble(settings, ("a", "b"), tiny_backbone())


def test_each_group_keeps_its_own_best_step(program):
    best = update_best(None, bank(1.0), scored(50, 60, 10, 10), program, 5)
    best = update_best(best, bank(2.0), scored(54, 54, 30, 10), program, 10)  # group 0: mean 54 < 55; group 1: 20 > 10
    best = update_best(best, bank(3.0), scored(55, 55, None, None), program, 15)  # group 0: equal is not better
    assert best.score_G.tolist() == [55, 20] and best.step_G.tolist() == [5, 10]
    assert best.trainable["bank/shared"][:, 0, 0].tolist() == [1, 2]
    assert best.trainable["bank/cols"][:, 0, 0].tolist() == [1, 1, 2, 2]


def test_best_of_finetuning_is_the_whole_tree():
    program = assemble(Settings(TrainSettings("finetune")), ("a",), tiny_backbone())
    best = update_best(None, {"backbone/x": np.ones(3)}, scored(1), program, 1)
    best = update_best(best, {"backbone/x": np.full(3, 2.0)}, scored(2), program, 2)
    assert best.trainable["backbone/x"].tolist() == [2, 2, 2]


def test_a_window_divides_sums_by_what_they_count():
    """Encoder states are counted as the loss counts them: with hidden_positions = 'all' an example's prompt positions too."""
    found = {}
    for positions in ("inputs", "all"):
        settings = DistillationSettings(logits=False, hidden_positions=positions)
        window = Window(terms(objective_of(new_bank(1, 2), settings)))
        for loss, finite in ((6.0, True), (2.0, False)):
            counts = {"target_tokens_N": np.array([2.0, 0.0]), "input_tokens_N": np.array([5.0, 0.0]), "examples_N": np.array([1.0, 0.0])}
            batch = types.SimpleNamespace(**counts, examples=1, cut_inputs=1, cut_targets=0, rows=1)
            sums = {"loss": np.array([loss, 0.0]), "correct": np.array([1.0, 0.0])}
            sums |= {"hidden_encoder": np.array([10.0, 0.0]), "hidden_decoder": np.array([1.0, 0.0])}
            window.add({**sums, "grad_norm": np.array([loss]), "finite": np.array([finite])}, batch)
        found[positions], norm_G, finite_G = window.read()
        assert norm_G.tolist() == [2.0] and finite_G.tolist() == [False] and window.cut_inputs == 2
    assert {name: mean_N.tolist() for name, mean_N in found["inputs"].items()} == {
        "loss": [2.0, 0.0], "correct": [0.5, 0.0], "hidden_encoder": [2.0, 0.0], "hidden_decoder": [0.5, 0.0],
    }  # fmt: skip
    assert found["all"]["hidden_encoder"].tolist() == [20.0 / (10 + 2 * LENGTH), 0.0]


SCORES = {2: (50, 50), 4: (50, 60), 6: (50, 70), 8: (99, 70), 10: (99, 70), 12: (99, 99)}  # of both groups, by step


def train_with_patience(folder, caches, last_step: int, scores=SCORES, **fields) -> tuple[list[dict], Best, int]:
    """Two groups, a task each, scored every second step, patience 2: (lines of metrics, best, steps done)."""
    fields |= {"train_steps": last_step, "log_steps": 1, "patience": 2, "eval_steps": 2, "checkpoint_steps": 4}
    train = TrainSettings("fewshot", str(folder), **fields)
    data = DataSettings(batch_size=4, micro_batch_size=4, feature_lengths={"inputs": 16, "targets": 8}, input_buckets=(8,))
    optimizer = OptimizerSettings(schedule="constant", warmup_steps=0, learning_rate=0.1, factor_learning_rate=0.1)
    program = assemble(Settings(train, prompt=PROMPT, optimizer=optimizer, data=data), tuple("ab"), tiny_backbone(), caches=caches)
    step_fn, checkpoints = program.step(), Checkpoints(folder)
    state, best, start = resume(checkpoints, step_fn.init(program.trainable))
    rows = make_streams(program.plan, caches, data)
    writer, batches = MetricsWriter(folder, start), batch_iterator(rows, program.spec, 2, start, 2)
    seen = iter([score for step, score in scores.items() if step > start or start == 0])

    def evaluate(trainable):
        return scored(*next(seen))

    with Loop(program, batches, rows, checkpoints, writer, evaluate, lambda step: False, start, best) as loop:
        loop.begin(state)
        for step, batch in loop:
            state, metrics = step_fn(state, program.frozen, batch)
            loop.after(step, batch, state, metrics)
    return read_metrics(folder), loop.best, int(state.step)


@pytest.mark.slow
def test_a_group_without_a_better_score_draws_no_more_rows(tmp_path):
    """Group a stops at step 6, two scorings after its best; group b at 10; then the run ends, also when it was cut in between."""
    caches = {task: sized_cache(tmp_path, 40, name=f"rows_{task}", longest=14) for task in "ab"}
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


def test_what_training_starts_from_is_scored_and_kept_where_no_step_does_better(tmp_path):
    caches = {task: sized_cache(tmp_path, 40, name=f"rows_{task}", longest=14) for task in "ab"}
    scores = {0: (80, 10), 2: (70, 20), 4: (70, 30), 6: (70, 20), 8: (70, 20)}
    lines, best, steps = train_with_patience(tmp_path / "x", caches, 20, scores, score_start=True)
    assert best.step_G.tolist() == [0, 4] and best.score_G.tolist() == [80, 30] and steps == 8
    assert [line["accuracy"] for line in lines if line["split"] == "dev" and line["step"] == 0] == [80, 10]


def test_without_patience_nothing_stops():
    best = np.array([2])
    assert stopped_groups(best, 100, 2, 0) == frozenset() and stopped_groups(None, 100, 2, 3) == frozenset()
    assert stopped_groups(best, 7, 2, 2) == {0} and stopped_groups(best, 5, 2, 2) == frozenset()
