"""Hugging Face folders: which reader a model_type has, and which writer a family."""

from collections.abc import Callable, Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.model.families import family_of
from mpt_jax.model.formats import huggingface, huggingface_causal, huggingface_t5gemma
from mpt_jax.model.formats.arrays import LazyArray
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

Reader = Callable[[Folder], tuple[Any, dict[str, LazyArray]]]
READERS: dict[str, Reader] = {
    **dict.fromkeys(huggingface.MODEL_TYPES, huggingface.read),
    **dict.fromkeys(huggingface_causal.MODEL_TYPES, huggingface_causal.read),
    **dict.fromkeys(huggingface_t5gemma.MODEL_TYPES, huggingface_t5gemma.read),
}
WRITERS: dict[str, Callable] = {"t5": huggingface.write, "causal": huggingface_causal.write, "t5gemma": huggingface_t5gemma.write}


def read(folder: Folder) -> tuple[Any, dict[str, LazyArray]]:
    """Config and arrays by our names, not read yet. Raises UserError for an unknown model_type, and naming what is missing or left over."""
    kind = folder.read_json("config.json").get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise UserError(f"{folder.where('config.json')}: model_type {shown(kind)} is none of {', '.join(READERS)}.")
    return READERS[kind](folder)


def write(folder: str, config: Any, arrays: Mapping[str, LazyArray], vocabulary: str | None) -> None:
    """Writes config.json, model.safetensors and the tokenizer's files into an existing empty folder."""
    name = family_of(config).name
    if name not in WRITERS:
        raise UserError(f"The family {name!r} cannot be written as a Hugging Face folder; {', '.join(WRITERS)} can. Write it --to own.")
    WRITERS[name](folder, config, arrays, vocabulary)
