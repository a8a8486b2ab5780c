"""Decoder-only models of Llama's kind in Flax Linen, and their row of the table of families.

The prompt stands in front of everything, so its keys and values depend on the task alone: they are computed once for each of the U
different tasks of a micro-batch. The last input token is what the first target is predicted from, so it goes with the targets.
B examples, U different tasks, L input tokens, P prompt positions, T target tokens, D model width, H heads, G groups of heads that share
keys and values, K head width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import Computation
from mpt_jax.model.attention import KeysValues, Segment, attend_segments
from mpt_jax.model.families import causal_names, causal_operations
from mpt_jax.model.families.causal_config import CAUSAL_SIZES, CausalConfig, Rotary
from mpt_jax.model.families.family import Decoded, Family, Network, Outputs, Rows, Stack, real
from mpt_jax.model.layers import Dense, Embed, Mlp, RMSNorm
from mpt_jax.model.rotary import turn
from mpt_jax.sharding import constrain

AXES = (
    (r".*token_embedder/embedding", ("vocab", "embed")),
    (r".*/(query|key|value)/kernel", ("embed", "joined_kv")),
    (r".*/(query|key|value)/bias", ("joined_kv",)),
    (r".*/out/kernel", ("joined_kv", "embed")),
    (r".*/mlp/wi_(0|1)/kernel", ("embed", "mlp")),
    (r".*/mlp/wo/kernel", ("mlp", "embed")),
    (r".*/logits_dense/kernel", ("embed", "vocab")),
    (r".*/scale", ("scale",)),
)


class _Module(nn.Module):
    """Part of a decoder-only model."""

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


class Attention(_Module):
    """Grouped attention over rotary positions: ``query``, ``key``, ``value`` and ``out`` kernels, norms of queries and keys where so."""

    rotary: Rotary

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

    def keys_values(self, x_BTD, position_BT) -> KeysValues:
        """Keys, turned to their positions, and values: (B, T, G, K)."""
        key_BTGK = self._heads(self.key(x_BTD), self.config.num_kv_heads)
        key_BTGK = self.key_norm(key_BTGK) if self.config.query_key_norm else key_BTGK
        return KeysValues(turn(key_BTGK, position_BT, self.rotary), self._heads(self.value(x_BTD), self.config.num_kv_heads))

    def __call__(self, x_BTD, position_BT, segments: list[Segment]):
        """Attends from x to the segments: (B, T, D)."""
        config = self.config
        query_BTHK = self._heads(self.query(x_BTD), config.num_heads)
        query_BTHK = self.query_norm(query_BTHK) if config.query_key_norm else query_BTHK
        query_BTHK = turn(query_BTHK, position_BT, self.rotary)
        mixed_BTHK = attend_segments(query_BTHK, segments, config.logit_scale, config.attention_cap)
        return self.out(mixed_BTHK.reshape(*x_BTD.shape[:-1], -1))


class Layer(_Module):
    """Attention and gated feed-forward layer, each after a norm and added to the residual stream."""

    rotary: Rotary

    def setup(self):
        self.pre_attention_norm, self.pre_mlp_norm = self.norm(), self.norm()
        self.attention = Attention(self.config, self.computation, self.rotary)
        self.mlp = Mlp(self.config.d_ff, (self.config.activation, "linear"), self.computation.dtype)
        self.dropout = self.dropout_layer()
        if self.config.post_norms:
            self.post_attention_norm, self.post_mlp_norm = self.norm(), self.norm()

    def __call__(self, x_BTD, position_BT, before: list[Segment], visible_BTS, cache: KeysValues | None = None, index=None):
        """(x (B, T, D), its keys and values). ``before``: what the positions see besides one another; visible: those, or of the cache.

        cache: keys and values (B, S, G, K) of these and earlier positions, into which this call's are written at ``index``.
        """
        dropout = self.active(self.dropout)
        normed_BTD = self.pre_attention_norm(x_BTD)
        made = self.attention.keys_values(normed_BTD, position_BT)
        if cache is not None:

            def write(old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=1)

            made = jax.tree.map(write, cache, made)
        found_BTD = self.attention(normed_BTD, position_BT, [*before, Segment(*made, visible_BTS)])
        found_BTD = self.post_attention_norm(found_BTD) if self.config.post_norms else found_BTD
        x_BTD = x_BTD + dropout(found_BTD)
        found_BTD = self.mlp(self.pre_mlp_norm(x_BTD), dropout)
        found_BTD = self.post_mlp_norm(found_BTD) if self.config.post_norms else found_BTD
        return x_BTD + dropout(found_BTD), made


class Seen(NamedTuple):
    """Positions that come before others: keys and values of each layer (B or 1, S, G, K), where they are, and which are real."""

    layers: tuple[KeysValues, ...]
    position_BS: jax.Array
    real_BS: jax.Array


class Decoder(_Module):
    """The stack of layers; one code for prefixes, training and decoding."""

    def setup(self):
        layer = nn.remat(Layer) if self.computation.remat == "layers" else Layer
        # traced for one layer of a kind, not for each; drawn weights depend on the path of scopes, which the transform changes
        layer = layer if self.is_initializing() else nn.jit(layer, methods=("__call__",))
        self.layers = [layer(self.config, self.computation, self.config.rotary_of(i)) for i in range(self.config.num_layers)]
        self.decoder_norm = self.norm()
        self.dropout = self.dropout_layer()
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(self.config.vocab_size, self.computation.dtype, self.config.d_model**-0.5)

    def __call__(self, x_BTD, position_BT, real_BT, seen: tuple[Seen, ...] = (), cache=None, index=None):
        """(states after the final norm, states after each layer (B, T, D), keys and values of each layer).

        ``cache``: a layer each, with the positions and realness of their slots, for one position a call (see Layer).
        """
        dropout, config = self.active(self.dropout), self.config
        x_BTD = _residual(dropout(x_BTD))
        key_position_BS, key_real_BS = (position_BT, real_BT) if cache is None else cache[1:]

        def segments(window: int, layer: int):
            before = [
                Segment(*part.layers[layer], _visible(position_BT, part.position_BS, part.real_BS, window)) for part in seen
            ]
            return before, _visible(position_BT, key_position_BS, key_real_BS, window)

        layers, made = [], []
        for i, layer in enumerate(self.layers):
            window = config.window if config.layer_kinds[i] == "window" else 0
            before, visible_BTS = segments(window, i)
            held = None if cache is None else cache[0][i]
            x_BTD, keys_values = layer(x_BTD, position_BT, before, visible_BTS, held, index)
            x_BTD = _residual(x_BTD)
            layers.append(x_BTD)
            made.append(keys_values)
        return dropout(self.decoder_norm(x_BTD)), tuple(layers), tuple(made)


def _residual(x_BTD):
    return constrain(x_BTD, "batch", "length", "activation_embed")


def _visible(query_BT, key_BS, real_BS, window: int):
    """Which keys each query sees: real ones at its position or before, no farther back than the window: (B, T, S)."""
    distance_BTS = query_BT[:, :, None] - key_BS[:, None, :]
    seen_BTS = (distance_BTS >= 0) & real_BS[:, None, :]
    return seen_BTS & (distance_BTS < window) if window else seen_BTS


class Causal(_Module):
    """The network's parts: ``embed``, ``decode``, ``logits``; ``__call__`` for drawing weights."""

    def setup(self):
        self.token_embedder = Embed(self.config.vocab_size, self.config.d_model, self.computation.dtype)
        self.decoder = Decoder(self.config, self.computation)

    def embed(self, tokens_BT):
        """Tokens -> rows of the embedding (B, T, D), not scaled yet."""
        return self.token_embedder(tokens_BT)

    def decode(self, embedded_BTD, position_BT, real_BT, seen: tuple[Seen, ...] = (), cache=None, index=None):
        """Decoder.__call__ over embedded positions, tokens or a prompt's vectors alike."""
        x_BTD = embedded_BTD.astype(self.computation.dtype)
        if self.config.scaled_embedding:
            x_BTD = x_BTD * jnp.asarray(self.config.d_model**0.5, x_BTD.dtype)
        return self.decoder(x_BTD, position_BT, real_BT, seen, cache, index)

    def logits(self, decoded_BTD):
        """Final states -> logits (B, T, V)."""
        project = self.token_embedder.attend if self.config.logits_via_embedding else self.decoder.logits_dense
        found_BTV, cap = project(decoded_BTD), self.config.logits_cap
        found_BTV = cap * jnp.tanh(found_BTV.astype(jnp.float32) / cap) if cap else found_BTV
        return constrain(found_BTV, "batch", "length", "vocab")

    def __call__(self, tokens_BT):
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return self.logits(self.decode(self.embed(tokens_BT), position_BT, jnp.ones(tokens_BT.shape, bool))[0])


