"""Decoder-only models of Llama's kind in Flax Linen, and their row of the table of families.

The prompt stands in front of everything, so its keys and values depend on the task alone: they are computed once for each of the U
different tasks of a micro-batch. The last input token is what the first target is predicted from, so it goes with the targets.
B examples, U different tasks (runs), L input tokens, P prompt positions, T target tokens, Y positions of a stack, Z positions that are
attended to, D model width, J heads of keys and values, K head width, V vocabulary.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import Computation
from mpt_jax.model.attention import KeysValues
from mpt_jax.model.changes import rows_of_slots, variables
from mpt_jax.model.families import causal_names, causal_operations
from mpt_jax.model.families.blocks import Layer, LayerStack, Part, Seen, capped, earlier, scaled, zeros_cache
from mpt_jax.model.families.causal_config import CAUSAL_SIZES, CausalConfig
from mpt_jax.model.families.family import Decoded, Family, Network, Outputs, Rows, Stack, real
from mpt_jax.model.layers import Dense, Embed
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


class Decoder(LayerStack):
    """The stack of layers; one code for prefixes, training and decoding."""

    def setup(self):
        self.layers = self.make_layers(Layer)
        self.decoder_norm = self.norm()
        self.dropout = self.dropout_layer()
        if not self.config.logits_via_embedding:
            self.logits_dense = Dense(self.config.vocab_size, self.computation.dtype, self.config.d_model**-0.5)

    def __call__(self, x_BYD, position_BY, real_BY, seen: tuple[Seen, ...] = (), cache=None, index=None):
        """(states after the final norm, states after each layer (B, Y, D), keys and values of each layer).

        ``cache``: a layer each, with the positions and realness of their slots, for one position a call (see Layer).
        """
        dropout = self.active(self.dropout)
        key_position_BZ, key_real_BZ = (position_BY, real_BY) if cache is None else cache[1:]
        visible = functools.partial(earlier, position_BY, key_position_BZ, key_real_BZ)
        held = None if cache is None else cache[0]
        x_BYD, layers, made = self.through(dropout(x_BYD), position_BY, visible, seen, held, index)
        return dropout(self.decoder_norm(x_BYD)), layers, made


class Causal(Part):
    """The network's parts: ``embed``, ``decode``, ``logits``; ``__call__`` for drawing weights."""

    def setup(self):
        self.token_embedder = Embed(self.config.vocab_size, self.config.d_model, self.computation.dtype)
        self.decoder = Decoder(self.config, self.computation)

    def embed(self, tokens_BY):
        """Tokens -> rows of the embedding (B, Y, D), not scaled yet."""
        return self.token_embedder(tokens_BY)

    def decode(self, embedded_BYD, position_BY, real_BY, seen: tuple[Seen, ...] = (), cache=None, index=None):
        """Decoder.__call__ over embedded positions, tokens or a prompt's vectors alike."""
        x_BYD = scaled(embedded_BYD, self.config, self.computation.dtype)
        return self.decoder(x_BYD, position_BY, real_BY, seen, cache, index)

    def logits(self, decoded_BTD):
        """Final states -> logits (B, T, V)."""
        project = self.token_embedder.attend if self.config.logits_via_embedding else self.decoder.logits_dense
        return constrain(capped(project(decoded_BTD), self.config.logits_cap), "batch", "length", "vocab")

    def __call__(self, tokens_BT):
        position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        return self.logits(self.decode(self.embed(tokens_BT), position_BT, jnp.ones(tokens_BT.shape, bool))[0])


def _parts(network: Network, backbone: dict, changes: dict, dropout_rng=None):
    """``apply`` of the network's methods over these weights and changes."""
    rngs = {} if dropout_rng is None else {"dropout": dropout_rng}
    return functools.partial(Causal(network.config, network.computation).apply, variables(backbone, changes), rngs=rngs)


