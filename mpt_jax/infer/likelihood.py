"""Log-probabilities of given targets, and of every label over one shared encoding (rank classification).

B examples, L input tokens, P prompt positions, D model width, T target tokens, V vocabulary, C labels.
"""

import functools

import jax
import jax.numpy as jnp

from mpt_jax.config import T5Config
from mpt_jax.model.prompted_t5 import decode_targets, encode

LABELS_AT_ONCE = 8  # bounds the memory of logits (B, C, T, V)


def target_log_probabilities(logits_BTV, targets_BT) -> jax.Array:
    """Sum over a target's tokens (padding 0 left out) of log p(token): (B,) float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    logp_BT = chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)
    return jnp.sum(jnp.where(targets_BT > 0, logp_BT, 0.0), axis=-1)


@functools.partial(jax.jit, static_argnames=("config",))
def score_targets(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, targets_BT) -> jax.Array:
    """log p(target | prompt, input) of each row, (B,) float32; targets end with EOS and are padded with 0."""
    encoded = encode(config, backbone, prompt_BPD, inputs_BL)
    return target_log_probabilities(decode_targets(config, backbone, encoded, targets_BT), targets_BT)


@functools.partial(jax.jit, static_argnames=("config",))
def score_labels(config: T5Config, backbone: dict, prompt_BPD, inputs_BL, labels_CT) -> jax.Array:
    """log p(label | prompt, input) of each row and label: (B, C) float32. The input is encoded once for all labels."""
    encoded = encode(config, backbone, prompt_BPD, inputs_BL)

    def score(label_T):
        targets_BT = jnp.broadcast_to(label_T, (inputs_BL.shape[0], label_T.shape[0]))
        return target_log_probabilities(decode_targets(config, backbone, encoded, targets_BT), targets_BT)

    logp_CB = jax.lax.map(score, labels_CT, batch_size=LABELS_AT_ONCE)
    return logp_CB.T