def _parts(network: Network, backbone: dict, dropout_rng=None):
    """``apply`` of the network's methods over these weights."""
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    return functools.partial(Causal(network.config, network.computation).apply, {"params": backbone}, rngs=rngs)


def _rows_of_slots(array_U, slot_B):
    """What each row's slot holds, by a product: the gradient of a gather would be scattered, which XLA runs slowly on CPU."""
    is_slot_BU = (slot_B[:, None] == jnp.arange(array_U.shape[0])).astype(array_U.dtype)
    return jnp.einsum("BU,UPGK->BPGK", is_slot_BU, array_U)


def _prefix(parts, prefix_UPD, slot_B) -> tuple[Seen, ...]:
    """The prompts' keys and values, computed once each, for every row: (B or 1, P, G, K) a layer; () without a prompt."""
    if prefix_UPD is None:
        return ()
    number, length = prefix_UPD.shape[:2]
    position_1P, real_1P = jnp.arange(length)[None], jnp.ones((1, length), bool)
    _, _, made = parts(prefix_UPD, position_1P, real_1P, method=Causal.decode)
    if slot_B is not None and number > 1:
        made = jax.tree.map(functools.partial(_rows_of_slots, slot_B=slot_B), made)
    return (Seen(made, position_1P, real_1P),)


