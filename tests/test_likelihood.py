"""Log-probabilities against a plain forward pass, and rank classification against greedy decoding among labels."""

import itertools

import jax
import numpy as np
import pytest
from tiny_model import given, own, rows_of, run_forward, tiny, weights

from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.likelihood import LABELS_AT_ONCE, Labels, score_labels, score_rows, score_targets, walk, walk_labels
from mpt_jax.model.families.family import Network
from mpt_jax.model.network import decode_step, empty_cache, prefill

NETWORK = given(tiny(vocab_size=40, num_decoder_layers=2, mlp_activations=("relu",), logits_via_embedding=True))


@pytest.fixture(scope="module")
def model():
    """(weights, prompts, inputs)."""
    rng = np.random.default_rng(0)
    backbone = jax.tree.map(lambda array: 1.5 * array, weights(NETWORK.config))
    prompt_BPD = rng.normal(size=(5, 3, 16)).astype(np.float32)
    inputs_BL = rng.integers(2, 40, (5, 7)).astype(np.int32)
    inputs_BL[2, 4:] = 0
    return backbone, own(prompt_BPD), inputs_BL


def labels_of(rows) -> Labels:
    """Labels as tokens; -1 pads, which no network may look at."""
    tokens_CT = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for line, row in zip(tokens_CT, rows, strict=True):
        line[: len(row)] = row
    return Labels(tokens_CT, np.array([len(row) for row in rows], np.int32))


def scores_of(model, targets_BT, length_B) -> np.ndarray:
    backbone, prompts, inputs_BL = model
    rows = rows_of(inputs_BL)._replace(targets_BT=targets_BT, target_length_B=length_B)
    return np.asarray(score_rows(NETWORK, backbone, prompts, rows))


def plain_forward(model, targets_BT):
    """Logits (B, T, V) of a plain pass."""
    backbone, prompts, inputs_BL = model
    rows = rows_of(inputs_BL)._replace(targets_BT=targets_BT, target_length_B=np.full(len(targets_BT), targets_BT.shape[1], np.int32))
    return np.asarray(run_forward(NETWORK, backbone, rows, prompts).logits_BTV)


def plain_log_probabilities(model, targets_BT, length_B):
    """The definition: a full forward pass, log_softmax, one entry a token, in NumPy."""
    logits_BTV = plain_forward(model, targets_BT).astype(np.float64)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    totals = []
    for logp_TV, target_T, length in zip(logp_BTV, targets_BT, length_B, strict=True):
        totals.append(sum(logp_TV[t, token] for t, token in enumerate(target_T[:length])))
    return np.array(totals)


def test_targets_of_different_lengths(model):
    """Id 0 is a token where the length says so."""
    targets_BT = np.array([[5, 1, 0], [5, 6, 1], [9, 0, 1], [1, 0, 0], [30, 2, 0]], np.int32)
    length_B = np.array([2, 3, 3, 1, 3], np.int32)
    logp_B = scores_of(model, targets_BT, length_B)
    np.testing.assert_allclose(logp_B, plain_log_probabilities(model, targets_BT, length_B), atol=1e-4)
    assert (logp_B < 0).all()


def test_padding_changes_nothing(model):
    backbone, prompts, inputs_BL = model
    targets_BT, length_B = np.array([[5, 8, 1]] * 5, np.int32), np.full(5, 3, np.int32)
    rows = rows_of(inputs_BL)._replace(targets_BT=targets_BT, target_length_B=length_B)
    for fill in (0, 9):
        wide_BL = np.pad(np.where(inputs_BL == 0, fill, inputs_BL), ((0, 0), (0, 6)), constant_values=fill)
        wide = rows._replace(inputs_BL=wide_BL, targets_BT=np.pad(targets_BT, ((0, 0), (0, 5)), constant_values=fill))
        found = score_rows(NETWORK, backbone, prompts, wide)
        np.testing.assert_allclose(found, scores_of(model, targets_BT, length_B), atol=1e-4)


def test_rows_of_whole_tokens_need_no_lengths(model):
    backbone, prompts, inputs_BL = model
    inputs_BL, targets_BT = inputs_BL[:2], np.array([[5, 6, 1], [0, 2, 1]], np.int32)
    length_B = np.full(2, 3, np.int32)
    with_prompt = scores_of((backbone, own(prompts["prompt"][:2]), inputs_BL), targets_BT, length_B)
    found = score_targets(NETWORK.config, backbone, prompts["prompt"][:2], inputs_BL, targets_BT)
    np.testing.assert_allclose(found, with_prompt, atol=1e-5)
    rows = rows_of(inputs_BL)._replace(targets_BT=targets_BT, target_length_B=length_B)
    alone = score_rows(Network(NETWORK.config), backbone, None, rows)
    np.testing.assert_allclose(score_targets(NETWORK.config, backbone, None, inputs_BL, targets_BT), alone, atol=1e-5)
    assert np.abs(np.asarray(alone) - with_prompt).min() > 1e-3


