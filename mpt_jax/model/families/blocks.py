"""Layers of Llama's kind, for decoder-only models and T5Gemma: grouped attention over rotary positions, gated feed-forward layers.

B examples, Y positions of a stack (queries), Z positions that are attended to (keys), D model width, H heads, J heads of keys and values,
K head width.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import Computation
from mpt_jax.model.attention import KeysValues, Segment, attend_segments
from mpt_jax.model.changes import before_layers
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.layers import Dense, Mlp, RMSNorm
from mpt_jax.model.rotary import Rotary, turn
from mpt_jax.sharding import constrain


class Part(nn.Module):
    """Part of a stack. ``config``: the shape of the stack."""

    config: CausalConfig
    computation: Computation

    def norm(self) -> RMSNorm:
        """A norm."""
        return RMSNorm(self.config.norm_epsilon, self.computation.dtype, self.config.norm_plus_one)

    def dropout_layer(self) -> nn.Dropout:
        """Dropout of whole positions' features, alike along the length."""
        return nn.Dropout(self.computation.dropout_rate, broadcast_dims=(-2,))

    def active(self, dropout: nn.Dropout):
        """Dropout where random bits were given; else, and at rate 0, the identity without any bits."""
        return functools.partial(dropout, deterministic=not self.has_rng("dropout"))


class Attention(Part):
    """Grouped attention: kernels ``query``, ``key``, ``value``, ``out``, norms of queries and keys where so. rotary None: no positions."""

    rotary: Rotary | None

    def setup(self):
        config, dtype = self.config, self.computation.dtype
        stddev, bias = config.d_model**-0.5, config.query_key_value_bias
        self.query = Dense(config.num_heads * config.head_dim, dtype, stddev, bias)
        self.key = Dense(config.num_kv_heads * config.head_dim, dtype, stddev, bias)
        self.value = Dense(config.num_kv_heads * config.head_dim, dtype, stddev, bias)
        self.out = Dense(config.d_model, dtype, (config.num_heads * config.head_dim) ** -0.5)
        if config.query_key_norm:
            self.query_norm, self.key_norm = self.norm(), self.norm()

    def _heads(self, x_BYX, number: int):
        x_BYHK = x_BYX.reshape(*x_BYX.shape[:-1], number, self.config.head_dim)
        return constrain(x_BYHK, "batch", "length", "heads", "kv")

    def _turned(self, x_BYHK, position_BY):
        return x_BYHK if position_BY is None or self.rotary is None else turn(x_BYHK, position_BY, self.rotary)

    def keys_values(self, x_BZD, position_BZ=None) -> KeysValues:
        """Keys, turned to their positions unless those are None, and values: (B, Z, J, K)."""
        key_BZJK = self._heads(self.key(x_BZD), self.config.num_kv_heads)
        key_BZJK = self.key_norm(key_BZJK) if self.config.query_key_norm else key_BZJK
        return KeysValues(self._turned(key_BZJK, position_BZ), self._heads(self.value(x_BZD), self.config.num_kv_heads))

    def __call__(self, x_BYD, position_BY, segments: Sequence[Segment]):
        """Attends from x to the segments: (B, Y, D)."""
        config = self.config
        query_BYHK = self._heads(self.query(x_BYD), config.num_heads)
        query_BYHK = self.query_norm(query_BYHK) if config.query_key_norm else query_BYHK
        query_BYHK = self._turned(query_BYHK, position_BY)
        mixed_BYHK = attend_segments(query_BYHK, segments, config.logit_scale, config.attention_cap)
        return self.out(mixed_BYHK.reshape(*x_BYD.shape[:-1], -1))


class Layer(Part):
    """Attention and gated feed-forward layer, each after a norm and added to the residual stream."""

    rotary: Rotary

    def setup(self):
        self.pre_attention_norm, self.pre_mlp_norm = self.norm(), self.norm()
        self.attention = Attention(self.config, self.computation, self.rotary)
        self.mlp = Mlp(self.config.d_ff, (self.config.activation, "linear"), self.computation.dtype)
        self.dropout = self.dropout_layer()
        if self.config.post_norms:
            self.post_attention_norm, self.post_mlp_norm = self.norm(), self.norm()

    def attend(self, x_BYD, position_BY, before: Sequence[Segment], visible_BYZ, cache: KeysValues | None = None, index=None):
        """x after attention, and the keys and values of its positions; see ``__call__``."""
        normed_BYD = self.pre_attention_norm(x_BYD)
        made = self.attention.keys_values(normed_BYD, position_BY)
        if cache is not None:

            def write(old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=1)

            made = jax.tree.map(write, cache, made)
        key_BZJK, value_BZJK = made
        found_BYD = self.attention(normed_BYD, position_BY, [*before, Segment(key_BZJK, value_BZJK, visible_BYZ)])
        found_BYD = self.post_attention_norm(found_BYD) if self.config.post_norms else found_BYD
        return x_BYD + self.active(self.dropout)(found_BYD), made

    def feed(self, x_BYD):
        """x after the feed-forward layer."""
        dropout = self.active(self.dropout)
        found_BYD = self.mlp(self.pre_mlp_norm(x_BYD), dropout)
        found_BYD = self.post_mlp_norm(found_BYD) if self.config.post_norms else found_BYD
        return x_BYD + dropout(found_BYD)

    def __call__(
        self, x_BYD, position_BY, before: Sequence[Segment], visible_BYZ, cache: KeysValues | None = None, index=None, *cross: Segment
    ):
        """(x (B, Y, D), its keys and values). ``before``: what the positions see besides one another; visible: those, or of the cache.

        cache: keys and values (B, Z, J, K) of these and earlier positions, into which this call's are written at ``index``. cross: an
        encoder's output, which layers of a decoder see.
        """
        del cross
        x_BYD, made = self.attend(x_BYD, position_BY, before, visible_BYZ, cache, index)
        return self.feed(x_BYD), made


