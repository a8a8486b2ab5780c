"""Parameters of methods that change modules of a backbone (model/changes.py): their paths and shapes, for any family.

G groups of tasks that share parameters. An array of a module in a stack has an axis of layers after that of groups.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.method import FROZEN, GROUP, TASK, Part
from mpt_jax.model.changes import LAYERS, Changes
from mpt_jax.model.families import family_of

INSIDE = "inside/"  # before the paths of changes in paths of parameters
PARTS = (Part(f"{INSIDE}.*", GROUP, "weights"), Part("teacher/prompts", TASK, FROZEN), Part("backbone/.*", None, FROZEN))


class Module(NamedTuple):
    """A module, or those of a stack: path (``encoder/layers/mlp/wo``), number of layers (0: it is in none), shape of a parameter."""

    path: str
    layers: int
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def last(self, layers: int) -> "Module":
        """Of the stack's last layers alone; a module in no layer as it is."""
        return self._replace(layers=layers) if self.layers else self

    def array(self, draw: Callable[[tuple[int, ...]], Any], *shape: int) -> np.ndarray:
        """An array (layers, …) of this module, or (…) where it is in no layer, made by draw(shape)."""
        return draw((self.layers, *shape) if self.layers else shape)


def modules(config: Any, parameter: str, names: Sequence[str] = ()) -> list[Module]:
    """Modules of a backbone that have a parameter of this name (kernel, scale, embedding), in the order of its table of names.

    names: last parts of their paths, all if none are given. Raises UserError for a name that no module has.
    """
    found: dict[str, Module] = {}
    for entry in family_of(config).entries(config):
        path, _, last = entry.ours.rpartition("/")
        if last != parameter:
            continue
        stacked, in_layer = re.subn(rf"(^|/){LAYERS}_\d+/", rf"\1{LAYERS}/", path)
        before = found.get(stacked)
        found[stacked] = Module(stacked, (before.layers if before else 0) + in_layer, entry.shape)
    unknown = [name for name in names if name not in {module.name for module in found.values()}]
    if unknown:
        there = ", ".join(dict.fromkeys(module.name for module in found.values()))
        raise UserError(f"{unknown[0]!r} is not a {parameter} of {config.name!r}; it has {there}.")
    return [module for module in found.values() if not names or module.name in names]


def check_names(setting: str, names: Sequence) -> None:
    """Raises UserError unless a setting is a list of different texts, at least one."""
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"{setting} = {list(names)!r}; it takes a list of different names of matrices, such as ['query', 'value'].")


def zero_biases(config: Any, head: bool) -> dict[str, np.ndarray]:
    """A bias of every product and norm, zeros, by path: what T5 lacks. head: of the logits too [Compacter, modeling_t5.py]."""
    kernels = [module for module in modules(config, "kernel") if module.name != "logits_dense"]
    found = {f"{INSIDE}{module.path}/bias": module.array(np.zeros, module.shape[-1]) for module in kernels}
    found |= {f"{INSIDE}{module.path}/bias": module.array(np.zeros, *module.shape) for module in modules(config, "scale")}
    return found | ({f"{INSIDE}{_head(config)}/bias": np.zeros(config.vocab_size)} if head else {})


def _head(config: Any) -> str:
    """The module that makes logits: a product of its own, or the embedding of the stack that writes."""
    own = [module.path for module in modules(config, "kernel") if module.name == "logits_dense"]
    return own[0] if own else modules(config, "embedding")[-1].path


def stack_groups(groups: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays (G, ...) float32 by path, of those of each group."""
    return {path: np.stack([group[path] for group in groups]).astype(np.float32) for path in groups[0]}


def changes(own: Mapping[str, jax.Array]) -> Changes:
    """The arrays under INSIDE by module and name."""
    found: dict[str, dict[str, jax.Array]] = {}
    for path, array in own.items():
        if path.startswith(INSIDE):
            module, _, name = path.removeprefix(INSIDE).rpartition("/")
            found.setdefault(module, {})[name] = array
    return found
