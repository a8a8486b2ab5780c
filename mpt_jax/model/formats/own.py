"""This package's own backbone folder: config.json (family and fields of its shape), model.safetensors under our
names, and the vocabulary: spiece.model, tokenizer.json with what lies beside it, or nothing for bytes."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from mpt_jax.data.vocabulary import BYTES, PiecesVocabulary, load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.families import FAMILIES, family_named, family_of
from mpt_jax.model.formats import huggingface_tokenizer, names, safetensors
from mpt_jax.model.formats.arrays import LazyArray, listed
from mpt_jax.model.formats.files import Folder, copy_file, is_remote
from mpt_jax.model.formats.folder_writer import write_json
from mpt_jax.regular_files import shown

WEIGHTS = "model.safetensors"
# of computation, not of the shape: version 0.1 wrote them
IGNORED = {"family", "dropout_rate", "dtype", "remat", "attention"}


def is_own(settings: Mapping) -> bool:
    """Whether a config.json is ours."""
    return "family" in settings or ("num_encoder_layers" in settings and "head_dim" in settings)


def read(folder: Folder) -> tuple[Any, dict[str, LazyArray]]:
    """Config and arrays by our names; nothing is read yet."""
    settings, where = folder.read_json("config.json"), folder.where("config.json")
    family = family_named(settings.get("family", "t5"))
    if family is None:
        known = ", ".join(repr(row.name) for row in FAMILIES.values())
        raise UserError(f"{where}: family = {shown(settings['family'])} is none of {known}.")
    fields = {field.name for field in dataclasses.fields(family.config)}
    unknown = settings.keys() - fields - IGNORED
    if unknown:
        raise UserError(f"{where} has unknown fields: {listed(map(shown, unknown))}.")
    config = names.make_config(family, {key: value for key, value in settings.items() if key in fields}, where)
    arrays = safetensors.read(folder, WEIGHTS)[0]
    names.check_layers(config, arrays, folder.path)
    return config, names.match(config, arrays, names.OURS, folder.path)


def write(folder: str, config: Any, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the vocabulary into an existing empty folder."""
    ordered = {entry.ours: arrays[entry.ours] for entry in names.entries(config)}
    safetensors.write(os.path.join(folder, WEIGHTS), ordered)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({"family": family_of(config).name, **dataclasses.asdict(config)}, file, indent=2)
        file.write("\n")
    if not vocabulary or vocabulary == BYTES:
        return
    held = None if is_remote(vocabulary) else load_vocabulary(vocabulary)  # refuses what the copy alone would lose
    if isinstance(held, PiecesVocabulary):
        write_json(os.path.join(folder, "generation_config.json"), huggingface_tokenizer.write(folder, vocabulary))
    else:
        name = "tokenizer.json" if vocabulary.endswith("tokenizer.json") else "spiece.model"
        copy_file(vocabulary, os.path.join(folder, name))
