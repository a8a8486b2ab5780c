"""Hugging Face folders of T5ForConditionalGeneration: config.json, weights, tokenizer files."""

import json
import os
from collections.abc import Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import names, safetensors, torch_file
from mpt_jax.model.formats.arrays import FLOAT_TYPES, LazyArray
from mpt_jax.model.formats.files import Folder, copy_file

MODEL_TYPES = ("t5", "mt5")  # ByT5 and Flan call themselves t5; umt5 has a relative bias in every layer
ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear")}
COMPARED_BYTES = 2**24  # of two embeddings at once
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read(folder: Folder) -> tuple[T5Config, dict[str, LazyArray]]:
    """Config and arrays by our names; nothing is read yet. Raises UserError naming what is missing, left over
    or unknown."""
    settings = read_json(folder, "config.json")
    arrays = _weights(folder)
    for name in names.UNUSED:
        arrays.pop(name, None)
    embedding = _merge_embeddings(folder, arrays)
    config = _config(folder, settings, arrays, embedding)
    return config, names.match(config, arrays, True, folder.path)


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    """A JSON object of the folder."""
    try:
        value = json.loads(folder.read(name))
    except ValueError as error:
        raise UserError(f"{folder.where(name)} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{folder.where(name)} holds no JSON object.")
    return value


def _weights(folder: Folder) -> dict[str, LazyArray]:
    """Arrays by Hugging Face's names from whichever weight file the folder has, in the order of WEIGHTS."""
    for name in WEIGHTS:
        if not folder.exists(name):
            continue
        if not name.endswith(".index.json"):
            return _file(folder, name)
        return _shards(folder, name)
    raise UserError(f"{folder.path} has a config.json but no weights; looked for {', '.join(WEIGHTS)}.")


def _file(folder: Folder, name: str) -> dict[str, LazyArray]:
    arrays = safetensors.read(folder, name)[0] if name.endswith(".safetensors") else torch_file.read(folder, name)
    for key, lazy in arrays.items():
        if lazy.dtype not in FLOAT_TYPES.values():
            raise UserError(f"{lazy.source} ({key}) has type {lazy.dtype}; weights may be {', '.join(FLOAT_TYPES)}.")
    return arrays


def _shards(folder: Folder, index_name: str) -> dict[str, LazyArray]:
    shard_of = read_json(folder, index_name).get("weight_map", {})
    arrays: dict[str, LazyArray] = {}
    for name in sorted(set(shard_of.values())):
        if os.path.basename(name) != name:
            raise UserError(f"{folder.where(index_name)} names the shard {name!r}, which is not in the folder itself.")
        shard = _file(folder, name)
        absent = {key for key, where in shard_of.items() if where == name} - shard.keys()
        if absent:
            raise UserError(f"{folder.where(name)} lacks {names.listed(absent)}, which {index_name} places there.")
        arrays.update({key: lazy for key, lazy in shard.items() if shard_of.get(key) == name})
    return arrays


def _merge_embeddings(folder: Folder, arrays: dict[str, LazyArray]) -> LazyArray:
    """Leaves one shared embedding in `arrays`. Raises UserError if the file has two that differ."""
    present = [name for name in names.EMBEDDING_ALIASES if name in arrays]
    if not present:
        raise UserError(f"{folder.path} has no shared embedding; looked for {', '.join(names.EMBEDDING_ALIASES)}.")
    first = arrays[present[0]]
    for name in present[1:]:
        if not _equal(first, arrays[name]):
            raise UserError(
                f"{folder.path}: {present[0]} and {name} differ; encoder and decoder must share one embedding."
            )
    for name in present:
        del arrays[name]
    arrays["shared.weight"] = first
    return first


