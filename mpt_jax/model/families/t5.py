"""T5 encoder-decoder in Flax Linen, and its row of the table of families.

Parameter names and shapes are those of T5X's minimal T5 (t5x/examples/t5/network.py), so its checkpoints restore by name.
B examples, L input tokens, P prompt positions, S = P + L encoder positions, T target tokens, Y positions that attend, Z positions that are
attended to, D model width, H heads, K head width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mpt_jax.config import Computation
from mpt_jax.model.attention import MASKED, Bias, KeysValues, States
from mpt_jax.model.changes import before_layers, of_module, variables
from mpt_jax.model.families import t5_names, t5_operations
from mpt_jax.model.families.family import Decoded, Family, Network, Outputs, Rows, Stack, real, shift_right, with_prefixes
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config
from mpt_jax.model.layers import Dense, Embed, Mlp, RelativePositionBias, RMSNorm
from mpt_jax.sharding import constrain

AXES = (
    (r".*token_embedder/embedding", ("vocab", "embed")),
    (r".*/(query|key|value)/kernel", ("embed", "joined_kv")),
    (r".*/out/kernel", ("joined_kv", "embed")),
    (r".*/mlp/wi(_0|_1)?/kernel", ("embed", "mlp")),
    (r".*/mlp/wo/kernel", ("mlp", "embed")),
    (r".*/logits_dense/kernel", ("embed", "vocab")),
    (r".*/relpos_bias/rel_embedding", ("heads", "relpos_buckets")),
    (r".*/scale", ("scale",)),
)


class _Module(nn.Module):
    """Part of a T5."""

    config: T5Config
    computation: Computation

    def norm(self, name: str | None = None) -> RMSNorm:
        """A norm over the model's width."""
        return RMSNorm(self.config.layer_norm_epsilon, self.computation.dtype, name=name)

    def mlp_layer(self, name: str | None = None) -> Mlp:
        """A feed-forward layer."""
        return Mlp(self.config.d_ff, self.config.mlp_activations, self.computation.dtype, name=name)

    def relative_bias(self, bidirectional: bool, name: str | None = None) -> RelativePositionBias:
        """The bias of attention by distance."""
        config = self.config
        return RelativePositionBias(
            config.num_heads, config.relative_attention_num_buckets, config.relative_attention_max_distance, bidirectional,
            stddev=config.d_model**-0.5, name=name,
        )  # fmt: skip

    def dropout_layer(self) -> nn.Dropout:
        """Dropout of whole positions' features, alike along the length."""
        return nn.Dropout(self.computation.dropout_rate, broadcast_dims=(-2,))

    def active(self, dropout: nn.Dropout):
        """Dropout where random bits were given; else, and at rate 0, the identity without any bits."""
        return functools.partial(dropout, deterministic=not self.has_rng("dropout"))

    def traced_once(self, layer: type[nn.Module], *methods: str) -> type[nn.Module]:
        """The class of a stack's layers: traced for one of them, not for each, and rematerialised where the setting says so."""
        layer = nn.remat(layer) if self.computation.remat == "layers" else layer
        # drawn weights depend on the path of scopes, which the transform changes
        return layer if self.is_initializing() else nn.jit(layer, methods=methods)


def _mask(real_BS):
    return jnp.where(real_BS, 0.0, MASKED)[:, None, None, :]


def _after(prefix, position_S):
    """Positions of the keys where some of a method are put in front of those at ``position_S``."""
    return position_S if prefix is None else jnp.concatenate([jnp.arange(-prefix[0].shape[1], 0), position_S])


def _residual(x_BYD):
    """The residual stream between layers: examples on their devices, width whole."""
    return constrain(x_BYD, "batch", "length", "activation_embed")


class MultiHeadAttention(_Module):
    """Attention with kernels ``query``, ``key``, ``value`` (D, H*K) and ``out`` (H*K, D); 1/sqrt(K) is in the query's initialiser."""

    def setup(self):
        config, dtype = self.config, self.computation.dtype
        width = config.num_heads * config.head_dim
        self.query = Dense(width, dtype, (config.d_model * config.head_dim) ** -0.5)
        self.key = Dense(width, dtype, config.d_model**-0.5)
        self.value = Dense(width, dtype, config.d_model**-0.5)
        self.out = Dense(config.d_model, dtype, width**-0.5)

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

    def _split(self, x_BYX):
        return constrain(self._heads(x_BYX), "batch", "length", "heads", "kv")

    def keys_values(self, x_BZD) -> KeysValues:
        """Keys and values of the positions attended to."""
        return KeysValues(self._split(self.key(x_BZD)), self._split(self.value(x_BZD)))

    def states(self, x_BZD) -> States | KeysValues:
        """The positions attended to as they are, with the kernels of keys and values; what these give, where a method changes them or
        they are kept as int8: converted kernels of all layers would live from the forward to the backward pass."""
        if of_module(self.key) or of_module(self.value) or self.key.is_int8:
            return self.keys_values(x_BZD)
        kernels = (self._heads(dense.kernel(x_BZD.shape[-1])) for dense in (self.key, self.value))
        return States(x_BZD, *(constrain(kernel_DHK, "activation_embed", "heads", "kv") for kernel_DHK in kernels))

    def __call__(self, x_BYD, attended: KeysValues | States, bias: Bias):
        """Attends from x; returns (B, Y, D)."""
        mixed_BYHK = attended.attend(self.computation, self._split(self.query(x_BYD)), bias)
        return self.out(mixed_BYHK.reshape(*x_BYD.shape[:-1], -1))


