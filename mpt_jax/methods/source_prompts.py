"""Prompts of SOURCE_DIR, a task each, for methods that put a target together from several. P prompt positions, D model width."""

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import compose_all
from mpt_jax.methods.method import Start
from mpt_jax.methods.prompt import source_runs

ASSUMED = 6  # sources, where only shapes are wanted and no run folder is read [MPT, ATTEMPT]


def source_prompts(start: Start, seed: int) -> np.ndarray:
    """The source run's prompts of the same seed, or else of its first: (sources, P, D) float32. Raises UserError for another length."""
    length = start.settings.prompt.length
    if start.source is None:
        return np.zeros((ASSUMED, length, start.network.config.d_model), np.float32)
    bank, _ = source_runs(*start.source, seed)
    prompts = np.asarray(compose_all(bank), np.float32)
    if prompts.shape[1] != length:
        message = f"PROMPT_LENGTH = {length}, but SOURCE_DIR holds prompts of length {prompts.shape[1]}"
        raise UserError(f"{message}; set --gin.PROMPT_LENGTH={prompts.shape[1]}.")
    return prompts
