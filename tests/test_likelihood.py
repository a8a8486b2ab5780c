"""Log-probabilities against a plain forward pass, and rank classification against greedy decoding among labels."""

import itertools

import jax
import numpy as np
import pytest

from mpt_jax.config import T5Config
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.likelihood import LABELS_AT_ONCE, score_labels, score_targets, walk, walk_labels
from mpt_jax.model.prompted_t5 import decode_step, empty_cache, encode, forward, init_backbone

CONFIG = T5Config("tiny", 40, 16, 2, 8, 32, 1, 2, ("relu",), True)
plain_forward = jax.jit(lambda *arrays: forward(CONFIG, *arrays).logits_BTV)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    backbone = jax.tree.map(lambda array: 1.5 * array, jax.jit(init_backbone, static_argnums=0)(CONFIG, 0))
    prompt_BPD = rng.normal(size=(5, 3, 16)).astype(np.float32)
    inputs_BL = rng.integers(2, 40, (5, 7)).astype(np.int32)
    inputs_BL[2, 4:] = 0
    return backbone, prompt_BPD, inputs_BL


def plain_log_probabilities(model, targets_BT):
    """The definition: a full forward pass, log_softmax, one entry a token, in NumPy."""
    logits_BTV = np.asarray(plain_forward(*model, targets_BT), np.float64)
    logp_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    totals = []
    for logp_TV, target_T in zip(logp_BTV, targets_BT, strict=True):
        totals.append(sum(logp_TV[t, token] for t, token in enumerate(target_T) if token > 0))
    return np.array(totals)


def test_targets_of_different_lengths(model):
    targets_BT = np.array([[5, 1, 0], [5, 6, 1], [9, 9, 1], [1, 0, 0], [30, 2, 1]], np.int32)
    logp_B = np.asarray(score_targets(CONFIG, *model, targets_BT))
    np.testing.assert_allclose(logp_B, plain_log_probabilities(model, targets_BT), atol=1e-4)
    assert (logp_B < 0).all()


def test_padding_changes_nothing(model):
    backbone, prompt_BPD, inputs_BL = model
    targets_BT = np.array([[5, 8, 1]] * 5, np.int32)
    wide_inputs, wide_targets = np.pad(inputs_BL, ((0, 0), (0, 6))), np.pad(targets_BT, ((0, 0), (0, 5)))
    wide = score_targets(CONFIG, backbone, prompt_BPD, wide_inputs, wide_targets)
    np.testing.assert_allclose(wide, score_targets(CONFIG, *model, targets_BT), atol=1e-4)


@pytest.mark.parametrize("number", [2, LABELS_AT_ONCE + 3])
def test_labels_are_scored_as_targets_are(model, number):
    labels_CT = np.zeros((number, 3), np.int32)
    for index, label_T in enumerate(labels_CT):
        label_T[: 2 + index % 2] = (3 + index, 1) if index % 2 == 0 else (3 + index, 12, 1)
    logp_BC = np.asarray(score_labels(CONFIG, *model, labels_CT))
    assert logp_BC.shape == (5, number)
    for index, label_T in enumerate(labels_CT):
        expected = plain_log_probabilities(model, np.tile(label_T, (5, 1)))
        np.testing.assert_allclose(logp_BC[:, index], expected, atol=1e-4)


def test_the_best_label_is_the_most_likely_first_token_among_labels_of_one_token(model):
    labels_CT = np.array([[7, 0, 0], [19, 0, 0]], np.int32)
    best_B = np.asarray(score_labels(CONFIG, *model, labels_CT)).argmax(-1)
    logits_BTV = np.asarray(plain_forward(*model, np.zeros((5, 3), np.int32)))
    np.testing.assert_array_equal(best_B, logits_BTV[:, 0, labels_CT[:, 0]].argmax(-1))


FEW = T5Config("few tokens", 7, 16, 2, 8, 32, 1, 1, ("relu",))  # so few tokens that greedy decoding often writes a label