class EncoderLayer(_Module):
    """Self-attention and feed-forward layer, each after a norm and added to the residual stream."""

    @nn.compact
    def __call__(self, x_BSD, bias: Bias, prefix=None):
        dropout = self.active(self.dropout_layer())
        if self.config.relative_bias_per_layer:
            position_S = jnp.arange(x_BSD.shape[1])
            bias = Bias(self.relative_bias(True, "relpos_bias")(position_S, _after(prefix, position_S)), bias.key_B11Z)
        attention = MultiHeadAttention(self.config, self.computation, name="attention")
        normed_BSD = self.norm("pre_attention_layer_norm")(x_BSD)
        x_BSD = x_BSD + dropout(attention(normed_BSD, attention.keys_values(normed_BSD).after(prefix), bias))
        normed_BSD = self.norm("pre_mlp_layer_norm")(x_BSD)
        return x_BSD + dropout(self.mlp_layer("mlp")(normed_BSD, dropout))


class Encoder(_Module):
    """Stack of encoder layers over embedded positions."""

    @nn.compact
    def __call__(self, x_BSD, real_BS) -> Stack:
        dropout = self.active(self.dropout_layer())
        prefixes = before_layers(self, self.config.num_encoder_layers, self.computation.dtype)
        position_S = jnp.arange(x_BSD.shape[1])
        key_S = _after(prefixes[0], position_S)
        shared = None if self.config.relative_bias_per_layer else self.relative_bias(True, "relpos_bias")(position_S, key_S)
        mask_B11S = _mask(real_BS)
        bias = Bias(shared, jnp.pad(mask_B11S, ((0, 0), (0, 0), (0, 0), (len(key_S) - len(position_S), 0))) if prefixes[0] else mask_B11S)
        x_BSD = _residual(dropout(x_BSD))
        layer = self.traced_once(EncoderLayer, "__call__")
        layers = []
        for i in range(self.config.num_encoder_layers):
            x_BSD = _residual(layer(self.config, self.computation, name=f"layers_{i}")(x_BSD, bias, prefixes[i]))
            layers.append(x_BSD)
        return Stack(dropout(self.norm("encoder_norm")(x_BSD)), tuple(layers), real_BS)


def _positions(x_BTD, cache: KeysValues | None, position, prefix):
    """Positions of the decoder's queries (Y,) and keys (Z,); ``position``: of the first query; prefix: keys and values before all."""
    query_Y = position + jnp.arange(x_BTD.shape[1])
    return query_Y, _after(prefix, query_Y if cache is None else jnp.arange(cache.key_BZJK.shape[1]))


class DecoderLayer(_Module):
    """Causal self-attention, attention to the encoder, feed-forward layer."""

    def setup(self):
        if self.config.relative_bias_per_layer:
            self.relpos_bias = self.relative_bias(False)
        self.pre_self_attention_layer_norm = self.norm()
        self.self_attention = MultiHeadAttention(self.config, self.computation)
        self.pre_cross_attention_layer_norm = self.norm()
        self.encoder_decoder_attention = MultiHeadAttention(self.config, self.computation)
        self.pre_mlp_layer_norm = self.norm()
        self.mlp = self.mlp_layer()
        self.dropout = self.dropout_layer()

    def cross_keys_values(self, encoded_BSD) -> KeysValues:
        """Keys and values of the encoder's output, computed once for an input."""
        return self.encoder_decoder_attention.keys_values(encoded_BSD)

    def cross_states(self, encoded_BSD) -> States:
        """The encoder's output itself."""
        return self.encoder_decoder_attention.states(encoded_BSD)

    def __call__(self, x_BTD, self_bias: Bias, cross: KeysValues | States, cross_bias: Bias, cache=None, position=0, prefix=None):
        """Returns x (B, T, D) and the updated cache: KeysValues of (B, T, H, K), written at ``position``; prefix: seen before them."""
        dropout = self.active(self.dropout)
        normed_BTD = self.pre_self_attention_layer_norm(x_BTD)
        keys_values = self.self_attention.keys_values(normed_BTD)
        if self.config.relative_bias_per_layer:
            distances_1HYZ = self.relpos_bias(*_positions(x_BTD, cache, position, prefix))
            self_bias = Bias(self_bias.position_1HYZ + distances_1HYZ, None)
        if cache is not None:

            def write(old, new):
                return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), position, axis=1)

            keys_values = cache = jax.tree.map(write, cache, keys_values)
        x_BTD = x_BTD + dropout(self.self_attention(normed_BTD, keys_values.after(prefix), self_bias))
        normed_BTD = self.pre_cross_attention_layer_norm(x_BTD)
        x_BTD = x_BTD + dropout(self.encoder_decoder_attention(normed_BTD, cross, cross_bias))
        normed_BTD = self.pre_mlp_layer_norm(x_BTD)
        return x_BTD + dropout(self.mlp(normed_BTD, dropout)), cache


