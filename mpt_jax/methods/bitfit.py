"""BitFit (arXiv 2106.10199): only biases train. Where a backbone has none, as T5, they are added to every product and norm, as zeros.

That is how Compacter (arXiv 2106.04647, modeling_t5.py) made the column that prompt papers quote: 280K for T5-Base, the logits' 32,128
among them. A backbone's own biases get a learned change. G groups.
"""

import dataclasses
from typing import Any

from mpt_jax.methods import inside
from mpt_jax.methods.method import NEVER, Method, MethodSettings, Start
from mpt_jax.model.families.family import Adaptation


@dataclasses.dataclass(frozen=True)
class BitfitSettings(MethodSettings):
    """Which biases train."""

    head: bool = True  # that of the logits too [Compacter: 280K; ATTEMPT's bitfit.json leaves it frozen: 250K]


def init(start: Start) -> dict[str, Any]:
    """Zeros: the network starts as it is."""
    return inside.stack_groups([inside.zero_biases(start.network.config, start.settings.method.head)] * len(start.seed_G))


METHOD = Method(
    "bitfit", inside.PARTS, init, Adaptation(changes=inside.changes), BitfitSettings,
    learning_rate=3e-4,  # [ATTEMPT, configs/baselines/bitfit.json]
    from_source=NEVER,
)  # fmt: skip
