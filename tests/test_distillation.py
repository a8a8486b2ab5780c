"""What a teacher says of a micro-batch: which positions and layers are compared, what is kept, and reading it back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import LENGTH, given, own, rows_of, tiny, weights

from mpt_jax.config import DistillationSettings
from mpt_jax.data.teacher_cache import BATCH_NAMES, STATES_NAME
from mpt_jax.model.network import forward
from mpt_jax.train.distillation import compared, from_batch, reduced, teach

CONFIG = tiny(num_encoder_layers=3, num_decoder_layers=2)
ROWS = rows_of(np.array([[5, 6, 7, 1], [5, 1, 0, 0], [0, 0, 0, 0]], np.int32), np.array([[8, 9, 1], [8, 1, 0], [0, 0, 0]], np.int32))


@pytest.fixture(scope="module")
def outputs():
    """Of two rows and one that fills the batch up."""
    prompt_BPD = np.random.default_rng(0).normal(size=(3, LENGTH, CONFIG.d_model)).astype(np.float32)
    return forward(given(CONFIG), weights(CONFIG), ROWS, own(prompt_BPD))


@pytest.mark.parametrize("positions, prompt", [("inputs", 0), ("all", LENGTH)])
@pytest.mark.parametrize("hidden", ["last", "all"])
def test_positions_and_layers_that_are_compared(outputs, hidden, positions, prompt):
    found = compared(DistillationSettings(hidden=hidden, hidden_positions=positions), outputs, ROWS)
    (encoder, encoder_real_BS), (decoder, decoder_real_BS) = found["encoder"], found["decoder"]
    assert (len(encoder), len(decoder)) == ((3, 2) if hidden == "all" else (1, 1))
    assert all(layer_BSD.shape == (3, 4 + prompt, CONFIG.d_model) for layer_BSD in encoder)
    assert all(layer_BSD.shape == (3, 3, CONFIG.d_model) for layer_BSD in decoder)
    assert encoder_real_BS.sum(axis=1).tolist() == [4 + prompt, 2 + prompt, 0]  # of a row that fills up not even the prompt
    assert decoder_real_BS.sum(axis=1).tolist() == [3, 2, 0]
    last = outputs.states["encoder"].layers[-1] if hidden == "all" else outputs.states["encoder"].output_BYD
    np.testing.assert_array_equal(encoder[-1], last[:, LENGTH - prompt :])


def test_nothing_hidden_is_compared_where_it_is_not_wanted(outputs):
    settings = DistillationSettings(hidden="none", logits=False)
    assert compared(settings, outputs, ROWS) == {} and teach(settings, outputs, ROWS) == ({}, None, None, None, None)


def test_log_probabilities_are_softened(outputs):
    settings = DistillationSettings(temperature=2.0)
    kept = reduced(settings, teach(settings, outputs, ROWS), 0)
    np.testing.assert_allclose(kept["logp"], jax.nn.log_softmax(outputs.logits_BTV / 2.0), atol=1e-6)


def test_the_most_likely_tokens_and_all_others_as_one(outputs):
    settings = DistillationSettings(cached_dtype="float16")
    teaching = teach(settings, outputs, ROWS)
    kept = reduced(settings, teaching, 5)
    assert kept["encoder"].dtype == kept["decoder"].dtype == jnp.float16
    whole = reduced(DistillationSettings(cached_dtype="float32"), teaching, 0)
    assert whole.keys() == {"logp", "encoder", "decoder"} and whole["encoder"].dtype == jnp.float32
    order_BTV = np.argsort(-np.asarray(whole["logp"]), axis=-1, kind="stable")
    np.testing.assert_array_equal(kept["ids"], order_BTV[..., :5])
    rest_BTV = np.take_along_axis(np.asarray(whole["logp"], np.float64), order_BTV[..., 5:], axis=-1)
    np.testing.assert_allclose(kept["tail"], np.log(np.exp(rest_BTV).sum(axis=-1)), atol=1e-5)


def test_what_is_kept_comes_back_from_a_micro_batch(outputs):
    settings = DistillationSettings(cached_dtype="float32")
    kept = reduced(settings, teach(settings, outputs, ROWS), 5)
    batch = {BATCH_NAMES.get(file, STATES_NAME.format(file)): array for file, array in kept.items()}
    found = from_batch(batch, ("encoder", "decoder"))
    for name, array in (("logp_BTA", kept["logp"]), ("ids_BTA", kept["ids"]), ("tail_BT", kept["tail"])):
        assert getattr(found, name) is array
    assert found.decoded is None and found.states == {name: (kept[name],) for name in ("encoder", "decoder")}
    assert from_batch({}, ("encoder", "decoder")) == ({}, None, None, None, None)
