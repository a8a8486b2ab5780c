"""SPoT (arXiv 2110.07904): each target's prompt starts from the prompt of one source task; which one, its dev split says.

In the target stages every run is trained once from each task of SOURCE_DIR (or from those that PromptSettings.transfer_task names), in one
program. ``eval``, ``infer`` and the report take the source that did best on the dev split on the mean over seeds, as they do of several
learning rates. Parameters as in prompt tuning: 76.8K for T5-Base with PROMPT_RANK 0; from 1 on it has MPT's factors besides.
"""

import dataclasses
from typing import Any

import numpy as np

from mpt_jax.methods import prompt
from mpt_jax.methods.bank import stack_groups
from mpt_jax.methods.method import MUST, Start


def init(start: Start) -> dict[str, Any]:
    """Each group's prompt from its own source task."""
    if start.source is None:  # shapes alone
        return prompt.init(start)
    banks = []
    for group, (seed, source) in enumerate(zip(start.seed_G, start.source_G, strict=True)):
        settings = dataclasses.replace(start.settings.prompt, transfer="task", transfer_task=source)
        bank, names = prompt.source_runs(*start.source, seed)
        banks.append(prompt.transfer(bank, names, settings, int(np.sum(start.group_N == group)), seed))
    return prompt.paths_of(stack_groups(banks))


METHOD = prompt.METHOD._replace(name="spot", init=init, from_source=MUST, each_source=True, reads_init=False)
