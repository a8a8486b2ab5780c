"""T5Gemma in Flax Linen: an encoder and a decoder of Gemma's layers, and its row of the table of families.

Its second generation (T5Gemma 2) is the same with other facts in its shape, for texts alone. Prompts are rows of the encoder's embedding:
they are scaled as those are when they enter the encoder.
B examples, L input tokens, P prompt positions, S = P + L encoder positions, T target tokens, Y positions that attend,
Z positions that are attended to, D model width, J heads of keys and values, K head width, V vocabulary.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import Computation
from mpt_jax.model.attention import KeysValues, Segment
from mpt_jax.model.changes import variables
from mpt_jax.model.families import causal, t5gemma_names, t5gemma_operations
from mpt_jax.model.families.blocks import Attention, Layer, LayerStack, around, capped, earlier, scaled, zeros_cache
from mpt_jax.model.families.family import Decoded, Family, Network, Outputs, Rows, Stack, real, shift_right, with_prefixes
from mpt_jax.model.families.t5gemma_config import T5GEMMA_SIZES, T5GemmaConfig
from mpt_jax.model.layers import Dense, Embed
from mpt_jax.sharding import constrain


class Encoder(LayerStack):
    """The stack of the encoder: every position sees all others, or those of its window on either side."""

    halved_windows: bool

    def setup(self):
        self.layers = self.make_layers(Layer)
        self.encoder_norm = self.norm()
        self.dropout = self.dropout_layer()

    def __call__(self, x_BSD, real_BS) -> Stack:
        dropout, positions = self.active(self.dropout), x_BSD.shape[1]
        position_1S = jnp.arange(positions)[None]

        def visible(window: int):
            left, right = ((window + 1) // 2, window // 2 + 1) if self.halved_windows else (window, window)
            return around(position_1S, real_BS, left if positions > min(left, right) else 0, right)

        x_BSD, layers, _ = self.through(dropout(x_BSD), position_1S, visible)
        return Stack(dropout(self.encoder_norm(x_BSD)), layers, real_BS)


class DecoderLayer(Layer):
    """Attention to targets, attention to the encoder's output, feed-forward layer."""

    def setup(self):
        super().setup()
        self.pre_cross_attention_norm = self.norm()
        self.cross_attention = Attention(self.config, self.computation, None)
        if self.config.post_norms:
            self.post_cross_attention_norm = self.norm()

    def cross_keys_values(self, encoded_BSD) -> KeysValues:
        """Keys and values of the encoder's output, computed once for an input."""
        return self.cross_attention.keys_values(encoded_BSD)

    def __call__(
        self, x_BYD, position_BY, before: Sequence[Segment], visible_BYZ, cache: KeysValues | None = None, index=None, *cross: Segment
    ):
        x_BYD, made = self.attend(x_BYD, position_BY, before, visible_BYZ, cache, index)
        found_BYD = self.cross_attention(self.pre_cross_attention_norm(x_BYD), None, cross)
        found_BYD = self.post_cross_attention_norm(found_BYD) if self.config.post_norms else found_BYD
        return self.feed(x_BYD + self.active(self.dropout)(found_BYD)), made


class MergedLayer(Layer):
    """T5Gemma 2: one attention sees targets and the encoder's output, whose positions are not turned."""

    def cross_keys_values(self, encoded_BSD) -> KeysValues:
        """Keys and values of the encoder's output, computed once for an input."""
        return self.attention.keys_values(encoded_BSD)

    def __call__(
        self, x_BYD, position_BY, before: Sequence[Segment], visible_BYZ, cache: KeysValues | None = None, index=None, *cross: Segment
    ):
        return super().__call__(x_BYD, position_BY, [*before, *cross], visible_BYZ, cache, index)


