"""Adapters: a bottleneck after sublayers, result + up gelu(down result), before the residual stream takes it.

'houlsby' (arXiv 1902.00751): after self-attention and after the feed-forward layer; 'pfeiffer' (arXiv 2005.00247): after the latter alone.
As Compacter (arXiv 2106.04647) and ATTEMPT (configs/baselines/adapter.json) made the columns that prompt papers quote, the norms train
too: 1.9M for T5-Base at reduction 32. AdapterDrop (arXiv 2010.11918): none in the first 5 layers of a stack, 1.1M. G groups.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from mpt_jax import checks
from mpt_jax.errors import UserError
from mpt_jax.methods import inside
from mpt_jax.methods.inside import INSIDE, PARTS, Module
from mpt_jax.methods.method import NEVER, Method, MethodSettings, Start
from mpt_jax.model.families.family import Adaptation

KINDS = {"houlsby": ("attention/out", "self_attention/out", "mlp/wo"), "pfeiffer": ("mlp/wo",)}  # the products they come after


@dataclasses.dataclass(frozen=True)
class AdapterSettings(MethodSettings):
    """Where adapters are, and how wide."""

    kind: str = "houlsby"  # 'houlsby' | 'pfeiffer'
    reduction: int = 32  # the bottleneck is the model's width divided by it [ATTEMPT]
    drop_layers: int = 0  # first layers of each stack without adapters; AdapterDrop takes 5 [Compacter]
    norms: bool = True  # the norms' scales train too [ATTEMPT, unfreeze_layer_norms]
    init_scale: float = 0.01  # spread of both matrices at the start [ATTEMPT, modeling_t5.py]; biases are zeros

    def __post_init__(self):
        super().__post_init__()
        checks.check_choice("AdapterSettings.kind", self.kind, tuple(KINDS))
        checks.check_range("AdapterSettings.reduction", self.reduction, 1, 10_000)
        checks.check_range("AdapterSettings.drop_layers", self.drop_layers, 0)
        checks.check_range("AdapterSettings.init_scale", self.init_scale, 0.0, 1e3)


def places(config: Any, settings: AdapterSettings) -> list[Module]:
    """The products that adapters come after. Raises UserError where no layer would be left."""
    ends = tuple(f"/{end}" for end in KINDS[settings.kind])
    found = [module for module in inside.modules(config, "kernel") if module.path.endswith(ends)]
    short = next((module for module in found if module.layers <= settings.drop_layers), None)
    if short:
        message = f"AdapterSettings.drop_layers = {settings.drop_layers}, and a stack of {config.name!r} has {short.layers} layers"
        raise UserError(f"{message}: take {short.layers - 1} or fewer.")
    return [module.last(module.layers - settings.drop_layers) for module in found]


def init(start: Start) -> dict[str, Any]:
    """Near the identity: both matrices N(0, init_scale)."""
    settings, config, groups = start.settings.method, start.network.config, []
    for seed in start.seed_G:
        rng = np.random.default_rng([seed, 0x61647074])
        arrays: dict[str, np.ndarray] = {}
        draw: Callable[[tuple[int, ...]], Any] = functools.partial(rng.normal, 0.0, settings.init_scale)
        for module in places(config, settings):
            width, path = module.shape[1], f"{INSIDE}{module.path}/block"
            narrow = max(width // settings.reduction, 1)
            arrays |= {f"{path}_down": module.array(draw, width, narrow), f"{path}_down_bias": module.array(np.zeros, narrow)}
            arrays |= {f"{path}_up": module.array(draw, narrow, width), f"{path}_up_bias": module.array(np.zeros, width)}
        if settings.norms:
            arrays |= {f"{INSIDE}{norm.path}/scale": norm.array(np.zeros, *norm.shape) for norm in inside.modules(config, "scale")}
        groups.append(arrays)
    return inside.stack_groups(groups)


METHOD = Method(
    "adapter", PARTS, init, Adaptation(changes=inside.changes), AdapterSettings,
    learning_rate=3e-4,  # [ATTEMPT, configs/baselines/adapter.json]
    from_source=NEVER,
)  # fmt: skip
