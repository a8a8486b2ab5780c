"""This package's own backbone folder: config.json (the fields of T5Config), model.safetensors under our
names, and the vocabulary: spiece.model, tokenizer.json, or nothing for bytes."""

import dataclasses
import json
import os
from collections.abc import Mapping

from mpt_jax.errors import UserError
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import names, safetensors
from mpt_jax.model.formats.arrays import LazyArray
from mpt_jax.model.formats.files import Folder, copy_file
from mpt_jax.model.formats.huggingface import read_json

WEIGHTS = "model.safetensors"
# of computation, not of the shape: version 0.1 wrote them
IGNORED = {"vocabulary", "dropout_rate", "dtype", "remat", "attention"}


def is_own(settings: Mapping) -> bool:
    """Whether a config.json is ours."""
    return "num_encoder_layers" in settings and "head_dim" in settings


def read(folder: Folder) -> tuple[T5Config, dict[str, LazyArray]]:
    """Config and arrays by our names; nothing is read yet."""
    settings = read_json(folder, "config.json")
    fields = {field.name for field in dataclasses.fields(T5Config)}
    unknown = settings.keys() - fields - IGNORED
    if unknown:
        raise UserError(f"{folder.where('config.json')} has unknown fields: {names.listed(unknown)}.")
    try:
        config = T5Config(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in settings.items()
                if key in fields
            }
        )
    except TypeError as error:
        raise UserError(f"{folder.where('config.json')} is not complete: {error}") from error
    return config, names.match(config, safetensors.read(folder, WEIGHTS)[0], False, folder.path)


def write(folder: str, config: T5Config, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the vocabulary into an existing empty folder."""
    ordered = {entry.ours: arrays[entry.ours] for entry in names.entries(config)}
    safetensors.write(os.path.join(folder, WEIGHTS), ordered)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(config), file, indent=2)
        file.write("\n")
    if vocabulary and vocabulary != "bytes":
        name = "tokenizer.json" if vocabulary.endswith("tokenizer.json") else "spiece.model"
        copy_file(vocabulary, os.path.join(folder, name))
