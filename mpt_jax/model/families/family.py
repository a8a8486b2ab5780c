"""What a model family is, and what every family speaks of: rows of tokens, adapted inputs, outputs.

B examples, U different tasks (runs) among them, L input tokens, P prompt positions, S = P + L encoder positions, T target tokens,
Y positions of a stack, D model width, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mpt_jax.config import Computation
from mpt_jax.model.changes import Changes, collection, rows_of_slots


class Rows(NamedTuple):
    """Tokens of a micro-batch, int32: inputs (B, L) and targets (B, T), of which the first ``..._length_B`` are real, whatever their ids.

    A row that fills a batch up has lengths 0. ``targets_BT`` and its length are None where nothing is scored. slot_B: which of the U sets
    of the method's parameters is a row's; None: each row has its own (U = B).

    >>> rows = Rows(jnp.array([[7, 8, 1], [9, 1, 0]]), jnp.array([3, 2]))
    >>> real(rows.input_length_B, 3).tolist()
    [[True, True, True], [True, True, False]]
    """

    inputs_BL: jax.Array
    input_length_B: jax.Array
    targets_BT: jax.Array | None = None
    target_length_B: jax.Array | None = None
    slot_B: jax.Array | None = None

    @property
    def scored(self) -> tuple[jax.Array, jax.Array]:
        """(targets (B, T), their lengths (B,)) of rows that have them."""
        assert self.targets_BT is not None and self.target_length_B is not None
        return self.targets_BT, self.target_length_B


def rows_of(batch: Mapping[str, jax.Array]) -> Rows:
    """The tokens of a micro-batch of data/batches.py."""
    return Rows(**{name: batch[name] for name in Rows._fields if name in batch})


def tasks_of(batch: Mapping[str, jax.Array]) -> jax.Array:
    """The tasks whose parameters a micro-batch needs: (U,), its different ones, where it names them, else each row's (B,)."""
    return batch.get("task_U", batch["task_id_B"])


def real(length_B, size: int) -> jax.Array:
    """Which of ``size`` positions are real: (B, size) bool, of lengths (B,) in tokens.

    >>> real(jnp.array([2, 0]), 3).tolist()
    [[True, True, False], [False, False, False]]
    """
    return jnp.arange(size) < length_B[:, None]


class Adapted(NamedTuple):
    """What a method makes of the embedded inputs: vectors (U, P, D) that go in front of them, or None, and the inputs (B, L, D).

    >>> Adapted(jnp.zeros((1, 20, 192)), jnp.ones((4, 9, 192))).prefix_UPD.shape
    (1, 20, 192)
    """

    prefix_UPD: jax.Array | None
    embedded_BLD: jax.Array


class Adaptation(NamedTuple):
    """How a method changes the network; each part may be None.

    adapt(the method's parameters of each example, embedded inputs (B, L, D), which are real (B, L)) -> Adapted. prefix_only: it puts a
    prefix in front that depends on the task alone, and leaves the inputs. It is then given the parameters of the U different tasks, and
    what a network computes of a prefix is computed once for each.
    changes(the method's parameters, of each example or different task) -> what changes inside (changes.py), in rows alike.

    >>> def adapt(own, embedded_BLD, real_BL):
    ...     return Adapted(own["prompt"], embedded_BLD)
    >>> own, embedded_BLD = {"prompt": jnp.zeros((2, 20, 192))}, jnp.ones((4, 9, 192))  # two tasks in four rows
    >>> Adaptation(adapt, prefix_only=True).adapt(own, embedded_BLD, real(jnp.full(4, 9), 9)).prefix_UPD.shape
    (2, 20, 192)
    """

    adapt: Callable[[Mapping[str, jax.Array], jax.Array, jax.Array], Adapted] | None = None
    prefix_only: bool = False
    changes: Callable[[Mapping[str, jax.Array]], Changes] | None = None


