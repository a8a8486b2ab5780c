"""Layers of Llama's kind, for decoder-only models and T5Gemma: grouped attention over rotary positions, gated feed-forward layers.

B examples, T positions (queries), S positions that are seen (keys), D model width, H heads, G groups of heads that share keys and values,
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

    def _heads(self, x_BTX, number: int):
        x_BTHK = x_BTX.reshape(*x_BTX.shape[:-1], number, self.config.head_dim)
        return constrain(x_BTHK, "batch", "length", "heads", "kv")

    def _turned(self, x_BTHK, position_BT):
        return x_BTHK if position_BT is None or self.rotary is None else turn(x_BTHK, position_BT, self.rotary)

    def keys_values(self, x_BSD, position_BS=None) -> KeysValues:
        """Keys, turned to their positions unless those are None, and values: (B, S, G, K)."""
        key_BSGK = self._heads(self.key(x_BSD), self.config.num_kv_heads)
        key_BSGK = self.key_norm(key_BSGK) if self.config.query_key_norm else key_BSGK
        return KeysValues(self._turned(key_BSGK, position_BS), self._heads(self.value(x_BSD), self.config.num_kv_heads))

    def __call__(self, x_BTD, position_BT, segments: Sequence[Segment]):
        """Attends from x to the segments: (B, T, D)."""
        config = self.config
        query_BTHK = self._heads(self.query(x_BTD), config.num_heads)
        query_BTHK = self.query_norm(query_BTHK) if config.query_key_norm else query_BTHK
        query_BTHK = self._turned(query_BTHK, position_BT)
        mixed_BTHK = attend_segments(query_BTHK, segments, config.logit_scale, config.attention_cap)
        return self.out(mixed_BTHK.reshape(*x_BTD.shape[:-1], -1))


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

    def attend(self, x_BTD, position_BT, before: Sequence[Segment], visible_BTS, cache: KeysValues | None = None, index=None):
        """x after attention, and the keys and values of its positions; see ``__call__``."""
        normed_BTD = self.pre_attention_norm(x_BTD)
        made = self.attention.keys_values(normed_BTD, position_BT)
        if cache is not None:

            def write(old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=1)

            made = jax.tree.map(write, cache, made)
        found_BTD = self.attention(normed_BTD, position_BT, [*before, Segment(*made, visible_BTS)])
        found_BTD = self.post_attention_norm(found_BTD) if self.config.post_norms else found_BTD
        return x_BTD + self.active(self.dropout)(found_BTD), made

    def feed(self, x_BTD):
        """x after the feed-forward layer."""
        dropout = self.active(self.dropout)
        found_BTD = self.mlp(self.pre_mlp_norm(x_BTD), dropout)
        found_BTD = self.post_mlp_norm(found_BTD) if self.config.post_norms else found_BTD
        return x_BTD + dropout(found_BTD)

    def __call__(self, x_BTD, position_BT, before: Sequence[Segment], visible_BTS, cache: KeysValues | None = None, index=None):
        """(x (B, T, D), its keys and values). ``before``: what the positions see besides one another; visible: those, or of the cache.

        cache: keys and values (B, S, G, K) of these and earlier positions, into which this call's are written at ``index``.
        """
        x_BTD, made = self.attend(x_BTD, position_BT, before, visible_BTS, cache, index)
        return self.feed(x_BTD), made


class Seen(NamedTuple):
    """Positions that come before others: keys and values of each layer (B or 1, S, G, K), where they are, and which are real."""

    layers: tuple[KeysValues, ...]
    position_BS: jax.Array
    real_BS: jax.Array


class LayerStack(Part):
    """A stack of layers, ``layers_0`` and so on; its setup makes them by ``make_layers``."""

    def make_layers(self, layer: type[Layer], *methods: str) -> list[Layer]:
        """Layers of a class, traced for one of a kind, not for each; ``methods``: those that are called besides ``__call__``."""
        layer = nn.remat(layer) if self.computation.remat == "layers" else layer
        # drawn weights depend on the path of scopes, which the transform changes
        layer = layer if self.is_initializing() else nn.jit(layer, methods=("__call__", *methods))
        return [layer(self.config, self.computation, self.config.rotary_of(i)) for i in range(self.config.num_layers)]

    def through(self, x_BTD, position_BT, visible, seen: tuple[Seen, ...] = (), cache=None, index=None, cross=None):
        """(x after the last layer, after each layer (B, T, D), keys and values of each layer).

        visible(window) -> which positions of x, or of the cache, each sees: (B or 1, T or 1, S). cross: what each layer takes besides.
        """
        layers, made = [], []
        prefixes = before_layers(self, len(self.layers), self.computation.dtype)
        x_BTD = residual(x_BTD)
        for i, layer in enumerate(self.layers):
            window = self.config.window if self.config.layer_kinds[i] == "window" else 0
            before = [Segment(*part.layers[i], earlier(position_BT, part.position_BS, part.real_BS, window)) for part in seen]
            at_BT = position_BT
            if prefixes[i]:
                position_1P = jnp.arange(prefixes[i][0].shape[1])[None]
                at_BT = position_BT + position_1P.size
                before.append(Segment(*prefixes[i], earlier(at_BT, position_1P, jnp.ones_like(position_1P, bool), window)))
            held, more = None if cache is None else cache[i], () if cross is None else (cross[i],)
            x_BTD, keys_values = layer(x_BTD, at_BT, before, visible(window), held, index, *more)
            x_BTD = residual(x_BTD)
            layers.append(x_BTD)
            made.append(keys_values)
        return x_BTD, tuple(layers), tuple(made)


def residual(x_BTD):
    """The residual stream between layers: examples on their devices, width whole."""
    return constrain(x_BTD, "batch", "length", "activation_embed")


def earlier(query_BT, key_BS, real_BS, window: int):
    """Which keys each query sees: real ones at its position or before, no farther back than the window: (B, T, S)."""
    distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
    seen_BTS = (distance_BTS >= 0) & real_BS[:, None, :]
    return seen_BTS & (distance_BTS < window) if window else seen_BTS


def around(position_BT, real_BT, left: int, right: int):
    """Which positions each sees: real ones nearer than ``left`` before and ``right`` after it, all if left is 0: (B, T or 1, T)."""
    if not left:
        return real_BT[:, None, :]
    distance_BTT = position_BT[:, :, None] - position_BT[:, None, :]
    return (distance_BTT < left) & (-distance_BTT < right) & real_BT[:, None, :]


def scaled(embedded_BTD, config: CausalConfig, dtype: str):
    """Rows of an embedding, or a prompt's vectors alike, as they enter a stack."""
    x_BTD = embedded_BTD.astype(dtype)
    return x_BTD * jnp.asarray(config.d_model**0.5, x_BTD.dtype) if config.scaled_embedding else x_BTD


def capped(logits_BTV, cap: float):
    """Logits, in float32 between -cap and cap where there is one."""
    return cap * jnp.tanh(logits_BTV.astype(jnp.float32) / cap) if cap else logits_BTV


def zeros_cache(config: CausalConfig, computation: Computation, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Keys and values of ``length`` positions: zeros (B, T, G, K), a pair each layer."""
    zeros = jnp.zeros((batch, length, config.num_kv_heads, config.head_dim), computation.dtype)
    zeros = constrain(zeros, "batch", "length", "heads", "kv")
    return (KeysValues(zeros, zeros),) * config.num_layers
