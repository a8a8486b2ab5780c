"""Losses against hand-computed numbers and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.train import losses

REAL = jnp.array([[True, True, False], [True, False, False]])  # of two examples with three positions


def random_logits(shape=(2, 3, 7), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.6, 0.2, 0.2]]]))
    loss_B, correct_B = losses.cross_entropy(logits, jnp.array([[1, 2, 0]]), jnp.array([[True, True, False]]))
    np.testing.assert_allclose(loss_B, [-np.log(0.25) - np.log(0.8)], rtol=1e-6)
    assert correct_B[0] == 1.0  # the second token; the third is padding, which the logits would get right


def test_cross_entropy_is_stable_for_large_logits():
    loss_B, _ = losses.cross_entropy(jnp.array([[[1e4, 0.0, 0.0]]]), jnp.array([[1]]), jnp.array([[True]]))
    np.testing.assert_allclose(loss_B, [1e4])


def test_cross_entropy_gradient_is_softmax_minus_one_hot_and_zero_at_padding():
    logits, targets = random_logits(), jnp.array([[3, 0, 5], [6, 2, 1]])  # id 0 is a token like any other
    grad = jax.grad(lambda x: losses.cross_entropy(x, targets, REAL)[0].sum())(jnp.asarray(logits))
    expected = (jax.nn.softmax(logits) - jax.nn.one_hot(targets, 7)) * REAL[..., None]
    np.testing.assert_allclose(grad, expected, atol=1e-6)


def test_kl_by_hand_and_zero_for_equal_logits():
    teacher, student = np.log([[[0.5, 0.5]]]).astype(np.float32), np.log([[[0.25, 0.75]]]).astype(np.float32)
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(losses.kl_divergence(teacher, student, jnp.array([[True]]), 1.0), [expected], rtol=1e-6)
    same = random_logits()
    softened = jax.nn.log_softmax(same / 3.0)
    np.testing.assert_allclose(losses.kl_divergence(softened, same, jnp.ones((2, 3), bool), 3.0), [0, 0], atol=1e-6)


def test_kl_at_a_temperature_softens_both_sides():
    teacher, student = random_logits(), random_logits(seed=1)
    p = jax.nn.softmax(teacher / 2.0)
    expected = jnp.sum(jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(student / 2.0)), -1) * REAL, -1) * 4.0
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(p), student, REAL, 2.0), expected, rtol=1e-5)


def test_kl_of_some_tokens_takes_all_others_as_one():
    """Value and gradient against a distribution whose other tokens are added up by hand."""
    teacher, student = random_logits(), random_logits(seed=1)
    logp = np.asarray(jax.nn.log_softmax(teacher / 2.0))
    ids = np.argsort(-logp)[..., :3]
    top = np.take_along_axis(logp, ids, -1)
    tail = np.log(1 - np.exp(top).sum(-1))

    def by_hand(student):
        q = jnp.exp(jax.nn.log_softmax(student / 2.0))
        q_top = jnp.take_along_axis(q, ids, -1)
        kl = jnp.sum(np.exp(top) * (top - jnp.log(q_top)), -1) + np.exp(tail) * (tail - jnp.log(1 - q_top.sum(-1)))
        return jnp.sum(kl * REAL, -1) * 4.0

    def ours(student):
        return losses.kl_divergence(top, student, REAL, 2.0, ids, tail)

    np.testing.assert_allclose(ours(student), by_hand(student), rtol=1e-5)
    assert np.all(ours(student) < losses.kl_divergence(logp, student, REAL, 2.0))
    gradients = (jax.grad(lambda x, kl=kl: kl(x).sum())(jnp.asarray(student)) for kl in (ours, by_hand))
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_hidden_distance_averages_width_and_layers_and_sums_masked_positions():
    zeros, ones = jnp.zeros((1, 3, 4)), jnp.ones((1, 3, 4))
    mask = jnp.array([[True, True, False]])
    np.testing.assert_allclose(losses.hidden_distance([zeros], [ones], mask), [2.0])
    np.testing.assert_allclose(losses.hidden_distance([zeros, zeros], [ones, 3 * ones], mask), [(2 + 18) / 2])


def test_sentence_distance_is_one_minus_cosine_of_the_mean():
    encoded = jnp.array([[[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]], [[1.0, 0.0]] * 3])
    mask = jnp.array([[True, True, False], [True, True, True]])
    target = jnp.array([[1.0, 1.0], [0.0, 0.0]])  # the second row has no sentence vector
    mean = np.array([2.0, 2.0])
    expected = 1 - mean @ [1, 1] / (np.linalg.norm(mean) * np.sqrt(2))
    np.testing.assert_allclose(losses.sentence_distance(encoded, mask, jnp.eye(2), target), [expected, 0.0], atol=1e-6)
