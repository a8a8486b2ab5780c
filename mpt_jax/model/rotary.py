"""Rotary positions: pairs of a head's numbers turned by angles that grow with the position (arXiv 2104.09864).

A pair is a number of the first half of a head and its counterpart of the second, as in Llama.

B examples, T positions, H heads, K head width.
"""

import math

import jax.numpy as jnp
import numpy as np

from mpt_jax.model.families.causal_config import Rotary


def frequencies(rotary: Rotary, head_dim: int) -> np.ndarray:
    """Angle per position of each pair: (K / 2,) float32.

    With ``original_length`` as Llama 3.1 stretches them: short wavelengths stay, long ones are divided by the factor, those between
    are mixed (transformers modeling_rope_utils.py, 'llama3').
    """
    found = 1.0 / rotary.base ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if not rotary.original_length:
        return (found / rotary.factor).astype(np.float32)
    turns = rotary.original_length * found / (2 * math.pi)  # over the trained length
    low, high = rotary.low_frequency_factor, rotary.high_frequency_factor
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (share * found + (1 - share) * found / rotary.factor).astype(np.float32)


def turn(x_BTHK, position_BT, rotary: Rotary):
    """Queries or keys turned by their positions (B or 1, T), computed in float32."""
    angle_BTK = position_BT[..., None].astype(jnp.float32) * frequencies(rotary, x_BTHK.shape[-1])
    cos_BT1K, sin_BT1K = jnp.cos(angle_BTK)[:, :, None, :], jnp.sin(angle_BTK)[:, :, None, :]
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos_BT1K - second * sin_BT1K, second * cos_BT1K + first * sin_BT1K], axis=-1)
    return turned.astype(x_BTHK.dtype)
