"""Backbones and prompts in the formats of other programs.

`read_backbone` recognises the format of a folder and hands out its arrays under our names, none read yet;
`restore` (arrays.py) then reads them one by one in the wanted dtype, onto the wanted devices. `write_backbone` writes a
folder whole or not at all. Prompts: prompts.py, prompt_writers.py.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.model.families import family_of
from mpt_jax.model.formats import gguf_file, huggingface, huggingface_folder, names, own, t5x, t5x_stacked
from mpt_jax.model.formats.arrays import LazyArray, fingerprint, flatten, in_memory, restore
from mpt_jax.model.formats.detect import BACKBONES, detect
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.folder_writer import write_folder

__all__ = ["LazyArray", "check_t5", "detect", "fingerprint", "in_memory", "read_backbone", "restore", "write_backbone"]

T5X_FORMATS = ("t5x", "t5x_scanned", "orbax")
BYTES_VOCABULARY = 384  # ids of ByT5
RUN_BACKBONE = "backbone"  # in the folder of a run that trained all weights


def read_backbone(path: str | os.PathLike) -> tuple[Any, dict[str, LazyArray], str | None]:
    """(config, arrays by our names in '/' form, vocabulary) of a backbone in any format; no array is read yet.

    vocabulary: path of a SentencePiece model or tokenizer.json, 'bytes', or None where the checkpoint has
    none (T5X keeps it elsewhere). Prompt variables in a T5X checkpoint are left out. Raises UserError saying
    what is wrong.

    >>> config, arrays, vocabulary = formats.read_backbone(mpt_jax.__path__[0] + "/backbones/nano")
    >>> arrays["token_embedder/embedding"].shape, config.d_model  # (V, D)
    ((8192, 192), 192)
    """
    kind, path = detect(str(path))
    if kind == "run" and Folder(path).has_folder(RUN_BACKBONE):
        return read_backbone(f"{path}/{RUN_BACKBONE}")
    if kind not in BACKBONES:
        raise UserError(f"{path} holds prompts ({kind}), not a backbone.")
    if kind == "huggingface":
        folder = Folder(path)
        config, arrays = huggingface_folder.read(folder)
        return config, arrays, huggingface.vocabulary(folder)
    if kind == "gguf":
        return gguf_file.read(path)
    if kind == "own":
        folder = Folder(path)
        config, arrays = own.read(folder)
        return config, arrays, huggingface.vocabulary(folder) or _bytes(config)
    held = t5x.read(kind, path)
    arrays = t5x_stacked.unstacked({name: lazy for name, lazy in held.items() if not t5x.is_prompt(name)}, path)
    config = names.config_from_shapes({name: lazy.shape for name, lazy in arrays.items()}, path)
    around = Folder(os.path.dirname(path) or "." if kind == "t5x_file" else path)
    return config, names.match(config, arrays, names.OURS, path), huggingface.vocabulary(around) or _bytes(config)


def _bytes(config: Any) -> str | None:
    return "bytes" if config.vocab_size == BYTES_VOCABULARY else None


def check_t5(config: Any, to: str) -> None:
    """UserError for a shape that T5X's model does not compute."""
    family = family_of(config)
    if family.name != "t5":
        raise UserError(f"T5X has no model like this {family.words(config)}; --to {to} writes T5 alone. Write it --to own or hf.")
    names.check_told(config, to)


def write_backbone(kind: str, dest: str, config: Any, params: Mapping[str, Any], vocabulary: str | None = None) -> list[str]:
    """Writes a backbone folder and returns the files.

    kind: 'own', 'hf', 't5x' (native), 't5x_scanned' (native, as scalable_t5) or 'orbax' (T5X on Orbax). params: nested or
    flat ('/') tree of numpy or jax arrays or LazyArrays. vocabulary: as `read_backbone` gives it. Raises UserError if a parameter is
    missing, left over or of a wrong shape, or if dest is there already.

    >>> config, arrays, vocabulary = formats.read_backbone(mpt_jax.__path__[0] + "/backbones/nano")
    >>> files = formats.write_backbone("hf", "nano_hf", config, arrays, vocabulary)
    >>> formats.detect("nano_hf")
    ('huggingface', 'nano_hf')
    """
    arrays = {
        path: leaf if isinstance(leaf, LazyArray) else in_memory(leaf, path) for path, leaf in flatten(params).items()
    }
    arrays = names.match(config, arrays, names.OURS, "The backbone to write")
    writers: dict[str, Callable[[str], None]] = {
        "own": lambda folder: own.write(folder, config, arrays, vocabulary),
        "hf": lambda folder: huggingface_folder.write(folder, config, arrays, vocabulary),
        "t5x": lambda folder: t5x.write_native(folder, arrays),
        "t5x_scanned": lambda folder: t5x.write_native(folder, t5x_stacked.stacked(config, arrays)),
        "orbax": lambda folder: t5x.write_orbax(folder, arrays),
    }
    if kind not in writers:
        raise UserError(f"A backbone cannot be written as {kind!r}; formats: {', '.join(writers)}.")
    if kind in T5X_FORMATS:
        check_t5(config, kind)
    return write_folder(dest, writers[kind])
