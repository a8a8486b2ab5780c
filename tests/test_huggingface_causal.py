"""Hugging Face folders of decoder-only models: every key is read, ignored for a reason, or refused by name;
files come back as they were (huggingface_causal.py, huggingface_causal_keys.py, huggingface_rope.py, huggingface_folder.py,
huggingface_weights.py, huggingface_tokenizer.py)."""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np
import pytest
import tiny_tokenizers
from tiny_causal import CONFIGS, flat_params, smaller

from mpt_jax.config import BackboneSettings
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.causal_config import CAUSAL_SIZES, CausalConfig, Rotary
from mpt_jax.model.formats import safetensors
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.huggingface_causal import MODELS, read_config, settings_of

VARIANTS = [name for name in CONFIGS if name != "linear"]


def bits(arrays) -> dict[str, bytes]:
    return {path: lazy.load().tobytes() for path, lazy in arrays.items()}


@pytest.fixture
def folder(request, tmp_path):
    """A written folder; of a Llama where the test names no other."""
    config = CONFIGS[getattr(request, "param", "llama")]
    formats.write_backbone("hf", tmp_path / "x", config, flat_params(config))
    return tmp_path / "x"


def change(folder, **changes) -> None:
    """Changes keys of config.json; None takes one out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


def rewrite(folder, change, shards: int = 1) -> None:
    """Writes the weights again after change(arrays by name), in so many files."""
    arrays = {name: lazy.load() for name, lazy in safetensors.read(Folder(folder), "model.safetensors")[0].items()}
    change(arrays)
    if shards == 1:
        return safetensors.write(str(folder / "model.safetensors"), {name: formats.in_memory(array) for name, array in arrays.items()})
    os.remove(folder / "model.safetensors")
    weight_map = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(arrays)}
    for file in set(weight_map.values()):
        safetensors.write(str(folder / file), {name: formats.in_memory(arrays[name]) for name in arrays if weight_map[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", ["own", "hf"])
def test_round_trip_is_bitwise(name, kind, tmp_path):
    config, params = CONFIGS[name], flat_params(CONFIGS[name])
    formats.write_backbone(kind, tmp_path / "x", config, params)
    found, arrays, vocabulary = formats.read_backbone(tmp_path / "x")
    assert (found, vocabulary) == (config, None)
    assert bits(arrays) == {path: array.tobytes() for path, array in params.items()}


@pytest.mark.parametrize("name", CAUSAL_SIZES)
def test_published_shapes_are_named_and_written(name):
    settings = settings_of(dataclasses.replace(CAUSAL_SIZES[name], name="custom"), "bfloat16")
    assert read_config(settings, "config.json") == CAUSAL_SIZES[name]
    assert settings["architectures"] == [MODELS[settings["model_type"]].architecture]


@pytest.mark.parametrize("folder", ["llama", "gemma3"], indirect=True)
def test_shards_and_torch_files_are_read(folder):
    wanted = bits(formats.read_backbone(folder)[1])
    rewrite(folder, lambda arrays: None, shards=3)
    assert bits(formats.read_backbone(folder)[1]) == wanted
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    arrays = {}
    for file in folder.glob("*.safetensors"):
        arrays |= {name: lazy.load() for name, lazy in safetensors.read(Folder(folder), file.name)[0].items()}
        file.unlink()
    os.remove(folder / "model.safetensors.index.json")
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, folder / "pytorch_model.bin")
    assert bits(formats.read_backbone(folder)[1]) == wanted


def test_a_missing_shard_a_cut_one_and_a_missing_array_are_told(folder):
    rewrite(folder, lambda arrays: None, shards=3)
    second = folder / "model-00002-of-00003.safetensors"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors is missing; model.safetensors.index.json lists 13 arrays in it"):
        formats.read_backbone(folder)
    second.write_bytes(content[:-100])
    with pytest.raises(UserError, match="model-00002-of-00003.safetensors is truncated: its header promises"):
        formats.read_backbone(folder)
    second.write_bytes(content)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    gone = next(name for name, file in index["weight_map"].items() if file == second.name)
    del index["weight_map"][gone]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"missing: {gone}"):
        formats.read_backbone(folder)


LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
UNSAID = {key: value for key, value in LLAMA_3.items() if key != "original_max_position_embeddings"}


@pytest.mark.parametrize(
    "told, rotary",
    [
        ({"rope_theta": ..., "rope_scaling": ...}, Rotary()),
        ({"rope_theta": 5e5}, Rotary(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rotary(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, Rotary(factor=4.0)),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA_3}}, Rotary(5e5, 8.0, 1.0, 4.0, 64)),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA_3}}, Rotary(5e5, 8.0, 1.0, 4.0, 64)),
        ({"rope_scaling": {"rope_type": "llama3", **UNSAID}, "max_position_embeddings": 2048}, Rotary(1e4, 8.0, 1.0, 4.0, 2048)),
        ({"rope_scaling": {"rope_type": "default"}, "partial_rotary_factor": 1.0}, Rotary()),
    ],
)
def test_old_and_new_spellings_of_rotary_positions(folder, told, rotary):
    change(folder, **{"rope_theta": ..., "rope_scaling": ...} | told)
    assert formats.read_backbone(folder)[0].rotary == rotary


@pytest.mark.parametrize("folder", ["gemma3"], indirect=True)
def test_positions_by_kind_of_layer_in_both_spellings(folder):
    wanted = formats.read_backbone(folder)[0]
    full, window = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    old = {"rope_theta": ..., "rope_scaling": ..., "rope_local_base_freq": ...}
    change(folder, **old, rope_parameters={"full_attention": full, "sliding_attention": window})
    assert formats.read_backbone(folder)[0] == wanted
    change(folder, rope_parameters={"full_attention": full})  # the other kind as transformers' class has it
    assert formats.read_backbone(folder)[0] == wanted
    change(folder, rope_parameters=full)
    with pytest.raises(UserError, match="has one for 'full_attention' and one for 'sliding_attention'"):
        formats.read_backbone(folder)


@pytest.mark.parametrize(
    "name, told, wanted",
    [
        ("llama", {"head_dim": ...}, {"head_dim": 8}),
        ("llama", {"head_dim": None, "num_key_value_heads": 2}, {"head_dim": 8}),
        ("mistral", {"sliding_window": None}, {"window": 0, "layer_kinds": ("full",) * 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3, "layer_types": ...},
         {"window": 7, "layer_kinds": ("full", "full", "full", "window")}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 7, "max_window_layers": 3, "layer_types": ...}, {"window": 0}),
        ("gemma", {"hidden_act": "gelu", "hidden_activation": None}, {"activation": "gelu"}),
        ("gemma2", {"layer_types": ...}, {"layer_kinds": ("window", "full") * 2}),
        ("gemma2", {"attn_logit_softcapping": ..., "final_logit_softcapping": None}, {"attention_cap": 50.0, "logits_cap": 0.0}),
        ("gemma2", {"query_pre_attn_scalar": 8}, {"query_scale": 0.0}),
        ("gemma2", {"sliding_window_size": 6}, {"window": 6}),
        ("gemma3", {"layer_types": ..., "sliding_window_pattern": 2}, {"layer_kinds": ("window", "full") * 2}),
        ("gemma3", {"layer_types": ..., "_sliding_window_pattern": 3}, {"layer_kinds": ("window", "window", "full", "window")}),
    ],
)  # fmt: skip
def test_what_a_config_leaves_out_is_what_transformers_takes(name, told, wanted):
    settings = settings_of(CONFIGS[name], "float32") | told
    found = read_config({key: value for key, value in settings.items() if value is not ...}, "config.json")
    assert {field: getattr(found, field) for field in wanted} == wanted


def test_notes_nulls_and_what_changes_no_arithmetic_is_ignored(folder):
    wanted = formats.read_backbone(folder)[0]
    change(
        folder, attention_bias=False, mlp_bias=False, pretraining_tp=2, attention_dropout=0.1, max_position_embeddings=2048,
        max_sequence_length=2048, bos_token_id=1, eos_token_id=[2, 3], rope_interleaved=False, is_llama_config=True,
        transformers_version="5.0", _name_or_path="x", sliding_window=None, attn_logit_softcapping=None,
        unsloth_fixed=True, initializer_range=0.02, dtype="float32",
    )  # fmt: skip
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [2], "temperature": 0.6, "repetition_penalty": 1.1, "do_sample": true}'
    )
    assert formats.read_backbone(folder)[0] == wanted


@pytest.mark.parametrize(
    "name, told, message",
    [
        (
            "llama",
            {"model_type": "phi3"},
            "model_type 'phi3' is none of t5, .*llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, gemma3",
        ),
        ("llama", {"model_type": 3}, "model_type 3 is none of"),
        ("llama", {"attention_bias": True}, "attention_bias = True; only False is supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True; only False is supported"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5; only 1 is supported"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn'; default, linear, llama3 are known"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type = 'dynamic'; default, linear, llama3 are known"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rotary positions have factor = None; it takes a number above 0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "says 'beta_fast' = 3 of rope_type 'linear'"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling is \[1\], not an object"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 1e4}}, "has both rope_scaling"),
        ("llama", {"rope_theta": 0}, "rotary positions have base = 0; it takes a number above 0"),
        ("llama", {"rope_theta": 0.5}, "Rotary.base = 0.5 is outside 1.0"),
        (
            "llama",
            {"query_pre_attn_scalar": 16},
            "says 'query_pre_attn_scalar' = 16, which is not known here and may change the arithmetic",
        ),
        ("llama", {"num_local_experts": 8}, "says 'num_local_experts' = 8, which is not known here"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4}; only null is supported"),
        ("llama", {"auto_map": {"AutoConfig": "x"}}, "auto_map = .*; only {} is supported"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'; only 'silu' is supported"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'; only 'gelu_pytorch_tanh' is supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True; only False is supported"),
        ("gemma2", {"layer_types": ["sliding_attention"] * 3}, "it takes 'full_attention' or 'sliding_attention' for each of the 4 layers"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "it takes 'full_attention' or 'sliding_attention' for each of the 4 layers"),
        ("gemma2", {"sliding_window": None}, "layer_types has 'sliding_attention', but sliding_window is null or not used"),
        ("gemma2", {"sliding_window_size": 5}, "sliding_window = 6 and sliding_window_size = 5; transformers reads the first"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "says 'attn_logit_softcapping' = 50.0, which is not known here"),
        ("llama", {"max_position_embeddings": "x"}, "max_position_embeddings = 'x'; it takes a whole number"),
        ("gemma2", {"sliding_window": 0}, "CausalConfig.window = 0; its 'window' layers need 1 or more"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0; it takes a number above 0"),
        ("gemma2", {"attn_logit_softcapping": "x"}, "attn_logit_softcapping = 'x'; it takes a number"),
        ("llama", {"num_hidden_layers": 2**31}, "num_hidden_layers = 2147483648; it takes a whole number in 1 .. 10000"),
        ("llama", {"num_hidden_layers": 900}, "has 900 layers by its config, but holds only 39 arrays"),
        ("llama", {"num_attention_heads": 0}, "num_heads = 0 is outside 1"),
        ("llama", {"num_attention_heads": 3}, "num_heads = 3 is not a multiple of num_kv_heads = 2"),
        ("llama", {"head_dim": 7}, "head_dim = 7 is odd"),
        ("llama", {"hidden_size": ..., "head_dim": ...}, "does not say hidden_size"),
        ("llama", {"vocab_size": 90}, "the file has 96 vocabulary rows, its config says vocab_size = 90"),
        ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps = 'x'; it takes a number"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight"),
        (
            "gemma",
            {"tie_word_embeddings": False},
            "tie_word_embeddings is false or not given, but there is no lm_head.weight; set it to true",
        ),
    ],
)
def test_what_changes_the_arithmetic_and_is_not_done_here_is_refused_by_name(name, told, message, tmp_path):
    formats.write_backbone("hf", tmp_path / "x", CONFIGS[name], flat_params(CONFIGS[name]))
    change(tmp_path / "x", **told)
    with pytest.raises(UserError, match=message) as caught:
        formats.read_backbone(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_generation_config_that_changes_greedy_answers_is_refused(folder):
    (folder / "generation_config.json").write_text('{"suppress_tokens": [1]}')
    with pytest.raises(UserError, match=r"generation_config.json: suppress_tokens = \[1\]; only \[\] is supported"):
        formats.read_backbone(folder)


@pytest.mark.parametrize("folder", ["qwen2"], indirect=True)
def test_an_output_that_is_the_embedding_may_be_there_twice(folder):
    wanted = bits(formats.read_backbone(folder)[1])
    rewrite(folder, lambda arrays: arrays.update({"lm_head.weight": arrays["model.embed_tokens.weight"].copy()}))
    assert bits(formats.read_backbone(folder)[1]) == wanted


def test_the_longest_text_that_a_model_states_is_written_again(folder, tmp_path):
    change(folder, max_position_embeddings=131_072)
    formats.write_backbone("own", tmp_path / "own", *formats.read_backbone(folder)[:2])
    formats.write_backbone("hf", tmp_path / "again", *formats.read_backbone(tmp_path / "own")[:2])
    assert json.loads((tmp_path / "again" / "config.json").read_text())["max_position_embeddings"] == 131_072
    change(folder, max_position_embeddings=...)
    formats.write_backbone("hf", tmp_path / "none", *formats.read_backbone(folder)[:2])
    assert "max_position_embeddings" not in json.loads((tmp_path / "none" / "config.json").read_text())


def test_rotary_frequencies_of_old_files_are_passed_over(folder):
    rewrite(folder, lambda arrays: arrays.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}))
    formats.read_backbone(folder)
    rewrite(folder, lambda arrays: arrays.update({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}))
    with pytest.raises(UserError, match="left over: model.layers.0.self_attn.q_proj.bias"):
        formats.read_backbone(folder)


def test_shapes_that_transformers_does_not_have_are_not_written(tmp_path):
    config = smaller("qwen3", query_key_value_bias=True)
    with pytest.raises(UserError, match="transformers has no model_type .*; write it --to own"):
        formats.write_backbone("hf", tmp_path / "x", config, flat_params(config))
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="of this kind; write it --to own"):
        settings_of(smaller("llama", window=4, layer_kinds=("window", "full") * 2), "float32")
    with pytest.raises(UserError, match="of this kind; write it --to own"):
        settings_of(smaller("gemma", attention_cap=3.0), "float32")


def test_t5x_formats_are_of_t5_alone(tmp_path):
    for kind in ("t5x", "orbax"):
        with pytest.raises(UserError, match=f"T5X has no model like this untied decoder-only model .*; --to {kind} writes T5 alone"):
            formats.write_backbone(kind, tmp_path / "x", CONFIGS["llama"], flat_params(CONFIGS["llama"]))


@pytest.mark.parametrize("kind", ["bytes", "llama", "gemma"])
@pytest.mark.parametrize("to", ["own", "hf"])
def test_folders_carry_their_tokenizer(kind, to, tmp_path):
    tiny_tokenizers.write(tmp_path / "tokenizer", kind)
    (tmp_path / "tokenizer" / "generation_config.json").write_text('{"eos_token_id": [1, 4]}')
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    config = smaller("llama", vocab_size=500)
    formats.write_backbone(to, tmp_path / "x", config, flat_params(config), str(tmp_path / "tokenizer" / "tokenizer.json"))
    before = load_vocabulary(tmp_path / "tokenizer")
    loaded = load_backbone(BackboneSettings(str(tmp_path / "x")))
    after = loaded.vocabulary("?")
    assert (after.ends, after.pad_id, after.start) == (before.ends, before.pad_id, before.start) == ((1, 4), 0, before.start)
    for text in tiny_tokenizers.TEXTS:
        assert after.encode(text) == before.encode(text)
    assert (tmp_path / "x" / "chat_template.jinja").read_text() == "{{ messages }}"
    formats.write_backbone("own", tmp_path / "again", *formats.read_backbone(tmp_path / "x"))
    assert formats.read_backbone(tmp_path / "again")[2] == str(tmp_path / "again" / "tokenizer.json")
    assert load_vocabulary(tmp_path / "again").fingerprint == before.fingerprint


@pytest.mark.parametrize("to", ["own", "hf"])
def test_the_tokenizer_of_a_gguf_file_is_written_as_transformers_reads_it(to, tmp_path):
    from tiny_gguf import write

    config = smaller("llama", vocab_size=400)
    write(tmp_path / "x.gguf", "llama", config, flat_params(config), "Q8_0", tiny_tokenizers.tokenizer("bytes"), pre="llama-bpe")
    config, arrays, vocabulary = formats.read_backbone(str(tmp_path / "x.gguf"))
    formats.write_backbone(to, tmp_path / "x", config, arrays, vocabulary)
    stated = {"own": "max_positions", "hf": "max_position_embeddings"}[to]
    assert json.loads((tmp_path / "x" / "config.json").read_text())[stated] == 4096
    before, after = load_vocabulary(tmp_path / "x.gguf"), load_vocabulary(tmp_path / "x")
    assert before.start == (2,)  # as llama.cpp puts it where the file does not say
    assert (after.ends, after.pad_id, after.start) == (before.ends, before.pad_id, before.start)
    assert all(after.encode(text) == before.encode(text) for text in tiny_tokenizers.TEXTS)
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "x") if to == "hf" else None
    for text in tiny_tokenizers.TEXTS if theirs else ():
        assert theirs(text).input_ids == [2, *after.encode(text)]
    assert bits(formats.read_backbone(tmp_path / "x")[1]) == bits(arrays)


def test_a_folder_without_a_tokenizer_says_what_to_give(folder):
    with pytest.raises(UserError, match="brings no vocabulary; name its"):
        load_backbone(BackboneSettings(str(folder)))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("new", [True, False])
def test_folders_that_transformers_writes_are_read_and_the_other_way_round(name, new, tmp_path):
    """Its own config.json, old and new style, and its own file of weights in bfloat16."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    settings = settings_of(CONFIGS[name], "float32")
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if new else "5GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == new
    if not new:
        change(tmp_path / "theirs", **{"rope_parameters": ..., **settings})
    config, arrays, _ = formats.read_backbone(tmp_path / "theirs")
    assert config == CONFIGS[name]
    assert {lazy.dtype for lazy in arrays.values()} == {np.dtype(ml_dtypes.bfloat16)}
    formats.write_backbone("hf", tmp_path / "ours", config, arrays)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for (path, theirs), (_, ours) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(theirs, ours), path