def few_tokens_model(seed):
    """Random weights under which answers of several tokens differ from row to row; 300 rows."""
    rng = np.random.default_rng(seed)
    backbone = jax.jit(init_backbone, static_argnums=0)(FEW, seed)
    backbone = jax.tree.map(lambda a: rng.normal(0, 0.5, a.shape).astype(np.float32) if a.ndim > 1 else a, backbone)
    backbone["decoder"]["logits_dense"]["kernel"][:, 0] = 0.0  # padding is seldom the answer
    return backbone, 2 * rng.normal(size=(300, 3, 16)).astype(np.float32), rng.integers(2, 7, (300, 6)).astype(np.int32)


def some_labels(seed, answers):
    """Every second of the complete answers and 25 of all texts of one to three tokens: many share beginnings, and some are the
    beginning of others, so that EOS decides."""
    every = [(*tokens, 1) for length in (1, 2, 3) for tokens in itertools.product(range(2, 7), repeat=length)]
    some = [every[place] for place in np.random.default_rng(seed).permutation(len(every))[:25]]
    return list(dict.fromkeys(some + sorted(set(answers) & set(every))[::2]))


def padded(labels):
    labels_CT = np.zeros((len(labels), max(map(len, labels))), np.int32)
    for line, label in zip(labels_CT, labels, strict=True):
        line[: len(label)] = label
    return labels_CT


def greedy_among(labels, backbone, prompt_BPD, inputs_BL):
    """A plain loop over decode_step, which may only write tokens that continue a label."""
    step = jax.jit(lambda encoded, cache, token_B, position: decode_step(FEW, backbone, encoded, cache, token_B, position))
    encoded = jax.jit(lambda *arrays: encode(FEW, *arrays))(backbone, prompt_BPD, inputs_BL)
    written = [() for _ in inputs_BL]
    longest = max(map(len, labels))
    cache, token_B = empty_cache(FEW, len(inputs_BL), longest), np.zeros(len(inputs_BL), np.int32)
    for position in range(longest):
        logits_BV, cache = step(encoded, cache, token_B, position)
        for row, logits_V in enumerate(np.asarray(logits_BV)):
            allowed = sorted({label[position] for label in labels if label[:position] == written[row] and len(label) > position})
            token_B[row] = max(allowed, key=lambda token: logits_V[token]) if allowed else 0
            written[row] += (int(token_B[row]),) if allowed else ()
    return written


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_walk_is_greedy_decoding_among_labels(seed):
    model = few_tokens_model(seed)
    free = [tuple(row[: np.max(np.flatnonzero(row), initial=0) + 1]) for row in np.asarray(greedy_decode(FEW, *model, 4))]
    labels = some_labels(seed, free)
    assert any(label[:-1] == other[: len(label) - 1] for label in labels for other in labels if label != other)
    labels_CT = padded(labels)
    walked = [labels[place] for place in walk_labels(FEW, *model, labels_CT)]
    assert walked == greedy_among(labels, *model)
    assert len(set(walked)) > 5
    decoded = [row for row, answer in enumerate(free) if answer in labels]
    assert 10 < len(decoded) < 290  # rows where greedy decoding writes a label, and rows where it does not
    assert [walked[row] for row in decoded] == [free[row] for row in decoded]
    most_probable = np.asarray(score_labels(FEW, *model, labels_CT)).argmax(-1)
    assert any(walked[row] != labels[most_probable[row]] for row in decoded)  # another question, to which another method answers


def test_the_walk_by_hand():
    """After 5, EOS (the first label) loses to 6 though the label as a whole is likelier; of equal logits the lower token wins."""
    labels_CT = padded([(5, 1), (5, 6, 2, 1), (4, 1), (3, 1)])
    logits_CT = np.array([[2.0, 0.9, 0, 0], [2.0, 1.0, -9.0, -9.0], [1.9, 9.0, 0, 0], [1.0, 9.0, 0, 0]], np.float32)
    tie_CT = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [3.0, 0, 0, 0], [3.0, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(walk(np.stack([logits_CT, tie_CT]), labels_CT), [1, 3])
