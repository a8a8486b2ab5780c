"""This package's own backbone folder: config.json (the fields of T5Config), model.safetensors under our
names, and the vocabulary: spiece.model, tokenizer.json, or nothing for bytes."""

import dataclasses
import json
import os
from collections.abc import Mapping

from mpt_jax.config import T5Config
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.formats import names, safetensors
from mpt_jax.model.formats.arrays import LazyArray, listed
from mpt_jax.model.formats.files import Folder, copy_file, is_remote
from mpt_jax.regular_files import shown

WEIGHTS = "model.safetensors"


def is_own(settings: Mapping) -> bool:
    """Whether a config.json is ours."""
    return "num_encoder_layers" in settings and "head_dim" in settings


def read(folder: Folder) -> tuple[T5Config, dict[str, LazyArray]]:
    """Config and arrays by our names; nothing is read yet."""
    settings, where = folder.read_json("config.json"), folder.where("config.json")
    fields = {field.name for field in dataclasses.fields(T5Config)}
    unknown = settings.keys() - fields
    if unknown:
        raise UserError(f"{where} has unknown fields: {listed(map(shown, unknown))}.")
    activations = settings.get("mlp_activations", ["gelu", "linear"])
    if not isinstance(activations, list) or not all(isinstance(name, str) for name in activations):
        raise UserError(f"{where}: mlp_activations = {shown(activations)}; it takes ['relu'] or ['gelu', 'linear'].")
    known = {key: value for key, value in settings.items() if key in fields}
    config = names.make_config(known | {"mlp_activations": tuple(activations)}, where)
    arrays = safetensors.read(folder, WEIGHTS)[0]
    names.check_layers(config, arrays, folder.path)
    return config, names.match(config, arrays, False, folder.path)


def write(folder: str, config: T5Config, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the vocabulary into an existing empty folder."""
    ordered = {entry.ours: arrays[entry.ours] for entry in names.entries(config)}
    safetensors.write(os.path.join(folder, WEIGHTS), ordered)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        fields = dataclasses.asdict(config)
        del fields["dtype"], fields["remat"], fields["attention"]  # of computation: chosen where it is used
        json.dump(fields, file, indent=2)
        file.write("\n")
    if vocabulary and vocabulary != "bytes":
        if not is_remote(vocabulary):
            load_vocabulary(vocabulary)  # refuses what the copy alone would lose
        name = "tokenizer.json" if vocabulary.endswith("tokenizer.json") else "spiece.model"
        copy_file(vocabulary, os.path.join(folder, name))
