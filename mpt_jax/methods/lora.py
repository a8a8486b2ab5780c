"""LoRA (arXiv 2106.09685): each chosen matrix W becomes W + scale · down up, of rank R, where ``up`` starts at zero.

Defaults are PEFT's (peft/tuners/lora/config.py): query and value [LoRA 4.2], rank 8, alpha 8. T5-Base, rank 32 with biases: 3.8M, as the
runs of Ladder Side Tuning (arXiv 2206.06522, seq2seq/configs/lora.json) whose column other tables repeat. There is no dropout of its own.
R rank, G groups.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mpt_jax import checks
from mpt_jax.config import MOST_RANK
from mpt_jax.methods import inside
from mpt_jax.methods.inside import INSIDE, PARTS
from mpt_jax.methods.method import GROUP, KEPT, NEVER, Method, MethodSettings, Part, Start
from mpt_jax.model.changes import Changes
from mpt_jax.model.families.family import Adaptation

SCALE = "lora/scale"  # (G,)


@dataclasses.dataclass(frozen=True)
class LoraSettings(MethodSettings):
    """Which matrices change, and by how much."""

    rank: int = 8  # R [PEFT]
    alpha: float = 8.0  # the change counts alpha / rank [PEFT]
    matrices: list | tuple = ("query", "value")  # last parts of our names: query, key, value, out, wi, wi_0, wi_1, wo [LoRA 4.2]
    rank_stabilised: bool = False  # True: it counts alpha / sqrt(rank) [rsLoRA, arXiv 2312.03732]
    biases: bool = False  # True: a bias of every product and norm trains too, but not of the logits [LST, freeze_bitfit_lm_head]

    def __post_init__(self):
        super().__post_init__()
        checks.check_range("LoraSettings.rank", self.rank, 1, MOST_RANK)
        checks.check_range("LoraSettings.alpha", self.alpha, 1e-6, 1e6)
        inside.check_names("LoraSettings.matrices", self.matrices)

    @property
    def scale(self) -> float:
        """What the product of both factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def init(start: Start) -> dict[str, Any]:
    """``down`` uniform within 1 / sqrt(in) [PEFT: Kaiming's with a = sqrt(5)], ``up`` zeros."""
    settings, config = start.settings.method, start.network.config
    chosen, groups = inside.modules(config, "kernel", settings.matrices), []
    for seed in start.seed_G:
        rng, arrays = np.random.default_rng([seed, 0x6C6F7261]), {SCALE: np.array(settings.scale)}
        for module in chosen:
            width, out = module.shape
            draw: Callable[[tuple[int, ...]], Any] = functools.partial(rng.uniform, -(width**-0.5), width**-0.5)
            arrays[f"{INSIDE}{module.path}/down"] = module.array(draw, width, settings.rank)
            arrays[f"{INSIDE}{module.path}/up"] = module.array(np.zeros, settings.rank, out)
        groups.append(arrays | (inside.zero_biases(config, head=False) if settings.biases else {}))
    return inside.stack_groups(groups)


def changes(own: Mapping[str, jax.Array]) -> Changes:
    """The factors of each matrix, ``up`` times the scale."""

    def scaled(up):
        return up * own[SCALE].reshape(-1, *[1] * (up.ndim - 1))

    found = inside.changes(own)
    return {path: {**arrays, **({"up": scaled(arrays["up"])} if "up" in arrays else {})} for path, arrays in found.items()}


METHOD = Method(
    "lora", (Part(SCALE, GROUP, KEPT), *PARTS), init, Adaptation(changes=changes), LoraSettings,
    learning_rate=3e-4,  # [LST, seq2seq/configs/lora.json]
    from_source=NEVER,
)  # fmt: skip
