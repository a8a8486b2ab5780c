"""The promises of the train step: what changes, what it compiles, and that splitting work does not change results."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import CONFIG, LENGTH, SPEC, backbone, batch_at, make_step, new_bank, streams

from mpt_jax.config import DistillationSettings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.model import prompt_bank
from mpt_jax.train.step import batch_totals

DISTILLATION = DistillationSettings(weight=0.9, temperature=2.0)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return [sized_cache(folder, 40 + n, name=f"task{n}", longest=14) for n in range(2)]


def train(step_fn, state, frozen, stream_list, rows, steps=3, spec=SPEC):
    for step in range(steps):
        state, metrics = step_fn(state, frozen, batch_at(stream_list, step, rows, spec))
    return state, metrics


def largest_difference(a: dict, b: dict) -> float:
    return max(float(np.abs(np.asarray(a[path]) - np.asarray(b[path])).max()) for path in a)


def test_only_the_bank_changes(caches):
    step_fn, state, frozen = make_step(new_bank(1, 2))
    before = {path: np.asarray(array).tobytes() for path, array in frozen.items()}
    start = {path: np.array(array) for path, array in state.trainable.items()}
    state, _ = train(step_fn, state, frozen, streams(caches, 1), 2)
    assert {path: np.asarray(array).tobytes() for path, array in frozen.items()} == before
    assert sorted(state.trainable) == ["bank/cols", "bank/rows", "bank/shared"]
    assert all(not np.array_equal(start[path], array) for path, array in state.trainable.items())


def test_optimiser_state_and_gradients_exist_for_the_bank_alone(caches):
    step_fn, state, _ = make_step(new_bank(1, 2))
    sizes = sum(array.size for array in state.trainable.values())
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2 * sizes + 10


def test_one_compilation_for_each_bucket(caches):
    step_fn, state, frozen = make_step(new_bank(1, 2))
    stream_list = streams(caches, 1, batch_size=12)
    seen = set()
    for step in range(6):
        batch = batch_at(stream_list, step, 2)
        seen |= {(micro["inputs_BL"].shape, micro["targets_BT"].shape) for micro in batch.micro}
        state, _ = step_fn(state, frozen, batch)
    assert len(seen) > 1
    assert sorted(step_fn.traces) == sorted([f"accumulate {a} {b}" for a, b in seen] + ["update"])


@pytest.mark.parametrize("distillation", [None, DISTILLATION])
def test_micro_batches_equal_the_whole_batch(caches, distillation):
    """Tolerance 1e-5 on parameters after three updates, float32."""
    bank = new_bank(2, 2)
    teacher = np.random.default_rng(5).normal(size=(4, LENGTH, CONFIG.d_model)).astype(np.float32)
    results = []
    for spec in (SPEC, BatchSpec(16, 8, 16, (16,)), BatchSpec(16, 8, 3, (8,))):
        step_fn, state, frozen = make_step(bank, distillation, teacher)
        state, metrics = train(step_fn, state, frozen, streams(caches, 2), 4, spec=spec)
        results.append((state.trainable, {name: metrics[name] for name in step_fn.objective.terms}))
    for trainable, terms in results[1:]:
        assert largest_difference(trainable, results[0][0]) < 1e-5
        for name, sums in terms.items():
            np.testing.assert_allclose(sums, results[0][1][name], rtol=1e-4, atol=1e-4)


def test_four_runs_together_equal_each_alone(caches):
    """Tolerance 1e-5 on parameters after three updates, float32."""
    bank = new_bank(4, 2)
    stream_list = streams(caches, 4)
    step_fn, state, frozen = make_step(bank)
    together, _ = train(step_fn, state, frozen, stream_list, 8)
    for g in range(4):
        alone_step, alone_state, frozen = make_step(prompt_bank.select(bank, [2 * g, 2 * g + 1]))
        stream = dataclasses.replace(stream_list[g], bank_index=(0, 1))
        alone, _ = train(alone_step, alone_state, frozen, [stream], 2)
        for path, array in alone.trainable.items():
            full = np.asarray(together.trainable[path])
            mine = full[g : g + 1] if path == "bank/shared" else full[2 * g : 2 * g + 2]
            np.testing.assert_allclose(array, mine, atol=1e-5)


def test_distillation_is_zero_when_student_is_teacher(caches):
    bank = new_bank(1, 2)
    step_fn, state, frozen = make_step(bank, DISTILLATION, np.asarray(prompt_bank.compose_all(bank)))
    _, metrics = step_fn(state, frozen, batch_at(streams(caches, 1), 0, 2))
    for name in ("kl", "hidden_encoder", "hidden_decoder"):
        np.testing.assert_allclose(metrics[name], 0.0, atol=1e-5)


@pytest.mark.parametrize("hidden, positions", [("last", "inputs"), ("all", "all"), ("none", "inputs")])
def test_distillation_falls_in_training(caches, hidden, positions):
    teacher = np.random.default_rng(5).normal(size=(2, LENGTH, CONFIG.d_model)).astype(np.float32)
    settings = DistillationSettings(weight=100.0, hidden=hidden, hidden_positions=positions)
    step_fn, state, frozen = make_step(new_bank(1, 2), settings, teacher, rate=0.03)
    batch = batch_at(streams(caches, 1), 0, 2)
    names = [name for name in step_fn.objective.terms if name not in ("loss", "correct")]
    assert names == (["kl"] if hidden == "none" else ["kl", "hidden_encoder", "hidden_decoder"])
    history = []
    for _ in range(15):
        state, metrics = step_fn(state, frozen, batch)
        history.append(sum(float(metrics[name].sum()) for name in names))
    assert history[-1] < 0.8 * history[0]


def test_teacher_gradients_are_exactly_absent(caches):
    """The gradient with respect to teacher prompts of the whole objective is zero to the bit."""
    bank = new_bank(1, 2)
    teacher = np.random.default_rng(5).normal(size=(2, LENGTH, CONFIG.d_model)).astype(np.float32)
    step_fn, state, frozen = make_step(bank, DISTILLATION, teacher)
    batch = batch_at(streams(caches, 1), 0, 2)
    totals = batch_totals(step_fn.objective, batch, frozen, state.trainable)
    from mpt_jax.train import step as step_module

    def objective(teacher_prompts):
        held = frozen | {"teacher/prompts": teacher_prompts}
        sums = step_module.loss_sums(step_fn.objective, state.trainable, held, batch.micro[0])
        weight = step_module.weights(step_fn.objective, totals, batch.micro[0]["task_id_B"])
        return sum((weight[name] * sums[name]).sum() for name in weight)

    value, grad = jax.value_and_grad(objective)(frozen["teacher/prompts"])
    assert value > 0 and not np.any(grad)


def test_runs_do_not_see_each_others_rows(caches):
    """Another run's rows change nothing in a run's gradient."""
    bank = new_bank(2, 2)
    changed = [streams(caches, 2)[0], dataclasses.replace(streams(caches, 2)[1], seed=99)]
    results = []
    for stream_list in (streams(caches, 2), changed):
        step_fn, state, frozen = make_step(bank)
        state, _ = train(step_fn, state, frozen, stream_list, 4, steps=2)
        results.append(state.trainable)
    first, second = ({path: np.asarray(array) for path, array in trainable.items()} for trainable in results)
    np.testing.assert_allclose(first["bank/shared"][0], second["bank/shared"][0], atol=1e-6)
    assert np.abs(first["bank/shared"][1] - second["bank/shared"][1]).max() > 1e-4


def test_everything_trains_with_the_table_of_finetuning(caches):
    import jax.numpy as jnp

    from mpt_jax.config import OptimizerSettings
    from mpt_jax.train.groups import EVERYTHING, split
    from mpt_jax.train.optimizer import make_optimizer
    from mpt_jax.train.step import Objective, TrainStep

    trainable, frozen = split({path: jnp.array(array, copy=True) for path, array in backbone().items()}, EVERYTHING)
    assert not frozen
    optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-2, warmup_steps=0), 20, 1, EVERYTHING, {"weights": 1e-2})
    step_fn = TrainStep(Objective(CONFIG, np.zeros(2, np.int32)), optimizer)
    state, history = step_fn.init(trainable), []
    batch = batch_at(streams(caches, 1), 0, 2)
    for _ in range(5):
        state, metrics = step_fn(state, frozen, batch)
        history.append(float(metrics["loss"].sum()))
    assert history[-1] < history[0]
    changed = [path for path, array in state.trainable.items() if not np.array_equal(array, backbone()[path])]
    assert len(changed) == len(backbone())
