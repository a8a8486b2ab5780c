"""The prompt bank's arrays: the prompt of task n is ``shared[group[n]] * (cols[n] @ rows[n])``.

Plain prompt tuning has no factors and G = N; the source stage has G = 1; independent runs trained in one program have G = N or G runs
of several tasks each. Source: MPT section 3.2, rank r as in PEFT's multitask prompt tuning
(peft/tuners/multitask_prompt_tuning/model.py).
N tasks (runs), G groups, P prompt positions, D model width, R rank, B examples.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
BANK = "bank/"  # before the names of the arrays, in paths of parameters and in files


class PromptBank(NamedTuple):
    """shared (G, P, D) float32; cols (N, P, R) and rows (N, R, D) float32, or None for plain prompts; group (N,) int32."""

    shared_GPD: Array
    cols_NPR: Array | None
    rows_NRD: Array | None
    group_N: np.ndarray

    @property
    def num_tasks(self) -> int:
        """N."""
        return len(self.group_N)

    def trainable(self) -> dict[str, Array]:
        """The arrays that are trained, by name; ``group`` is structure."""
        named = {"shared": self.shared_GPD, "cols": self.cols_NPR, "rows": self.rows_NRD}
        return {name: array for name, array in named.items() if array is not None}


def bank_from(trainable: dict, group_N) -> PromptBank:
    """Inverse of PromptBank.trainable()."""
    return PromptBank(trainable["shared"], trainable.get("cols"), trainable.get("rows"), group_N)


def product(shared_BPD, cols_BPR=None, rows_BRD=None):
    """Prompts (B, P, D) of factors and shared prompts."""
    if cols_BPR is None:
        return shared_BPD
    # a sum over R of products: exact in float32 on every device, where a matrix product may round to bfloat16
    return shared_BPD * sum(cols_BPR[:, :, r, None] * rows_BRD[:, None, r, :] for r in range(cols_BPR.shape[2]))


def compose(bank: PromptBank, task_id_B) -> jax.Array:
    """Prompts (B, P, D) of the examples' tasks (B,) int32."""
    shared_BPD = jnp.take(bank.shared_GPD, jnp.take(jnp.asarray(bank.group_N), task_id_B), axis=0)
    if bank.cols_NPR is None or bank.rows_NRD is None:
        return shared_BPD
    return product(shared_BPD, jnp.take(bank.cols_NPR, task_id_B, axis=0), jnp.take(bank.rows_NRD, task_id_B, axis=0))


def compose_all(bank: PromptBank) -> jax.Array:
    """Prompts (N, P, D) of all tasks."""
    return compose(bank, jnp.arange(bank.num_tasks))


def select(bank: PromptBank, tasks: list[int]) -> PromptBank:
    """The bank of some tasks alone, in the given order, with the groups that they use."""
    groups = sorted({int(bank.group_N[n]) for n in tasks})
    group_N = np.array([groups.index(int(bank.group_N[n])) for n in tasks], np.int32)
    index = np.array(tasks)
    cols_NPR, rows_NRD = (None if array is None else array[index] for array in (bank.cols_NPR, bank.rows_NRD))
    return PromptBank(bank.shared_GPD[np.array(groups)], cols_NPR, rows_NRD, group_N)


def stack_groups(banks: list[PromptBank]) -> PromptBank:
    """Many banks as one; their groups follow one another."""
    starts = np.cumsum([0] + [len(bank.shared_GPD) for bank in banks])
    group_N = np.concatenate([bank.group_N + start for bank, start in zip(banks, starts[:-1], strict=True)]).astype(np.int32)
    shared_GPD = jnp.concatenate([bank.shared_GPD for bank in banks])
    return PromptBank(shared_GPD, _joined([bank.cols_NPR for bank in banks]), _joined([bank.rows_NRD for bank in banks]), group_N)


def _joined(factors: Sequence[Array | None]) -> jax.Array | None:
    """All banks have factors, or none has."""
    return None if factors[0] is None else jnp.concatenate(cast(Sequence[Array], factors))
