"""What a teacher says of a micro-batch: computed in the step, or read with the rows (data/teacher_cache.py).

B examples, L input tokens, P prompt positions, T target tokens, Y positions of a stack, D model width, V vocabulary,
A log-probabilities kept of a teacher.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import DistillationSettings
from mpt_jax.data.teacher_cache import BATCH_NAMES, STATES_NAME
from mpt_jax.model.families.family import Decoded, Outputs, Rows


class Teaching(NamedTuple):
    """What is compared of a teacher: its log-probabilities, or the positions that they are made of, and the layers (B, Y, D) of each stack.

    logp (B, T, A) at the settings' temperature; ids (B, T, A) int32 and tail (B, T), the log-probability of all other tokens, where not
    the whole vocabulary is kept. decoded: of a teacher in the step. None and {} for what is not compared.
    """

    states: dict[str, tuple]
    decoded: Decoded | None = None
    logp_BTA: jax.Array | None = None
    ids_BTA: jax.Array | None = None
    tail_BT: jax.Array | None = None


def compared(settings: DistillationSettings, outputs: Outputs, rows: Rows) -> dict[str, tuple[tuple, jax.Array]]:
    """(layers, real positions) of each stack of states that is compared.

    Of the encoder with ``hidden_positions`` = 'inputs' the last L positions, whatever the prompt's length; rows without targets are none.
    """
    if settings.hidden == "none":
        return {}
    found, (_, target_length_B) = {}, rows.scored
    for name, stack in outputs.states.items():
        layers = stack.layers if settings.hidden == "all" else (stack.output_BYD,)
        kept = rows.inputs_BL.shape[1] if name == "encoder" and settings.hidden_positions == "inputs" else stack.real_BY.shape[1]
        real_BY = stack.real_BY[:, -kept:] & (target_length_B > 0)[:, None]
        found[name] = tuple(layer_BYD[:, -kept:] for layer_BYD in layers), real_BY
    return found


def teach(settings: DistillationSettings, outputs: Outputs, rows: Rows) -> Teaching:
    """The teacher's part, of its pass over the same tokens."""
    states = {name: jax.lax.stop_gradient(layers) for name, (layers, _) in compared(settings, outputs, rows).items()}
    return Teaching(states, outputs.decoded if settings.logits else None)


def log_probabilities(logits_BTV, temperature: float):
    """A teacher's log-probabilities, softened by the temperature: (B, T, V) float32."""
    return jax.nn.log_softmax(logits_BTV.astype(jnp.float32) / temperature)


def reduced(settings: DistillationSettings, teaching: Teaching, top: int) -> dict[str, jax.Array]:
    """What is written of a teaching, by file of a part: the ``top`` most likely tokens and the tail, 0 = all, and the last states."""
    kept = {}
    if teaching.decoded is not None:
        logp_BTV = log_probabilities(teaching.decoded.logits_BTV, settings.temperature)
        kept = {"logp": logp_BTV}
        if top:
            values_BTA, ids_BTA = jax.lax.top_k(logp_BTV, top)
            rest_BTV = jnp.put_along_axis(logp_BTV, ids_BTA, -jnp.inf, axis=-1, inplace=False)
            kept = {"logp": values_BTA, "ids": ids_BTA, "tail": jax.nn.logsumexp(rest_BTV, axis=-1)}
    return kept | {name: layers[-1].astype(settings.cached_dtype) for name, layers in teaching.states.items()}


def from_batch(batch: dict, names: tuple[str, ...]) -> Teaching:
    """The teaching that a micro-batch brings (data/teacher_cache.py), with the states of these names."""
    states = {name: (batch[STATES_NAME.format(name)],) for name in names if STATES_NAME.format(name) in batch}
    return Teaching(states, None, *(batch.get(BATCH_NAMES[name]) for name in ("logp", "ids", "tail")))
