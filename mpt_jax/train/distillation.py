"""What a teacher says of a micro-batch: computed in the step, or read with the rows (data/teacher_cache.py).

B examples, L input tokens, P prompt positions, S = P + L, T target tokens, D model width, V vocabulary, A log-probabilities kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import DistillationSettings
from mpt_jax.data.teacher_cache import BATCH_NAMES, STATES_NAME
from mpt_jax.model.families.family import Outputs, Rows


class Teaching(NamedTuple):
    """log-probabilities (B, T, A) at the settings' temperature, and the compared layers (B, S, D) of each stack of states.

    ids (B, T, A) int32 and tail (B, T), the log-probability of all other tokens, where not the whole vocabulary is kept. None and {} for
    what is not compared.
    """

    logp_BTA: jax.Array | None
    states: dict[str, tuple]
    ids_BTA: jax.Array | None = None
    tail_BT: jax.Array | None = None


def compared(settings: DistillationSettings, outputs: Outputs, rows: Rows) -> dict[str, tuple[tuple, jax.Array]]:
    """(layers, real positions) of each stack of states that is compared.

    Of the encoder with ``hidden_positions`` = 'inputs' the last L positions, whatever the prompt's length; rows without targets are none.
    """
    if settings.hidden == "none":
        return {}
    found = {}
    for name, stack in outputs.states.items():
        layers = stack.layers if settings.hidden == "all" else (stack.output_BSD,)
        kept = rows.inputs_BL.shape[1] if name == "encoder" and settings.hidden_positions == "inputs" else stack.real_BS.shape[1]
        real_BS = stack.real_BS[:, -kept:] & (rows.target_length_B > 0)[:, None]
        found[name] = tuple(layer_BSD[:, -kept:] for layer_BSD in layers), real_BS
    return found


def teach(settings: DistillationSettings, outputs: Outputs, rows: Rows) -> Teaching:
    """The teacher's part, of its pass over the same tokens."""
    logp_BTV = jax.nn.log_softmax(outputs.logits_BTV.astype(jnp.float32) / settings.temperature) if settings.logits else None
    return Teaching(logp_BTV, {name: layers for name, (layers, _) in compared(settings, outputs, rows).items()})


def reduced(teaching: Teaching, top: int, dtype: str) -> dict[str, jax.Array]:
    """What is written of a teaching, by file of a part: the ``top`` most likely tokens and the tail, 0 = all, and the last states."""
    kept = {}
    if teaching.logp_BTA is not None and top:
        values_BTA, ids_BTA = jax.lax.top_k(teaching.logp_BTA, top)
        rest_BTV = jnp.put_along_axis(teaching.logp_BTA, ids_BTA, -jnp.inf, axis=-1, inplace=False)
        kept |= {"logp": values_BTA, "ids": ids_BTA, "tail": jax.nn.logsumexp(rest_BTV, axis=-1)}
    elif teaching.logp_BTA is not None:
        kept["logp"] = teaching.logp_BTA
    return kept | {name: layers[-1].astype(dtype) for name, layers in teaching.states.items()}


def from_batch(batch: dict, names: tuple[str, ...]) -> Teaching:
    """The teaching that a micro-batch brings (data/teacher_cache.py), with the states of these names."""
    states = {name: (batch[STATES_NAME.format(name)],) for name in names if STATES_NAME.format(name) in batch}
    return Teaching(batch.get(BATCH_NAMES["logp"]), states, batch.get(BATCH_NAMES["ids"]), batch.get(BATCH_NAMES["tail"]))
