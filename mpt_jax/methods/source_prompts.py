"""Prompts of SOURCE_DIR, a task each, for methods that put a target together from several. P prompt positions, D model width."""

from collections.abc import Sequence

import numpy as np

from mpt_jax.config import Settings
from mpt_jax.errors import UserError
from mpt_jax.methods.bank import compose_all
from mpt_jax.methods.method import Start
from mpt_jax.methods.prompt import source_runs

ASSUMED = 6  # sources, where only shapes are wanted and no run folder is read [MPT, ATTEMPT]


def chosen_sources(settings: Settings, there: Sequence[str]) -> list[str]:
    """The source tasks that PromptSettings.transfer_task names, or all that are there where it names none.

    Raises UserError for other tasks, one that is named twice, and for source tasks of each target.
    """
    given = settings.prompt.transfer_task
    if isinstance(given, dict):
        same = f"METHOD = {settings.train.method!r} takes the same source tasks for all targets"
        raise UserError(f"PromptSettings.transfer_task = {given!r}: {same}; name one, or a list of them.")
    named = ([given] if given else []) if isinstance(given, str) else list(given)
    wrong = next((name for name in named if name not in there or named.count(name) > 1), None)
    if wrong is not None:
        what = "is there twice" if wrong in there else f"is not a task of SOURCE_DIR: {', '.join(there)}"
        raise UserError(f"PromptSettings.transfer_task = {wrong!r} {what}.")
    return named or list(there)


def source_prompts(start: Start, seed: int) -> np.ndarray:
    """The source run's prompts of the same seed, or else of its first, of the chosen source tasks: (sources, P, D) float32.

    Raises UserError for another length, and as ``chosen_sources``.
    """
    settings = start.settings.prompt
    length = settings.length
    if start.source is None:
        named = settings.transfer_task
        sources = ASSUMED if not named else 1 if isinstance(named, str) else len(named)
        return np.zeros((sources, length, start.network.config.d_model), np.float32)
    bank, names = source_runs(*start.source, seed)
    prompts = np.asarray(compose_all(bank), np.float32)
    if prompts.shape[1] != length:
        message = f"PROMPT_LENGTH = {length}, but SOURCE_DIR holds prompts of length {prompts.shape[1]}"
        raise UserError(f"{message}; set --gin.PROMPT_LENGTH={prompts.shape[1]}.")
    return prompts[[names.index(name) for name in chosen_sources(start.settings, names)]]
