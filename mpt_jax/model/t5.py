"""T5 encoder-decoder in Flax Linen: prompt vectors are an input array, tasks and methods are unknown here.

Parameter names and shapes are those of T5X's minimal T5 (t5x/examples/t5/network.py), so its checkpoints restore by name.
B examples, L input tokens, P prompt positions, S = P + L, T target tokens, D model width, H heads, K head width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import T5Config
from mpt_jax.model.attention import MASKED, Bias, MultiHeadAttention
from mpt_jax.model.layers import Dense, Embed, LayerNorm, Mlp, RelativePositionBias
from mpt_jax.sharding import constrain

# up to K / 4 target positions (16 in every published size) attend to the encoder's output itself: a quarter of the operations that its
# keys and values take [ours]
FEW_POSITIONS = 4


class Stack(NamedTuple):
    """Output of encoder or decoder: ``output`` after the final norm, ``layers`` the residual stream after each layer."""

    output_BTD: jax.Array
    layers: tuple  # of (B, T, D)


def _dropout(config: T5Config) -> nn.Dropout:
    # T5 drops whole positions' features alike along the length
    return nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))


def _active(module: nn.Module, dropout: nn.Dropout):
    """Dropout where random bits were given; else, and at rate 0, the identity without any bits."""
    return functools.partial(dropout, deterministic=not module.has_rng("dropout"))


def _traced_once(module: nn.Module, layer: type[nn.Module], *methods: str):
    """The class of a stack's layers: traced for one of them, not for each, and rematerialised where the setting says so."""
    layer = nn.remat(layer) if module.config.remat == "layers" else layer
    # drawn weights depend on the path of scopes, which the transform changes
    return layer if module.is_initializing() else nn.jit(layer, methods=methods)


def _mask(mask_BS):
    return jnp.where(mask_BS, 0.0, MASKED)[:, None, None, :]


def _residual(x_BTD):
    """The residual stream between layers: examples on their devices, width whole."""
    return constrain(x_BTD, "batch", "length", "activation_embed")


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward layer, each after a norm and added to the residual stream."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD, bias: Bias):
        dropout = _active(self, _dropout(self.config))
        attention = MultiHeadAttention(self.config, name="attention")
        normed_BSD = LayerNorm(self.config, name="pre_attention_layer_norm")(x_BSD)
        x_BSD = x_BSD + dropout(attention(normed_BSD, attention.keys_values(normed_BSD), bias))
        normed_BSD = LayerNorm(self.config, name="pre_mlp_layer_norm")(x_BSD)
        return x_BSD + dropout(Mlp(self.config, name="mlp")(normed_BSD, dropout))


class Encoder(nn.Module):
    """Stack of encoder layers over embedded positions."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD, mask_BS) -> Stack:
        dropout = _active(self, _dropout(self.config))
        position_S = jnp.arange(x_BSD.shape[1])
        position_1HSS = RelativePositionBias(self.config, True, name="relpos_bias")(position_S, position_S)
        bias = Bias(position_1HSS, _mask(mask_BS))
        x_BSD = _residual(dropout(x_BSD))
        layer = _traced_once(self, EncoderLayer, "__call__")
        layers = []
        for i in range(self.config.num_encoder_layers):
            x_BSD = _residual(layer(self.config, name=f"layers_{i}")(x_BSD, bias))
            layers.append(x_BSD)
        return Stack(dropout(LayerNorm(self.config, name="encoder_norm")(x_BSD)), tuple(layers))


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, feed-forward layer."""

    config: T5Config

    def setup(self):
        self.pre_self_attention_layer_norm = LayerNorm(self.config)
        self.self_attention = MultiHeadAttention(self.config)
        self.pre_cross_attention_layer_norm = LayerNorm(self.config)
        self.encoder_decoder_attention = MultiHeadAttention(self.config)
        self.pre_mlp_layer_norm = LayerNorm(self.config)
        self.mlp = Mlp(self.config)
        self.dropout = _dropout(self.config)

    def cross_keys_values(self, encoded_BSD):
        """Keys and values of the encoder's output, computed once for an input."""
        return self.encoder_decoder_attention.keys_values(encoded_BSD)

    def __call__(self, x_BTD, self_bias: Bias, cross, cross_bias: Bias, cache=None, position=None):
        """Returns x (B, T, D) and the updated cache; cache: (keys, values) (B, T_max, H, K), written at ``position``."""
        dropout = _active(self, self.dropout)
        normed_BTD = self.pre_self_attention_layer_norm(x_BTD)
        keys_values = self.self_attention.keys_values(normed_BTD)
        if cache is not None:
            write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), position, axis=1)  # noqa: E731
            keys_values = cache = jax.tree.map(write, cache, keys_values)
        x_BTD = x_BTD + dropout(self.self_attention(normed_BTD, keys_values, self_bias))
        normed_BTD = self.pre_cross_attention_layer_norm(x_BTD)
        x_BTD = x_BTD + dropout(self.encoder_decoder_attention(normed_BTD, cross, cross_bias))
        normed_BTD = self.pre_mlp_layer_norm(x_BTD)
        return x_BTD + dropout(self.mlp(normed_BTD, dropout)), cache