@pytest.mark.parametrize("old", [True, False])
def test_the_text_part_of_a_model_of_texts_and_images(old, tmp_path):
    transformers = pytest.importorskip("transformers")
    text = {key: value for key, value in settings_of(CONFIGS["gemma3"], "float32").items() if key not in ("architectures", "torch_dtype")}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    model = transformers.Gemma3ForConditionalGeneration(whole).eval()
    model.save_pretrained(tmp_path / "x")
    if old:  # as transformers 4 named them

        def rename(arrays):
            for name in [*arrays]:
                words = (("model.language_model.", "language_model.model."), ("model.vision", "vision"), ("model.multi", "multi"))
                start, there = next(((start, there) for start, there in words if name.startswith(start)), ("", ""))
                arrays[there + name.removeprefix(start)] = arrays.pop(name)

        rewrite(tmp_path / "x", rename)
    config, arrays, _ = formats.read_backbone(tmp_path / "x")
    assert config == CONFIGS["gemma3"]
    theirs = model.model.language_model.layers[1].self_attn.q_proj.weight.detach().numpy().T
    np.testing.assert_array_equal(arrays["decoder/layers_1/attention/query/kernel"].load(), theirs)
    change(tmp_path / "x", text_config=None)
    with pytest.raises(UserError, match="text_config is None, not an object"):
        formats.read_backbone(tmp_path / "x")
    change(tmp_path / "x", audio_config={"x": 1})
    with pytest.raises(UserError, match="says 'audio_config' = {'x': 1}, which is not known here"):
        formats.read_backbone(tmp_path / "x")


def test_shapes_that_are_equal_are_equal():
    assert smaller("llama", window=5) == CONFIGS["llama"] == smaller("llama", query_scale=8**-0.5)
    with pytest.raises(UserError, match="CausalConfig.num_layers = 100000 is outside 1 .. 10000"):
        CausalConfig("x", 8, 8, 100_000, 1, 1, 8, 8)
    with pytest.raises(UserError, match="low_frequency_factor = 4.0 is not below high_frequency_factor = 4.0"):
        Rotary(1e4, 8.0, 4.0, 4.0, 64)
