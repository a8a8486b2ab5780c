"""T5Gemma and T5Gemma 2 (t5gemma.py, t5gemma_config.py, t5gemma_names.py, blocks.py, huggingface_t5gemma.py) against transformers:
as recorded golden values, and live where torch is there.

``python tests/test_t5gemma.py`` records golden_t5gemma.npz anew from transformers.
"""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families as tiny
from tiny_model import run_forward

from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.families import t5gemma
from mpt_jax.model.families.t5gemma_config import T5GEMMA_SIZES, T5GemmaConfig
from mpt_jax.model.formats import names
from mpt_jax.model.network import decode_step, decode_targets, empty_cache, forward, prefill

GOLDEN = Path(__file__).parent / "golden_t5gemma.npz"
CASES = [(name, prompted) for name in tiny.T5GEMMAS for prompted in (False, True)]
CONFIG = tiny.T5GEMMAS["t5gemma"]


def theirs(name: str, folder: Path, prompted: bool) -> dict[str, np.ndarray]:
    """What transformers makes of the folder that we write; of T5Gemma 2, which comes with images, what it makes of the same arrays."""
    import transformers
    import transformers_side

    config = tiny.T5GEMMAS[name]
    if config.merged_attention:
        model = transformers.T5Gemma2ForConditionalGeneration(transformers.T5Gemma2Config(**_second(config))).eval()
        missing, left = model.load_state_dict(_of_texts(transformers_side.state_dict(config)), strict=False)
        assert not left and all(re.search("vision_tower|multi_modal|embed_tokens|lm_head", name) for name in missing)
        model.tie_weights()
        return transformers_side.encoder_decoder(model, config, prompted, prompt_scale=config.d_model**0.5)
    if not folder.exists():
        formats.write_backbone("hf", str(folder), config, tiny.weights(config))
    settings = transformers.AutoConfig.from_pretrained(folder)
    # Google's encoder sees what is nearer than the window on either side, as transformers' did at first; 5.x sees one position more
    settings.encoder.sliding_window -= 1
    model = transformers.T5GemmaForConditionalGeneration.from_pretrained(folder, config=settings).eval()
    return transformers_side.encoder_decoder(model, config, prompted)


def _second(config: T5GemmaConfig) -> dict:
    """config.json of a T5Gemma 2 with the smallest tower of images."""
    kinds = {"window": "sliding_attention", "full": "full_attention"}
    sides = {}
    for side in ("encoder", "decoder"):
        shape = getattr(config, side)
        sides[side] = {
            "vocab_size": shape.vocab_size, "hidden_size": shape.d_model, "intermediate_size": shape.d_ff, "head_dim": shape.head_dim,
            "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads,
            "query_pre_attn_scalar": 16, "sliding_window": shape.window, "layer_types": [kinds[kind] for kind in shape.layer_kinds],
            "rms_norm_eps": 1e-6,
        }  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
    encoder = {"text_config": sides["encoder"], "vision_config": vision | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4}
    return {"encoder": encoder, "decoder": sides["decoder"], "dropout_rate": 0.0}


def _of_texts(arrays: dict) -> dict:
    """By the names of T5Gemma 2's modules; its files leave out `text_model`."""
    return {name.replace("model.encoder.", "model.encoder.text_model."): array for name, array in arrays.items()}


def golden(name: str, prompted: bool) -> dict[str, np.ndarray]:
    """The recorded values of a case."""
    file = np.load(GOLDEN)
    return {what: file[f"{name}/{prompted}/{what}"] for what in ("logits", "tokens")}


@pytest.mark.parametrize(("name", "prompted"), CASES)
def test_golden_values_of_transformers(name, prompted):
    expected = golden(name, prompted)
    assert len(np.unique(expected["tokens"])) > 2
    tiny.same(tiny.ours(tiny.T5GEMMAS[name], prompted), expected)


@pytest.mark.parametrize(("name", "prompted"), CASES)
def test_golden_values_are_what_transformers_gives(name, prompted, tmp_path):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    tiny.same(theirs(name, tmp_path / "hf", prompted), golden(name, prompted))


@pytest.mark.parametrize("name", tiny.T5GEMMAS)
def test_a_token_at_a_time_gives_the_logits_of_the_whole_pass(name):
    """And so do targets over a prefilled input."""
    config = tiny.T5GEMMAS[name]
    network, own = tiny.given(config, True)
    params, rows = tiny.weights(config), tiny.rows(config)
    whole_BTV = run_forward(network, params, rows, own).logits_BTV
    prefilled, cache = jax.jit(prefill, static_argnums=0)(network, params, rows, own), empty_cache(network, 3, 4)
    np.testing.assert_allclose(decode_targets(network, params, prefilled, rows.targets_BT).logits_BTV, whole_BTV, atol=2e-5)
    token_B, step = prefilled.start_B, jax.jit(decode_step, static_argnums=0)
    for position in range(4):
        logits_BV, cache = step(network, params, prefilled, cache, token_B, np.int32(position))
        np.testing.assert_allclose(logits_BV, whole_BTV[:, position], atol=2e-5)
        token_B = rows.targets_BT[:, position]