class Decoder(nn.Module):
    """Stack of decoder layers; one code for training (all positions) and decoding (one position and a cache)."""

    config: T5Config

    def setup(self):
        self.relpos_bias = RelativePositionBias(self.config, False)
        layer = _traced_once(self, DecoderLayer, "__call__", "cross_keys_values")
        self.layers = [layer(self.config) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = LayerNorm(self.config)
        self.dropout = _dropout(self.config)
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(self.config.vocab_size, self.config.dtype, self.config.d_model**-0.5)

    def cross(self, encoded_BSD, positions: int | None):
        """What each layer attends to: keys and values (B, S, H, K), or for few target positions the encoder's output itself.

        ``positions``: how many target positions will attend, over all calls; None = unknown.
        """
        few = positions is not None and positions <= self.config.head_dim // FEW_POSITIONS
        if few and not self.is_initializing():
            return (encoded_BSD,) * len(self.layers)
        return tuple(layer.cross_keys_values(encoded_BSD) for layer in self.layers)

    def __call__(self, x_BTD, mask_BS, cross, cache=None, position=0):
        """Embedded decoder inputs -> (Stack, cache). ``cross`` from ``cross``; ``cache`` as DecoderLayer's, a layer each."""
        dropout = _active(self, self.dropout)
        query_T = position + jnp.arange(x_BTD.shape[1])
        key_T = query_T if cache is None else jnp.arange(cache[0][0].shape[1])
        causal_TT = jnp.where(key_T[None, :] <= query_T[:, None], 0.0, MASKED)
        bias, cross_bias = Bias(self.relpos_bias(query_T, key_T) + causal_TT, None), Bias(None, _mask(mask_BS))
        x_BTD = _residual(dropout(x_BTD))
        layers, new_cache = [], []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache[i]
            x_BTD, layer_cache = layer(x_BTD, bias, cross[i], cross_bias, layer_cache, position)
            x_BTD = _residual(x_BTD)
            layers.append(x_BTD)
            new_cache.append(layer_cache)
        stack = Stack(dropout(self.decoder_norm(x_BTD)), tuple(layers))
        return stack, None if cache is None else tuple(new_cache)


class T5(nn.Module):
    """The network: ``encode``, ``decode``, and both in ``__call__``."""

    config: T5Config

    def setup(self):
        self.token_embedder = Embed(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, inputs_BL, prompt_BPD=None) -> tuple[Stack, jax.Array]:
        """Tokens (0 = padding) after the prompt's vectors, if any -> encoder Stack (B, S, D) and mask (B, S)."""
        x_BSD = self.token_embedder(inputs_BL)
        mask_BS = inputs_BL > 0
        if prompt_BPD is not None:
            x_BSD = jnp.concatenate([prompt_BPD.astype(x_BSD.dtype), x_BSD], axis=1)
            mask_BS = jnp.concatenate([jnp.ones(prompt_BPD.shape[:2], bool), mask_BS], axis=1)
        return self.encoder(x_BSD, mask_BS), mask_BS

    def cross(self, encoded_BSD, positions: int | None = None):
        """What each decoder layer attends to, see Decoder.cross."""
        return self.decoder.cross(encoded_BSD, positions)

    def logits(self, decoded_BTD):
        """Decoder output -> logits (B, T, V)."""
        project = self.token_embedder.attend if self.config.logits_via_embedding else self.decoder.logits_dense
        return constrain(project(decoded_BTD), "batch", "length", "vocab")

    def decode(self, decoder_inputs_BT, mask_BS, cross, cache=None, position=0):
        """Decoder inputs (targets shifted right) -> (Stack, cache)."""
        return self.decoder(self.token_embedder(decoder_inputs_BT), mask_BS, cross, cache, position)

    def __call__(self, inputs_BL, decoder_inputs_BT, prompt_BPD=None):
        """Returns logits (B, T, V), encoder Stack, decoder Stack."""
        encoded, mask_BS = self.encode(inputs_BL, prompt_BPD)
        cross = self.cross(encoded.output_BTD, decoder_inputs_BT.shape[1])
        decoded, _ = self.decode(decoder_inputs_BT, mask_BS, cross)
        return self.logits(decoded.output_BTD), encoded, decoded
