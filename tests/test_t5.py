"""The network against transformers' T5: as recorded golden values, and live where torch is there.

``python tests/test_t5.py`` records golden_t5.npz anew from transformers.
"""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from mpt_jax.config import NANO, T5_SIZES, T5Config
from mpt_jax.model import attention, formats, prompted_t5
from mpt_jax.model.formats.arrays import flatten, unflatten

GOLDEN = Path(__file__).parent / "golden_t5.npz"
VARIANTS = {
    "v1_0": T5Config("tiny", 60, 16, 2, 8, 32, 3, 2, ("relu",), True),
    "v1_1": T5Config("tiny", 60, 16, 2, 8, 32, 3, 2),
}
STEPS = 6


def weights(config: T5Config) -> dict:
    """Random weights from numpy alone, larger than T5's, so that logits and tokens vary."""
    rng = np.random.default_rng(0)
    shapes = flatten(jax.eval_shape(lambda: prompted_t5.init_backbone(config, 0)))
    make = lambda path, shape: rng.uniform(0.5, 1.5, shape) if path.endswith("scale") else rng.normal(0.0, 0.25, shape)  # noqa: E731
    return unflatten((path, make(path, leaf.shape).astype(np.float32)) for path, leaf in sorted(shapes.items()))


def example(config: T5Config):
    """Inputs with padding, targets, prompts."""
    rng = np.random.default_rng(1)
    inputs_BL, targets_BT = rng.integers(2, 60, (3, 9)).astype(np.int32), rng.integers(2, 60, (3, 4)).astype(np.int32)
    inputs_BL[1, 6:] = 0
    return inputs_BL, targets_BT, rng.normal(size=(3, 5, config.d_model)).astype(np.float32)


def ours(config: T5Config) -> dict[str, np.ndarray]:
    """Logits, encoder output and greedy tokens of our network."""
    from mpt_jax.infer.decode import greedy_decode

    params, (inputs_BL, targets_BT, prompt_BPD) = weights(config), example(config)
    outputs = jax.jit(prompted_t5.forward, static_argnums=0)(config, params, prompt_BPD, inputs_BL, targets_BT)
    tokens_BT = greedy_decode(config, params, prompt_BPD, inputs_BL, STEPS)
    found = {"logits": outputs.logits_BTV, "encoder": outputs.encoder.output_BTD, "tokens": tokens_BT}
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
    config = VARIANTS["v1_1"]
    params, (inputs_BL, targets_BT, prompt_BPD) = weights(config), example(config)
    short = prompted_t5.forward(config, params, prompt_BPD, inputs_BL, targets_BT)
    long = prompted_t5.forward(config, params, prompt_BPD, np.pad(inputs_BL, ((0, 0), (0, 7))), np.pad(targets_BT, ((0, 0), (0, 3))))
    np.testing.assert_allclose(long.logits_BTV[:, :4], short.logits_BTV, atol=2e-5)


def test_hidden_states_are_given():
    config = VARIANTS["v1_1"]
    inputs_BL, targets_BT, prompt_BPD = example(config)
    out = prompted_t5.forward(config, weights(config), prompt_BPD, inputs_BL, targets_BT)
    assert len(out.encoder.layers) == 3 and len(out.decoder.layers) == 2
    assert out.encoder.layers[0].shape == (3, 14, 16) and out.mask_BS.shape == (3, 14) and out.mask_BS[1].sum() == 11


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_dropout_of_each_layer_and_only_where_bits_are_given(remat):
    plain = dataclasses.replace(VARIANTS["v1_1"], num_decoder_layers=3)
    config, params = dataclasses.replace(plain, dropout_rate=0.5, remat=remat), weights(plain)
    inputs_BL, targets_BT, prompt_BPD = example(config)
    run = lambda config, rng: prompted_t5.forward(config, params, prompt_BPD, inputs_BL, targets_BT, rng)  # noqa: E731
    without = run(plain, None)
    np.testing.assert_array_equal(run(config, None).logits_BTV, without.logits_BTV)
    np.testing.assert_array_equal(run(plain, jax.random.PRNGKey(0)).logits_BTV, without.logits_BTV)
    one, again, other = (run(config, jax.random.PRNGKey(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.logits_BTV, again.logits_BTV)
    assert np.abs(one.logits_BTV - other.logits_BTV).max() > 0.1
    for stack in (one.encoder, one.decoder):
        added = [np.asarray(after - before) for before, after in itertools.pairwise(stack.layers)]
        dropped = [np.all(np.abs(x_BTD) < 1e-6, axis=1) for x_BTD in added]  # alike for all positions
        assert all(0.05 < x_BD.mean() < 0.6 for x_BD in dropped)
        assert not np.array_equal(dropped[0], dropped[1])


def test_more_layers_are_not_traced_more_often(monkeypatch):
    calls = []
    monkeypatch.setitem(attention.KERNELS, "einsum", lambda *given: calls.append(1) or attention.attend(*given))

    def traced(layers: int) -> int:
        # a d_ff of no other test, whose traces would be taken
        config = dataclasses.replace(VARIANTS["v1_1"], d_ff=40, num_encoder_layers=layers, num_decoder_layers=layers)
        params = weights(config)
        calls.clear()
        jax.jit(prompted_t5.forward, static_argnums=0).trace(config, params, None, *example(config)[:2])
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


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = {variant: theirs(config, Path(folder) / variant) for variant, config in VARIANTS.items()}
    np.savez(GOLDEN, **{f"{variant}/{name}": array for variant, values in found.items() for name, array in values.items()})