def test_padding_changes_nothing():
    network, own = tiny.given(CONFIG, True)
    rows = tiny.rows(CONFIG)
    short = run_forward(network, tiny.weights(CONFIG), rows, own)
    wide = rows._replace(
        inputs_BL=np.pad(rows.inputs_BL, ((0, 0), (0, 7)), constant_values=7), targets_BT=np.pad(rows.targets_BT, ((0, 0), (0, 3)))
    )
    long = run_forward(network, tiny.weights(CONFIG), wide, own)
    np.testing.assert_allclose(tiny.real_only(long.logits_BTV), tiny.real_only(short.logits_BTV), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5gemma", pytest.param("t5gemma2", marks=pytest.mark.long)])
def test_the_gradient_to_the_prompt_is_that_of_finite_differences(name):
    """Along random directions, layers rematerialised or not."""
    config = tiny.T5GEMMAS[name]
    prompts, rows = tiny.prompts(config), tiny.rows(config)

    def loss(prompt, remat="none"):
        network, _ = tiny.given(config, True)
        network = dataclasses.replace(network, computation=dataclasses.replace(network.computation, remat=remat))
        logp_BTV = jax.nn.log_softmax(forward(network, tiny.weights(config), rows, {"prompt": prompt}).logits_BTV)
        return -jnp.take_along_axis(logp_BTV, rows.targets_BT[..., None], axis=-1).sum()

    value, step = jax.jit(loss), np.float32(1e-2)
    for remat in ("none", "layers"):
        gradient = np.asarray(jax.jit(jax.grad(loss), static_argnums=1)(prompts, remat))
        for seed in range(3):
            direction = np.random.default_rng(seed).normal(size=prompts.shape).astype(np.float32)
            expected = (value(prompts + step * direction) - value(prompts - step * direction)) / (2 * step)
            np.testing.assert_allclose(np.sum(gradient * direction), expected, rtol=5e-3, atol=2e-3)


def test_states_are_those_of_both_stacks():
    network, own = tiny.given(CONFIG, True)
    states = run_forward(network, tiny.weights(CONFIG), tiny.rows(CONFIG), own).states
    assert states.keys() == set(t5gemma.FAMILY.states)
    shapes = {name: (len(stack.layers), stack.output_BYD.shape) for name, stack in states.items()}
    assert shapes == {"encoder": (3, (3, 14, 16)), "decoder": (2, (3, 4, 24))}
    assert [t5gemma.FAMILY.state_width(CONFIG, name) for name in t5gemma.FAMILY.states] == [16, 24]
    assert states["encoder"].real_BY.sum(axis=1).tolist() == [14, 11, 8]


@pytest.mark.parametrize("name", tiny.T5GEMMAS)
@pytest.mark.parametrize("kind", ["hf", "own"])
def test_written_and_read_again_it_is_the_same(name, kind, tmp_path):
    config = tiny.T5GEMMAS[name]
    if kind == "hf" and config.merged_attention:
        with pytest.raises(UserError, match="T5Gemma 2 reads images"):
            formats.write_backbone(kind, str(tmp_path / "x"), config, tiny.weights(config))
        return
    formats.write_backbone(kind, str(tmp_path / "x"), config, tiny.weights(config))
    read, arrays, _ = formats.read_backbone(str(tmp_path / "x"))
    assert read == config
    for path, array in formats.arrays.flatten(tiny.weights(config)).items():
        np.testing.assert_array_equal(arrays[path].load(), array)


def test_the_longest_text_that_the_stacks_state_is_written_again(tmp_path):
    formats.write_backbone("hf", str(tmp_path / "x"), CONFIG, tiny.weights(CONFIG))
    settings = json.loads((tmp_path / "x" / "config.json").read_text())
    for side in ("encoder", "decoder"):
        settings[side]["max_position_embeddings"] = 8192
    (tmp_path / "x" / "config.json").write_text(json.dumps(settings))
    formats.write_backbone("hf", str(tmp_path / "again"), *formats.read_backbone(str(tmp_path / "x"))[:2])
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == settings


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CONFIG, ("encoder", "head_dim")), (CONFIG, ("decoder", "rotary", "original_length")), (CONFIG, ("decoder", "num_layers")),
        (tiny.LLAMA, ("rotary", "original_length")),
    ],
)  # fmt: skip
def test_numbers_within_an_own_config_have_bounds(config, field, tmp_path):
    formats.write_backbone("own", str(tmp_path / "x"), config, tiny.weights(config))
    settings = json.loads((tmp_path / "x" / "config.json").read_text())
    inner = settings
    for part in field[:-1]:
        inner = inner[part]
    inner[field[-1]] = 10**400
    (tmp_path / "x" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"{'.'.join(field)} = 1000.*; it takes a whole number from 0 to 2,147,483,647"):
        formats.read_backbone(str(tmp_path / "x"))


