"""Prompts of one length on the device, with room for more: they come and go, and the network is not compiled again.

N bank rows, P prompt positions, D model width.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.infer.requests import Model
from mpt_jax.methods.bank import PromptBank
from mpt_jax.methods.prompt import METHOD, paths_of
from mpt_jax.model.families.family import Network

FIRST_ROWS = 8  # of a new bank; it doubles whenever it is full [ours]


class LiveBank:
    """``model`` answers for the rows that are taken. Rows are added and freed by the thread that runs the model."""

    def __init__(self, network: Network, params: dict, vocabulary: Vocabulary, length: int, width: int, mesh=None):
        self._shape = length, width
        self._free: list[int] = []
        self._prompt_NPD = jnp.zeros((0, length, width), jnp.float32)
        self.model = Model(network, params, vocabulary, {}, METHOD.parts, np.zeros(0, np.int32), mesh)
        self._grow(FIRST_ROWS)

    @property
    def rows(self) -> int:
        """Rows that there is room for."""
        return len(self._prompt_NPD)

    @property
    def taken(self) -> int:
        """Rows that hold a prompt."""
        return self.rows - len(self._free)

    def add(self, prompts_NPD: np.ndarray) -> tuple[int, ...]:
        """Takes rows for these prompts; their numbers."""
        missing = len(prompts_NPD) - len(self._free)
        if missing > 0:
            self._grow(1 << (self.rows + missing - 1).bit_length())
        rows = tuple(self._free.pop() for _ in prompts_NPD)
        for row, prompt_PD in zip(rows, prompts_NPD, strict=True):
            self._prompt_NPD = _write(self._prompt_NPD, row, np.asarray(prompt_PD, np.float32))
        self._publish()
        return rows

    def free(self, rows: Iterable[int]) -> None:
        """Gives rows back, for other prompts."""
        self._free.extend(rows)

    def _grow(self, rows: int) -> None:
        before = self.rows
        self._prompt_NPD = jnp.zeros((rows, *self._shape), jnp.float32).at[:before].set(self._prompt_NPD)
        self._free.extend(reversed(range(before, rows)))
        self._publish()

    def _publish(self) -> None:
        group_N = np.arange(self.rows, dtype=np.int32)
        self.model.own, self.model.group_N = paths_of(PromptBank(self._prompt_NPD, None, None, group_N)), group_N


@functools.partial(jax.jit, donate_argnums=0)
def _write(prompt_NPD, row, prompt_PD):
    return jax.lax.dynamic_update_index_in_dim(prompt_NPD, prompt_PD, row, 0)
