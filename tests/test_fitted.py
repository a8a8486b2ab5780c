"""Batches of many waiting rows: which size and buckets `requests` takes, and that answers are the same."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import byte_vocabulary
from tiny_families import LLAMA, T5S, weights

from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.model.families.causal_config import CAUSAL_SIZES
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import T5_SIZES

SPEC = inference_spec(256, 5, 32)


def asked(count: int, most: int = 250, ids: int = 40, limit: int = 5) -> Requests:
    """Rows whose lengths are like those of real tasks, of four prompts."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(45), 0.6, count), 2, most).astype(int)
    return Requests([rng.integers(3, ids, length).astype(np.int32) for length in lengths], [n % 4 for n in range(count)], [limit] * count)


def fitted(config, count: int, limit: int = 5, by_task: bool = False, spec=SPEC):
    spec = dataclasses.replace(spec, by_task=by_task)
    return requests._fitted(spec, Model(Network(config), {}, None), asked(count, limit=limit), [np.arange(count), np.array([], int)])


def padded(config, count: int, limit: int = 5, by_task: bool = False) -> tuple[float, float]:
    """Padded input positions a row of what is taken, and of the spec as it was."""
    given = asked(count)
    found = []
    for spec in (fitted(config, count, limit, by_task), dataclasses.replace(SPEC, by_task=by_task)):
        longest = requests.longest_inputs(given, spec, given.task_id, np.arange(count))
        buckets = np.take(spec.input_buckets, np.searchsorted(spec.input_buckets, longest))
        found.append(float(buckets.sum()) * spec.micro_batch_size / count)
    return found[0], found[1]


def test_many_rows_of_a_large_network_are_padded_less():
    after, before = padded(T5_SIZES["t5_1_1_base"], 1024)
    assert after < 0.85 * before
    after, before = padded(CAUSAL_SIZES["smollm2_135m"], 256, by_task=True)
    assert after < 0.65 * before


def test_few_rows_small_networks_and_long_answers_keep_their_programs_and_batches():
    assert fitted(T5_SIZES["t5_1_1_base"], 96).input_buckets == SPEC.input_buckets  # three batches
    tiny = fitted(T5S["ul2"], 256)
    assert tiny.input_buckets == SPEC.input_buckets and len(tiny.input_buckets) == 4
    assert fitted(T5_SIZES["t5_1_1_base"], 256, limit=128).micro_batch_size == 32  # each token of an answer reads the weights
    assert fitted(T5_SIZES["t5_1_1_base"], 256).micro_batch_size == 16


def test_buckets_that_were_given_and_accelerators_are_left_alone(monkeypatch):
    given = inference_spec(256, 5, 32, (64, 256))
    assert fitted(T5_SIZES["t5_1_1_base"], 1024, spec=given) == given
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert fitted(T5_SIZES["t5_1_1_base"], 1024) == SPEC


@pytest.mark.parametrize("config", [T5S["ul2"], LLAMA], ids=["t5", "causal"])
def test_answers_do_not_depend_on_it(config, monkeypatch):
    """Tokens of greedy decoding, in the order of the requests."""
    model = Model(Network(config), weights(config), byte_vocabulary())
    given, spec = asked(48, most=120), inference_spec(128, 5, 8)
    expected = requests.decode(model, given, spec)
    monkeypatch.setattr(requests, "PROGRAM_COST", 0.0)
    monkeypatch.setattr(requests, "TOKEN_COST", 0)
    taken = []
    real = requests._fitted
    monkeypatch.setattr(requests, "_fitted", lambda *arguments: taken.append(real(*arguments)) or taken[-1])
    found = requests.decode(model, given, spec)
    assert taken[0].micro_batch_size < 8 and taken[0].input_buckets != spec.input_buckets
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
