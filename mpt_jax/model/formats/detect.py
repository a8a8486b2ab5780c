"""Recognises what a folder or file holds, from its contents alone."""

import os

from mpt_jax.errors import UserError
from mpt_jax.model.formats import own, t5x
from mpt_jax.model.formats.arrays import listed
from mpt_jax.model.formats.files import Folder, is_remote
from mpt_jax.model.formats.huggingface_folder import READERS
from mpt_jax.regular_files import check_regular

BACKBONES = ("own", "huggingface", "gguf", "t5x", "t5x_file", "orbax")
PROMPTS = ("run", "peft", "npy", "npz")


def detect(path: str, inside: bool = False) -> tuple[str, str]:
    """(format, path) of a source; the path is the checkpoint itself where `path` is the model directory
    around it. inside: `path` is such a checkpoint already.

    Formats are those of BACKBONES and PROMPTS. Raises UserError if there is nothing, something unknown, or
    several checkpoints to choose from.
    """
    path = str(path)
    if not path:
        raise UserError("The path of a checkpoint is empty; give a folder or a file.")
    if not is_remote(path) and os.path.lexists(path) and not os.path.isdir(path):
        check_regular(path)
        return _file(path), path
    if path.endswith((".npy", ".npz")) and not os.path.isdir(path):
        if is_remote(path):
            raise UserError(f"{path}: a file of prompts is read from this machine alone; copy it here first (gcloud storage cp).")
        raise UserError(f"File {path} does not exist.")
    folder = Folder(path)
    if folder.exists("run.json"):
        return "run", path
    if folder.exists("adapter_config.json"):
        return "peft", path
    if folder.exists("config.json"):
        settings = folder.read_json("config.json")
        if own.is_own(settings):
            return "own", path
        if "model_type" in settings:
            return "huggingface", path
        raise UserError(
            f"{folder.where('config.json')} is neither Hugging Face's (model_type: {', '.join(READERS)}) nor ours."
        )
    if t5x.orbax_folder(folder) is not None:
        return "orbax", path
    if folder.exists(t5x.INDEX):
        return "t5x", path
    return _model_directory(folder, [] if inside else t5x.steps(folder))


def _file(path: str) -> str:
    if path.endswith((".npy", ".npz")):
        return path[-3:]
    if path.endswith(".gguf"):
        return "gguf"
    if path.endswith((".safetensors", ".bin", ".pt")):
        raise UserError(f"{path} is a single weight file; give its folder, which has the config.json.")
    return "t5x_file"


def _model_directory(folder: Folder, steps: list[str]) -> tuple[str, str]:
    if len(steps) > 1:
        raise UserError(f"{folder.path} holds {len(steps)} checkpoints; give one of them: {listed(steps)}.")
    if not steps:
        listing = listed(folder.names()) or "nothing"
        raise UserError(
            f"{folder.path} holds no checkpoint that is known (config.json, adapter_config.json, run.json, T5X's "
            f"`checkpoint` or Orbax' _METADATA). It holds {listing}."
        )
    return detect(f"{folder.path}/{steps[0]}", inside=True)
