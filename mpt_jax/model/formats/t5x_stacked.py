"""T5X's scalable_t5 (t5x/examples/scalable_t5/network.py): a stack's layers in one array, and a relative bias in every layer.

`encoder/encoder/attention/query/kernel` (D, N, H, K) holds `encoder/layers_0/attention/query/kernel` (D, H K) and so on for N layers,
along the second axis (T5Config.param_scan_axis). Heads and their width are axes of their own, with scan_layers = False too.
"""

import math
import re
import threading
from collections.abc import Mapping

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats.arrays import Index, LazyArray

STACKED = re.compile(r"(encoder|decoder)/\1/(.+)")
HEADS = {"query/kernel": 1, "key/kernel": 1, "value/kernel": 1, "out/kernel": 0}  # where the axis of the heads is, in a layer
MOST_LAYERS = 1000


def unstacked(arrays: Mapping[str, LazyArray], source: str) -> dict[str, LazyArray]:
    """The arrays of a T5X checkpoint, a layer each and heads joined, as minimal T5 has them. Those of minimal T5 come back as they are."""
    found: dict[str, LazyArray] = {}
    for name, lazy in arrays.items():
        match = STACKED.fullmatch(name)
        if match is None:
            found[name] = _joined(name, lazy)
            continue
        if len(lazy.shape) < 2 or not 0 < lazy.shape[1] <= MOST_LAYERS:
            raise UserError(f"{source}: {name} has shape {lazy.shape}; 1 to {MOST_LAYERS} layers along the second axis are needed.")
        stack = _Stack(lazy)
        for layer in range(lazy.shape[1]):
            path = f"{match[1]}/layers_{layer}/{match[2]}"
            found[path] = _joined(path, stack.layer(layer))
    return found


class _Stack:
    """An array of all layers, read once: its chunks hold many of them. It is let go when each layer has been read to its end."""

    def __init__(self, lazy: LazyArray):
        self._lazy, self._lock = lazy, threading.Lock()
        self._array: np.ndarray | None = None
        self._done: set[int] = set()

    def layer(self, number: int) -> LazyArray:
        """One of them."""
        lazy = self._lazy
        shape = (lazy.shape[0], *lazy.shape[2:])

        def fill(out: np.ndarray, index: Index) -> None:
            out[...] = self._read()[index[0], number, *index[1:]]
            if all(part.stop == size for part, size in zip(index, shape, strict=True)):
                self._finish(number)

        size = math.prod(lazy.shape) * lazy.dtype.itemsize
        return LazyArray(shape, lazy.dtype, f"{lazy.source}, layer {number}", fill, None, size + lazy.beside)

    def _read(self) -> np.ndarray:
        with self._lock:
            if self._array is None:
                self._array = self._lazy.read()
            return self._array

    def _finish(self, number: int) -> None:
        with self._lock:
            self._done.add(number)
            if len(self._done) == self._lazy.shape[1]:
                self._array, self._done = None, set()


def _joined(path: str, lazy: LazyArray) -> LazyArray:
    """A kernel of attention with its heads and their width in one axis; other arrays as they are."""
    axis = HEADS.get("/".join(path.split("/")[-2:]))
    if axis is None or len(lazy.shape) != 3:
        return lazy
    width = lazy.shape[axis + 1]
    shape = (*lazy.shape[:axis], lazy.shape[axis] * width, *lazy.shape[axis + 2 :])

    def fill(out: np.ndarray, index: Index) -> None:
        wanted = index[axis]
        heads = slice(wanted.start // width, -(-wanted.stop // width))
        part = lazy.read(out.dtype, (*index[:axis], heads, slice(0, width), *index[axis + 1 :]))
        part = part.reshape(*part.shape[:axis], -1, *part.shape[axis + 2 :])
        first = wanted.start - heads.start * width
        out[...] = part[(*[slice(None)] * axis, slice(first, first + wanted.stop - wanted.start))]

    return LazyArray(shape, lazy.dtype, lazy.source, fill, None, lazy.beside + math.prod(shape) * 8)


def stacked(config: T5Config, arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The inverse of ``unstacked`` for all arrays of a T5; a bias that a stack's layers share is written for each."""
    found, layers = {}, {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for path, lazy in arrays.items():
        stack, _, rest = path.partition("/")
        if rest == "relpos_bias/rel_embedding":
            found[f"{stack}/{stack}/{rest}"] = _stack([lazy] * layers[stack], rest, config)
        elif not rest.startswith("layers_"):
            found[path] = lazy
        elif rest.startswith("layers_0/"):
            rest = rest.removeprefix("layers_0/")
            found[f"{stack}/{stack}/{rest}"] = _stack([arrays[f"{stack}/layers_{i}/{rest}"] for i in range(layers[stack])], rest, config)
    return found


def _stack(layers: list[LazyArray], path: str, config: T5Config) -> LazyArray:
    shape, axis = layers[0].shape, HEADS.get("/".join(path.split("/")[-2:]))
    if axis is not None:
        shape = (*shape[:axis], config.num_heads, config.head_dim, *shape[axis + 1 :])

    def fill(out: np.ndarray, index: Index) -> None:
        for number in range(index[1].start, index[1].stop):
            whole = layers[number].read(out.dtype).reshape(shape)
            out[:, number - index[1].start] = whole[index[0], *index[2:]]

    itemsize = layers[0].dtype.itemsize
    beside = math.prod(shape) * itemsize + layers[0].beside
    return LazyArray((shape[0], len(layers), *shape[1:]), layers[0].dtype, layers[0].source, fill, None, beside)
