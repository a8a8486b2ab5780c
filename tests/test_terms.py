"""The rows of the loss: what is minimised, what is reported, and that both divide by the same counts."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import sized_cache, token_cache
from tiny_model import CONFIG, LENGTH, SPEC, batch_at, make_step, new_bank, objective_of, streams, sums_before_update, tiny_backbone

from mpt_jax.config import DistillationSettings, Settings, TrainSettings
from mpt_jax.data.batches import make_batch
from mpt_jax.train import losses
from mpt_jax.train.loop import Window
from mpt_jax.train.program import assemble
from mpt_jax.train.step import batch_totals, weighted_loss
from mpt_jax.train.terms import terms

TEACHER = np.random.default_rng(5).normal(size=(4, LENGTH, CONFIG.d_model)).astype(np.float32)
WEIGHT = 0.5


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return [sized_cache(folder, 40 + n, name=f"task{n}", longest=14) for n in range(2)]


@pytest.mark.parametrize(
    "distillation, rows",
    [
        (None, []),
        (DistillationSettings(weight=WEIGHT), ["kl", "hidden_encoder", "hidden_decoder"]),
        (DistillationSettings(weight=WEIGHT, hidden="none"), ["kl"]),
        (DistillationSettings(weight=WEIGHT, logits=False, hidden="all"), ["hidden_encoder", "hidden_decoder"]),
    ],
)
def test_rows_follow_the_settings(distillation, rows):
    found = {term.name: term.weight for term in terms(objective_of(new_bank(1, 2), distillation))}
    assert found == {"loss": 1.0, "correct": 0.0, **dict.fromkeys(rows, WEIGHT)}


def test_encoder_positions_are_counted_with_the_prompt_where_it_is_compared(caches):
    """hidden_positions = 'all' compares P positions more of each example; everything else counts target tokens."""
    batch = batch_at(streams(caches, 2), 0, 4)
    for positions, prompt in (("inputs", 0), ("all", LENGTH)):
        counts = {t.name: t.counts(batch) for t in terms(objective_of(new_bank(2, 2), DistillationSettings(hidden_positions=positions)))}
        np.testing.assert_array_equal(counts.pop("hidden_encoder"), batch.input_tokens_N + prompt * batch.examples_N)
        for count_N in counts.values():
            np.testing.assert_array_equal(count_N, batch.target_tokens_N)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["inputs", "all"])
def test_what_is_reported_is_what_is_minimised(caches, positions):
    """A group of one task: the loss of a step is the weighted sum of the reported means, whatever is compared. float32, 1e-5."""
    settings = DistillationSettings(weight=WEIGHT, temperature=2.0, hidden_positions=positions)
    step_fn, state, frozen = make_step(new_bank(1, 1), settings, TEACHER)
    batch, objective = batch_at(streams(caches[:1], 1), 0, 1), step_fn.objective
    totals = batch_totals(objective, batch)
    loss = sum(float(weighted_loss(objective, state.trainable, frozen, micro, totals)[0]) for micro in batch.micro)
    window = Window(terms(objective))
    window.add(jax.device_get(step_fn(state, frozen, batch)[1]), batch)
    means, _, _ = window.read()
    reported = {term.name: term.weight * means[term.name][0] for term in terms(objective)}
    assert min(value for name, value in reported.items() if name != "correct") > 1e-3
    assert loss == pytest.approx(sum(reported.values()), rel=1e-5)


@pytest.mark.slow
def test_a_groups_loss_is_divided_by_its_own_counts(caches):
    """Two groups: the loss is the sum of each group's mean, though one has four times the tokens of the other."""
    stream_list = streams(caches, 2)
    stream_list[1] = dataclasses.replace(stream_list[1], batch_size=32)
    step_fn, state, frozen = make_step(new_bank(2, 2))
    batch = batch_at(stream_list, 0, 4)
    totals = batch_totals(step_fn.objective, batch)
    np.testing.assert_array_equal(totals["loss"], batch.target_tokens_N.reshape(2, 2).sum(axis=1))
    assert totals.keys() == {"loss"} and totals["loss"][1] > 2 * totals["loss"][0]
    loss = sum(float(weighted_loss(step_fn.objective, state.trainable, frozen, micro, totals)[0]) for micro in batch.micro)
    sums_N = np.asarray(step_fn(state, frozen, batch)[1]["loss"])
    assert loss == pytest.approx(float(np.sum(sums_N.reshape(2, 2).sum(axis=1) / totals["loss"])), rel=1e-5)


def test_sentence_vectors_are_counted_by_the_rows_that_have_one(tmp_path):
    """A row whose vector is all zeros has none."""
    cache = token_cache(tmp_path, [([5, 1], [6, 1])] * 12, "a", embedding=5)
    program = assemble(Settings(TrainSettings("pretrain", encoder_teaching=2.0)), ("a",), tiny_backbone(), caches={"a": cache})
    (stream,) = streams([cache], 1, batch_size=12)
    batch = make_batch([stream], 0, SPEC, 1)
    counts = {term.name: term.counts(batch).tolist() for term in terms(program.objective)}
    rows = [int(np.any(line)) for micro in batch.micro for line in micro["embedding_BE"]]
    assert counts == {"loss": [24.0], "correct": [24.0], "sentence": [float(sum(rows))]} and 0 < sum(rows) <= 12
    step_fn = program.step()
    sums = sums_before_update(step_fn, step_fn.init(program.trainable), program.frozen, batch).by_task
    assert 0 < float(sums["sentence"][0]) <= 2 * sum(rows)


def test_a_pass_computes_the_cross_entropy_once(caches, monkeypatch):
    step_fn, state, frozen = make_step(new_bank(1, 2))
    batch = batch_at(streams(caches, 1), 0, 2)
    calls, real = [], losses.cross_entropy
    monkeypatch.setattr(losses, "cross_entropy", lambda *given: calls.append(1) or real(*given))
    totals = batch_totals(step_fn.objective, batch)
    jax.make_jaxpr(lambda trainable: weighted_loss(step_fn.objective, trainable, frozen, batch.micro[0], totals))(state.trainable)
    assert len(calls) == 1
