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
import numpy as np
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
    """What each row's slot holds, (B, ...) of (U, ...). A single slot stays as it is and serves every row.

    A gradient that is not finite reaches its own slot alone: the others' runs go on.
    """
    return array_U if array_U.shape[0] == 1 else _gathered(array_U, slot_B, array_U.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gathered(array_U: jax.Array, slot_B: jax.Array, slots: int) -> jax.Array:
    return jnp.take(array_U, slot_B, axis=0, mode="clip")


def _gathered_forward(array_U, slot_B, slots):
    return _gathered(array_U, slot_B, slots), slot_B


def _gathered_backward(slots, slot_B, grad_B):
    """By a product: the gradient of a gather would be scattered, which XLA runs slowly on CPU."""
    flat = grad_B.reshape(grad_B.shape[0], -1)
    finite_B = jnp.isfinite(flat).all(axis=1)
    is_slot_BU = slot_B[:, None] == jnp.arange(slots)
    flat = jnp.where(finite_B[:, None], flat, 0)  # 0 * NaN would be NaN in every slot
    summed = jnp.dot(is_slot_BU.astype(flat.dtype).T, flat, precision=jax.lax.Precision.HIGHEST)
    finite_U = ~(is_slot_BU & ~finite_B[:, None]).any(axis=0)
    summed = jnp.where(finite_U[:, None], summed, jnp.nan).astype(grad_B.dtype)
    return summed.reshape(slots, *grad_B.shape[1:]), np.zeros(slot_B.shape, jax.dtypes.float0)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def before_layers(stack: nn.Module, layers: int, dtype: str) -> list[tuple[jax.Array, jax.Array] | None]:
    """Keys and values (rows, positions, heads, head width) that each layer of a stack sees first; None where nothing was put there."""
    arrays = of_module(stack)
    if not arrays:
        return [None] * layers
    keys, values = (_each_layer(arrays[name].astype(dtype)) for name in ("key", "value"))
    return list(zip(keys, values, strict=True))
