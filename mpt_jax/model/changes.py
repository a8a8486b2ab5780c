"""What a method changes inside a network: arrays by the paths of the modules that they change, a Flax collection next to the weights.

Each array has rows in front: one for each example, or a single one that serves all of them. Those of a path with ``layers``
(``encoder/layers/mlp/wo``) have an axis of layers after it and change the last so many layers of that stack. R is a rank.

======== ================================== ==================================================================
module   arrays                             what happens
======== ================================== ==================================================================
Dense    scale_in (in)                      inputs are multiplied by it
Dense    down (in, R), up (R, out)          inputs down up is added
Dense    bias (out)                         is added
Dense    scale_out (out)                    the result is multiplied by it
Dense    block_down (out, R), block_up      gelu(result block_down + block_down_bias) block_up + block_up_bias is
         (R, out), and a bias of each       added to the result
RMSNorm  scale (width), bias (width)        scale is added to the norm's own, bias to its result
Embed    bias (vocabulary)                  is added to logits that are made with the embedding
stack    key, value (layers, positions,     positions that every position of a layer sees, before all others
         heads, head width)
======== ================================== ==================================================================
"""

import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import unflatten_dict

COLLECTION, NAME = "changes", "change"
LAYERS = "layers"  # in a path: each of the stack's last layers

Changes = Mapping[str, Mapping[str, jax.Array]]  # arrays by name, by path of the module


def of_module(module: nn.Module) -> Mapping[str, jax.Array]:
    """The arrays that change a module; empty where nothing does."""
    return module.get_variable(COLLECTION, NAME) or {}


def variables(backbone: dict, changes: dict) -> dict[str, Any]:
    """What Flax's ``apply`` takes; without changes it is the same as ever."""
    return {"params": backbone, COLLECTION: changes} if changes else {"params": backbone}


def collection(changes: Changes, backbone: Mapping[str, Any]) -> dict:
    """The collection of a method's changes. ``backbone``: the weights, which tell how many layers a stack has."""
    found: dict[tuple[str, ...], Any] = {}
    for path, arrays in changes.items():
        parts = tuple(path.split("/"))
        if LAYERS not in parts:
            found[*parts, NAME] = dict(arrays)
            continue
        at = parts.index(LAYERS)
        stack = functools.reduce(operator.getitem, parts[:at], backbone)
        layers = sum(name.startswith(f"{LAYERS}_") for name in stack)
        cut = {name: _each_layer(array) for name, array in arrays.items()}
        changed = len(next(iter(cut.values())))
        for number in range(changed):
            here = (*parts[:at], f"{LAYERS}_{layers - changed + number}", *parts[at + 1 :], NAME)
            found[here] = {name: each[number] for name, each in cut.items()}
    return unflatten_dict(found)


def _each_layer(array: jax.Array) -> list[jax.Array]:
    """The parts of an array (rows, layers, …) by layer. The gradient of one cut is one joining; that of many slices, as many sums."""
    parts = jax.lax.split(array, (1,) * array.shape[1], axis=1)
    return [jnp.squeeze(part, 1) for part in parts]


def rows_of_slots(array_U: jax.Array, slot_B: jax.Array) -> jax.Array:
    """What each row's slot holds, (B, ...) of (U, ...), by a product: a gather's gradient is a scatter, which is slow on CPU.

    A single slot stays as it is and serves every row.
    """
    if array_U.shape[0] == 1:
        return array_U
    is_slot_BU = (slot_B[:, None] == jnp.arange(array_U.shape[0])).astype(array_U.dtype)
    flat = jnp.dot(is_slot_BU, array_U.reshape(array_U.shape[0], -1), precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(-1, *array_U.shape[1:])


def before_layers(stack: nn.Module, layers: int, dtype: str) -> list[tuple[jax.Array, jax.Array] | None]:
    """Keys and values (rows, positions, heads, head width) that each layer of a stack sees first; None where nothing was put there."""
    arrays = of_module(stack)
    if not arrays:
        return [None] * layers
    keys, values = (_each_layer(arrays[name].astype(dtype)) for name in ("key", "value"))
    return list(zip(keys, values, strict=True))