@pytest.mark.parametrize("number", [2, LABELS_AT_ONCE + 3])
def test_labels_are_scored_as_targets_are(model, number):
    backbone, prompts, inputs_BL = model
    rows = [(3 + index, 1) if index % 2 == 0 else (3 + index, 0, 1) for index in range(number)]
    labels = labels_of(rows)
    logp_BC = np.asarray(score_labels(NETWORK, backbone, prompts, rows_of(inputs_BL), labels))
    assert logp_BC.shape == (5, number)
    for index, row in enumerate(rows):
        expected = plain_log_probabilities(model, np.array([row] * 5, np.int32), [len(row)] * 5)
        np.testing.assert_allclose(logp_BC[:, index], expected, atol=1e-4)


def test_the_best_label_is_the_most_likely_first_token_among_labels_of_one_token(model):
    backbone, prompts, inputs_BL = model
    labels = labels_of([(7,), (19,)])
    best_B = np.asarray(score_labels(NETWORK, backbone, prompts, rows_of(inputs_BL), labels)).argmax(-1)
    logits_BTV = plain_forward(model, np.zeros((5, 3), np.int32))
    np.testing.assert_array_equal(best_B, logits_BTV[:, 0, labels.tokens_CT[:, 0]].argmax(-1))


# so few tokens that greedy decoding often writes a label
FEW = given(tiny(vocab_size=7, mlp_activations=("relu",)))


def few_tokens_model(seed):
    """Random weights under which answers of several tokens differ from row to row; 300 rows."""
    rng = np.random.default_rng(seed)
    backbone = jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape).astype(np.float32) if a.ndim > 1 else a, weights(FEW.config))
    backbone["decoder"]["logits_dense"]["kernel"][:, 0] = 0.0  # padding is seldom the answer
    return backbone, own(2 * rng.normal(size=(300, 3, 16)).astype(np.float32)), rows_of(rng.integers(2, 7, (300, 6)).astype(np.int32))


def some_labels(seed, answers):
    """Every second of the complete answers and 25 of all texts of one to three tokens: many share beginnings, and some are the
    beginning of others, so that EOS decides."""
    every = [(*tokens, 1) for length in (1, 2, 3) for tokens in itertools.product(range(2, 7), repeat=length)]
    some = [every[number] for number in np.random.default_rng(seed).permutation(len(every))[:25]]
    return list(dict.fromkeys(some + sorted(set(answers) & set(every))[::2]))


def greedy_among(labels, backbone, prompts, rows):
    """A plain loop over decode_step, which may only write tokens that continue a label."""
    step = jax.jit(decode_step, static_argnums=0)
    prefilled = jax.jit(prefill, static_argnums=0)(FEW, backbone, rows, prompts)
    batch, longest = len(rows.inputs_BL), max(map(len, labels))
    written = [() for _ in range(batch)]
    cache, token_B = empty_cache(FEW, batch, longest), np.array(prefilled.start_B)
    for position in range(longest):
        logits_BV, cache = step(FEW, backbone, prefilled, cache, token_B, position)
        for row, logits_V in enumerate(np.asarray(logits_BV)):
            allowed = sorted({label[position] for label in labels if label[:position] == written[row] and len(label) > position})
            token_B[row] = max(allowed, key=lambda token: logits_V[token]) if allowed else 0
            written[row] += (int(token_B[row]),) if allowed else ()
    return written


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 3))])
def test_the_walk_is_greedy_decoding_among_labels(seed):
    model = few_tokens_model(seed)
    decoded_BT = np.asarray(greedy_decode(FEW, *model, 4, ends=(1,)))
    free = [tuple(row[: np.max(np.flatnonzero(row), initial=0) + 1]) for row in decoded_BT]
    labels = some_labels(seed, free)
    assert any(label[:-1] == other[: len(label) - 1] for label in labels for other in labels if label != other)
    walked = [labels[number] for number in walk_labels(FEW, *model, labels_of(labels))]
    assert walked == greedy_among(labels, *model)
    assert len(set(walked)) > 5
    decoded = [row for row, answer in enumerate(free) if answer in labels]
    assert 10 < len(decoded) < 290  # rows where greedy decoding writes a label, and rows where it does not
    assert [walked[row] for row in decoded] == [free[row] for row in decoded]
    most_probable = np.asarray(score_labels(FEW, *model, labels_of(labels))).argmax(-1)
    assert any(walked[row] != labels[most_probable[row]] for row in decoded)  # another question, to which another method answers


def test_the_walk_by_hand():
    """After 5, EOS (the first label) loses to 6 though the label as a whole is likelier; of equal logits the lower token wins."""
    labels = labels_of([(5, 1), (5, 6, 2, 1), (4, 1), (3, 1)])
    logits_CT = np.array([[2.0, 0.9, 0, 0], [2.0, 1.0, -9.0, -9.0], [1.9, 9.0, 0, 0], [1.0, 9.0, 0, 0]], np.float32)
    tie_CT = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [3.0, 0, 0, 0], [3.0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(walk(np.stack([logits_CT, tie_CT]), labels), [1, 3])