@dataclasses.dataclass(frozen=True)
class Network:
    """A shape, how it is computed, and the method that adapts it: the static argument of every program.

    config: the shape, whose type names the family; each has ``name``, ``vocab_size`` and ``d_model``. adaptation: None runs the backbone
    alone.

    >>> run.model.network.config.d_model
    192
    """

    config: Any
    computation: Computation = Computation()
    adaptation: Adaptation | None = None

    def adapted(self, own: Mapping[str, jax.Array] | None, embedded_BLD, real_BL, slot_B=None) -> tuple[Adapted, jax.Array | None]:
        """(embedded inputs as the method changes them, each row's slot among the prefixes); ``own``: the method's parameters by slot.

        The slots are None where each row has a prefix of its own, or there is none.
        """
        if self.adaptation is None or self.adaptation.adapt is None:
            return Adapted(None, embedded_BLD), None
        assert own is not None  # what adapts has parameters
        if slot_B is not None and not (self.adaptation.prefix_only and self.adaptation.changes is None):
            own, slot_B = {path: jnp.take(array, slot_B, axis=0) for path, array in own.items()}, None
        return self.adaptation.adapt(own, embedded_BLD, real_BL), slot_B

    @property
    def changes_inside(self) -> bool:
        """Whether the method changes modules of the network: then rows of a task share one set of its parameters."""
        return self.adaptation is not None and self.adaptation.changes is not None

    def changes(self, own: Mapping[str, jax.Array] | None, backbone: Mapping[str, Any], slot_B=None) -> dict:
        """The collection of what the method changes inside (changes.py), of each row or of all; {} where it changes nothing."""
        change = self.adaptation.changes if self.adaptation is not None else None
        if change is None:
            return {}
        assert own is not None
        made = change(own)
        if slot_B is not None:
            made = {path: {name: rows_of_slots(array, slot_B) for name, array in arrays.items()} for path, arrays in made.items()}
        return collection(made, backbone)