class Inputs(NamedTuple):
    """The inputs of rows: their last token's vector, where it stands, and the tokens before it embedded (B, L - 1, D), with positions."""

    start_BD: jax.Array
    start_position_B: jax.Array
    embedded_BLD: jax.Array
    position_BL: jax.Array
    real_BL: jax.Array
    prefix: tuple[Seen, ...]


def _inputs(network: Network, parts, rows: Rows, own) -> Inputs:
    last_B = jnp.maximum(rows.input_length_B - 1, 0)
    length = rows.inputs_BL.shape[1]
    embedded_BLD = parts(rows.inputs_BL, method=Causal.embed)
    adapted, slot_B = network.adapted(own, embedded_BLD, real(rows.input_length_B, length), rows.slot_B)
    embedded_BLD, prefix = adapted.embedded_BLD, _prefix(parts, adapted.prefix_UPD, slot_B)
    before = 0 if adapted.prefix_UPD is None else adapted.prefix_UPD.shape[1]
    start_BD = jnp.take_along_axis(embedded_BLD, last_B[:, None, None], axis=1)[:, 0]
    position_BL = jnp.broadcast_to(before + jnp.arange(length - 1), (len(last_B), length - 1))
    return Inputs(start_BD, before + last_B, embedded_BLD[:, :-1], position_BL, real(last_B, length - 1), prefix)


def _target_vectors(parts, start_BD, targets_BT):
    """What targets are predicted from: the last input token, then the targets without their last one: (B, T, D)."""
    embedded_BTD = parts(targets_BT[:, :-1], method=Causal.embed)
    return jnp.concatenate([start_BD[:, None].astype(embedded_BTD.dtype), embedded_BTD], axis=1)


def forward(network: Network, backbone: dict, rows: Rows, own=None, dropout_rng=None) -> Outputs:
    """Teacher-forced pass (Family.forward): inputs and targets at once."""
    parts = _parts(network, backbone, dropout_rng)
    inputs = _inputs(network, parts, rows, own)
    length, before = rows.targets_BT.shape[1], inputs.embedded_BLD.shape[1]
    embedded_BSD = jnp.concatenate([inputs.embedded_BLD, _target_vectors(parts, inputs.start_BD, rows.targets_BT)], axis=1)
    target_position_BT = inputs.start_position_B[:, None] + jnp.arange(length)
    position_BS = jnp.concatenate([inputs.position_BL, target_position_BT], axis=1)
    real_BT = real(rows.target_length_B, length)
    real_BS = jnp.concatenate([inputs.real_BL, jnp.ones_like(real_BT)], axis=1)
    output_BSD, layers, _ = parts(embedded_BSD, position_BS, real_BS, inputs.prefix, method=Causal.decode)
    decoder = Stack(output_BSD[:, before:], tuple(layer_BSD[:, before:] for layer_BSD in layers), real_BT)
    return Outputs(_decoded(parts, decoder.output_BSD), {"decoder": decoder})


