"""Evaluation (evaluate.py) and requests in shared batches (requests.py): every row once whatever the batch size, the files written."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_data import byte_vocabulary, piece_file, text_cache
from tiny_model import CONFIG, rows_of, weights

from mpt_jax import tasks
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.spelling import spelling
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import evaluate, requests
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs
from mpt_jax.infer.likelihood import target_log_probabilities
from mpt_jax.infer.requests import Model, Requests
from mpt_jax.infer.search import Search
from mpt_jax.methods.prompt import METHOD
from mpt_jax.model.backbone import SHIPPED
from mpt_jax.model.families.family import Network
from mpt_jax.model.network import decode_targets, prefill

SPEC = BatchSpec(input_length=24, target_length=12, micro_batch_size=4, input_buckets=(24,), target_buckets=(12,))
BUCKETED = BatchSpec(input_length=24, target_length=12, micro_batch_size=4, input_buckets=(16,), target_buckets=(8,))
NETWORK = Network(CONFIG, adaptation=METHOD.adaptation)
VOCABULARY = byte_vocabulary()


class Witness:
    """A scorer that keeps what it was given."""

    def __call__(self, rows, predictions):
        self.rows, self.predictions = list(rows), list(predictions)
        return {"accuracy": 100.0 * np.mean([row["targets"] == text for row, text in zip(rows, predictions, strict=True)])}


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    backbone = jax.tree.map(lambda array: 2.0 * array, weights(CONFIG))
    shared_GPD = 3 * rng.normal(size=(3, 4, 16)).astype(np.float32)
    return Model(NETWORK, backbone, VOCABULARY, {"bank/shared": shared_GPD}, METHOD.parts, np.arange(3, dtype=np.int32))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("abcdefgh "), size=size)) for size in rng.integers(1, 40, 23)]
    return text_cache(tmp_path_factory.mktemp("letters"), texts, ["yes" if "a" in text else "no" for text in texts], "letters")


@pytest.fixture
def other(tmp_path):
    return text_cache(tmp_path, ["abc", "de fg", "h"], ["no", "no", "yes"], "other")


def one_by_one(model, cache, bank_index, limit):
    """Predictions of a cache, a row at a time."""
    answers = []
    for row in range(cache.rows):
        tokens = cache.inputs(row)
        if len(tokens) > SPEC.input_length:
            tokens = np.append(tokens[: SPEC.input_length - 1], 1)
        inputs_BL = np.pad(tokens, (0, SPEC.input_length - len(tokens)))[None]
        own = {"bank/shared": model.own["bank/shared"][[bank_index]]}
        answers.append(VOCABULARY.decode(np.asarray(greedy_decode(NETWORK, model.params, own, rows_of(inputs_BL), limit, ends=(1,)))[0]))
    return answers


@pytest.mark.parametrize(("batch_size", "spec"), [(7, BUCKETED), (64, SPEC)])
def test_every_row_once_whatever_the_batch_size(model, cache, batch_size, spec):
    witness, seen = Witness(), []

    def progress(done, total):
        seen.append((done, total))

    sized = dataclasses.replace(spec, micro_batch_size=batch_size)
    result = evaluate.evaluate(model, EvalRun(cache, 1, scorer=witness), sized, progress)
    assert [row["number"] for row in witness.rows] == list(range(23))
    assert result.predictions == witness.predictions == one_by_one(model, cache, 1, 12)
    assert result.cut_inputs == np.sum(cache.input_lengths > 24) > 0
    assert seen[-1] == (23, 23)


def test_runs_share_batches_and_keep_their_prompts(model, cache, other):
    runs = [
        EvalRun(cache, 2, scorer=Witness()),
        EvalRun(other, 0, scorer=Witness()),
        EvalRun(cache, 0, scorer=Witness()),
    ]
    for run, result in zip(runs, evaluate_runs(model, runs, SPEC), strict=True):
        assert result.predictions == one_by_one(model, run.cache, run.bank_index, 12)
        assert (result.task, result.bank_index) == (run.cache.name, run.bank_index)


def test_limit_rows_are_the_same_ones_each_time(model, cache):
    runs = [EvalRun(cache, index, limit_rows=9, scorer=Witness()) for index in (0, 1)]
    first, second = evaluate_runs(model, runs, SPEC)
    np.testing.assert_array_equal(first.row_index, second.row_index)
    assert len(set(first.row_index)) == 9
    assert [row["number"] for row in runs[0].scorer.rows] == list(first.row_index)
    assert len(evaluate_runs(model, [EvalRun(cache, 0, limit_rows=99, scorer=Witness())], SPEC)[0].predictions) == 23


def letters_task(labels=("no", "yes")):
    """Registers the cache's task with these labels."""
    tasks.add(tasks.Task("letters", "generated", ("validation",), "{t}", labels=labels, generate=lambda _: [], version="1"))


