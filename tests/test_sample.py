"""Sampling (infer/sample.py) by its distribution and by its seeds; which search the settings ask for (infer/search.py)."""

import jax
import numpy as np
import pytest
import tiny_families as tiny

from mpt_jax.config import EvalSettings
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.requests import Model, Requests
from mpt_jax.infer.sample import most_likely, sample_decode
from mpt_jax.infer.search import GREEDY, Search, search_of
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.network import decode_targets, prefill

V, DRAWS = 5, 4000
CONFIGS = {"t5": tiny.t5(vocab_size=V), "llama": tiny.CausalConfig("custom", V, 16, 2, 2, 1, 8, 32)}


def drawn(config, temperature: float, top_p: float) -> np.ndarray:
    """Frequencies (V, V) of the first two tokens of answers to one input."""
    row = np.array([3, 4, 2], np.int32)
    rows = Rows(np.repeat(row[None], DRAWS, axis=0), np.full(DRAWS, 3, np.int32))
    marks = np.arange(DRAWS, dtype=np.uint32)
    draw = np.float32(temperature), np.float32(top_p), np.uint32(7)
    tokens_BT = np.asarray(sample_decode(Network(config), tiny.weights(config), None, rows, 2, (V,), draw, marks, cut=top_p < 1))
    return np.histogram2d(*tokens_BT.T, bins=np.arange(V + 1))[0] / DRAWS


def expected(config, temperature: float, top_p: float) -> np.ndarray:
    """The same by the network's logits."""
    rows = Rows(np.array([[3, 4, 2]] * V, np.int32), np.full(V, 3, np.int32))
    targets_BT = np.stack([np.arange(V), np.zeros(V)], axis=1).astype(np.int32)
    network, params = Network(config), tiny.weights(config)
    logits_BTV = decode_targets(network, params, prefill(network, params, rows), targets_BT).logits_BTV

    def probabilities(logits_V):
        chances = np.exp(np.asarray(logits_V, np.float64) / temperature)
        chances /= chances.sum()
        kept, total = np.zeros(V), 0.0
        for token in np.argsort(-chances):
            kept[token], total = chances[token], total + chances[token]
            if total >= top_p:
                break
        return kept / kept.sum()

    first = probabilities(logits_BTV[0, 0])
    return first[:, None] * np.stack([probabilities(logits_BTV[token, 1]) for token in range(V)])


DRAWN = [*(pytest.param(t, 1.0, marks=pytest.mark.long) for t in (1.0, 2.0)), pytest.param(1.0, 0.8, marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("temperature", "top_p"), DRAWN)
def test_tokens_are_drawn_as_often_as_the_network_says(name, temperature, top_p):
    found, wanted = drawn(CONFIGS[name], temperature, top_p), expected(CONFIGS[name], temperature, top_p)
    assert (found[wanted == 0] == 0).all()  # what top_p cuts is never drawn
    # within 4.5 standard deviations of each of the 25 pairs
    assert (np.abs(found - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9).all()
    assert (wanted > 0.02).sum() > 3


def test_a_temperature_near_zero_is_greedy_decoding():
    config = tiny.t5()
    rows = tiny.rows(config)._replace(targets_BT=None, target_length_B=None)
    draw = np.float32(1e-4), np.float32(1.0), np.uint32(0)
    found = sample_decode(Network(config), tiny.weights(config), None, rows, 6, (1,), draw, np.arange(3, dtype=np.uint32), cut=False)
    np.testing.assert_array_equal(found, greedy_decode(Network(config), tiny.weights(config), None, rows, 6, (1,)))


def test_the_most_likely_part_is_that_of_transformers():
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import TopPLogitsWarper

    logits_BV = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32) * 3
    for top_p in (0.01, 0.5, 0.9, 0.999):
        found = np.asarray(jax.jit(most_likely)(logits_BV, np.float32(top_p)))
        theirs = TopPLogitsWarper(top_p)(None, torch.tensor(logits_BV)).numpy()
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(theirs))
        np.testing.assert_array_equal(found[np.isfinite(found)], logits_BV[np.isfinite(found)])


def answers(config, inputs, batch_size: int, search: Search, task_id=None) -> list[list[int]]:
    """Tokens for inputs, answered in batches of this size."""
    model = Model(Network(config), tiny.weights(config), load_vocabulary("bytes"))
    given = Requests([np.array(row, np.int32) for row in inputs], task_id or [0] * len(inputs), [8] * len(inputs))
    spec = requests.inference_spec(16, 8, batch_size)
    return [tokens.tolist() for tokens in requests.decode(model, given, spec, search=search)]


@pytest.mark.slow
def test_a_row_draws_the_same_answer_whichever_rows_share_its_batch():
    config, search = tiny.t5(vocab_size=384), Search(temperature=1.5, sample_seed=3)
    inputs = [[5 + n % 11, 9, 20 + n][: 1 + n % 3] for n in range(9)]
    alone = answers(config, inputs, 1, search)
    assert len({tuple(row) for row in alone}) > 5
    assert answers(config, inputs, 4, search) == alone
    assert answers(config, inputs[::-1], 4, search) == alone[::-1]
    assert answers(config, [*inputs, [7, 7, 7, 7]], 8, search)[:-1] == alone
    other_seed = answers(config, inputs, 4, Search(temperature=1.5, sample_seed=4))
    assert sum(one != other for one, other in zip(alone, other_seed, strict=True)) > 5
    # another task's prompt is another row, even where prompts are equal
    other_task = answers(config, inputs, 4, search, task_id=[1] * 9)
    assert sum(one != other for one, other in zip(alone, other_task, strict=True)) > 5


def test_seeds_and_temperatures_are_data():
    config = tiny.t5(vocab_size=384)
    answers(config, [[5, 6]], 1, Search(temperature=1.5))
    before = sample_decode._cache_size()
    answers(config, [[8, 6]], 1, Search(temperature=0.5, sample_seed=9))
    assert sample_decode._cache_size() == before


@pytest.mark.slow
def test_beams_answer_requests():
    config = tiny.t5(vocab_size=384)
    inputs = [[5, 9, 20], [7], [30, 31]]
    found = answers(config, inputs, 2, Search(beams=3))
    assert found == answers(config, inputs, 4, Search(beams=3)) and found != answers(config, inputs, 2, GREEDY)


def test_settings_say_the_search():
    assert search_of(EvalSettings()) == GREEDY and GREEDY.describe() == {}
    search = search_of(EvalSettings(temperature=0.7, top_p=0.9, sample_seed=5))
    assert search.describe() == {"temperature": 0.7, "top_p": 0.9, "sample_seed": 5}
    assert search_of(EvalSettings(beams=4)).describe() == {"beams": 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, r"beams \(BEAMS\) = 0 is outside 1"),
        ({"beams": 65}, r"BEAMS\) = 65 is outside 1 \.\. 64"),
        ({"beams": 2, "temperature": 1.0}, "BEAMS = 2 and TEMPERATURE = 1.0: beam search draws nothing; set one of them"),
        ({"top_p": 0.9}, r"TOP_P = 0.9 cuts what is drawn, and TEMPERATURE = 0 draws nothing; set TEMPERATURE = 1.0"),
        ({"top_p": 0.0, "temperature": 1.0}, r"TOP_P\) = 0.0 is outside"),
        ({"temperature": -1.0}, r"TEMPERATURE\) = -1.0 is outside"),
        ({"sample_seed": -1}, r"SAMPLE_SEED\) = -1 is outside"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EvalSettings(**settings)
