"""The promises of the train step: what changes, what it compiles, and that splitting work does not change results."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import CONFIG, LENGTH, SPEC, batch_at, make_step, new_bank, streams, sums_before_update, sums_of, tiny_backbone

from mpt_jax.config import BackboneSettings, DistillationSettings, OptimizerSettings, Settings, TrainSettings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.methods.bank import compose_all, select
from mpt_jax.methods.method import TEACHERS
from mpt_jax.train.program import assemble
from mpt_jax.train.step import TrainStep, batch_totals, weighted_loss
from mpt_jax.train.terms import terms

DISTILLATION = DistillationSettings(weight=0.9, temperature=2.0)
BANK_PATHS = ["bank/cols", "bank/rows", "bank/shared"]
TEACHER = np.random.default_rng(5).normal(size=(4, LENGTH, CONFIG.d_model)).astype(np.float32)


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
    assert sorted(state.trainable) == BANK_PATHS
    for path, array in state.trainable.items():
        assert not np.array_equal(start[path], array)


def test_optimiser_state_and_gradients_exist_for_the_bank_alone(caches):
    step_fn, state, frozen = make_step(new_bank(1, 2))
    grads = sums_before_update(step_fn, state, frozen, batch_at(streams(caches, 1), 0, 2)).grads
    assert sorted(grads) == BANK_PATHS
    for path, grad in grads.items():
        assert grad.shape == state.trainable[path].shape and np.any(grad)
    moments = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        paths = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        if leaf.size > 1:  # a group's count of steps is a number
            moments.setdefault(paths[-1], []).append(leaf.size)
    assert moments == {path: [array.size] * 2 for path, array in state.trainable.items()}  # Adam's two


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


@pytest.mark.slow
@pytest.mark.parametrize("distillation", [pytest.param(None, marks=pytest.mark.long), DISTILLATION])
def test_micro_batches_equal_the_whole_batch(caches, distillation):
    """Tolerance 1e-5 on parameters after three updates, float32."""
    bank = new_bank(2, 2)
    results = []
    for spec in (SPEC, BatchSpec(16, 8, 16, (16,)), BatchSpec(16, 8, 4, (8,), smallest_micro_batch=1, part_cost=4)):
        step_fn, state, frozen = make_step(bank, distillation, TEACHER)
        state, metrics = train(step_fn, state, frozen, streams(caches, 2), 4, spec=spec)
        results.append((state.trainable, sums_of(step_fn, metrics)))
    for trainable, by_term in results[1:]:
        assert largest_difference(trainable, results[0][0]) < 1e-5
        for name, sums in by_term.items():
            np.testing.assert_allclose(sums, results[0][1][name], rtol=1e-4, atol=1e-4)


def test_lengths_say_what_is_real_whatever_the_padding(caches):
    """Ids past a row's length, and rows that fill a micro-batch up, change no gradient and no sum: to the bit."""
    step_fn, state, frozen = make_step(new_bank(2, 2), DISTILLATION, TEACHER)
    batch = batch_at(streams(caches, 2), 0, 4, BatchSpec(16, 8, 3, (16,)))
    rng = np.random.default_rng(0)
    changed = []
    for micro in batch.micro:
        new = dict(micro)
        for tokens, length in (("inputs_BL", "input_length_B"), ("targets_BT", "target_length_B")):
            padding = np.arange(micro[tokens].shape[1]) >= micro[length][:, None]
            new[tokens] = np.where(padding, rng.integers(0, CONFIG.vocab_size, micro[tokens].shape), micro[tokens]).astype(np.int32)
        changed.append(new)
    assert any((micro["input_length_B"] == 0).any() for micro in batch.micro)
    batches = (dataclasses.replace(batch, micro=micro) for micro in (changed, batch.micro))
    found, expected = (sums_before_update(step_fn, state, frozen, each) for each in batches)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_four_runs_together_equal_each_alone(caches):
    """Tolerance 1e-5 on parameters after three updates, float32."""
    bank = new_bank(4, 2)
    stream_list = streams(caches, 4)
    step_fn, state, frozen = make_step(bank)
    together, _ = train(step_fn, state, frozen, stream_list, 8)
    for g in range(4):
        alone_step, alone_state, frozen = make_step(select(bank, [2 * g, 2 * g + 1]))
        stream = dataclasses.replace(stream_list[g], bank_index=(0, 1))
        alone, _ = train(alone_step, alone_state, frozen, [stream], 2)
        for path, array in alone.trainable.items():
            full = np.asarray(together.trainable[path])
            mine = full[g : g + 1] if path == "bank/shared" else full[2 * g : 2 * g + 2]
            np.testing.assert_allclose(array, mine, atol=1e-5)


