"""What every family speaks of (family.py), and that network.py asks the family of a shape: shown by a family of the test's own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import CONFIG

from mpt_jax.config import Computation
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.model import network
from mpt_jax.model.families import FAMILIES, family_of, register, t5
from mpt_jax.model.families.family import Adaptation, Adapted, Decoded, Family, Network, Outputs, Rows, Stack, real, rows_of


@dataclasses.dataclass(frozen=True)
class Counting:
    """A network without weights: the next token is the last one plus the number of real input tokens."""

    name: str = "counting"
    vocab_size: int = 50
    d_model: int = 2


@dataclasses.dataclass
class Prefilled:
    start_B: jax.Array
    step_B: jax.Array


jax.tree_util.register_dataclass(Prefilled, ["start_B", "step_B"], [])


def logits_of(added, token):
    return jax.nn.one_hot(token + added, Counting.vocab_size)


def decoded(added_B, targets_BT) -> Decoded:
    """The states are the tokens before the targets."""
    return Decoded(jnp.pad(targets_BT, ((0, 0), (1, 0)))[:, :-1], functools.partial(logits_of, added_B[:, None]))


def forward(net, backbone, rows, own=None, dropout_rng=None) -> Outputs:
    embedded_BLD = jnp.zeros((*rows.inputs_BL.shape, net.config.d_model))
    adapted, _ = net.adapted(own, embedded_BLD, real(rows.input_length_B, rows.inputs_BL.shape[1]), rows.slot_B)
    stack = Stack(adapted.embedded_BLD, (), real(rows.target_length_B, rows.targets_BT.shape[1]))
    return Outputs(decoded(rows.input_length_B, rows.targets_BT), {"decoder": stack})


FAMILY = Family(
    name="counting", config=Counting, sizes={}, axes=(), states=("decoder",), decoder_only=False,
    entries=lambda config: (), num_layers=lambda config: 0, words=lambda config: "counting", init=lambda config, seed: {},
    forward=forward,
    prefill=lambda net, backbone, rows, own, positions: Prefilled(jnp.zeros_like(rows.input_length_B), rows.input_length_B),
    empty_cache=lambda net, batch, length: (),
    decode_step=lambda net, backbone, prefilled, cache, token_B, position: (logits_of(prefilled.step_B, token_B), cache),
    decode_targets=lambda net, backbone, prefilled, targets_BT: decoded(prefilled.step_B, targets_BT),
    prompt_step=lambda *given: {}, weight_gradients=lambda *given: 0.0,
)  # fmt: skip
ROWS = Rows(np.zeros((2, 4), np.int32), np.array([3, 4], np.int32), np.array([[3, 6, 9], [4, 8, 0]], np.int32), np.array([3, 2], np.int32))


@pytest.fixture
def family():
    before = dict(FAMILIES)
    register(FAMILY)
    yield FAMILY
    FAMILIES.clear()
    FAMILIES.update(before)


def test_a_shape_names_its_family(family):
    assert family_of(CONFIG) is t5.FAMILY and family_of(Counting()) is family


def test_network_asks_the_family_of_the_shape(family):
    net = Network(Counting())
    logits_BTV = network.forward(net, {}, ROWS).logits_BTV
    np.testing.assert_array_equal(logits_BTV.argmax(-1), [[3, 6, 9], [4, 8, 12]])
    prefilled = network.prefill(net, {}, ROWS)
    np.testing.assert_array_equal(network.decode_targets(net, {}, prefilled, ROWS.targets_BT).logits_BTV, logits_BTV)


def test_decoding_knows_nothing_of_a_family(family):
    tokens_BT = greedy_decode(Network(Counting()), {}, {}, ROWS._replace(targets_BT=None, target_length_B=None), 5, ends=(9, 20))
    np.testing.assert_array_equal(tokens_BT, [[3, 6, 9, 0, 0], [4, 8, 12, 16, 20]])


def test_a_method_changes_the_embedded_inputs_or_leaves_them(family):
    def twice(own, embedded_BLD, real_BL):
        return Adapted(None, (embedded_BLD + own["added"]) * real_BL[..., None])

    adapted = network.forward(Network(Counting(), Computation(), Adaptation(twice)), {}, ROWS, {"added": 2.0}).states["decoder"].output_BYD
    np.testing.assert_array_equal(adapted[0, :, 0], [2, 2, 2, 0])
    assert not np.any(network.forward(Network(Counting()), {}, ROWS).states["decoder"].output_BYD)


def test_lengths_say_which_positions_are_real():
    np.testing.assert_array_equal(real(np.array([0, 2, 3]), 3), [[0, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_rows_of_a_micro_batch():
    batch = {name: array for name, array in ROWS._asdict().items()} | {"task_id_B": np.zeros(2)}
    assert all(a is b for a, b in zip(rows_of(batch), ROWS, strict=True))