def _equal(first: LazyArray, second: LazyArray) -> bool:
    """Whether two arrays hold the same numbers, compared a block of rows at a time."""
    if first.shape != second.shape:
        return False
    if first.place is not None and first.place == second.place:
        return True
    rows = max(1, COMPARED_BYTES // (first.shape[1] * first.dtype.itemsize))
    for start in range(0, first.shape[0], rows):
        index = (slice(start, start + rows), slice(None))
        if first.load(index=index).tobytes() != second.load(first.dtype, index).tobytes():
            return False
    return True


def _config(
    folder: Folder, settings: Mapping[str, Any], arrays: dict[str, LazyArray], embedding: LazyArray
) -> T5Config:
    """T5Config of a config.json; settles whether the output is the embedding.

    transformers 5 says scale_decoder_outputs, earlier ones say it by tie_word_embeddings (which 5 always
    sets). Models with unscaled output and no lm_head of their own use the embedding's transpose as one.
    """
    where = folder.where("config.json")
    kind, activation = settings.get("model_type"), settings.get("feed_forward_proj", "relu")
    if kind not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {kind!r} is none of {', '.join(MODEL_TYPES)}.")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: feed_forward_proj {activation!r} is none of {', '.join(ACTIVATIONS)}.")
    tied = settings.get("tie_word_embeddings", True)
    scaled = kind != "mt5" and settings.get("scale_decoder_outputs", tied is not False)
    head = arrays.get("lm_head.weight")
    if scaled and head is not None:
        if not _equal(head, embedding):
            raise UserError(
                f"{where}: the output is scaled as in T5 v1.0, but lm_head.weight is not the shared embedding. Set "
                "tie_word_embeddings to false if this is a v1.1 model."
            )
        del arrays["lm_head.weight"]
    if not scaled and head is None and tied:
        arrays["lm_head.weight"] = embedding
    try:
        layers = settings["num_layers"]
        config = T5Config(
            "custom",
            settings["vocab_size"],
            settings["d_model"],
            settings["num_heads"],
            settings["d_kv"],
            settings["d_ff"],
            layers,
            settings.get("num_decoder_layers") or layers,
            ACTIVATIONS[activation],
            bool(scaled),
            settings.get("relative_attention_num_buckets", 32),
            settings.get("relative_attention_max_distance", 128),
            float(settings.get("layer_norm_epsilon", 1e-6)),
        )
    except KeyError as error:
        raise UserError(f"{where} does not say {error}.") from error
    return names.named(config)


def settings_of(config: T5Config, dtype_name: str) -> dict[str, Any]:
    """config.json of a T5Config."""
    untied = not config.logits_via_embedding
    proj = next(name for name, activations in ACTIVATIONS.items() if activations == config.mlp_activations)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_ff": config.d_ff,
        "d_kv": config.head_dim,
        "d_model": config.d_model,
        "decoder_start_token_id": 0,
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
    _write_json(folder, "config.json", settings_of(config, dtype))
    _write_json(folder, "generation_config.json", {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})
    if vocabulary == "bytes":
        _write_json(folder, "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125})
    elif vocabulary and os.path.basename(vocabulary) == "tokenizer.json":
        copy_file(vocabulary, os.path.join(folder, "tokenizer.json"))
        _write_json(folder, "tokenizer_config.json", {"tokenizer_class": "T5TokenizerFast"})
    elif vocabulary:
        copy_file(vocabulary, os.path.join(folder, "spiece.model"))
        _write_json(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 100})


def _write_json(folder: str, name: str, value: Mapping[str, Any]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")


def vocabulary(folder: Folder) -> str | None:
    """Where the tokenizer of a folder is: a SentencePiece model, a tokenizer.json, or 'bytes'; None if it has
    none."""
    if folder.exists("tokenizer_config.json"):
        settings = read_json(folder, "tokenizer_config.json")
        if str(settings.get("tokenizer_class", "")).startswith("ByT5"):
            return "bytes"
    for name in ("spiece.model", "sentencepiece.model", "tokenizer.json"):
        if folder.exists(name):
            return folder.where(name)
    return None
