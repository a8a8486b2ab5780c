"""The prompt bank: one structure for every method; the prompt of task n is ``shared[group[n]] * (cols[n] @ rows[n])``.

Plain prompt tuning has no factors and G = N; the source stage has G = 1; independent runs trained in one program have G = N or G runs
of several tasks each. Runs that share no group do not influence one another. Source: MPT section 3.2, rank r as in PEFT's
multitask prompt tuning (peft/tuners/multitask_prompt_tuning/model.py).
N tasks (runs), G groups, P prompt positions, D model width, R rank, B examples, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.config import PromptSettings
from mpt_jax.errors import UserError
from mpt_jax.model.formats import prompts


class PromptBank(NamedTuple):
    """shared (G, P, D) float32; cols (N, P, R) and rows (N, R, D) float32, or None for plain prompts; group (N,) int32."""

    shared_GPD: jax.Array
    cols_NPR: jax.Array | None
    rows_NRD: jax.Array | None
    group_N: np.ndarray

    @property
    def num_tasks(self) -> int:
        """N."""
        return len(self.group_N)

    def trainable(self) -> dict[str, jax.Array]:
        """The arrays that are trained, by name; ``group`` is structure."""
        named = {"shared": self.shared_GPD, "cols": self.cols_NPR, "rows": self.rows_NRD}
        return {name: array for name, array in named.items() if array is not None}


def bank_from(trainable: dict, group_N) -> PromptBank:
    """Inverse of PromptBank.trainable()."""
    return PromptBank(trainable["shared"], trainable.get("cols"), trainable.get("rows"), group_N)


def compose(bank: PromptBank, task_id_B) -> jax.Array:
    """Prompts (B, P, D) of the examples' tasks (B,) int32."""
    shared_BPD = jnp.take(bank.shared_GPD, jnp.take(jnp.asarray(bank.group_N), task_id_B), axis=0)
    if bank.cols_NPR is None:
        return shared_BPD
    cols_BPR, rows_BRD = jnp.take(bank.cols_NPR, task_id_B, axis=0), jnp.take(bank.rows_NRD, task_id_B, axis=0)
    # a sum over R of products: exact in float32 on every device, where a matrix product may round to bfloat16
    factor_BPD = sum(cols_BPR[:, :, r, None] * rows_BRD[:, None, r, :] for r in range(cols_BPR.shape[2]))
    return shared_BPD * factor_BPD


def compose_all(bank: PromptBank) -> jax.Array:
    """Prompts (N, P, D) of all tasks."""
    return compose(bank, jnp.arange(bank.num_tasks))


def select(bank: PromptBank, tasks: list[int]) -> PromptBank:
    """The bank of some tasks alone, in the given order, with the groups that they use."""
    groups = sorted({int(bank.group_N[n]) for n in tasks})
    group_N = np.array([groups.index(int(bank.group_N[n])) for n in tasks], np.int32)
    index = np.array(tasks)
    pick = lambda array: None if array is None else array[index]  # noqa: E731
    return PromptBank(bank.shared_GPD[np.array(groups)], pick(bank.cols_NPR), pick(bank.rows_NRD), group_N)


def init_prompt(settings: PromptSettings, embedding_VD: np.ndarray, seed: int, text_ids: list[int] | None = None) -> np.ndarray:
    """One prompt (P, D) float32 by ``settings.init``; text_ids are the tokens of ``settings.init_text`` without EOS.

    'vocabulary': rows drawn without repetition from the first ``init_vocabulary_rows`` [ATTEMPT modeling_t5.py:1759].
    """
    rng = np.random.default_rng([seed, 0x70726F6D])
    length, width = settings.length, embedding_VD.shape[1]
    if settings.init == "uniform":
        scale = settings.init_uniform_scale
        return rng.uniform(-scale, scale, (length, width)).astype(np.float32)
    if settings.init == "file":
        return read_prompt_array(settings.init_file, length, width)
    if settings.init == "text":
        if not text_ids:
            raise UserError("PromptSettings.init = 'text' needs a text: set PromptSettings.init_text.")
        return np.asarray(embedding_VD[np.resize(np.array(text_ids), length)], np.float32)
    rows = min(settings.init_vocabulary_rows, len(embedding_VD))
    index = rng.choice(rows, size=length, replace=length > rows)
    return np.asarray(embedding_VD[index], np.float32)


