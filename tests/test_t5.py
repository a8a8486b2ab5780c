"""T5 (model/families) against transformers' T5: as recorded golden values, and live where torch is there; its sizes (t5_config.py).

``python tests/test_t5.py`` records golden_t5.npz anew from transformers.
"""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_model import given, own, rows_of, run_forward, tiny

from mpt_jax.config import Computation
from mpt_jax.errors import UserError
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.model import attention, formats
from mpt_jax.model.families import t5
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import NANO, T5_SIZES, T5Config
from mpt_jax.model.formats.arrays import flatten, unflatten
from mpt_jax.model.network import decode_step, empty_cache, forward, prefill

GOLDEN = Path(__file__).parent / "golden_t5.npz"
V1_1 = tiny(vocab_size=60, num_encoder_layers=3, num_decoder_layers=2)
VARIANTS = {"v1_0": dataclasses.replace(V1_1, mlp_activations=("relu",), logits_via_embedding=True), "v1_1": V1_1}
STEPS = 6


def weights(config: T5Config) -> dict:
    """Random weights from numpy alone, larger than T5's, so that logits and tokens vary."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: t5.init(config, 0)))

    def make(path, shape):
        return rng.uniform(0.5, 1.5, shape) if path.endswith("scale") else rng.normal(0.0, 0.25, shape)

    return unflatten((path, make(path, leaf.shape).astype(np.float32)) for path, leaf in sorted(shapes.items()))


def example(config: T5Config):
    """Inputs with padding, targets, prompts."""
    rng = np.random.default_rng(1)
    inputs_BL, targets_BT = rng.integers(2, 60, (3, 9)).astype(np.int32), rng.integers(2, 60, (3, 4)).astype(np.int32)
    inputs_BL[1, 6:] = 0
    return inputs_BL, targets_BT, rng.normal(size=(3, 5, config.d_model)).astype(np.float32)


def ours(config: T5Config) -> dict[str, np.ndarray]:
    """Logits, encoder output and greedy tokens of our network."""
    params, (inputs_BL, targets_BT, prompt_BPD) = weights(config), example(config)
    network, prompts = given(config), own(prompt_BPD)
    outputs = run_forward(network, params, rows_of(inputs_BL, targets_BT), prompts)
    tokens_BT = greedy_decode(network, params, prompts, rows_of(inputs_BL), STEPS, ends=(1,))
    found = {"logits": outputs.logits_BTV, "encoder": outputs.states["encoder"].output_BYD, "tokens": tokens_BT}
    return {name: np.asarray(array) for name, array in found.items()}


def theirs(config: T5Config, folder: Path) -> dict[str, np.ndarray]:
    """The same of transformers, from a Hugging Face folder that we wrote."""
    import torch
    import transformers

    formats.write_backbone("hf", str(folder), config, weights(config))
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    inputs_BL, targets_BT, prompt_BPD = (torch.tensor(array) for array in example(config))
    embedded = torch.cat([prompt_BPD, model.shared(inputs_BL)], dim=1)
    mask = torch.cat([torch.ones(prompt_BPD.shape[:2]), (inputs_BL > 0).float()], dim=1)
    with torch.no_grad():
        out = model(inputs_embeds=embedded, attention_mask=mask, labels=targets_BT.long())
        made = model.generate(
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, num_beams=1, eos_token_id=1, pad_token_id=0
        )
    tokens_BT = np.zeros((len(made), STEPS), np.int32)
    tokens_BT[:, : made.shape[1] - 1] = made[:, 1:]
    return {"logits": out.logits.numpy(), "encoder": out.encoder_last_hidden_state.numpy(), "tokens": tokens_BT}


def check(found: dict, expected: dict) -> None:
    """float32: logits and encoder outputs within 1e-4, tokens equal."""
    for name in ("logits", "encoder"):
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_values_of_transformers(variant):
    golden = np.load(GOLDEN)
    assert len(np.unique(golden[f"{variant}/tokens"])) > 3
    check(ours(VARIANTS[variant]), {name: golden[f"{variant}/{name}"] for name in ("logits", "encoder", "tokens")})


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_values_are_what_transformers_gives(variant, tmp_path):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    golden = np.load(GOLDEN)
    check(theirs(VARIANTS[variant], tmp_path / "hf"), {name: golden[f"{variant}/{name}"] for name in ("logits", "encoder", "tokens")})


def test_padding_changes_nothing():
    """However much of it there is, and whatever ids it has."""
    params, (inputs_BL, targets_BT, prompt_BPD) = weights(V1_1), example(V1_1)
    rows, prompts = rows_of(inputs_BL, targets_BT), own(prompt_BPD)
    short = run_forward(given(V1_1), params, rows, prompts)
    for fill in (0, 7):
        wide_BL = np.pad(np.where(inputs_BL == 0, fill, inputs_BL), ((0, 0), (0, 7)), constant_values=fill)
        wide = rows._replace(inputs_BL=wide_BL, targets_BT=np.pad(targets_BT, ((0, 0), (0, 3)), constant_values=fill))
        long = run_forward(given(V1_1), params, wide, prompts)
        np.testing.assert_allclose(long.logits_BTV[:, :4], short.logits_BTV, atol=2e-5)


def test_id_0_is_a_token_where_lengths_say_so():
    params, (inputs_BL, targets_BT, prompt_BPD) = weights(V1_1), example(V1_1)

    def logits(token, length):
        changed_BL = inputs_BL.copy()
        changed_BL[:, 3] = token
        rows = rows_of(changed_BL, targets_BT)._replace(input_length_B=np.full(3, length, np.int32))
        return np.asarray(run_forward(given(V1_1), params, rows, own(prompt_BPD)).logits_BTV)

    assert np.abs(logits(0, 5) - logits(8, 5)).max() > 0.1 and np.abs(logits(0, 5) - logits(0, 3)).max() > 0.1
    np.testing.assert_array_equal(logits(0, 3), logits(8, 3))


def test_hidden_states_are_given():
    inputs_BL, targets_BT, prompt_BPD = example(V1_1)
    states = run_forward(given(V1_1), weights(V1_1), rows_of(inputs_BL, targets_BT), own(prompt_BPD)).states
    assert states.keys() == set(t5.FAMILY.states)
    assert len(states["encoder"].layers) == 3 and len(states["decoder"].layers) == 2
    assert states["encoder"].layers[0].shape == (3, 14, 16) and states["decoder"].output_BYD.shape == (3, 4, 16)
    assert states["encoder"].real_BY.sum(axis=1).tolist() == [14, 11, 14] and states["decoder"].real_BY.all()


def test_a_token_at_a_time_gives_the_logits_of_the_whole_pass():
    inputs_BL, targets_BT, prompt_BPD = example(V1_1)
    network, params, prompts = given(V1_1), weights(V1_1), own(prompt_BPD)
    whole_BTV = run_forward(network, params, rows_of(inputs_BL, targets_BT), prompts).logits_BTV
    prefilled, cache = prefill(network, params, rows_of(inputs_BL), prompts), empty_cache(network, 3, 4)
    token_B = prefilled.start_B
    step = jax.jit(decode_step, static_argnums=0)
    for position in range(4):
        logits_BV, cache = step(network, params, prefilled, cache, token_B, position)
        np.testing.assert_allclose(logits_BV, whole_BTV[:, position], atol=2e-5)
        token_B = targets_BT[:, position]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "layers"])
def test_dropout_of_each_layer_and_only_where_bits_are_given(remat):
    config = dataclasses.replace(V1_1, num_decoder_layers=3)
    params, (inputs_BL, targets_BT, prompt_BPD) = weights(config), example(config)
    rows, prompts = rows_of(inputs_BL, targets_BT), own(prompt_BPD)

    def run(seed, dropout_rate=0.5):
        bits = None if seed is None else jax.random.PRNGKey(seed)
        return forward(given(config, remat=remat, dropout_rate=dropout_rate), params, rows, prompts, bits)

    without = forward(given(config), params, rows, prompts)
    np.testing.assert_array_equal(run(None).logits_BTV, without.logits_BTV)
    np.testing.assert_array_equal(run(0, dropout_rate=0.0).logits_BTV, without.logits_BTV)
    one, again, other = (run(seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.logits_BTV, again.logits_BTV)
    assert np.abs(one.logits_BTV - other.logits_BTV).max() > 0.1
    for stack in one.states.values():
        added = [np.asarray(after - before) for before, after in itertools.pairwise(stack.layers)]
        dropped = [np.all(np.abs(x_BTD) < 1e-6, axis=1) for x_BTD in added]  # alike for all positions
        assert all(0.05 < x_BD.mean() < 0.6 for x_BD in dropped)
        assert not np.array_equal(dropped[0], dropped[1])


def test_more_layers_are_not_traced_more_often(monkeypatch):
    calls = []
    monkeypatch.setitem(attention.KERNELS, "einsum", lambda *given: calls.append(1) or attention.attend(*given))

    def traced(layers: int) -> int:
        # a d_ff of no other test, whose traces would be taken
        config = dataclasses.replace(V1_1, d_ff=40, num_encoder_layers=layers, num_decoder_layers=layers)
        params = weights(config)
        calls.clear()
        run_forward.trace(Network(config, Computation()), params, rows_of(*example(config)[:2]))
        return len(calls)

    assert traced(8) == traced(4) < 8


@pytest.mark.parametrize(
    "name, millions",
    [("t5_small", 60.5), ("t5_base", 222.9), ("t5_large", 737.7), ("t5_1_1_base", 247.6), ("t5_1_1_xl", 2849.8), ("mt5_small", 300.2)],
)
def test_sizes_have_the_published_numbers_of_parameters(name, millions):
    """As Hugging Face counts them; T5 paper section 3.7 rounds them to 60M, 220M, 770M, 3B, 11B."""
    assert round(T5_SIZES[name].num_parameters() / 1e6, 1) == millions


def test_counting_agrees_with_the_arrays_and_nano_is_small():
    for config in VARIANTS.values():
        assert sum(array.size for array in jax.tree.leaves(weights(config))) == config.num_parameters()
    assert NANO.num_parameters() <= 8_000_000


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="mlp_activations = .'swish',.; known"):
        tiny(mlp_activations=("swish",))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {variant: theirs(config, Path(folder) / variant) for variant, config in VARIANTS.items()}
    np.savez(GOLDEN, **{f"{variant}/{name}": array for variant, values in found.items() for name, array in values.items()})
