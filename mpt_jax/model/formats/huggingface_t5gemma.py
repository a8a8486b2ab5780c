"""Hugging Face folders of T5Gemma and, for texts, T5Gemma 2: a config.json whose encoder and decoder are Gemma's. Read; T5Gemma written.

Keys of encoder and decoder are those of Gemma 2 and 3 (huggingface_causal.py), their tables of keys too.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mpt_jax.errors import UserError
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.t5gemma_config import T5GemmaConfig
from mpt_jax.model.families.t5gemma_names import HEAD, PREFIXES
from mpt_jax.model.formats import (
    huggingface_causal,
    huggingface_causal_keys,
    huggingface_keys,
    huggingface_tokenizer,
    huggingface_weights,
    names,
    safetensors,
)
from mpt_jax.model.formats.arrays import LazyArray
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.folder_writer import write_json
from mpt_jax.regular_files import shown

GENERATION = "generation_config.json"
SIDES = ("encoder", "decoder")


class Kind(NamedTuple):
    """A model_type. side: whose keys its stacks have; defaults: of keys that a stack may leave out; facts: of T5GemmaConfig."""

    side: str
    defaults: Mapping[str, Any]
    facts: Mapping[str, Any]


KINDS = {
    "t5gemma": Kind(
        "gemma2",
        {
            "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256,
        },
        {},
    ),
    "t5gemma2": Kind("gemma3_text", {}, dict.fromkeys(("merged_attention", "one_embedding", "halved_windows"), True)),
}  # fmt: skip
MODEL_TYPES = tuple(KINDS)
# of config.json itself, and of T5Gemma 2's encoder: read here, or about images
READ = ("encoder", "decoder", "tie_word_embeddings", "vocab_size")
IMAGES = ("text_config", "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
IMAGE_ARRAYS = re.compile(r"model\.encoder\.(vision_tower|multi_modal_projector)\.|.*\.eoi_embedding$")
TEXT = ("model.encoder.text_model.", "model.encoder.")  # its modules, and its files, which leave out that they are of texts
# of a stack, besides Gemma's: dropout is a setting of training; the ids are the tokenizer's, the decoder's start is read here
STACK_IGNORED = ("model_type", "is_decoder", "cross_attention_hidden_size", "classifier_dropout_rate", "default_theta")


def read(folder: Folder) -> tuple[T5GemmaConfig, dict[str, LazyArray]]:
    """Config and arrays by our names, not read yet. Raises UserError naming what is missing, left over or unknown."""
    settings, where = folder.read_json("config.json"), folder.where("config.json")
    generation = folder.read_json(GENERATION) if folder.exists(GENERATION) else {}
    huggingface_causal_keys.check_generation(generation, folder.where(GENERATION))
    config = read_config(settings, where, generation, folder.where(GENERATION))
    arrays = huggingface_weights.read(folder)
    if config.one_embedding:
        arrays = {name.replace(*TEXT, 1): lazy for name, lazy in arrays.items() if not IMAGE_ARRAYS.match(name)}
    names.check_layers(config, arrays, folder.path)
    _settle_embeddings(config, arrays, where)
    return config, names.match(config, arrays, names.HUGGING_FACE, folder.path)


def read_config(settings: Mapping[str, Any], where: str, generation: Mapping[str, Any], generation_where: str) -> T5GemmaConfig:
    """The shape of a config.json. Raises UserError for a key or value that is not known here."""
    kind = KINDS[settings["model_type"]]
    if settings.get("is_encoder_decoder", True) is not True:
        raise UserError(f"{where}: is_encoder_decoder = {shown(settings['is_encoder_decoder'])}; only True is supported.")
    own = {key: value for key, value in settings.items() if key not in ("is_encoder_decoder", "classifier_dropout_rate")}
    huggingface_causal_keys.check_config(own, (*READ, *IMAGES), where)
    tied = settings.get("tie_word_embeddings", True)
    if not isinstance(tied, bool):
        raise UserError(f"{where}: tie_word_embeddings = {shown(tied)}; it takes true or false.")
    given = {side: _stack(settings, side, kind, where) for side in SIDES}
    width, seen = given["encoder"].get("hidden_size", kind.defaults.get("hidden_size")), given["decoder"].get("cross_attention_hidden_size")
    if seen not in (None, width):
        raise UserError(f"{where}: decoder.cross_attention_hidden_size = {shown(seen)}, but the encoder has {shown(width)}.")
    stacks = {side: _shape(given[side], side, kind, tied or side == "encoder", where) for side in SIDES}
    told = generation.get("decoder_start_token_id")
    start = huggingface_keys.start_id(
        [
            ({"decoder_start_token_id": given["decoder"].get("bos_token_id", 2)}, f"{where} (decoder.bos_token_id)"),
            ({"decoder_start_token_id": generation.get("bos_token_id") if told is None else told}, generation_where),
        ]
    )
    if type(start) is not int:
        raise UserError(f"{where}: decoder.bos_token_id = {shown(start)}; it takes the id of a token.")
    return names.named(T5GemmaConfig("custom", **stacks, **kind.facts, decoder_start_id=start))


def _stack(settings: Mapping[str, Any], side: str, kind: Kind, where: str) -> dict[str, Any]:
    """What config.json says of a stack; T5Gemma 2's encoder is of texts and images."""
    found = settings.get(side)
    if kind.facts and side == "encoder" and isinstance(found, dict):
        huggingface_causal_keys.check_config(found, IMAGES, f"{where}: encoder")
        found = found.get("text_config")
    if not isinstance(found, dict):
        raise UserError(f"{where}: {side} is {shown(found)}, not the settings of a stack.")
    return found


