"""Hugging Face folders of decoder-only models: a row for each model_type says what its config.json means. Read and written."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from mpt_jax.errors import UserError
from mpt_jax.model.families.causal import FAMILY
from mpt_jax.model.families.causal_config import MOST_LAYERS, CausalConfig
from mpt_jax.model.formats import huggingface_causal_keys, huggingface_tokenizer, huggingface_weights, names, safetensors
from mpt_jax.model.formats.arrays import LazyArray
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.folder_writer import write_json
from mpt_jax.model.formats.huggingface_rope import read_rope, rope_settings
from mpt_jax.regular_files import shown

WINDOW, FULL = "sliding_attention", "full_attention"
KINDS = {WINDOW: "window", FULL: "full"}
# CausalConfig's field: key of config.json, where the value is taken as it is
CONFIG_KEYS = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim", "d_ff": "intermediate_size", "norm_epsilon": "rms_norm_eps",
    "logits_via_embedding": "tie_word_embeddings",
}  # fmt: skip
CAPS = {"attention_cap": "attn_logit_softcapping", "logits_cap": "final_logit_softcapping"}
STATED = {"max_positions": "max_position_embeddings"}  # which other programs take for the longest text
_SILU, _GELU = ("silu",), ("gelu_pytorch_tanh",)
_COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "rope_theta": 10_000.0}
_GEMMA = _COMMON | {
    "tie_word_embeddings": True, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
}  # fmt: skip
_GEMMA_2 = _GEMMA | {
    "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
_GEMMA_3 = _GEMMA_2 | {
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "sliding_window_pattern": 6,
}  # fmt: skip
_GEMMA_FACTS = {"activation": "gelu", "norm_plus_one": True, "scaled_embedding": True}
_GEMMA_KEYS = ("hidden_activation",)
_WINDOW_KEYS = ("sliding_window", "layer_types")
_QWEN, _QWEN_KEYS = _COMMON | {"sliding_window": 4096}, ("use_sliding_window", *_WINDOW_KEYS)
_GEMMA_2_KEYS = (*_GEMMA_KEYS, *_WINDOW_KEYS, *CAPS.values(), "query_pre_attn_scalar", "sliding_window_size")
# Gemma 3's class of transformers keeps attn_logit_softcapping and never uses it, so that only null is read
_GEMMA_3_KEYS = (
    *_GEMMA_KEYS, *_WINDOW_KEYS, CAPS["logits_cap"], "query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern",
)  # fmt: skip


class Model(NamedTuple):
    """A row. facts: CausalConfig's fields that its class of transformers fixes; defaults: what a config.json may leave out, as there.

    keys: those read besides the common ones. activations: names that mean the activation.
    """

    architecture: str
    facts: Mapping[str, Any]
    defaults: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    activations: tuple[str, ...] = _SILU


MODELS: dict[str, Model] = {
    "llama": Model("LlamaForCausalLM", {}, _COMMON),
    "mistral": Model("MistralForCausalLM", {}, _COMMON | {"sliding_window": 4096}, ("sliding_window",)),
    "qwen2": Model("Qwen2ForCausalLM", {"query_key_value_bias": True}, _QWEN, _QWEN_KEYS),
    "qwen3": Model("Qwen3ForCausalLM", {"query_key_norm": True}, _QWEN | {"head_dim": 128}, _QWEN_KEYS),
    # the first Gemma files say 'gelu' and mean its tanh form
    "gemma": Model("GemmaForCausalLM", _GEMMA_FACTS, _GEMMA, _GEMMA_KEYS, (*_GELU, "gelu")),
    "gemma2": Model("Gemma2ForCausalLM", _GEMMA_FACTS | {"post_norms": True}, _GEMMA_2, _GEMMA_2_KEYS, _GELU),
    "gemma3_text": Model(
        "Gemma3ForCausalLM", _GEMMA_FACTS | {"post_norms": True, "query_key_norm": True}, _GEMMA_3,
        _GEMMA_3_KEYS, _GELU,
    ),
}  # fmt: skip
FACTS = ("activation", "norm_plus_one", "post_norms", "query_key_norm", "query_key_value_bias", "scaled_embedding")
IMAGES = "gemma3"  # a model of texts and images; its text part is a gemma3_text
MODEL_TYPES = (*MODELS, IMAGES)
IMAGE_KEYS = (
    "model_type", "text_config", "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
    "tie_word_embeddings",
)  # fmt: skip
IMAGE_ARRAYS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
# the text part's names in it, the older ones first: what a name starts with, and what this package's table has instead
TEXT_ARRAYS = (("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."), ("model.language_model.", "model."))


def read(folder: Folder) -> tuple[CausalConfig, dict[str, LazyArray]]:
    """Config and arrays by our names, not read yet. Raises UserError naming what is missing, left over or unknown."""
    settings, where = folder.read_json("config.json"), folder.where("config.json")
    if folder.exists("generation_config.json"):
        huggingface_causal_keys.check_generation(folder.read_json("generation_config.json"), folder.where("generation_config.json"))
    images = settings.get("model_type") == IMAGES
    config = read_config(_text_part(settings, where) if images else settings, where)
    arrays = huggingface_weights.read(folder)
    # rotary frequencies, which the first Llama files hold, are worked out here
    arrays = {name: lazy for name, lazy in arrays.items() if not name.endswith(".rotary_emb.inv_freq")}
    if images:
        arrays = _text_arrays(arrays)
    names.check_layers(config, arrays, folder.path)
    _settle_output(config, arrays, where)
    return config, names.match(config, arrays, names.HUGGING_FACE, folder.path)


def _text_part(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config of the text part of a model of texts and images."""
    huggingface_causal_keys.check_config(settings, IMAGE_KEYS, where)
    found = settings.get("text_config")
    if not isinstance(found, dict):
        raise UserError(f"{where}: text_config is {shown(found)}, not an object.")
    if found.get("final_logit_softcapping") is not None:  # transformers' model of texts and images forgets it
        cap = shown(found["final_logit_softcapping"])
        raise UserError(f"{where}: text_config.final_logit_softcapping = {cap}; only null is supported.")
    tied = {"tie_word_embeddings": settings["tie_word_embeddings"]} if "tie_word_embeddings" in settings else {}
    return {**found, "model_type": found.get("model_type", "gemma3_text"), **tied}


