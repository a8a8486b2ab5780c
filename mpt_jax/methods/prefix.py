"""Prefix tuning (arXiv 2101.00190): PROMPT_LENGTH learned keys and values that every layer's self-attention sees before all positions.

Plain, or made of vectors by a network of two layers (Li and Liang's reparameterisation), which stays in the checkpoint. They stand at
positions before the first one and are not turned (rotary positions), as PEFT has it, which prefixes a decoder alone. There is none in
attention to an encoder's output. T5-Base, 100 positions: 3,686,400 plain, half of it without the encoder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import checks
from mpt_jax.errors import UserError
from mpt_jax.methods import inside
from mpt_jax.methods.inside import INSIDE, PARTS
from mpt_jax.methods.method import GROUP, NEVER, Method, MethodSettings, Part, Start
from mpt_jax.model.changes import LAYERS, Changes
from mpt_jax.model.families.family import Adaptation

MADE = "prefix/"  # before the arrays that prefixes are made of, by stack
SELF_ATTENTION = ("attention", "self_attention")


@dataclasses.dataclass(frozen=True)
class PrefixSettings(MethodSettings):
    """Which stacks have prefixes, and what these are made of."""

    stacks: list | tuple = ("encoder", "decoder")  # of those that the backbone has; PEFT's adapters hold a decoder's alone
    hidden: int = 0  # width between both layers; 0: plain; 512 or 800 in the paper [Li and Liang, 5]
    init_scale: float = 0.02  # spread of plain keys and values, or of both layers' matrices [ours: alike ones would stay alike]

    def __post_init__(self):
        super().__post_init__()
        checks.check_range("PrefixSettings.hidden", self.hidden, 0, 65_536)
        checks.check_range("PrefixSettings.init_scale", self.init_scale, 0.0, 1e3)
        known = all(stack in ("encoder", "decoder") for stack in self.stacks)
        if not self.stacks or not known:
            raise UserError(f"PrefixSettings.stacks = {list(self.stacks)!r}; it takes a list of 'encoder' and 'decoder'.")


class Shape(NamedTuple):
    """Of a stack's keys: layers, heads, head width; and the width of the stack."""

    layers: int
    heads: int
    head_dim: int
    width: int


def shapes(config: Any, stacks=("encoder", "decoder")) -> dict[str, Shape]:
    """Shapes by stack, of those that the backbone has. Raises UserError where it has none of them."""
    found = {}
    for module in inside.modules(config, "kernel", ("key",)):
        stack, _, rest = module.path.partition(f"/{LAYERS}/")
        if rest.partition("/")[0] in SELF_ATTENTION and stack in stacks:
            head_dim = getattr(config, stack, config).head_dim
            found[stack] = Shape(module.layers, module.shape[1] // head_dim, head_dim, module.shape[0])
    if not found:
        raise UserError(f"PrefixSettings.stacks = {list(stacks)!r}: backbone {config.name!r} has none of them.")
    return found


def init(start: Start) -> dict[str, Any]:
    """Small random numbers; positions that were alike would stay alike."""
    settings, length, groups = start.settings.method, start.settings.prompt.length, []
    for seed in start.seed_G:
        rng = np.random.default_rng([seed, 0x70667820])
        arrays: dict[str, np.ndarray] = {}
        for stack, shape in shapes(start.network.config, settings.stacks).items():
            whole = (shape.layers, length, shape.heads, shape.head_dim)
            if not settings.hidden:
                arrays |= {f"{INSIDE}{stack}/{name}": rng.normal(0.0, settings.init_scale, whole) for name in ("key", "value")}
                continue
            out = (shape.layers, 2, shape.heads, shape.head_dim)  # 2: a key and a value
            made = {
                "embedding": rng.normal(size=(length, shape.width)),
                "down": rng.normal(0.0, settings.init_scale, (shape.width, settings.hidden)), "down_bias": np.zeros(settings.hidden),
                "up": rng.normal(0.0, settings.init_scale, (settings.hidden, *out)), "up_bias": np.zeros(out),
            }  # fmt: skip
            arrays |= {f"{MADE}{stack}/{name}": array for name, array in made.items()}
        groups.append(arrays)
    return inside.stack_groups(groups)


def changes(own: Mapping[str, jax.Array]) -> Changes:
    """Keys and values by stack, shaped (rows, layers, positions, heads, head width)."""
    found = dict(inside.changes(own))
    made: dict[str, dict[str, jax.Array]] = {}
    for path, array in own.items():
        if path.startswith(MADE):
            stack, _, name = path.removeprefix(MADE).partition("/")
            made.setdefault(stack, {})[name] = array
    return found | {stack: _composed(arrays) for stack, arrays in made.items()}


def _composed(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Keys and values of vectors by way of the network, as PEFT's PrefixEncoder has it: tanh between both layers."""
    hidden = jnp.tanh(jnp.einsum("gpd,gdm->gpm", arrays["embedding"], arrays["down"]) + arrays["down_bias"][:, None])
    both = jnp.einsum("gpm,gmlchk->cglphk", hidden, arrays["up"]) + jnp.moveaxis(arrays["up_bias"], 2, 0)[:, :, :, None]
    return {"key": both[0], "value": both[1]}


METHOD = Method(
    "prefix", (Part(f"{MADE}.*", GROUP, "weights"), *PARTS), init, Adaptation(changes=changes), PrefixSettings,
    learning_rate=5e-5,  # [Li and Liang, table of hyperparameters]
    from_source=NEVER,
)  # fmt: skip
