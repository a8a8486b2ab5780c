"""Losses as sums for each example; weights and normalisation are the caller's (``totals``), so micro-batches add up exactly.

All in float32. B examples, T target tokens, S encoder positions, Y positions of a stack, D model width, V vocabulary,
E width of a sentence vector, A log-probabilities kept of a teacher.
"""

import jax
import jax.numpy as jnp

NOT_KEPT = 1.0  # no log-probability


def cross_entropy(logits_BTV, targets_BT, real_BT):
    """Sums over an example's real target tokens: (negative log-likelihood (B,), tokens that are the arg max (B,)).

    The one-hot form: a gather's gradient is a scatter, which XLA runs slowly on CPU (measured 1.06 s against 0.61 s per step).
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    top_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    log_total_BT = jnp.log(jnp.sum(jnp.exp(logits_BTV - top_BT[..., None]), axis=-1)) + top_BT
    is_target_BTV = targets_BT[..., None] == jnp.arange(logits_BTV.shape[-1], dtype=targets_BT.dtype)
    target_BT = jnp.sum(jnp.where(is_target_BTV, logits_BTV, 0.0), axis=-1)
    real_BT = real_BT.astype(jnp.float32)
    correct_BT = (target_BT >= top_BT).astype(jnp.float32)
    return jnp.sum((log_total_BT - target_BT) * real_BT, axis=-1), jnp.sum(correct_BT * real_BT, axis=-1)


def kl_divergence(teacher_logp_BTA, student_logits_BTV, real_BT, temperature: float, ids_BTA=None, tail_BT=None):
    """Sum over real target tokens of KL(teacher || student), both softened by the temperature, times temperature ** 2 -> (B,).

    The teacher's log-probabilities are softened already. They are of the whole vocabulary (A = V), or of the tokens ``ids_BTA`` with
    ``tail_BT`` for all others together, which the student's are then added up over, too: never more than the whole divergence.
    The factor keeps the gradient's scale independent of the temperature (Hinton et al., arXiv 1503.02531, section 2).
    """
    student_BTV = jax.nn.log_softmax(student_logits_BTV.astype(jnp.float32) / temperature)
    entropy_BT = jnp.sum(jnp.exp(teacher_logp_BTA) * teacher_logp_BTA, axis=-1)
    if ids_BTA is None:
        kl_BT = entropy_BT - jnp.sum(jnp.exp(teacher_logp_BTA) * student_BTV, axis=-1)
    else:
        # the teacher is spread over the vocabulary, where no gradient flows: picking the student's would scatter gradients
        teacher_BTV = jnp.put_along_axis(jnp.full_like(student_BTV, NOT_KEPT), ids_BTA, teacher_logp_BTA, axis=-1, inplace=False)
        kept_BTV = teacher_BTV < NOT_KEPT
        cross_BT = jnp.sum(jnp.where(kept_BTV, jnp.exp(teacher_BTV), 0.0) * student_BTV, axis=-1)
        rest_BT = jax.nn.logsumexp(jnp.where(kept_BTV, -jnp.inf, student_BTV), axis=-1)
        kl_BT = entropy_BT - cross_BT + jnp.exp(tail_BT) * (tail_BT - rest_BT)
    return jnp.sum(kl_BT * real_BT, axis=-1) * temperature**2


def hidden_distance(teacher_layers, student_layers, real_BY):
    """Sum over real positions of the squared distance, averaged over D and over the given layers -> (B,).

    Layers are (B, Y, D); MPT's L_hidden is the squared distance of teacher's and student's hidden states.
    """
    total_B = jnp.zeros(real_BY.shape[0], jnp.float32)
    for teacher_BYD, student_BYD in zip(teacher_layers, student_layers, strict=True):
        difference_BYD = teacher_BYD.astype(jnp.float32) - student_BYD.astype(jnp.float32)
        total_B += jnp.sum(jnp.mean(jnp.square(difference_BYD), axis=-1) * real_BY, axis=-1)
    return total_B / len(teacher_layers)


def sentence_distance(encoder_output_BSD, real_BS, kernel_DE, embedding_BE):
    """1 - cosine between the mean encoder output, mapped by the kernel, and the row's sentence vector -> (B,).

    Rows without a vector (all zeros) give 0. Used in pretraining alone, to teach an encoder from another [ours].
    """
    real_BS = real_BS.astype(jnp.float32)
    summed_BD = jnp.einsum("BSD,BS->BD", encoder_output_BSD.astype(jnp.float32), real_BS)
    mapped_BE = summed_BD / jnp.maximum(real_BS.sum(axis=1, keepdims=True), 1.0) @ kernel_DE
    target_norm_B = jnp.linalg.norm(embedding_BE, axis=-1)
    mapped_norm_B = jnp.sqrt(jnp.sum(jnp.square(mapped_BE), axis=-1) + 1e-12)
    cosine_B = jnp.sum(mapped_BE * embedding_BE, axis=-1) / (mapped_norm_B * jnp.maximum(target_norm_B, 1e-6))
    return jnp.where(target_norm_B > 0, 1.0 - cosine_B, 0.0)