def _text_arrays(arrays: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    found = {}
    for name, lazy in arrays.items():
        if name.startswith(IMAGE_ARRAYS):
            continue
        start, ours = next(((start, ours) for start, ours in TEXT_ARRAYS if name.startswith(start)), ("", ""))
        found[ours + name.removeprefix(start)] = lazy
    return found


def read_config(settings: Mapping[str, Any], where: str) -> CausalConfig:
    """The shape of a config.json. Raises UserError for a model_type, key or value that is not known here."""
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        raise UserError(f"{where}: model_type {shown(kind)} is none of {', '.join(MODEL_TYPES)}.")
    row = MODELS[kind]
    huggingface_causal_keys.check_config(settings, row.keys, where)
    values = {**row.defaults, **settings}
    _check_activation(values, row, where)
    heads, width = (values.get(key) for key in ("num_attention_heads", "hidden_size"))
    head_dim = width // heads if type(width) is type(heads) is int and heads > 0 else None
    for key, default in (("num_key_value_heads", heads), ("head_dim", head_dim)):
        values[key] = default if values.get(key) is None else values[key]
    missing = next((key for key in CONFIG_KEYS.values() if values.get(key) is None), None)
    if missing:
        raise UserError(f"{where} does not say {missing}.")
    layers = values["num_hidden_layers"]
    if type(layers) is not int or not 1 <= layers <= MOST_LAYERS:
        raise UserError(f"{where}: num_hidden_layers = {shown(layers)}; it takes a whole number in 1 .. {MOST_LAYERS}.")
    fields = {field: values[key] for field, key in CONFIG_KEYS.items()}
    fields |= {field: values[key] for field, key in (CAPS | STATED).items() if values.get(key) is not None}
    fields |= _windows(kind, values, row, layers, where) | read_rope(values, kind == "gemma3_text", where) | row.facts
    if "query_pre_attn_scalar" in row.keys:
        fields |= _query_scale(values, where)
    config = names.make_config(FAMILY, {"name": "custom", **fields}, where, CONFIG_KEYS | CAPS | STATED | {"window": "sliding_window"})
    return names.named(config)


def _check_activation(values: Mapping[str, Any], row: Model, where: str) -> None:
    for key in ("hidden_act", *(key for key in row.keys if key == "hidden_activation")):
        if values[key] not in (*row.activations, None):
            raise UserError(f"{where}: {key} = {shown(values[key])}; only {' or '.join(map(repr, row.activations))} is supported.")


def _query_scale(values: Mapping[str, Any], where: str) -> dict[str, float]:
    scalar = values["query_pre_attn_scalar"]
    if isinstance(scalar, bool) or not isinstance(scalar, int | float) or not 0 < scalar < 2**31:
        raise UserError(f"{where}: query_pre_attn_scalar = {shown(scalar)}; it takes a number above 0.")
    return {} if scalar == values["head_dim"] else {"query_scale": scalar**-0.5}


def _windows(kind: str, values: Mapping[str, Any], row: Model, layers: int, where: str) -> dict[str, Any]:
    """CausalConfig's window and layer_kinds; {} where every layer sees everything."""
    if "sliding_window" not in row.keys:
        return {}
    window, types = values["sliding_window"], values.get("layer_types")
    if values.get("sliding_window_size", window) not in (None, window):  # the first Gemma 2 files say it twice, transformers reads one
        twice = f"sliding_window = {shown(window)} and sliding_window_size = {shown(values['sliding_window_size'])}"
        raise UserError(f"{where} has {twice}; transformers reads the first: take the other one out.")
    if "use_sliding_window" in row.keys and not values.get("use_sliding_window"):
        window = None
    if types is None:
        types = _default_types(kind, values, window, layers, where)
    if not isinstance(types, list) or len(types) != layers or not all(isinstance(each, str) and each in KINDS for each in types):
        raise UserError(f"{where}: layer_types is {shown(types)}; it takes {FULL!r} or {WINDOW!r} for each of the {layers} layers.")
    if WINDOW not in types:
        return {}
    if window is None:
        raise UserError(f"{where}: layer_types has {WINDOW!r}, but sliding_window is null or not used.")
    return {"window": window, "layer_kinds": tuple(KINDS[each] for each in types)}


def _default_types(kind: str, values: Mapping[str, Any], window: Any, layers: int, where: str) -> list[str]:
    """Which layers have a window where layer_types does not say it, as transformers has it."""
    if kind == "gemma3_text":
        every = values.get("_sliding_window_pattern", values["sliding_window_pattern"])
    else:
        every = 2 if kind == "gemma2" else 0
    if type(every) is not int or every < 0:
        raise UserError(f"{where}: sliding_window_pattern = {shown(every)}; it takes a whole number.")
    if every:
        return [WINDOW if (layer + 1) % every else FULL for layer in range(layers)]
    first = values.get("max_window_layers", 28) if kind.startswith("qwen") else 0
    if type(first) is not int:
        raise UserError(f"{where}: max_window_layers = {shown(first)}; it takes a whole number.")
    return [FULL if window is None or layer < first else WINDOW for layer in range(layers)]


def _settle_output(config: CausalConfig, arrays: dict[str, LazyArray], where: str) -> None:
    """Takes a copy of the embedding out of `arrays` where the output is the embedding. UserError for an output that is another, or none."""
    head, embedding = arrays.get("lm_head.weight"), arrays.get("model.embed_tokens.weight")
    if config.logits_via_embedding and head is not None:
        if embedding is not None and not huggingface_weights.equal(head, embedding):
            advice = "set it to false if the output has weights of its own"
            raise UserError(f"{where}: tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight; {advice}.")
        del arrays["lm_head.weight"]
    elif not config.logits_via_embedding and head is None:
        advice = "set it to true if the output is the embedding"
        raise UserError(f"{where}: tie_word_embeddings is false or not given, but there is no lm_head.weight; {advice}.")


def settings_of(config: CausalConfig, dtype_name: str) -> dict[str, Any]:
    """config.json of a shape. Raises UserError where no model_type of transformers computes it."""
    mistral = set(config.layer_kinds) == {"window"} and config.window_rotary is None
    kinds = ["mistral", *MODELS] if mistral else [*MODELS]
    wanted = {name: getattr(config, name) for name in FACTS}
    plain = {name: CausalConfig.__dataclass_fields__[name].default for name in FACTS}
    for kind in kinds:
        row = MODELS[kind]
        if plain | row.facts != wanted:
            continue
        settings = _settings(config, kind, row, dtype_name)
        try:
            if names.named(read_config(settings, "config.json")) == names.named(config):
                return settings
        except UserError:
            continue  # this model_type has no words for it
    known = ", ".join(MODELS)
    raise UserError(f"transformers has no model_type ({known}) for a {FAMILY.words(config)} of this kind; write it --to own.")


def _settings(config: CausalConfig, kind: str, row: Model, dtype_name: str) -> dict[str, Any]:
    """config.json as a model_type says it, in the words that transformers 4 and 5 both read."""
    settings = {key: getattr(config, field) for field, key in CONFIG_KEYS.items()}
    settings |= {
        "architectures": [row.architecture], "model_type": kind, "hidden_act": row.activations[0], "torch_dtype": dtype_name,
        "use_cache": True, **rope_settings(config, kind == "gemma3_text"),
    }  # fmt: skip
    settings |= {key: getattr(config, field) for field, key in STATED.items() if getattr(config, field)}
    if "hidden_activation" in row.keys:
        settings["hidden_activation"] = row.activations[0]
    if "query_pre_attn_scalar" in row.keys:
        settings |= {key: getattr(config, field) or None for field, key in CAPS.items()}
        scalar = config.query_scale**-2 if config.query_scale else config.head_dim
        settings["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
    if "sliding_window" in row.keys:
        settings["sliding_window"] = config.window or None
    if "use_sliding_window" in row.keys:
        settings["use_sliding_window"] = bool(config.window)
    if "layer_types" in row.keys:
        settings["layer_types"] = [next(theirs for theirs, ours in KINDS.items() if ours == each) for each in config.layer_kinds]
    return settings


def write(folder: str, config: CausalConfig, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into an existing empty folder."""
    named = {}
    for entry in names.entries(config):
        lazy = arrays[entry.ours]
        named[entry.huggingface] = lazy.transposed() if entry.turned else lazy
    settings = settings_of(config, next(iter(named.values())).dtype.name)
    safetensors.write(os.path.join(folder, "model.safetensors"), named, {"format": "pt"})
    ids = huggingface_tokenizer.write(folder, vocabulary) if vocabulary else {}
    write_json(os.path.join(folder, "config.json"), settings | ids)
    write_json(os.path.join(folder, "generation_config.json"), ids)