def test_a_folder_of_t5gemma_2_is_read_without_its_images(tmp_path):
    """As transformers saves it: the tower of images, the token for their end, copies of the embedding."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    import transformers
    import transformers_side

    config = tiny.T5GEMMAS["t5gemma2"]
    model = transformers.T5Gemma2ForConditionalGeneration(transformers.T5Gemma2Config(**_second(config)))
    model.load_state_dict(_of_texts(transformers_side.state_dict(config)), strict=False)
    model.tie_weights()
    model.save_pretrained(tmp_path / "x")
    read, arrays, _ = formats.read_backbone(str(tmp_path / "x"))
    assert read == config
    for path, array in formats.arrays.flatten(tiny.weights(config)).items():
        np.testing.assert_array_equal(arrays[path].load(), array)


def test_sizes_have_the_parameters_that_are_published():
    """keras-hub counts the same for b-b, and the others to three digits."""
    published = {
        "s_s": 0.313, "b_b": 0.591, "l_l": 1.242, "ml_ml": 2.200, "xl_xl": 3.767, "2b_2b": 5.597, "9b_2b": 12.292, "9b_9b": 20.333,
    }  # fmt: skip
    found = {name.removeprefix("t5gemma_"): round(config.num_parameters() / 1e9, 3) for name, config in T5GEMMA_SIZES.items()}
    assert found == published
    assert T5GEMMA_SIZES["t5gemma_b_b"].num_parameters() == 591_490_560
    for config in (*T5GEMMA_SIZES.values(), *tiny.T5GEMMAS.values()):
        assert config.num_parameters() == sum(int(np.prod(entry.shape)) for entry in names.entries(config))


@pytest.mark.parametrize("name", tiny.T5GEMMAS)
def test_names_are_those_of_the_network(name):
    config = tiny.T5GEMMAS[name]
    drawn = formats.arrays.flatten(jax.eval_shape(lambda: t5gemma.init(config, 0)))
    assert {path: leaf.shape for path, leaf in drawn.items()} == {entry.ours: entry.shape for entry in names.entries(config)}


CHANGES = {
    "an unknown key": (lambda settings: settings["encoder"].update(fraction=0.5), "encoder says 'fraction' = 0.5, which is not known"),
    "an unknown key of its own": (lambda settings: settings.update(mystery=1), "says 'mystery' = 1, which is not known"),
    "another activation": (lambda settings: settings["decoder"].update(hidden_activation="silu"), "decoder: hidden_activation = 'silu'"),
    "biases": (lambda settings: settings["decoder"].update(attention_bias=True), "decoder: attention_bias = True"),
    "no decoder": (lambda settings: settings.pop("decoder"), "decoder is None, not the settings of a stack"),
    "an encoder of another width": (
        lambda settings: settings["decoder"].update(cross_attention_hidden_size=99), "hidden_size = 99, but the encoder has 16",
    ),
    "a start that files disagree on": (lambda settings: settings["decoder"].update(bos_token_id=7), "7, .*generation_config.json says 2"),
    "a decoder alone": (lambda settings: settings.update(is_encoder_decoder=False), "is_encoder_decoder = False"),
    "one layer more": (lambda settings: settings["encoder"].update(num_hidden_layers=4), "layer_types"),
    "other sizes": (lambda settings: settings["encoder"].update(head_dim=4, query_pre_attn_scalar=16), "not a tied T5Gemma"),
    "an unknown tie": (lambda settings: settings.update(tie_word_embeddings="yes"), "tie_word_embeddings = 'yes'"),
    "two vocabularies": (lambda settings: settings["encoder"].update(vocab_size=59), "they share a vocabulary"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_arithmetic_is_refused_by_name(change, tmp_path):
    changed, message = CHANGES[change]
    formats.write_backbone("hf", str(tmp_path / "x"), CONFIG, tiny.weights(CONFIG))
    file = tmp_path / "x" / "config.json"
    settings = json.loads(file.read_text())
    changed(settings)
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message) as raised:
        formats.read_backbone(str(tmp_path / "x"))
    assert "\n" not in str(raised.value)


def test_a_published_config_with_defaults_left_out_is_the_named_size():
    """transformers writes of a stack what differs from its class."""
    from mpt_jax.model.formats import huggingface_t5gemma

    settings = {"model_type": "t5gemma", "encoder": {"model_type": "t5_gemma_module"}, "decoder": {"is_decoder": True}, "dropout_rate": 0.0}
    assert huggingface_t5gemma.read_config(settings, "config.json", {}, "") == T5GEMMA_SIZES["t5gemma_2b_2b"]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        recorded = {}
        for case_name, with_prompt in CASES:
            for what, array in theirs(case_name, Path(temporary) / case_name, with_prompt).items():
                recorded[f"{case_name}/{with_prompt}/{what}"] = array
        np.savez_compressed(GOLDEN, **recorded)
