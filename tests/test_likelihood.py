"""Log-probabilities against a plain forward pass, and rank classification."""

import jax
import numpy as np
import pytest

from mpt_jax.config import T5Config
from mpt_jax.infer.likelihood import LABELS_AT_ONCE, score_labels, score_targets
from mpt_jax.model.prompted_t5 import forward, init_backbone

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
