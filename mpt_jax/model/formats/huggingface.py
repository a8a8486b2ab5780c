"""Hugging Face folders of T5ForConditionalGeneration: config.json, weights, tokenizer files."""

import os
from collections.abc import Mapping
from typing import Any

from mpt_jax.data import tokenizer_files
from mpt_jax.data.vocabulary import BYTES, FILES, is_pieces
from mpt_jax.errors import UserError
from mpt_jax.model.families import t5_names
from mpt_jax.model.families.t5 import FAMILY as T5
from mpt_jax.model.families.t5_config import ACTIVATIONS, T5Config
from mpt_jax.model.formats import huggingface_keys, huggingface_tokenizer, huggingface_weights, names, safetensors
from mpt_jax.model.formats.arrays import LazyArray, listed
from mpt_jax.model.formats.files import Folder, is_remote
from mpt_jax.model.formats.folder_writer import write_json
from mpt_jax.regular_files import shown

MODEL_TYPES = ("t5", "mt5", "umt5")  # ByT5, Flan, UL2 and CodeT5+ call themselves t5
# T5Config's field: key of config.json
CONFIG_KEYS = {
    "vocab_size": "vocab_size", "d_model": "d_model", "num_heads": "num_heads", "head_dim": "d_kv", "d_ff": "d_ff",
    "num_encoder_layers": "num_layers", "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "relative_attention_num_buckets",
    "relative_attention_max_distance": "relative_attention_max_distance", "decoder_start_id": "decoder_start_token_id",
}  # fmt: skip
OPTIONAL = ("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance", "decoder_start_token_id")
GENERATION = "generation_config.json"


def read(folder: Folder) -> tuple[T5Config, dict[str, LazyArray]]:
    """Config and arrays by our names; nothing is read yet. Raises UserError naming what is missing, left over
    or unknown."""
    settings = _settings(folder)
    arrays = huggingface_weights.read(folder)
    for name in t5_names.UNUSED:
        arrays.pop(name, None)
    embedding = _merge_embeddings(folder, arrays)
    config = _config(folder, settings, arrays, embedding)
    return config, names.match(config, arrays, names.HUGGING_FACE, folder.path)


def _settings(folder: Folder) -> dict[str, Any]:
    """config.json by T5's names; its keys, and those of generation_config.json, are known and mean what is done here."""
    settings, where = folder.read_json("config.json"), folder.where("config.json")
    kind = settings.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {shown(kind)} is none of {', '.join(MODEL_TYPES)}.")
    found = [(settings, where)]
    if folder.exists(GENERATION):
        found.append((folder.read_json(GENERATION), folder.where(GENERATION)))
        huggingface_keys.check_generation(*found[1])
    if any(huggingface_keys.other_ids(values) for values, _ in found):
        file = vocabulary(folder)
        if file is None or is_remote(file) or not is_pieces(file):
            for values, path in found:
                huggingface_keys.check_ids(values, path)
    known = huggingface_keys.check_config(settings, where)
    return known | {"decoder_start_token_id": huggingface_keys.start_id(found)}


def _merge_embeddings(folder: Folder, arrays: dict[str, LazyArray]) -> LazyArray:
    """Leaves one shared embedding in `arrays`. Raises UserError if the file has two that differ."""
    present = [name for name in t5_names.EMBEDDING_ALIASES if name in arrays]
    if not present:
        raise UserError(f"{folder.path} has no shared embedding; looked for {', '.join(t5_names.EMBEDDING_ALIASES)}.")
    first = arrays[present[0]]
    for name in present[1:]:
        if not huggingface_weights.equal(first, arrays[name]):
            raise UserError(
                f"{folder.path}: {present[0]} and {name} differ; encoder and decoder must share one embedding."
            )
    for name in present:
        del arrays[name]
    arrays["shared.weight"] = first
    return first


