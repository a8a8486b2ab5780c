"""Evaluation: every row once whatever the batch size, tasks and runs in shared batches, the files written."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

import tasks
from mpt_jax.config import T5Config
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import evaluate, requests
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs
from mpt_jax.infer.requests import Model, Requests
from mpt_jax.model.backbone import SHIPPED
from mpt_jax.model.prompt_bank import PromptBank
from mpt_jax.model.prompted_t5 import init_backbone

CONFIG = T5Config("tiny", 384, 16, 2, 8, 32, 1, 1)
SPEC = BatchSpec(input_length=24, target_length=12, micro_batch_size=4, input_buckets=(24,), target_buckets=(12,))
BUCKETED = BatchSpec(input_length=24, target_length=12, micro_batch_size=4, input_buckets=(16,), target_buckets=(8,))
VOCABULARY = load_vocabulary("bytes")


class MemoryCache:
    """A token cache in memory."""

    embedding = None

    def __init__(self, name, texts, targets):
        self.name, self.split, self.rows = name, "validation", len(texts)
        self._rows = [{"inputs": text, "targets": target, "number": i} for i, (text, target) in enumerate(zip(texts, targets, strict=True))]
        self._inputs = [requests.tokens_of(text, VOCABULARY) for text in texts]
        self._targets = [requests.tokens_of(text, VOCABULARY) for text in targets]
        self.input_lengths = np.array([len(x) for x in self._inputs], np.int32)
        self.target_lengths = np.array([len(x) for x in self._targets], np.int32)

    def inputs(self, row):
        return self._inputs[row]

    def targets(self, row):
        return self._targets[row]

    def extra(self, row):
        return dict(self._rows[row])


class Witness:
    """A scorer that keeps what it was given."""

    def __call__(self, rows, predictions):
        self.rows, self.predictions = list(rows), list(predictions)
        return {"accuracy": 100.0 * np.mean([row["targets"] == text for row, text in zip(rows, predictions, strict=True)])}


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    backbone = jax.tree.map(lambda array: 2.0 * array, jax.jit(init_backbone, static_argnums=0)(CONFIG, 0))
    bank = PromptBank(3 * rng.normal(size=(3, 4, 16)).astype(np.float32), None, None, np.arange(3, dtype=np.int32))
    return Model(CONFIG, backbone, bank)


@pytest.fixture(scope="module")
def cache():
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("abcdefgh "), size=size)) for size in rng.integers(1, 40, 23)]
    return MemoryCache("letters", texts, ["yes" if "a" in text else "no" for text in texts])


def one_by_one(model, cache, bank_index, limit):
    """Predictions of a cache, a row at a time."""
    answers = []
    for row in range(cache.rows):
        tokens = cache.inputs(row)
        if len(tokens) > SPEC.input_length:
            tokens = np.append(tokens[: SPEC.input_length - 1], 1)
        inputs_BL = np.pad(tokens, (0, SPEC.input_length - len(tokens)))[None]
        prompt_BPD = model.bank.shared_GPD[bank_index][None]
        answers.append(VOCABULARY.decode(np.asarray(greedy_decode(CONFIG, model.params, prompt_BPD, inputs_BL, limit))[0]))
    return answers


@pytest.mark.parametrize(("batch_size", "spec"), [(7, BUCKETED), (64, SPEC)])
def test_every_row_once_whatever_the_batch_size(model, cache, batch_size, spec):
    witness, seen = Witness(), []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    result = evaluate.evaluate(
        model, EvalRun(cache, 1, scorer=witness), VOCABULARY, dataclasses.replace(spec, micro_batch_size=batch_size), progress
    )
    assert [row["number"] for row in witness.rows] == list(range(23))
    assert result.predictions == witness.predictions == one_by_one(model, cache, 1, 12)
    assert result.cut_inputs == np.sum(cache.input_lengths > 24) > 0
    assert seen[-1] == (23, 23)


def test_runs_share_batches_and_keep_their_prompts(model, cache):
    other = MemoryCache("other", ["abc", "de fg", "h"], ["no", "no", "yes"])
    runs = [
        EvalRun(cache, 2, scorer=Witness()),
        EvalRun(other, 0, scorer=Witness()),
        EvalRun(cache, 0, scorer=Witness()),
    ]
    for run, result in zip(runs, evaluate_runs(model, runs, VOCABULARY, SPEC), strict=True):
        assert result.predictions == one_by_one(model, run.cache, run.bank_index, 12)
        assert (result.task, result.bank_index) == (run.cache.name, run.bank_index)


def test_limit_rows_are_the_same_ones_each_time(model, cache):
    runs = [EvalRun(cache, index, limit_rows=9, scorer=Witness()) for index in (0, 1)]
    first, second = evaluate_runs(model, runs, VOCABULARY, SPEC)
    np.testing.assert_array_equal(first.row_index, second.row_index)
    assert len(set(first.row_index)) == 9
    assert [row["number"] for row in runs[0].scorer.rows] == list(first.row_index)
    assert len(evaluate_runs(model, [EvalRun(cache, 0, limit_rows=99, scorer=Witness())], VOCABULARY, SPEC)[0].predictions) == 23


def test_answers_of_a_label_task_are_limited_by_its_labels_also_by_one_that_no_row_has(cache, monkeypatch):
    task = tasks.Task("letters", "generated", ("validation",), labels=("yes", "no", "perhaps"), generate=lambda split: [], version="1")
    monkeypatch.setitem(tasks.TABLE, "letters", task)
    assert EvalRun(cache).limit(SPEC, VOCABULARY) == len("perhaps") + 2
    monkeypatch.delitem(tasks.TABLE, "letters")
    assert EvalRun(cache).limit(SPEC, VOCABULARY) == 12
    assert EvalRun(cache, max_tokens=3).limit(SPEC, VOCABULARY) == 3


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
    labels_CT = requests.label_tokens(labels, VOCABULARY)
    inputs = [cache.inputs(row) for row in range(cache.rows)]
    zeros = np.zeros(cache.rows)
    each = requests.score_each_label(model, Requests(inputs, zeros + 1, zeros), labels_CT, SPEC)
    for number, label in enumerate(labels):
        targets = [requests.tokens_of(label, VOCABULARY)] * cache.rows
        given = requests.score_given(model, Requests(inputs, zeros + 1, zeros, targets), SPEC)
        np.testing.assert_allclose(each[:, number], given, atol=1e-4)


def test_files_of_results(model, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "main_score", lambda name: "accuracy")
    runs = [EvalRun(cache, index, scorer=Witness()) for index in (0, 1)]
    results = evaluate_runs(model, runs, VOCABULARY, SPEC)
    run = {"runs": [{"task": "letters", "seed": 7}, {"task": "letters", "seed": 8}]}
    (path,) = evaluate.write_results(tmp_path, results, run, "best")
    written = json.loads(path.read_text())
    assert path == tmp_path / "eval" / "letters.json"
    assert written["rows"] == 23 and written["main_score"] == "accuracy"
    assert [row["seed"] for row in written["runs"]] == [7, 8]
    values = [result.scores["accuracy"] for result in results]
    assert written["scores"]["accuracy"] == pytest.approx(np.mean(values))
    assert written["std"]["accuracy"] == pytest.approx(np.std(values))
    assert evaluate.majority(cache, cache, VOCABULARY, Witness())["accuracy"] >= 50.0
    assert "| letters | validation | 23 | 2 | **accuracy** |" in evaluate.table([written])


@pytest.mark.parametrize("method", ["rank", "rank_probability"])
def test_ranking_answers_with_labels(model, cache, table, method):
    labels = ("no", "yes", "perhaps")
    tasks.add(tasks.Task("letters", "generated", ("train",), "{t}", labels=labels, generate=lambda _: [], version="1"))
    other = MemoryCache("other", ["abc", "de fg", "h"], ["no", "no", "yes"])
    runs = [EvalRun(cache, 1, scorer=Witness()), EvalRun(other, 0, scorer=Witness()), EvalRun(cache, 2, scorer=Witness())]
    seen = []
    told = lambda done, total: seen.append((done, total))  # noqa: E731
    ranked = evaluate_runs(model, runs, VOCABULARY, SPEC, told, method)
    assert seen[-1] == (49, 49) and [done for done, _ in seen] == sorted(done for done, _ in seen)
    decoded = evaluate_runs(model, runs, VOCABULARY, SPEC)
    assert ranked[1].predictions == decoded[1].predictions  # no labels are registered
    labels_CT = requests.label_tokens(labels, VOCABULARY)
    for place in (0, 2):
        given = Requests([cache.inputs(row) for row in range(23)], [runs[place].bank_index] * 23, [12] * 23)
        if method == "rank":
            best_B = requests.choose_label(model, given, labels_CT, SPEC)
        else:
            best_B = requests.score_each_label(model, given, labels_CT, SPEC).argmax(axis=1)
        assert ranked[place].predictions == [labels[best] for best in best_B]


def test_ranking_equals_decoding_where_it_gives_a_label(model, cache, table):
    """A model tuned for a moment, so that most of its answers are labels."""
    tasks.add(tasks.Task("letters", "generated", ("train",), "{t}", labels=("no", "yes"), generate=lambda _: [], version="1"))
    tuned = tuned_to_answer(model, cache)
    run = EvalRun(cache, 0, scorer=Witness())
    decoded, ranked = (evaluate_runs(tuned, [run], VOCABULARY, SPEC, method=method)[0].predictions for method in ("decode", "rank"))
    labels = [row for row, text in enumerate(decoded) if text in ("no", "yes")]
    assert len(labels) > 15
    assert [ranked[row] for row in labels] == [decoded[row] for row in labels]
    assert len(set(ranked)) == 2


def tuned_to_answer(model, cache):
    """The model after some gradient steps on all of its weights."""
    import jax.numpy as jnp

    from mpt_jax.infer.likelihood import target_log_probabilities
    from mpt_jax.model.prompted_t5 import decode_targets, encode

    cut = lambda tokens: np.pad(tokens[:24], (0, max(24 - len(tokens), 0)))  # noqa: E731
    inputs_BL = jnp.array([cut(cache.inputs(row)) for row in range(cache.rows)])
    targets_BT = jnp.array([np.pad(cache.targets(row), (0, 4 - len(cache.targets(row)))) for row in range(cache.rows)])
    prompt_BPD = jnp.broadcast_to(model.bank.shared_GPD[0], (cache.rows, *model.bank.shared_GPD.shape[1:]))

    def loss(params):
        encoded = encode(CONFIG, params, prompt_BPD, inputs_BL)
        return -target_log_probabilities(decode_targets(CONFIG, params, encoded, targets_BT), targets_BT).mean()

    optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, 100))

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state = model.params, optimizer.init(model.params)
    for _ in range(100):
        params, state = step(params, state)
    return dataclasses.replace(model, params=params)


def test_right_texts_that_the_vocabulary_writes_otherwise_can_be_reached(table):
    """The nano vocabulary has lower case alone: "paris" is the best that it can answer."""
    nano = load_vocabulary(SHIPPED / "nano")
    tasks.jsonl("city", files={"validation": "absent.jsonl"}, template="{q}", target="{a}", score=("exact_match", "squad"))
    cache = MemoryCache("city", ["a", "b", "c"], ["Paris", "Paris", "Rome"])
    assert evaluate.majority(cache, cache, nano)["exact_match"] == pytest.approx(200 / 3)


def test_results_of_tasks_whose_names_no_file_holds_are_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "main_score", lambda name: "accuracy")
    results = [evaluate.EvalResult(name, "test", 0, {"accuracy": 1.0}, ["x"], np.arange(1), 0) for name in ("a:b", "a_b", "a.b", "a#b")]
    paths = evaluate.write_results(tmp_path, results, {}, "best")
    assert [json.loads(path.read_text())["task"] for path in paths] == ["a:b", "a_b", "a.b", "a#b"] and len(set(paths)) == 4


def test_a_link_in_the_place_of_results_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "main_score", lambda name: "accuracy")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "a.json").symlink_to(tmp_path / "elsewhere.json")
    result = evaluate.EvalResult("a", "test", 0, {"accuracy": 1.0}, ["x"], np.arange(1), 0)
    evaluate.write_results(tmp_path, [result], {}, "best")
    assert (tmp_path / "eval" / "a.json").is_symlink() and json.loads((tmp_path / "elsewhere.json").read_text())["task"] == "a"
    (tmp_path / "eval" / "b.json").symlink_to("/dev/null")
    with pytest.raises(UserError, match="b.json' is a device or pipe, and would be replaced"):
        evaluate.write_results(tmp_path, [dataclasses.replace(result, task="b")], {}, "best")


def test_scores_that_not_every_run_has_are_left_to_the_runs():
    first = evaluate.EvalResult("word_valence", "test", 0, {"accuracy": 50.0, "extra": 1.0}, ["x"], np.arange(1), 0)
    summary = evaluate.summary_of([first, dataclasses.replace(first, bank_index=1, scores={"accuracy": 70.0})], {})
    assert summary["scores"] == {"accuracy": 60.0} and summary["runs"][0]["scores"]["extra"] == 1.0