def read_prompt_array(path: str, length: int, width: int) -> np.ndarray:
    """A (P, D) float32 prompt from a file of any format with one prompt: .npy, .npz, PEFT adapter, T5X checkpoint.

    Raises UserError for several prompts, another shape or a missing file.
    """
    try:
        held = prompts.read(path)
    except UserError as error:
        raise UserError(f"PromptSettings.init_file: {error}") from error
    if len(held.task_names) != 1:
        message = f"PromptSettings.init_file = {path!r} holds {len(held.task_names)} prompts ({', '.join(held.task_names)})"
        raise UserError(f"{message}; write one of them to a file: mpt-jax convert --from {path} --to npy --task TASK --output FILE.")
    prompt_PD = held.compose()[0]
    if prompt_PD.shape != (length, width):
        message = f"PromptSettings.init_file = {path!r} holds a prompt of shape {prompt_PD.shape}; PROMPT_LENGTH and backbone need"
        raise UserError(f"{message} {(length, width)}.")
    return prompt_PD


def init_factors(settings: PromptSettings, num_tasks: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors cols (N, P, R) and rows (N, R, D) of one group.

    'ones': the first rank is all ones, so P_k = P* and the gradient to P* has full scale; further ranks start with a zero column and
    small random rows, so that they add nothing yet but can learn. 'normal': N(0, scale) for both [PEFT].
    """
    rng = np.random.default_rng([seed, 0x66616374])
    cols = rng.normal(0.0, settings.factor_init_scale, (num_tasks, settings.length, settings.rank))
    rows = rng.normal(0.0, settings.factor_init_scale, (num_tasks, settings.rank, width))
    if settings.factor_init == "ones":
        cols[:], cols[:, :, 0] = 0.0, 1.0
        rows[:, 0, :] = 1.0
    return cols.astype(np.float32), rows.astype(np.float32)


def stack_groups(banks: list[PromptBank]) -> PromptBank:
    """Many banks as one; their groups follow one another."""
    starts = np.cumsum([0] + [len(bank.shared_GPD) for bank in banks])
    group_N = np.concatenate([bank.group_N + start for bank, start in zip(banks, starts[:-1], strict=True)]).astype(np.int32)
    join = lambda arrays: None if arrays[0] is None else np.concatenate(arrays)  # noqa: E731
    return PromptBank(*(join([bank[i] for bank in banks]) for i in range(3)), group_N)


def transfer(source: PromptBank, source_names: list[str], settings: PromptSettings, num_targets: int, seed: int) -> PromptBank:
    """The bank (one group, ``num_targets`` tasks) from which targets start, given a source bank of one group.

    'mean': P* and the mean of the source factors [MPT 3.2]; 'task': P* and one source task's factors; 'shared': P* with fresh factors.
    A source bank without factors, or rank 0 for the target, gives the composed prompts' mean, one prompt, or the shared one.
    Raises UserError when length, rank or the named task do not fit.
    """
    shared_GPD = np.asarray(source.shared_GPD)
    length, width = shared_GPD.shape[1:]
    if length != settings.length:
        message = f"PROMPT_LENGTH = {settings.length}, but SOURCE_DIR holds prompts of length {length}"
        raise UserError(f"{message}; set --gin.PROMPT_LENGTH={length}.")
    group_N = np.zeros(num_targets, np.int32)
    chosen = list(range(source.num_tasks))
    if settings.transfer == "task":
        if settings.transfer_task not in source_names:
            known = ", ".join(source_names)
            raise UserError(f"PromptSettings.transfer_task = {settings.transfer_task!r} is not a task of SOURCE_DIR: {known}.")
        chosen = [source_names.index(settings.transfer_task)]
    if source.cols_NPR is None or settings.rank == 0:
        prompts_NPD = np.asarray(compose_all(source))[chosen]
        shared = shared_GPD if settings.transfer == "shared" else prompts_NPD.mean(axis=0, keepdims=True)
        factors = init_factors(settings, num_targets, width, seed) if settings.rank else (None, None)
        return PromptBank(shared.astype(np.float32), *factors, group_N)
    if settings.transfer == "shared":
        return PromptBank(shared_GPD, *init_factors(settings, num_targets, width, seed), group_N)
    cols, rows = np.asarray(source.cols_NPR)[chosen], np.asarray(source.rows_NRD)[chosen]
    if cols.shape[2] != settings.rank:
        message = f"PromptSettings.rank = {settings.rank}, but SOURCE_DIR's factors have rank {cols.shape[2]}"
        raise UserError(f"{message}; set --gin.PromptSettings.rank={cols.shape[2]}.")
    repeat = lambda array: np.repeat(array.mean(axis=0, keepdims=True), num_targets, axis=0).astype(np.float32)  # noqa: E731
    return PromptBank(shared_GPD, repeat(cols), repeat(rows), group_N)


def count_parameters(bank: PromptBank) -> tuple[int, int]:
    """(all trainable numbers, numbers a task costs: its factors and its share of its group's P*)."""
    total = sum(int(np.prod(array.shape)) for array in bank.trainable().values())
    return total, total // bank.num_tasks