def _prefix(parts, prefix_UPD, slot_B) -> tuple[Seen, ...]:
    """The prompts' keys and values, computed once each, for every row: (B or 1, P, J, K) a layer; () without a prompt."""
    if prefix_UPD is None:
        return ()
    number, length = prefix_UPD.shape[:2]
    position_1P, real_1P = jnp.arange(length)[None], jnp.ones((1, length), bool)
    _, _, made = parts(prefix_UPD, position_1P, real_1P, method=Causal.decode)
    if slot_B is not None and number > 1:
        made = jax.tree.map(functools.partial(rows_of_slots, slot_B=slot_B), made)
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
    parts = _parts(network, backbone, network.changes(own, backbone, rows.slot_B), dropout_rng)
    inputs = _inputs(network, parts, rows, own)
    targets_BT, target_length_B = rows.scored
    length, before = targets_BT.shape[1], inputs.embedded_BLD.shape[1]
    embedded_BYD = jnp.concatenate([inputs.embedded_BLD, _target_vectors(parts, inputs.start_BD, targets_BT)], axis=1)
    target_position_BT = inputs.start_position_B[:, None] + jnp.arange(length)
    position_BY = jnp.concatenate([inputs.position_BL, target_position_BT], axis=1)
    real_BT = real(target_length_B, length)
    real_BY = jnp.concatenate([inputs.real_BL, jnp.ones_like(real_BT)], axis=1)
    output_BYD, layers, _ = parts(embedded_BYD, position_BY, real_BY, inputs.prefix, method=Causal.decode)
    decoder = Stack(output_BYD[:, before:], tuple(layer_BYD[:, before:] for layer_BYD in layers), real_BT)
    return Outputs(_decoded(parts, decoder.output_BYD), {"decoder": decoder})


class Prefilled(NamedTuple):
    """What decoding needs of inputs: the last token and its vector, where it stands, and what is seen before it: prompt and inputs."""

    start_B: jax.Array
    start_BD: jax.Array
    start_position_B: jax.Array
    seen: tuple[Seen, ...]
    changes: dict  # of the method (changes.py)


def prefill(network: Network, backbone: dict, rows: Rows, own=None, positions: int | None = None) -> Prefilled:
    """Keys and values of prompt and inputs (Family.prefill)."""
    del positions
    changes = network.changes(own, backbone, rows.slot_B)
    parts = _parts(network, backbone, changes)
    inputs = _inputs(network, parts, rows, own)
    start_B = jnp.take_along_axis(rows.inputs_BL, jnp.maximum(rows.input_length_B - 1, 0)[:, None], axis=1)[:, 0]
    seen = inputs.prefix
    if inputs.embedded_BLD.shape[1]:
        arguments = inputs.embedded_BLD, inputs.position_BL, inputs.real_BL, inputs.prefix
        _, _, made = parts(*arguments, method=Causal.decode)
        seen += (Seen(made, inputs.position_BL, inputs.real_BL),)
    return Prefilled(start_B, inputs.start_BD, inputs.start_position_B, seen, changes)


def empty_cache(network: Network, batch: int, length: int) -> tuple[KeysValues, ...]:
    """Keys and values of ``length`` target positions: zeros (B, T, J, K), a pair each layer."""
    return zeros_cache(network.config, network.computation, batch, length)


def decode_step(network: Network, backbone: dict, prefilled: Prefilled, cache: tuple, token_B, position):
    """One decoding step (Family.decode_step); rows stand at positions of their own."""
    parts = _parts(network, backbone, prefilled.changes)
    embedded_BD = parts(token_B[:, None], method=Causal.embed)[:, 0]
    # the last input token as the method changed it
    embedded_BD = jnp.where(position == 0, prefilled.start_BD.astype(embedded_BD.dtype), embedded_BD)
    slots = jnp.arange(cache[0].key_BZJK.shape[1])
    position_BT = prefilled.start_position_B[:, None] + slots
    here_B1 = prefilled.start_position_B[:, None] + position
    real_BT = jnp.broadcast_to(slots <= position, position_BT.shape)
    arguments = embedded_BD[:, None], here_B1, jnp.ones_like(here_B1, bool), prefilled.seen, (cache, position_BT, real_BT), position
    decoded_B1D, _, cache = parts(*arguments, method=Causal.decode)
    return parts(decoded_B1D, method=Causal.logits)[:, 0], cache


def decode_targets(network: Network, backbone: dict, prefilled: Prefilled, targets_BT) -> Decoded:
    """Teacher-forced targets after prefilled inputs."""
    parts = _parts(network, backbone, prefilled.changes)
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
    stacks=causal_operations.stacks,
)  # fmt: skip