def test_answers_of_a_label_task_are_limited_by_its_labels_also_by_one_that_no_row_has(cache, table):
    assert EvalRun(cache).limit(SPEC, VOCABULARY) == 12
    letters_task(("yes", "no", "perhaps"))
    assert EvalRun(cache).limit(SPEC, VOCABULARY) == len("perhaps") + 2
    assert EvalRun(cache, max_tokens=3).limit(SPEC, VOCABULARY) == 3
    assert EvalRun(cache).limit(SPEC, VOCABULARY, Search(beams=2)) == SPEC.target_length  # as `infer` has it


def test_short_and_long_answers_in_one_call(model, cache):
    limits = np.where(np.arange(cache.rows) % 2 == 0, 3, 12)
    given = Requests([cache.inputs(row) for row in range(cache.rows)], np.zeros(cache.rows), limits)
    for row, tokens in enumerate(requests.decode(model, given, SPEC)):
        full = np.asarray(one_row(model, cache, row))
        np.testing.assert_array_equal(tokens[: limits[row]], full[: limits[row]])
        assert not tokens[limits[row] :].any()


def one_row(model, cache, row):
    alone = Requests([cache.inputs(row)], [0], [12])
    return requests.decode(model, alone, SPEC)[0]


def test_scores_of_targets_and_labels_agree(model, cache):
    labels = ("yes", "no", "perhaps")
    tokens = requests.label_tokens(labels, VOCABULARY)
    inputs = [cache.inputs(row) for row in range(cache.rows)]
    zeros = np.zeros(cache.rows)
    each = requests.score_each_label(model, Requests(inputs, zeros + 1, zeros), tokens, SPEC)
    for number, label in enumerate(labels):
        targets = [np.array(VOCABULARY.target_tokens(label), np.int32)] * cache.rows
        given = requests.score_given(model, Requests(inputs, zeros + 1, zeros, targets), SPEC)
        np.testing.assert_allclose(each[:, number], given, atol=1e-4)


def test_files_of_results(model, cache, tmp_path, table):
    letters_task()
    runs = [EvalRun(cache, index, scorer=Witness()) for index in (0, 1)]
    results = evaluate_runs(model, runs, SPEC)
    run = {"runs": [{"task": "letters", "seed": 7}, {"task": "letters", "seed": 8}]}
    (path,) = evaluate.write_results(tmp_path, results, run, {"checkpoint": "best", "step": 5})
    written = json.loads(path.read_text())
    assert path == tmp_path / "eval" / "letters.json"
    assert written["checkpoint"] == "best" and written["step"] == 5
    assert written["rows"] == 23 and written["main_score"] == "accuracy"
    assert [row["seed"] for row in written["runs"]] == [7, 8]
    values = [result.scores["accuracy"] for result in results]
    assert written["scores"]["accuracy"] == pytest.approx(np.mean(values))
    assert written["std"]["accuracy"] == pytest.approx(np.std(values))
    assert evaluate.majority(cache, cache, VOCABULARY, Witness())["accuracy"] >= 50.0
    assert "| letters | validation | 23 | 2 | **accuracy** |" in evaluate.table([written])


@pytest.mark.parametrize("method", ["rank", "rank_probability"])
def test_ranking_answers_with_labels(model, cache, other, table, method):
    labels = ("no", "yes", "perhaps")
    letters_task(labels)
    runs = [EvalRun(cache, 1, scorer=Witness()), EvalRun(other, 0, scorer=Witness()), EvalRun(cache, 2, scorer=Witness())]
    seen = []

    def progress(done, total):
        seen.append((done, total))

    ranked = evaluate_runs(model, runs, SPEC, progress, method)
    assert seen[-1] == (49, 49) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    decoded = evaluate_runs(model, runs, SPEC)
    assert ranked[1].predictions == decoded[1].predictions  # no labels are registered
    tokens = requests.label_tokens(labels, VOCABULARY)
    for number in (0, 2):
        given = Requests([cache.inputs(row) for row in range(23)], [runs[number].bank_index] * 23, [12] * 23)
        if method == "rank":
            best_B = requests.choose_label(model, given, tokens, SPEC)
        else:
            best_B = requests.score_each_label(model, given, tokens, SPEC).argmax(axis=1)
        assert ranked[number].predictions == [labels[best] for best in best_B]