class Decoder(LayerStack):
    """The stack of the decoder; one code for training (all positions) and decoding (one position and a cache)."""

    merged_attention: bool
    one_embedding: bool

    def setup(self):
        config, dtype = self.config, self.computation.dtype
        if not self.one_embedding:
            self.token_embedder = Embed(config.vocab_size, config.d_model, dtype)
        self.layers = self.make_layers(MergedLayer if self.merged_attention else DecoderLayer, "cross_keys_values")
        self.decoder_norm = self.norm()
        self.dropout = self.dropout_layer()
        if not config.logits_via_embedding:
            self.logits_dense = Dense(config.vocab_size, dtype, config.d_model**-0.5)

    def cross(self, encoded_BSD) -> tuple[KeysValues, ...]:
        """What each layer attends to."""
        return tuple(layer.cross_keys_values(encoded_BSD) for layer in self.layers)

    def __call__(self, x_BTD, real_BS, cross: tuple[KeysValues, ...], cache=None, position=0):
        """Embedded decoder inputs -> (final states (B, T, D), those after each layer, keys and values of each layer)."""
        dropout = self.active(self.dropout)
        query_1T = (position + jnp.arange(x_BTD.shape[1]))[None]
        key_1T = query_1T if cache is None else jnp.arange(cache[0].key_BZJK.shape[1])[None]
        visible = functools.partial(earlier, query_1T, key_1T, jnp.ones(key_1T.shape, bool))
        seen = [Segment(*keys_values, real_BS[:, None, :]) for keys_values in cross]
        x_BTD, layers, made = self.through(dropout(x_BTD), query_1T, visible, (), cache, position, seen)
        return dropout(self.decoder_norm(x_BTD)), layers, made


class T5Gemma(nn.Module):
    """The network's parts: ``embed``, ``encode``, ``cross``, ``decode``, ``logits``; ``__call__`` for drawing weights."""

    config: T5GemmaConfig
    computation: Computation

    def setup(self):
        config, computation = self.config, self.computation
        self.token_embedder = Embed(config.vocab_size, config.encoder.d_model, computation.dtype)
        self.encoder = Encoder(config.encoder, computation, config.halved_windows)
        self.decoder = Decoder(config.decoder, computation, config.merged_attention, config.one_embedding)

    def embed(self, tokens_BY):
        """Tokens -> rows of the encoder's embedding (B, Y, D), not scaled yet."""
        return self.token_embedder(tokens_BY)

    def encode(self, embedded_BSD, real_BS) -> Stack:
        """The encoder over rows of its embedding and prompts alike."""
        return self.encoder(scaled(embedded_BSD, self.config.encoder, self.computation.dtype), real_BS)

    def cross(self, encoded_BSD) -> tuple[KeysValues, ...]:
        """What each decoder layer attends to."""
        return self.decoder.cross(encoded_BSD)

    def decode(self, tokens_BT, real_BS, cross, cache=None, position=0):
        """Decoder inputs (targets shifted right) -> as Decoder.__call__."""
        x_BTD = self._decoder_embedder()(tokens_BT)
        return self.decoder(scaled(x_BTD, self.config.decoder, self.computation.dtype), real_BS, cross, cache, position)

    def logits(self, decoded_BTD):
        """Decoder output -> logits (B, T, V)."""
        tied = self.config.decoder.logits_via_embedding
        project = self._decoder_embedder().attend if tied else self.decoder.logits_dense
        return constrain(capped(project(decoded_BTD), self.config.decoder.logits_cap), "batch", "length", "vocab")

    def _decoder_embedder(self) -> Embed:
        return self.token_embedder if self.config.one_embedding else self.decoder.token_embedder

    def __call__(self, tokens_BT):
        encoded = self.encode(self.embed(tokens_BT), jnp.ones(tokens_BT.shape, bool))
        return self.logits(self.decode(tokens_BT, encoded.real_BY, self.cross(encoded.output_BYD))[0])


class Prefilled(NamedTuple):
    """What decoding needs of an input: the token before the first target, real encoder positions (B, S), keys and values of them."""

    start_B: jax.Array
    real_BS: jax.Array
    cross: tuple[KeysValues, ...]
    changes: dict  # of the method (changes.py)