def _config(
    folder: Folder, settings: Mapping[str, Any], arrays: dict[str, LazyArray], embedding: LazyArray
) -> T5Config:
    """T5Config of a config.json; settles whether the output is the embedding.

    transformers 5 says scale_decoder_outputs, earlier ones say it by tie_word_embeddings (which 5 always
    sets). Models with unscaled output and no lm_head of their own use the embedding's transpose as one.
    """
    where, kind = folder.where("config.json"), settings["model_type"]
    activation = settings.get("feed_forward_proj", huggingface_keys.DEFAULT_PROJECTION[kind])
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(f"{where}: feed_forward_proj {shown(activation)} is none of {', '.join(ACTIVATIONS)}.")
    tied = settings.get("tie_word_embeddings", True)
    scaled = kind != "mt5" and settings.get("scale_decoder_outputs", tied is not False)
    for key, value in (("tie_word_embeddings", tied), ("scale_decoder_outputs", scaled)):
        if not isinstance(value, bool | None):
            raise UserError(f"{where}: {key} = {shown(value)}; it takes true or false.")
    missing = [key for key in CONFIG_KEYS.values() if key not in settings and key not in OPTIONAL]
    if missing:
        raise UserError(f"{where} does not say {listed(missing)}.")
    fields = {field: settings[key] for field, key in CONFIG_KEYS.items() if settings.get(key) is not None or key not in OPTIONAL}
    fields.setdefault("num_decoder_layers", settings["num_layers"])
    if "layer_norm_epsilon" in settings:
        fields["layer_norm_epsilon"] = settings["layer_norm_epsilon"]
    facts = {"name": "custom", "mlp_activations": ACTIVATIONS[activation], "logits_via_embedding": bool(scaled)}
    facts["relative_bias_per_layer"] = kind == "umt5"
    config = names.make_config(T5, fields | facts, where, CONFIG_KEYS)
    _settle_output(where, arrays, embedding, bool(scaled), bool(tied))
    names.check_layers(config, arrays, folder.path)
    return names.named(config)


def _settle_output(where: str, arrays: dict[str, LazyArray], embedding: LazyArray, scaled: bool, tied: bool) -> None:
    """Takes a copy of the embedding out of `arrays`, or puts the embedding there as the output that a model shares unscaled."""
    head = arrays.get("lm_head.weight")
    if scaled and head is not None:
        if not huggingface_weights.equal(head, embedding):
            raise UserError(
                f"{where}: the output is scaled as in T5 v1.0, but lm_head.weight is not the shared embedding. Set "
                "tie_word_embeddings to false if this is a v1.1 model."
            )
        del arrays["lm_head.weight"]
    if not scaled and head is None and tied:
        arrays["lm_head.weight"] = embedding


def settings_of(config: T5Config, dtype_name: str) -> dict[str, Any]:
    """config.json of a T5Config."""
    untied, umt5 = not config.logits_via_embedding, config.relative_bias_per_layer
    proj = next(name for name, activations in ACTIVATIONS.items() if activations == config.mlp_activations)
    return {
        "architectures": ["UMT5ForConditionalGeneration" if umt5 else "T5ForConditionalGeneration"],
        "model_type": "umt5" if umt5 else "t5",
        "d_ff": config.d_ff,
        "d_kv": config.head_dim,
        "d_model": config.d_model,
        "decoder_start_token_id": config.decoder_start_id,
        "dropout_rate": 0.1,  # of every published T5; ours is a setting of training
        "eos_token_id": 1,
        "feed_forward_proj": proj,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "tie_word_embeddings": not untied,
        "torch_dtype": dtype_name,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def write(folder: str, config: T5Config, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into an existing empty folder."""
    named = {}
    for entry in names.entries(config):
        lazy = arrays[entry.ours]
        named[entry.huggingface] = lazy.transposed() if entry.turned else lazy
    safetensors.write(os.path.join(folder, "model.safetensors"), named, {"format": "pt"})
    dtype = next(iter(named.values())).dtype.name
    settings = settings_of(config, dtype) | (huggingface_tokenizer.write(folder, vocabulary) if vocabulary else {})
    write_json(os.path.join(folder, "config.json"), settings)
    write_json(os.path.join(folder, GENERATION), {key: settings[key] for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id")})


def vocabulary(folder: Folder) -> str | None:
    """Where the tokenizer of a folder is: a SentencePiece model, a tokenizer.json, a vocab.json, or 'bytes'; None if it has none."""
    named_in = next((name for name in ("tokenizer_config.json", "config.json") if folder.exists(name)), None)
    if named_in and tokenizer_files.is_bytes(folder.read_json(named_in)):
        tokenizer_files.check_bytes(lambda name: folder.read_json(name) if folder.exists(name) else {}, folder.path)
        return BYTES
    for name in FILES:
        if folder.exists(name):
            return folder.where(name)
    return None