@pytest.mark.slow
def test_ranking_equals_decoding_where_it_gives_a_label(model, cache, table):
    """A model tuned for a moment, so that most of its answers are labels."""
    letters_task()
    tuned = tuned_to_answer(model, cache)
    run = EvalRun(cache, 0, scorer=Witness())
    decoded, ranked = (evaluate_runs(tuned, [run], SPEC, method=method)[0].predictions for method in ("decode", "rank"))
    labels = [row for row, text in enumerate(decoded) if text in ("no", "yes")]
    assert len(labels) > 15
    assert [ranked[row] for row in labels] == [decoded[row] for row in labels]
    assert len(set(ranked)) == 2


def tuned_to_answer(model, cache):
    """The model after some gradient steps on all of its weights."""

    def cut(tokens, length):
        return np.pad(tokens[:length], (0, max(length - len(tokens), 0)))

    inputs_BL, targets_BT = (
        np.array([cut(read(row), length) for row in range(cache.rows)]) for read, length in ((cache.inputs, 24), (cache.targets, 4))
    )
    rows = rows_of(inputs_BL, targets_BT)
    own = {"bank/shared": jnp.broadcast_to(model.own["bank/shared"][0], (cache.rows, *model.own["bank/shared"].shape[1:]))}

    def loss(params):
        decoded = decode_targets(NETWORK, params, prefill(NETWORK, params, rows, own), rows.targets_BT)
        return -target_log_probabilities(decoded, NETWORK.config.vocab_size, rows.targets_BT, rows.target_length_B).mean()

    optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, 100))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimizer.init(model.params)
    for _ in range(100):
        params, state = step(params, state)
    return dataclasses.replace(model, params=params)


def test_labels_that_the_vocabulary_spells_otherwise_are_still_labels(table):
    """A lower-case vocabulary answers "world" where the label is "World"."""
    lower_case = load_vocabulary(piece_file("nmt_nfkc_cf"))
    tasks.jsonl("news", files={"train": "absent.jsonl"}, template="{text}", labels=("World", "sports"))
    assert spelling("news", lower_case) == {"world": "World", "sports": "sports"}
    assert spelling("unknown", lower_case) == {}


def test_right_texts_that_the_vocabulary_writes_otherwise_can_be_reached(table, tmp_path):
    """The nano vocabulary has lower case alone: "paris" is the best that it can answer."""
    nano = load_vocabulary(SHIPPED / "nano")
    tasks.jsonl("city", files={"validation": "absent.jsonl"}, template="{q}", target="{a}", score=("exact_match", "squad"))
    cache = text_cache(tmp_path, ["a", "b", "c"], ["Paris", "Paris", "Rome"], "city")
    assert evaluate.majority(cache, cache, nano)["exact_match"] == pytest.approx(200 / 3)


def test_results_of_tasks_whose_names_no_file_holds_are_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "main_score", lambda name: "accuracy")
    results = [evaluate.EvalResult(name, "test", 0, {"accuracy": 1.0}, ["x"], np.arange(1), 0) for name in ("a:b", "a_b", "a.b", "a#b")]
    paths = evaluate.write_results(tmp_path, results, {}, {"checkpoint": "best"})
    assert [json.loads(path.read_text())["task"] for path in paths] == ["a:b", "a_b", "a.b", "a#b"] and len(set(paths)) == 4


def test_a_link_in_the_place_of_results_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "main_score", lambda name: "accuracy")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "a.json").symlink_to(tmp_path / "elsewhere.json")
    result = evaluate.EvalResult("a", "test", 0, {"accuracy": 1.0}, ["x"], np.arange(1), 0)
    evaluate.write_results(tmp_path, [result], {}, {"checkpoint": "best"})
    assert (tmp_path / "eval" / "a.json").is_symlink() and json.loads((tmp_path / "elsewhere.json").read_text())["task"] == "a"
    (tmp_path / "eval" / "b.json").symlink_to("/dev/null")
    with pytest.raises(UserError, match="b.json' is a device or pipe, and would be replaced"):
        evaluate.write_results(tmp_path, [dataclasses.replace(result, task="b")], {}, {"checkpoint": "best"})


def test_scores_that_not_every_run_has_are_left_to_the_runs():
    first = evaluate.EvalResult("word_valence", "test", 0, {"accuracy": 50.0, "extra": 1.0}, ["x"], np.arange(1), 0)
    summary = evaluate.summary_of([first, dataclasses.replace(first, bank_index=1, scores={"accuracy": 70.0})], {})
    assert summary["scores"] == {"accuracy": 60.0} and summary["runs"][0]["scores"]["extra"] == 1.0