def _parts(network: Network, backbone: dict, changes: dict, dropout_rng=None):
    """``apply`` of the network's methods over these weights and changes."""
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    return functools.partial(T5Gemma(network.config, network.computation).apply, variables(backbone, changes), rngs=rngs)


def _encode(network: Network, parts, rows: Rows, own) -> Stack:
    return parts(*with_prefixes(network, own, parts(rows.inputs_BL, method=T5Gemma.embed), rows), method=T5Gemma.encode)


def forward(network: Network, backbone: dict, rows: Rows, own=None, dropout_rng=None) -> Outputs:
    """Teacher-forced pass (Family.forward)."""
    parts = _parts(network, backbone, network.changes(own, backbone, rows.slot_B), dropout_rng)
    encoder = _encode(network, parts, rows, own)
    targets_BT, target_length_B = rows.scored
    cross = parts(encoder.output_BYD, method=T5Gemma.cross)
    shifted_BT = shift_right(targets_BT, network.config.decoder_start_id)
    decoded_BTD, layers, _ = parts(shifted_BT, encoder.real_BY, cross, method=T5Gemma.decode)
    decoder = Stack(decoded_BTD, layers, real(target_length_B, targets_BT.shape[1]))
    return Outputs(_decoded(parts, decoded_BTD), {"encoder": encoder, "decoder": decoder})


def prefill(network: Network, backbone: dict, rows: Rows, own=None, positions: int | None = None) -> Prefilled:
    """Runs the encoder and makes the keys and values of its output once."""
    del positions
    changes = network.changes(own, backbone, rows.slot_B)
    parts = _parts(network, backbone, changes)
    encoder = _encode(network, parts, rows, own)
    start_B = jnp.full(len(rows.inputs_BL), network.config.decoder_start_id, jnp.int32)
    return Prefilled(start_B, encoder.real_BY, parts(encoder.output_BYD, method=T5Gemma.cross), changes)


def empty_cache(network: Network, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Keys and values of ``length`` target positions: zeros (B, T, J, K), a pair each layer."""
    return zeros_cache(network.config.decoder, network.computation, batch, length)


def decode_step(network: Network, backbone: dict, prefilled: Prefilled, cache: tuple, token_B, position):
    """One decoding step: the token before ``position`` -> logits (B, V) of the one there, and the cache."""
    parts = _parts(network, backbone, prefilled.changes)
    arguments = (token_B[:, None], prefilled.real_BS, prefilled.cross, cache, position)
    decoded_B1D, _, cache = parts(*arguments, method=T5Gemma.decode)
    return parts(decoded_B1D, method=T5Gemma.logits)[:, 0], cache


def decode_targets(network: Network, backbone: dict, prefilled: Prefilled, targets_BT) -> Decoded:
    """Teacher-forced targets over a prefilled input."""
    parts = _parts(network, backbone, prefilled.changes)
    shifted_BT = shift_right(targets_BT, network.config.decoder_start_id)
    decoded_BTD, _, _ = parts(shifted_BT, prefilled.real_BS, prefilled.cross, method=T5Gemma.decode)
    return _decoded(parts, decoded_BTD)


def _decoded(parts, states_BTD) -> Decoded:
    return Decoded(states_BTD, functools.partial(parts, method=T5Gemma.logits))


def init(config: T5GemmaConfig, seed: int) -> dict:
    """Random float32 weights: normal, scaled by the width of what comes in."""
    return T5Gemma(config, Computation()).init(jax.random.PRNGKey(seed), jnp.ones((1, 2), jnp.int32))["params"]


FAMILY = Family(
    "t5gemma", T5GemmaConfig, T5GEMMA_SIZES, causal.AXES, ("encoder", "decoder"), False, t5gemma_names.entries,
    lambda config: config.num_layers, t5gemma_names.words, init, forward, prefill, empty_cache, decode_step, decode_targets,
    t5gemma_operations.prompt_step, t5gemma_operations.weight_gradients, lambda config, name: getattr(config, name).d_model,
    t5gemma_operations.stacks,
)  # fmt: skip