def with_prefixes(network: Network, own: Mapping[str, jax.Array] | None, embedded_BLD, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """What an encoder reads (B, S, D): a row's prefix and its embedded inputs as the method changes them; which are real (B, S)."""
    real_BL = real(rows.input_length_B, rows.inputs_BL.shape[1])
    (prefix_UPD, x_BSD), slot_B = network.adapted(own, embedded_BLD, real_BL, rows.slot_B)
    if prefix_UPD is None:
        return x_BSD, real_BL
    prefix_BPD = prefix_UPD if slot_B is None else jnp.take(prefix_UPD, slot_B, axis=0)
    x_BSD = jnp.concatenate([prefix_BPD.astype(x_BSD.dtype), x_BSD], axis=1)
    return x_BSD, jnp.concatenate([jnp.ones(prefix_BPD.shape[:2], bool), real_BL], axis=1)


def shift_right(targets_BT, start_id: int = 0):
    """A decoder's inputs: the start token, then the targets without their last token [T5X autoregressive_inputs, which starts with 0]."""
    return jnp.pad(targets_BT, ((0, 0), (1, 0)), constant_values=start_id)[:, :-1]


class Stack(NamedTuple):
    """States of encoder or decoder: after the final norm, and the residual stream after each layer; which positions (B, Y) are real.

    >>> states_BYD = jnp.zeros((2, 3, 192))
    >>> len(Stack(states_BYD, (states_BYD, states_BYD), real(jnp.array([3, 1]), 3)).layers)
    2
    """

    output_BYD: jax.Array
    layers: tuple  # of (B, Y, D)
    real_BY: jax.Array


class Decoded(NamedTuple):
    """Final states of target positions (B, T, D), and what turns any of them into logits.

    >>> table_VD = jnp.ones((50, 192))
    >>> Decoded(jnp.ones((2, 4, 192)), lambda states_BTD: states_BTD @ table_VD.T).logits_BTV.shape
    (2, 4, 50)
    """

    states_BTD: jax.Array
    logits_of: Callable[[jax.Array], jax.Array]

    @property
    def logits_BTV(self) -> jax.Array:
        """Logits of all positions at once."""
        return self.logits_of(self.states_BTD)


class Outputs(NamedTuple):
    """A teacher-forced pass: targets' final states, and stacks of states by name.

    'decoder' is over the targets; T5's 'encoder' over prompt and input.

    >>> states_BTD = jnp.ones((2, 4, 192))
    >>> decoder = Stack(states_BTD, (states_BTD,), real(jnp.array([4, 2]), 4))
    >>> Outputs(Decoded(states_BTD, lambda states_BTD: states_BTD[..., :50]), {"decoder": decoder}).logits_BTV.shape
    (2, 4, 50)
    """

    decoded: Decoded
    states: dict[str, Stack]

    @property
    def logits_BTV(self) -> jax.Array:
        """Logits of all positions at once."""
        return self.decoded.logits_BTV


LOGITS_BYTES = 2**29  # of a micro-batch's logits: more are computed in parts of the target positions [ours]


def sums_over_positions(function: Callable, vocab_size: int, *arrays_BT: jax.Array | None) -> Any:
    """function(*arrays) -> a tree of sums (B,) over target positions, in as many parts of them as LOGITS_BYTES asks for.

    The arrays are (B, T, ...), or None. In several parts only the states stay for the backward pass, and logits are made again there.
    """
    batch, length = next(array.shape[:2] for array in arrays_BT if array is not None)
    parts = next((n for n in range(1, length + 1) if length % n == 0 and 4 * batch * length // n * vocab_size <= LOGITS_BYTES), length)
    if parts == 1:
        return function(*arrays_BT)

    def part_of(array):
        return jnp.moveaxis(array.reshape(batch, parts, length // parts, *array.shape[2:]), 1, 0)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, jax.checkpoint(function)(*part)), None

    split = jax.tree.map(part_of, arrays_BT)
    first, rest = jax.tree.map(lambda array: array[0], split), jax.tree.map(lambda array: array[1:], split)
    return jax.lax.scan(add, jax.checkpoint(function)(*first), rest)[0]


def one_width(config: Any, name: str) -> int:
    """The width of a stack's states where all have the model's."""
    del name
    return config.d_model


class StackSize(NamedTuple):
    """What layers of a kind keep for the backward pass, of a row: sizes that an estimate of memory takes (compiling/fitting.py).

    queries: positions that pass through a layer. keys: those that each attends to, in all of a layer's ``attentions``. kernel: whether
    the attention may be a kernel of attention.KERNELS, which writes no logits.
    """

    layers: int
    queries: int
    keys: int
    attentions: int
    d_model: int
    num_heads: int
    head_dim: int
    d_ff: int
    gated: bool = True
    kernel: bool = False


def no_stacks(config: Any, S: int, T: int) -> tuple[StackSize, ...]:
    """Of a family that says nothing: an estimate of memory counts its weights and logits alone."""
    del config, S, T
    return ()


class Family(NamedTuple):
    """A model family. The functions take (network, backbone weights, …); ``own`` as in Network.adapted.

    config: type of its shapes. sizes: published shapes by name. axes: rows (regular expression of a parameter's path, logical axes).
    states: names of the stacks in Outputs.states; state_width(config, name): of one of them.
    decoder_only: one stack reads prompt, input and target, so what it computes of a prompt serves all rows of a task, and texts go on
    instead of ending (data/frame.py).
    entries(config) -> its arrays (naming.Entry); num_layers(config); words(config): what a message calls it.
    init(config, seed) -> random float32 weights, nested; they hold ``token_embedder/embedding`` (V, D).
    forward(network, backbone, rows, own, dropout_rng) -> Outputs.
    prefill(network, backbone, rows, own, positions) -> what decoding needs of the inputs, a tuple of arrays, ``start_B`` among them: the
    token before the first target. ``positions``: how many target positions will follow, None = unknown.
    empty_cache(network, batch, length) -> the cache of ``length`` target positions.
    decode_step(network, backbone, prefilled, cache, token_B, position) -> (logits (B, V) there, cache); the token stands before it.
    decode_targets(network, backbone, prefilled, targets_BT) -> Decoded, of targets after the prefilled inputs.
    prompt_step(network, P, L, T, distilled, textbook, prompts) -> floating-point operations that an example of a training step needs, by
    part. textbook: as an implementation without this package's savings would. prompts: different tasks for each row of a micro-batch.
    weight_gradients(config, P, L, T) -> what gradients with respect to all weights would add.
    stacks(config, S, T) -> a StackSize for each kind of layer, with S positions of prompt and input and T targets.

    docs/extending.md has a whole family. Readers raise UserError for arrays that ``entries`` does not name, or of another shape.

    >>> family, config = families.family_named("t5"), run.model.network.config
    >>> family.num_layers(config), next(iter(family.entries(config))).shape  # (V, D)
    (7, (8192, 192))
    """

    name: str
    config: type
    sizes: Mapping[str, Any]
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    states: tuple[str, ...]
    decoder_only: bool
    entries: Callable
    num_layers: Callable
    words: Callable
    init: Callable
    forward: Callable
    prefill: Callable
    empty_cache: Callable
    decode_step: Callable
    decode_targets: Callable
    prompt_step: Callable
    weight_gradients: Callable
    state_width: Callable[[Any, str], int] = one_width
    stacks: Callable[[Any, int, int], tuple[StackSize, ...]] = no_stacks
