"""Log-probabilities of given targets, and of every label over one shared encoding (rank classification).

B examples, L input tokens, P prompt positions, D model width, T target tokens, V vocabulary, C labels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.methods import prompt
from mpt_jax.model.families.family import Decoded, Network, Rows, real, sums_over_positions
from mpt_jax.model.network import decode_targets, prefill
from mpt_jax.sharding import constrain

LABELS_AT_ONCE = 8  # bounds the memory of logits (B, C, T, V)


def target_logits(logits_BTV, targets_BT) -> jax.Array:
    """The logit of each token of a target: (B, T) float32."""
    return jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0].astype(jnp.float32)


def target_log_probabilities(decoded: Decoded, vocab_size: int, targets_BT, length_B) -> jax.Array:
    """Sum over a target's first ``length_B`` tokens of log p(token): (B,) float32."""

    def summed(states_BTD, targets_BT, real_BT):
        logits_BTV = decoded.logits_of(states_BTD).astype(jnp.float32)
        logp_BT = target_logits(logits_BTV, targets_BT) - jax.nn.logsumexp(logits_BTV, axis=-1)
        return jnp.sum(jnp.where(real_BT, logp_BT, 0.0), axis=-1)

    return sums_over_positions(summed, vocab_size, decoded.states_BTD, targets_BT, real(length_B, targets_BT.shape[1]))


@functools.partial(jax.jit, static_argnames=("network",))
def score_rows(network: Network, backbone: dict, own, rows: Rows) -> jax.Array:
    """log p(target | prompt, input) of each row, (B,) float32; targets end with EOS."""
    decoded = decode_targets(network, backbone, prefill(network, backbone, rows, own), rows.targets_BT)
    return constrain(target_log_probabilities(decoded, network.config.vocab_size, rows.targets_BT, rows.target_length_B))


def score_targets(config, backbone: dict, prompt_BPD, inputs_BL, targets_BT) -> jax.Array:
    """log p(target | prompt, input) of rows of whole tokens under a backbone, (B,) float32: for a notebook or a comparison.

    config, backbone: ``config`` and ``params`` of load_backbone. prompt_BPD: None for the backbone alone. Targets end with EOS, unpadded.
    """
    (rows, length), target_length = np.shape(inputs_BL), np.shape(targets_BT)[1]
    whole = Rows(inputs_BL, np.full(rows, length, np.int32), targets_BT, np.full(rows, target_length, np.int32))
    if prompt_BPD is None:
        return score_rows(Network(config), backbone, None, whole)
    return score_rows(Network(config, adaptation=prompt.GIVEN), backbone, {"prompt": prompt_BPD}, whole)


class Labels(NamedTuple):
    """Tokens of labels, each ended by EOS: (C, T) int32, of which the first length_C are a label's."""

    tokens_CT: jax.Array
    length_C: jax.Array


@functools.partial(jax.jit, static_argnames=("network",))
def score_labels(network: Network, backbone: dict, own, rows: Rows, labels: Labels) -> jax.Array:
    """log p(label | prompt, input) of each row and label: (B, C) float32. The input is prefilled once for all labels."""

    def measure(decoded: Decoded, targets_BT, length_B):
        return target_log_probabilities(decoded, network.config.vocab_size, targets_BT, length_B)

    return constrain(_each_label(network, backbone, own, rows, labels, measure).T)


@functools.partial(jax.jit, static_argnames=("network",))
def walk_labels(network: Network, backbone: dict, own, rows: Rows, labels: Labels) -> jax.Array:
    """Index (B,) int32 of the label that greedy decoding gives when it may only choose among the labels' tokens.

    The input is prefilled once for all labels. Where greedy decoding without that restriction writes the tokens of a label, each of them
    had the highest logit of all, so it is that label.
    """

    def measure(decoded: Decoded, targets_BT, length_B):
        return target_logits(decoded.logits_BTV, targets_BT)

    logits_CBT = _each_label(network, backbone, own, rows, labels, measure)
    return constrain(walk(jnp.moveaxis(logits_CBT, 0, 1), labels))


def walk(logits_BCT, labels: Labels) -> jax.Array:
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

    # -1: no token, past a label's end
    tokens_CT = jnp.where(real(jnp.asarray(labels.length_C), labels.tokens_CT.shape[1]), labels.tokens_CT, -1)
    positions = jnp.moveaxis(logits_BCT, -1, 0), tokens_CT.T
    allowed_BC, _ = jax.lax.scan(step, jnp.ones(logits_BCT.shape[:2], bool), positions)
    return jnp.argmax(allowed_BC, axis=-1).astype(jnp.int32)


def _each_label(network: Network, backbone: dict, own, rows: Rows, labels: Labels, measure: Callable) -> jax.Array:
    """measure(Decoded, targets (B, T), lengths (B,)) with every label as each row's target, over one prefilled input: (C, ...)."""
    prefilled = prefill(network, backbone, rows, own)
    batch = rows.inputs_BL.shape[0]

    def of_label(label):
        label_T, length = label
        targets_BT = jnp.broadcast_to(label_T, (batch, label_T.shape[0]))
        return measure(decode_targets(network, backbone, prefilled, targets_BT), targets_BT, jnp.broadcast_to(length, (batch,)))

    return jax.lax.map(of_label, (jnp.asarray(labels.tokens_CT), jnp.asarray(labels.length_C)), batch_size=LABELS_AT_ONCE)
