"""Log-probabilities of given targets, and of every label over one shared encoding (rank classification).

B examples, L input tokens, P prompt positions, D model width, T target tokens, V vocabulary, C labels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mpt_jax.config import T5Config
from mpt_jax.model.prompted_t5 import decode_targets, encode
from mpt_jax.sharding import constrain

LABELS_AT_ONCE = 8  # bounds the memory of logits (B, C, T, V)


def target_logits(logits_BTV, targets_BT) -> jax.Array:
    """The logit of each token of a target: (B, T) float32."""
    return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0].astype(jnp.float32)


def target_log_probabilities(logits_BTV, targets_BT) -> jax.Array:
    """Sum over a target's tokens (padding 0 left out) of log p(token): (B,) float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    logp_BT = target_logits(logits_BTV, targets_BT) - jax.nn.logsumexp(logits_BTV, axis=-1)
    return jnp.sum(jnp.where(targets_BT > 0, logp_BT, 0.0), axis=-1)


@functools.partial(jax.jit, static_argnames=("config",))
def score_targets(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, targets_BT) -> jax.Array:
    """log p(target | prompt, input) of each row, (B,) float32; targets end with EOS and are padded with 0."""
    encoded = encode(config, backbone, prompt_BPD, inputs_BL)
    return constrain(target_log_probabilities(decode_targets(config, backbone, encoded, targets_BT), targets_BT))


@functools.partial(jax.jit, static_argnames=("config",))
def score_labels(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, labels_CT) -> jax.Array:
    """log p(label | prompt, input) of each row and label: (B, C) float32. The input is encoded once for all labels."""
    return constrain(_each_label(config, backbone, prompt_BPD, inputs_BL, labels_CT, target_log_probabilities).T)


@functools.partial(jax.jit, static_argnames=("config",))
def walk_labels(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, labels_CT) -> jax.Array:
    """Index (B,) int32 of the label that greedy decoding gives when it may only choose among the labels' tokens.

    labels_CT: tokens of each label, ended by EOS and padded with 0. The input is encoded once for all labels. Where greedy
    decoding without that restriction writes the tokens of a label, each of them had the highest logit of all, so it is that label.
    """
    logits_CBT = _each_label(config, backbone, prompt_BPD, inputs_BL, labels_CT, target_logits)
    return constrain(walk(jnp.moveaxis(logits_CBT, 0, 1), labels_CT))


def walk(logits_BCT, labels_CT) -> jax.Array:
    """Index (B,) int32 of a label, chosen token by token: at each position, of the labels that begin with the tokens chosen so far,
    those stay whose token has the highest logit (of equal ones the lowest token id, as argmax has it).

    logits_BCT: logit of each label's token after the label's tokens before it.
    """

    def step(allowed_BC, position):
        logits_BC, token_C = position
        logits_BC = jnp.where(allowed_BC, logits_BC, -jnp.inf)
        best_BC = allowed_BC & (logits_BC == logits_BC.max(axis=-1, keepdims=True))
        token_B = jnp.where(best_BC, token_C, jnp.iinfo(jnp.int32).max).min(axis=-1)
        return allowed_BC & (token_C == token_B[:, None]), None

    labels_CT = jnp.asarray(labels_CT)
    positions = jnp.moveaxis(logits_BCT, -1, 0), labels_CT.T
    allowed_BC, _ = jax.lax.scan(step, jnp.ones(logits_BCT.shape[:2], bool), positions)
    return jnp.argmax(allowed_BC, axis=-1).astype(jnp.int32)


def _each_label(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, labels_CT, measure: Callable) -> jax.Array:
    """measure(logits_BTV, targets_BT) with every label as each row's target, over one shared encoding: (C, ...)."""
    encoded = encode(config, backbone, prompt_BPD, inputs_BL)

    def of_label(label_T):
        targets_BT = jnp.broadcast_to(label_T, (inputs_BL.shape[0], label_T.shape[0]))
        return measure(decode_targets(config, backbone, encoded, targets_BT), targets_BT)

    return jax.lax.map(of_label, labels_CT, batch_size=LABELS_AT_ONCE)
