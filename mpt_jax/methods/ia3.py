"""(IA)3 (arXiv 2205.05638): keys, values and inputs of a feed-forward layer's last product are multiplied by learned vectors.

Matrices as in the paper's 3.3 and PEFT's table for T5 and Llama (k, v, wo). T5-Base: 129,024 = 12 (d_k + d_v + d_ff) in the encoder and
12 (2 d_k + 2 d_v + d_ff) in the decoder. G groups.
"""

import dataclasses
from typing import Any

import numpy as np

from mpt_jax.methods import inside
from mpt_jax.methods.inside import INSIDE, PARTS
from mpt_jax.methods.method import NEVER, Method, MethodSettings, Start
from mpt_jax.model.families.family import Adaptation


@dataclasses.dataclass(frozen=True)
class Ia3Settings(MethodSettings):
    """Which products are scaled."""

    results: list | tuple = ("key", "value")  # matrices whose results are multiplied [(IA)3 3.3]
    inputs: list | tuple = ("wo",)  # matrices whose inputs are multiplied [(IA)3 3.3]

    def __post_init__(self):
        super().__post_init__()
        inside.check_names("Ia3Settings.results and inputs", (*self.results, *self.inputs))


def init(start: Start) -> dict[str, Any]:
    """Ones: the network starts as it is."""
    settings, config, arrays = start.settings.method, start.network.config, {}
    for module in inside.modules(config, "kernel", (*settings.results, *settings.inputs)):
        name, width = ("scale_in", module.shape[0]) if module.name in settings.inputs else ("scale_out", module.shape[1])
        arrays[f"{INSIDE}{module.path}/{name}"] = module.array(np.ones, width)
    return inside.stack_groups([arrays] * len(start.seed_G))


METHOD = Method(
    "ia3", PARTS, init, Adaptation(changes=inside.changes), Ia3Settings,
    learning_rate=3e-3,  # [(IA)3 4.2, T-Few's recipe, with Adafactor]
    from_source=NEVER,
)  # fmt: skip
