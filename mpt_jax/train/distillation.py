"""What a teacher tells its student, and how far the student is from it.

B examples, L input tokens, P prompt positions, S = P + L, T target tokens, D model width, V vocabulary, A log-probabilities kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import DistillationSettings
from mpt_jax.model.prompted_t5 import Outputs
from mpt_jax.train import losses


class Teaching(NamedTuple):
    """log-probabilities (B, T, A) at the settings' temperature, and hidden states of each compared layer.

    encoder: (B, L, D), or (B, S, D) with prompt positions; decoder: (B, T, D). ids (B, T, A) int32 and tail (B, T), the log-probability
    of all other tokens, where not the whole vocabulary is kept. None and () for what is not compared.
    """

    logp_BTA: jax.Array | None
    encoder: tuple
    decoder: tuple
    ids_BTA: jax.Array | None = None
    tail_BT: jax.Array | None = None


def _states(settings: DistillationSettings, outputs: Outputs, inputs_BL) -> tuple[tuple, tuple]:
    """Compared states of encoder and decoder. Encoder states on the input positions are the last ones, whatever the prompt's length."""
    if settings.hidden == "none":
        return (), ()
    layers = lambda stack: stack.layers if settings.hidden == "all" else (stack.output_BTD,)  # noqa: E731
    kept = inputs_BL.shape[1] if settings.hidden_positions == "inputs" else outputs.mask_BS.shape[1]
    return tuple(state[:, -kept:] for state in layers(outputs.encoder)), tuple(layers(outputs.decoder))


def teach(settings: DistillationSettings, outputs: Outputs, inputs_BL) -> Teaching:
    """The teacher's part, of its pass over the same tokens."""
    logp_BTV = jax.nn.log_softmax(outputs.logits_BTV.astype(jnp.float32) / settings.temperature) if settings.logits else None
    return Teaching(logp_BTV, *_states(settings, outputs, inputs_BL))


def keep(teaching: Teaching, top: int, dtype: str) -> dict[str, jax.Array]:
    """What is written of a teaching, by file of a part: the ``top`` most likely tokens and the tail, 0 = all, and the last states."""
    kept = {}
    if teaching.logp_BTA is not None and top:
        values_BTA, ids_BTA = jax.lax.top_k(teaching.logp_BTA, top)
        rest_BTV = jnp.put_along_axis(teaching.logp_BTA, ids_BTA, -jnp.inf, axis=-1, inplace=False)
        kept |= {"logp": values_BTA, "ids": ids_BTA, "tail": jax.nn.logsumexp(rest_BTV, axis=-1)}
    elif teaching.logp_BTA is not None:
        kept["logp"] = teaching.logp_BTA
    if teaching.encoder:
        kept |= {"encoder": teaching.encoder[-1].astype(dtype), "decoder": teaching.decoder[-1].astype(dtype)}
    return kept


def from_batch(batch: dict) -> Teaching:
    """The teaching that a micro-batch brings (data/teacher_cache.py)."""
    states = lambda name: (batch[name],) if name in batch else ()  # noqa: E731
    logp_BTA, ids_BTA, tail_BT = (batch.get(f"teacher_{name}") for name in ("logp_BTA", "ids_BTA", "tail_BT"))
    return Teaching(logp_BTA, states("teacher_encoder_BSD"), states("teacher_decoder_BTD"), ids_BTA, tail_BT)


def distance_sums(settings: DistillationSettings, teacher: Teaching, student: Outputs, batch: dict) -> dict[str, jax.Array]:
    """Sums (B,) of the distillation terms. Encoder states are compared on the input positions, which both prompts precede."""
    sums = {}
    targets_BT, inputs_BL = batch["targets_BT"], batch["inputs_BL"]
    if settings.logits:
        told = teacher.ids_BTA, teacher.tail_BT
        sums["kl"] = losses.kl_divergence(teacher.logp_BTA, student.logits_BTV, targets_BT, settings.temperature, *told)
    if settings.hidden == "none":
        return sums
    encoder, decoder = _states(settings, student, inputs_BL)
    mask = student.mask_BS[:, -encoder[0].shape[1] :] & jnp.any(targets_BT > 0, axis=1, keepdims=True)
    sums["hidden_encoder"] = losses.hidden_distance(teacher.encoder, encoder, mask)
    sums["hidden_decoder"] = losses.hidden_distance(teacher.decoder, decoder, targets_BT > 0)
    return sums