def _shape(given: Mapping[str, Any], side: str, kind: Kind, tied: bool, where: str) -> CausalConfig:
    known = {key: value for key, value in given.items() if key not in STACK_IGNORED}
    told = {**kind.defaults, **known, "model_type": kind.side, "tie_word_embeddings": tied}
    found = huggingface_causal.read_config(told, f"{where}: {side}")
    return dataclasses.replace(found, name=side)


def _settle_embeddings(config: T5GemmaConfig, arrays: dict[str, LazyArray], where: str) -> None:
    """Takes copies of embeddings out of `arrays`: the output's, and in T5Gemma 2 the decoder's. UserError where one is no copy."""
    embedding = {side: f"{prefix}.embed_tokens.weight" for side, prefix in PREFIXES.items()}
    copies = {embedding["decoder"]: embedding["encoder"]} if config.one_embedding else {}
    if config.decoder.logits_via_embedding:
        copies[HEAD] = embedding["encoder" if config.one_embedding else "decoder"]
    for copy, original in copies.items():
        if copy in arrays and original in arrays and not huggingface_weights.equal(arrays[copy], arrays[original]):
            advice = "T5Gemma 2 has one embedding"
            advice = "set tie_word_embeddings to false if the output has weights of its own" if copy == HEAD else advice
            raise UserError(f"{where}: {copy} is not {original}; {advice}.")
        arrays.pop(copy, None)


def settings_of(config: T5GemmaConfig, dtype_name: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a shape; ids: of the tokenizer. Raises UserError for one that transformers cannot compute."""
    if config.merged_attention or config.one_embedding or config.halved_windows:
        raise UserError("transformers' T5Gemma 2 reads images, too, whose weights are not here; write it --to own.")
    stacks = {side: huggingface_causal.settings_of(getattr(config, side), dtype_name) for side in SIDES}
    for side, settings in stacks.items():
        if settings["model_type"] != KINDS["t5gemma"].side:
            raise UserError(f"transformers' T5Gemma has no {side} of this kind ({settings['model_type']}); write it --to own.")
        for key in ("architectures", "torch_dtype", "hidden_act", "tie_word_embeddings"):
            del settings[key]
        settings |= {"model_type": "t5_gemma_module", "is_decoder": side == "decoder", "pad_token_id": 0, "eos_token_id": 1, **ids}
    stacks["decoder"] |= {"bos_token_id": config.decoder_start_id, "cross_attention_hidden_size": config.encoder.d_model}
    return {
        "architectures": ["T5GemmaForConditionalGeneration"], "model_type": "t5gemma", **stacks, "is_encoder_decoder": True,
        "dropout_rate": 0.0, "tie_word_embeddings": config.decoder.logits_via_embedding, "torch_dtype": dtype_name,
        "vocab_size": config.vocab_size,
    }  # fmt: skip


def write(folder: str, config: T5GemmaConfig, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into an existing empty folder."""
    named = {}
    for entry in names.entries(config):
        lazy = arrays[entry.ours]
        named[entry.huggingface] = lazy.transposed() if entry.turned else lazy
    dtype = next(iter(named.values())).dtype.name
    settings = settings_of(config, dtype, {})
    ids = huggingface_tokenizer.write(folder, vocabulary) if vocabulary else {}
    settings = settings_of(config, dtype, ids) if ids else settings
    safetensors.write(os.path.join(folder, "model.safetensors"), named, {"format": "pt"})
    write_json(os.path.join(folder, "config.json"), settings)
    start = dict.fromkeys(("bos_token_id", "decoder_start_token_id"), config.decoder_start_id)
    write_json(os.path.join(folder, GENERATION), ids | start)
