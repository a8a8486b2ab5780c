"""Rotary positions: pairs of a head's numbers turned by angles that grow with the position (arXiv 2104.09864).

A pair is a number of the first half of a head and its counterpart of the second, as in Llama.

B examples, Y positions, H heads, K head width.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from mpt_jax.checks import check_range, check_types
from mpt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions: base of the wavelengths, and how they are stretched for longer texts."""

    base: float = 10_000.0
    factor: float = 1.0  # all wavelengths are stretched by it, or with ``original_length`` the long ones [Llama 3.1]
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 0  # positions that were trained on before stretching; 0 = every wavelength is stretched alike

    def __post_init__(self):
        check_types(self)
        check_range("Rotary.base", self.base, 1.0)
        check_range("Rotary.factor", self.factor, 1e-3)
        check_range("Rotary.original_length", self.original_length, 0)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        if not 0 < low < high:
            raise UserError(f"Rotary.low_frequency_factor = {low} is not below high_frequency_factor = {high}.")


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


def turn(x_BYHK, position_BY, rotary: Rotary):
    """Queries or keys turned by their positions (B or 1, Y), computed in float32."""
    angle_BYK = position_BY[..., None].astype(jnp.float32) * frequencies(rotary, x_BYHK.shape[-1])
    cos_BY1K, sin_BY1K = jnp.cos(angle_BYK)[:, :, None, :], jnp.sin(angle_BYK)[:, :, None, :]
    first, second = jnp.split(x_BYHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos_BY1K - second * sin_BY1K, second * cos_BY1K + first * sin_BY1K], axis=-1)
    return turned.astype(x_BYHK.dtype)