@pytest.mark.slow
def test_distillation_is_zero_when_student_is_teacher(caches):
    bank = new_bank(1, 2)
    step_fn, state, frozen = make_step(bank, DISTILLATION, np.asarray(compose_all(bank)))
    _, metrics = step_fn(state, frozen, batch_at(streams(caches, 1), 0, 2))
    for name in ("kl", "hidden_encoder", "hidden_decoder"):
        np.testing.assert_allclose(metrics[name], 0.0, atol=1e-5)


@pytest.mark.parametrize(
    "hidden, positions",
    [
        pytest.param("last", "inputs", marks=pytest.mark.long),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("all", "all"), ("none", "inputs"))),
    ],
)
def test_distillation_falls_in_training(caches, hidden, positions):
    settings = DistillationSettings(weight=100.0, hidden=hidden, hidden_positions=positions)
    step_fn, state, frozen = make_step(new_bank(1, 2), settings, TEACHER[:2], rate=0.03)
    batch = batch_at(streams(caches, 1), 0, 2)
    names = [term.name for term in terms(step_fn.objective) if term.name not in ("loss", "correct")]
    assert names == (["kl"] if hidden == "none" else ["kl", "hidden_encoder", "hidden_decoder"])
    history = []
    for _ in range(15):
        state, metrics = step_fn(state, frozen, batch)
        history.append(sum(float(metrics[name].sum()) for name in names))
    assert history[-1] < 0.8 * history[0]


@pytest.mark.slow
def test_teacher_gradients_are_exactly_absent(caches):
    """The gradient with respect to teacher prompts of the whole objective is zero to the bit."""
    step_fn, state, frozen = make_step(new_bank(1, 2), DISTILLATION, TEACHER[:2])
    batch = batch_at(streams(caches, 1), 0, 2)
    totals = batch_totals(step_fn.objective, batch)

    def loss(teachers_NPD):
        return weighted_loss(step_fn.objective, state.trainable, frozen | {TEACHERS: teachers_NPD}, batch.micro[0], totals)[0]

    value, grad = jax.value_and_grad(loss)(frozen[TEACHERS])
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


@pytest.mark.slow
def test_everything_trains_in_finetuning(caches):
    """The backbone that was loaded stays as it is: what trains, and is donated to the step, is a copy."""
    optimizer = OptimizerSettings(learning_rate=1e-2, warmup_steps=0)
    settings = Settings(TrainSettings("finetune", "x", train_steps=20), BackboneSettings(), optimizer=optimizer)
    backbone = tiny_backbone()
    before = {path: np.array(array) for path, array in backbone.flat().items()}
    program = assemble(settings, ("task0", "task1"), backbone)
    assert not program.frozen and program.trainable.keys() == before.keys()
    step_fn, history = program.step(), []
    state, batch = step_fn.init(program.trainable), batch_at(streams(caches, 1), 0, 2)
    for _ in range(5):
        state, metrics = step_fn(state, program.frozen, batch)
        history.append(float(metrics["loss"].sum()))
    assert history[-1] < history[0]
    for path, array in state.trainable.items():
        assert not np.array_equal(array, before[path])
        np.testing.assert_array_equal(backbone.flat()[path], before[path])


@pytest.mark.long
def test_dropout_draws_by_seed_step_and_micro_batch(caches):
    """The same step gives the same gradients twice; another step or micro-batch of the same rows, or another seed, gives others."""
    step_fn, state, frozen = make_step(new_bank(1, 2))
    computation = dataclasses.replace(step_fn.objective.network.computation, dropout_rate=0.3)
    objective = step_fn.objective._replace(network=dataclasses.replace(step_fn.objective.network, computation=computation))
    batch = batch_at(streams(caches, 1), 0, 2)
    totals, micro = batch_totals(objective, batch), batch.micro[0]
    found = {}
    for seed in (0, 1):
        dropping = TrainStep(objective._replace(dropout_seed=seed), step_fn.optimizer, step_fn.places)
        for step, index in ((0, 0), (0, 0), (1, 0), (0, 1)) if seed == 0 else ((0, 0),):
            sums = dropping.zeros(state.trainable)
            arguments = state.trainable, frozen, sums, micro, totals, np.int32(step), np.int32(index)
            found.setdefault((seed, step, index), []).append(dropping.accumulate(*arguments).grads)
    first, again = found.pop((0, 0, 0))
    assert largest_difference(first, again) == 0
    for others in found.values():
        assert largest_difference(first, others[0]) > 1e-4