class Decoder(_Module):
    """Stack of decoder layers; one code for training (all positions) and decoding (one position and a cache)."""

    def setup(self):
        if not self.config.relative_bias_per_layer:
            self.relpos_bias = self.relative_bias(False)
        layer = self.traced_once(DecoderLayer, "__call__", "cross_keys_values")
        self.layers = [layer(self.config, self.computation) for _ in range(self.config.num_decoder_layers)]
        self.decoder_norm = self.norm()
        self.dropout = self.dropout_layer()
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(self.config.vocab_size, self.computation.dtype, self.config.d_model**-0.5)

    def cross(self, encoded_BSD, positions: int | None) -> tuple:
        """What each layer attends to, see ``t5_operations.attends_to_states``. ``positions``: how many target positions will attend
        over all calls; None = unknown."""
        few = positions is not None and t5_operations.attends_to_states(self.config, positions)
        if few and not self.is_initializing():
            return tuple(layer.cross_states(encoded_BSD) for layer in self.layers)
        return tuple(layer.cross_keys_values(encoded_BSD) for layer in self.layers)

    def __call__(self, x_BTD, real_BS, cross, cache=None, position=0):
        """Embedded decoder inputs -> (final states (B, T, D), those after each layer, cache). ``cross`` and ``cache``: a layer each."""
        dropout = self.active(self.dropout)
        prefixes = before_layers(self, self.config.num_decoder_layers, self.computation.dtype)
        query_Y, key_Z = _positions(x_BTD, None if cache is None else cache[0], position, prefixes[0])
        causal_11YZ = jnp.where(key_Z[None, :] <= query_Y[:, None], 0.0, MASKED)[None, None]
        shared_1HYZ = 0.0 if self.config.relative_bias_per_layer else self.relpos_bias(query_Y, key_Z)
        bias, cross_bias = Bias(shared_1HYZ + causal_11YZ, None), Bias(None, _mask(real_BS))
        x_BTD = _residual(dropout(x_BTD))
        layers, new_cache = [], []
        for i, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache[i]
            x_BTD, layer_cache = layer(x_BTD, bias, cross[i], cross_bias, layer_cache, position, prefixes[i])
            x_BTD = _residual(x_BTD)
            layers.append(x_BTD)
            new_cache.append(layer_cache)
        return dropout(self.decoder_norm(x_BTD)), tuple(layers), None if cache is None else tuple(new_cache)


class T5(_Module):
    """The network's parts: ``embed``, ``encode``, ``cross``, ``decode``, ``logits``; ``__call__`` for drawing weights."""

    def setup(self):
        self.token_embedder = Embed(self.config.vocab_size, self.config.d_model, self.computation.dtype)
        self.encoder = Encoder(self.config, self.computation)
        self.decoder = Decoder(self.config, self.computation)

    def embed(self, tokens_BY):
        """Tokens -> vectors (B, Y, D)."""
        return self.token_embedder(tokens_BY)

    def encode(self, embedded_BSD, real_BS) -> Stack:
        """The encoder over embedded positions, those of prefixes among them."""
        return self.encoder(embedded_BSD, real_BS)

    def cross(self, encoded_BSD, positions: int | None = None) -> tuple:
        """What each decoder layer attends to, see Decoder.cross."""
        return self.decoder.cross(encoded_BSD, positions)

    def logits(self, decoded_BTD):
        """Decoder output -> logits (B, T, V); the tied output of v1.0 is scaled."""
        if self.config.logits_via_embedding:
            found_BTV = self.token_embedder.attend(decoded_BTD * (self.config.d_model**-0.5))
        else:
            found_BTV = self.decoder.logits_dense(decoded_BTD)
        return constrain(found_BTV, "batch", "length", "vocab")

    def decode(self, tokens_BT, real_BS, cross, cache=None, position=0):
        """Decoder inputs (targets shifted right) -> (final states (B, T, D), those after each layer, cache)."""
        return self.decoder(self.token_embedder(tokens_BT), real_BS, cross, cache, position)

    def __call__(self, tokens_BT):
        encoded = self.encode(self.embed(tokens_BT), jnp.ones(tokens_BT.shape, bool))
        decoded_BTD, _, _ = self.decode(tokens_BT, encoded.real_BY, self.cross(encoded.output_BYD))
        return self.logits(decoded_BTD)