class Prefilled(NamedTuple):
    """What decoding needs of inputs: the last token and its vector, where it stands, and what is seen before it: prompt and inputs."""

    start_B: jax.Array
    start_BD: jax.Array
    start_position_B: jax.Array
    seen: tuple[Seen, ...]


def prefill(network: Network, backbone: dict, rows: Rows, own=None, positions: int | None = None) -> Prefilled:
    """Keys and values of prompt and inputs (Family.prefill)."""
    del positions
    parts = _parts(network, backbone)
    inputs = _inputs(network, parts, rows, own)
    start_B = jnp.take_along_axis(rows.inputs_BL, jnp.maximum(rows.input_length_B - 1, 0)[:, None], axis=1)[:, 0]
    seen = inputs.prefix
    if inputs.embedded_BLD.shape[1]:
        arguments = inputs.embedded_BLD, inputs.position_BL, inputs.real_BL, inputs.prefix
        _, _, made = parts(*arguments, method=Causal.decode)
        seen += (Seen(made, inputs.position_BL, inputs.real_BL),)
    return Prefilled(start_B, inputs.start_BD, inputs.start_position_B, seen)


def empty_cache(network: Network, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Keys and values of ``length`` target positions: zeros (B, T, G, K), a pair each layer."""
    config = network.config
    zeros = jnp.zeros((batch, length, config.num_kv_heads, config.head_dim), network.computation.dtype)
    zeros = constrain(zeros, "batch", "length", "heads", "kv")
    return (KeysValues(zeros, zeros),) * config.num_layers


def decode_step(network: Network, backbone: dict, prefilled: Prefilled, cache: tuple, token_B, position):
    """One decoding step (Family.decode_step); rows stand at positions of their own."""
    parts = _parts(network, backbone)
    embedded_BD = parts(token_B[:, None], method=Causal.embed)[:, 0]
    # the last input token as the method changed it
    embedded_BD = jnp.where(position == 0, prefilled.start_BD.astype(embedded_BD.dtype), embedded_BD)
    slots = jnp.arange(cache[0].key_BSHK.shape[1])
    position_BS = prefilled.start_position_B[:, None] + slots
    here_B1 = prefilled.start_position_B[:, None] + position
    real_BS = jnp.broadcast_to(slots <= position, position_BS.shape)
    arguments = embedded_BD[:, None], here_B1, jnp.ones_like(here_B1, bool), prefilled.seen, (cache, position_BS, real_BS), position
    decoded_B1D, _, cache = parts(*arguments, method=Causal.decode)
    return parts(decoded_B1D, method=Causal.logits)[:, 0], cache


def decode_targets(network: Network, backbone: dict, prefilled: Prefilled, targets_BT) -> Decoded:
    """Teacher-forced targets after prefilled inputs."""
    parts = _parts(network, backbone)
    vectors_BTD = _target_vectors(parts, prefilled.start_BD, targets_BT)
    position_BT = prefilled.start_position_B[:, None] + jnp.arange(targets_BT.shape[1])
    decoded_BTD, _, _ = parts(vectors_BTD, position_BT, jnp.ones(targets_BT.shape, bool), prefilled.seen, method=Causal.decode)
    return _decoded(parts, decoded_BTD)


def _decoded(parts, states_BTD) -> Decoded:
    return Decoded(states_BTD, functools.partial(parts, method=Causal.logits))


def init(config: CausalConfig, seed: int) -> dict:
    """Random float32 weights: normal, scaled by the width of what comes in."""
    return Causal(config, Computation()).init(jax.random.PRNGKey(seed), jnp.ones((1, 2), jnp.int32))["params"]


def num_layers(config: CausalConfig) -> int:
    """Layers of the stack."""
    return config.num_layers


FAMILY = Family(
    "causal", CausalConfig, CAUSAL_SIZES, AXES, ("decoder",), True, causal_names.entries, num_layers, causal_names.words,
    init, forward, prefill, empty_cache, decode_step, decode_targets, causal_operations.prompt_step, causal_operations.weight_gradients,
)  # fmt: skip
