"""Frozen backbones by name or folder: configuration, weights by T5X's names, vocabulary, fingerprint."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Sharding

from mpt_jax.config import T5Config
from mpt_jax.data.vocabulary import Vocabulary, load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.formats.files import is_remote

SHIPPED = Path(__file__).parent.parent / "backbones"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A T5 with its weights (nested, T5X's names), the path of its SentencePiece model or 'bytes', and a fingerprint of its values."""

    name: str
    config: T5Config
    params: dict
    vocabulary_path: str
    fingerprint: str

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return self.config.num_parameters()

    def vocabulary(self) -> Vocabulary:
        """Its vocabulary. Raises UserError if that has ids for which the backbone has no embedding."""
        loaded = load_vocabulary(self.vocabulary_path)
        if loaded.size > self.config.vocab_size:
            message = f"vocabulary {self.vocabulary_path!r} has {loaded.size:,} ids, backbone {self.name!r} embeds"
            advice = "name the vocabulary it was trained with: --gin.VOCABULARY=\"'…/spiece.model'\""
            raise UserError(f"{message} {self.config.vocab_size:,}; {advice}.")
        return loaded

    def flat(self) -> dict:
        """Weights by path ``backbone/encoder/...``, as the train step takes them."""
        return {f"backbone/{path}": array for path, array in flatten(self.params).items()}


def backbone_folder(name: str, given_as: str = "BACKBONE =") -> str:
    """Folder of a shipped backbone's name, or the path itself. Raises UserError if there is neither, in the words of who gave it."""
    if name and (is_remote(name) or os.path.exists(name)):
        return name
    if name and os.path.isdir(SHIPPED / name):
        return str(SHIPPED / name)
    known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json")))
    raise UserError(f"{given_as} {name!r} is neither a shipped backbone ({known}) nor a folder.")


def load_backbone(
    name: str,
    dtype: str = "float32",
    vocabulary: str = "",
    sharding: Callable[[str, tuple[int, ...]], Sharding] | None = None,
    attention: str = "auto",
) -> Backbone:
    """Loads a backbone of any format, array by array, in the dtype of computation.

    vocabulary: a SentencePiece model, tokenizer.json or 'bytes', for a checkpoint that brings none (T5X). sharding(path, shape): where an
    array's shards go, straight from the file; without it all is on one device. The fingerprint is 16 digits
    over names, shapes and values as the files hold them, the same in every format. Raises UserError naming what is missing, left over or
    of a wrong shape.
    """
    config, arrays, own_vocabulary = formats.read_backbone(backbone_folder(name))
    vocabulary = vocabulary or own_vocabulary or ""
    if not vocabulary:
        message = f"BACKBONE = {name!r} brings no vocabulary; name its SentencePiece model"
        raise UserError(f"{message}: --gin.VOCABULARY=\"'…/spiece.model'\" (or 'bytes').")
    digests: dict[str, bytes] = {}
    place = None if sharding else lambda _, array: jax.device_put(array)
    params = formats.restore(arrays, dtype, place, sharding, digests)
    config = dataclasses.replace(config, dtype=dtype, attention=attention)
    return Backbone(config.name, config, params, vocabulary, formats.fingerprint(digests))


def fingerprint_of(arrays: dict) -> str:
    """The fingerprint of a backbone's arrays that are not read yet (formats.read_backbone); one after the other is read and let go."""
    digests: dict[str, bytes] = {}
    formats.restore(arrays, None, lambda path, array: None, None, digests)
    return formats.fingerprint(digests)