class Prefilled(NamedTuple):
    """What decoding needs of an input: the token before the first target, the real encoder positions (B, S) and what each decoder layer
    attends to (T5.cross)."""

    start_B: jax.Array
    real_BS: jax.Array
    cross: tuple
    changes: dict  # of the method (changes.py)


def _parts(network: Network, backbone: dict, changes: dict, dropout_rng=None):
    """``apply`` of the network's methods over these weights and changes."""
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    return functools.partial(T5(network.config, network.computation).apply, variables(backbone, changes), rngs=rngs)


def _encode(network: Network, parts, rows: Rows, own) -> Stack:
    return parts(*with_prefixes(network, own, parts(rows.inputs_BL, method=T5.embed), rows), method=T5.encode)


def forward(network: Network, backbone: dict, rows: Rows, own=None, dropout_rng=None) -> Outputs:
    """Teacher-forced pass (Family.forward)."""
    parts = _parts(network, backbone, network.changes(own, backbone, rows.slot_B), dropout_rng)
    encoder = _encode(network, parts, rows, own)
    targets_BT, target_length_B = rows.scored
    length = targets_BT.shape[1]
    cross = parts(encoder.output_BYD, length, method=T5.cross)
    shifted_BT = shift_right(targets_BT, network.config.decoder_start_id)
    decoded_BTD, layers, _ = parts(shifted_BT, encoder.real_BY, cross, method=T5.decode)
    decoder = Stack(decoded_BTD, layers, real(target_length_B, length))
    return Outputs(_decoded(parts, decoded_BTD), {"encoder": encoder, "decoder": decoder})


def prefill(network: Network, backbone: dict, rows: Rows, own=None, positions: int | None = None) -> Prefilled:
    """Runs the encoder and, unless few target ``positions`` will be decoded, makes the cross-attention's keys and values once."""
    changes = network.changes(own, backbone, rows.slot_B)
    parts = _parts(network, backbone, changes)
    encoder = _encode(network, parts, rows, own)
    start_B = jnp.full(len(rows.inputs_BL), network.config.decoder_start_id, jnp.int32)
    return Prefilled(start_B, encoder.real_BY, parts(encoder.output_BYD, positions, method=T5.cross), changes)


def empty_cache(network: Network, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Key/value cache of the decoder's self-attention for ``length`` positions: zeros (B, T, H, K), a pair each layer."""
    config = network.config
    zeros = jnp.zeros((batch, length, config.num_heads, config.head_dim), network.computation.dtype)
    zeros = constrain(zeros, "batch", "length", "heads", "kv")
    return (KeysValues(zeros, zeros),) * config.num_decoder_layers


def decode_step(network: Network, backbone: dict, prefilled: Prefilled, cache: tuple, token_B, position):
    """One decoding step: the token before ``position`` -> logits (B, V) of the one there, and the cache."""
    parts = _parts(network, backbone, prefilled.changes)
    arguments = (token_B[:, None], prefilled.real_BS, prefilled.cross, cache, position)
    decoded_B1D, _, cache = parts(*arguments, method=T5.decode)
    return parts(decoded_B1D, method=T5.logits)[:, 0], cache


def decode_targets(network: Network, backbone: dict, prefilled: Prefilled, targets_BT) -> Decoded:
    """Teacher-forced targets over a prefilled input."""
    parts = _parts(network, backbone, prefilled.changes)
    shifted_BT = shift_right(targets_BT, network.config.decoder_start_id)
    decoded_BTD, _, _ = parts(shifted_BT, prefilled.real_BS, prefilled.cross, method=T5.decode)
    return _decoded(parts, decoded_BTD)


def _decoded(parts, states_BTD) -> Decoded:
    return Decoded(states_BTD, functools.partial(parts, method=T5.logits))


def init(config: T5Config, seed: int) -> dict:
    """Random float32 weights as T5 initialises them."""
    # no kernel is compiled for two tokens: the weights do not depend on how attention is computed
    return T5(config, Computation(attention="einsum")).init(jax.random.PRNGKey(seed), jnp.ones((1, 2), jnp.int32))["params"]


FAMILY = Family(
    "t5", T5Config, T5_SIZES, AXES, ("encoder", "decoder"), False, t5_names.entries, lambda config: config.num_layers, t5_names.words,
    init, forward, prefill, empty_cache, decode_step, decode_targets, t5_operations.prompt_step, t5_operations.weight_gradients,
    stacks=t5_operations.stacks,
)  # fmt: skip