class Seen(NamedTuple):
    """Positions that come before others: keys and values of each layer (B or 1, Z, J, K), where they are, and which are real."""

    layers: tuple[KeysValues, ...]
    position_BZ: jax.Array
    real_BZ: jax.Array


class LayerStack(Part):
    """A stack of layers, ``layers_0`` and so on; its setup makes them by ``make_layers``."""

    def make_layers(self, layer: type[Layer], *methods: str) -> list[Layer]:
        """Layers of a class, traced for one of a kind, not for each; ``methods``: those that are called besides ``__call__``."""
        layer = nn.remat(layer) if self.computation.remat == "layers" else layer
        # drawn weights depend on the path of scopes, which the transform changes
        layer = layer if self.is_initializing() else nn.jit(layer, methods=("__call__", *methods))
        return [layer(self.config, self.computation, self.config.rotary_of(i)) for i in range(self.config.num_layers)]

    def through(self, x_BYD, position_BY, visible, seen: tuple[Seen, ...] = (), cache=None, index=None, cross=None):
        """(x after the last layer, after each layer (B, Y, D), keys and values of each layer).

        visible(window) -> which positions of x, or of the cache, each sees: (B or 1, Y or 1, Z). cross: what each layer takes besides.
        """
        layers, made = [], []
        prefixes = before_layers(self, len(self.layers), self.computation.dtype)
        x_BYD = residual(x_BYD)
        for i, layer in enumerate(self.layers):
            window = self.config.window if self.config.layer_kinds[i] == "window" else 0
            before = [Segment(*part.layers[i], earlier(position_BY, part.position_BZ, part.real_BZ, window)) for part in seen]
            at_BY = position_BY
            prefix = prefixes[i]
            if prefix:
                position_1P = jnp.arange(prefix[0].shape[1])[None]
                at_BY = position_BY + position_1P.size
                before.append(Segment(*prefix, earlier(at_BY, position_1P, jnp.ones_like(position_1P, bool), window)))
            held, more = None if cache is None else cache[i], () if cross is None else (cross[i],)
            x_BYD, keys_values = layer(x_BYD, at_BY, before, visible(window), held, index, *more)
            x_BYD = residual(x_BYD)
            layers.append(x_BYD)
            made.append(keys_values)
        return x_BYD, tuple(layers), tuple(made)


def residual(x_BYD):
    """The residual stream between layers: examples on their devices, width whole."""
    return constrain(x_BYD, "batch", "length", "activation_embed")


def earlier(query_BY, key_BZ, real_BZ, window: int):
    """Which keys each query sees: real ones at its position or before, no farther back than the window: (B, Y, Z)."""
    distance_BYZ = query_BY[:, :, None] - key_BZ[:, None, :]
    seen_BYZ = (distance_BYZ >= 0) & real_BZ[:, None, :]
    return seen_BYZ & (distance_BYZ < window) if window else seen_BYZ


def around(position_BY, real_BY, left: int, right: int):
    """Which positions each sees: real ones nearer than ``left`` before and ``right`` after it, all if left is 0: (B, Y or 1, Y)."""
    if not left:
        return real_BY[:, None, :]
    distance_BYY = position_BY[:, :, None] - position_BY[:, None, :]
    return (distance_BYY < left) & (-distance_BYY < right) & real_BY[:, None, :]


def scaled(embedded_BYD, config: CausalConfig, dtype: str):
    """Rows of an embedding, or a prompt's vectors alike, as they enter a stack."""
    x_BYD = embedded_BYD.astype(dtype)
    return x_BYD * jnp.asarray(config.d_model**0.5, x_BYD.dtype) if config.scaled_embedding else x_BYD


def capped(logits_BYV, cap: float):
    """Logits, in float32 between -cap and cap where there is one."""
    return cap * jnp.tanh(logits_BYV.astype(jnp.float32) / cap) if cap else logits_BYV


def zeros_cache(config: CausalConfig, computation: Computation, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Keys and values of ``length`` positions: zeros (B, Y, J, K), a pair each layer."""
    zeros = jnp.zeros((batch, length, config.num_kv_heads, config.head_dim), computation.dtype)
    zeros = constrain(zeros, "batch", "length", "heads", "kv")
    return (KeysValues(zeros, zeros),) * config.num_layers
