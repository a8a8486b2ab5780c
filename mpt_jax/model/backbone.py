"""Frozen backbones by name or folder: configuration, weights by T5X's names, vocabulary, fingerprint."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mpt_jax.config import T5Config
from mpt_jax.errors import UserError
from mpt_jax.model.prompted_t5 import init_backbone

SHIPPED = Path(__file__).parent.parent / "backbones"
FILES = ("config.json", "model.safetensors", "spiece.model")


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

    def flat(self) -> dict:
        """Weights by path ``backbone/encoder/...``, as the train step takes them."""
        return {f"backbone/{path}": array for path, array in flatten_dict(self.params, sep="/").items()}


def fingerprint(flat: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits over names, shapes and bytes of the weights, whatever file format they came from."""
    digest = hashlib.sha256()
    for path in sorted(flat):
        array = np.ascontiguousarray(flat[path])
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(array.view(np.uint8).data)
    return digest.hexdigest()[:16]


def backbone_folder(name: str) -> Path:
    """Folder of a shipped backbone's name, or the folder itself. Raises UserError if there is neither."""
    shipped = SHIPPED / name
    for folder in (shipped, Path(name)):
        if folder.is_dir():
            return folder
    known = ", ".join(sorted(path.name for path in SHIPPED.glob("*/") if (path / "config.json").exists()))
    raise UserError(f"BACKBONE = {name!r} is neither a shipped backbone ({known}) nor a folder.")


def load_backbone(name: str, dtype: str = "float32") -> Backbone:
    """Loads a backbone in the dtype of computation. Raises UserError naming what is missing, left over or of a wrong shape."""
    folder = backbone_folder(name)
    missing = [file for file in FILES if not (folder / file).exists()]
    if missing:
        raise UserError(f"backbone folder {str(folder)!r} is incomplete: {', '.join(missing)} missing (needs {', '.join(FILES)}).")
    try:
        config = T5Config(**{**json.loads((folder / "config.json").read_text()), "dtype": dtype})
        flat = load_file(folder / "model.safetensors")
    except (TypeError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"backbone folder {str(folder)!r} is damaged: {error}") from error
    check_shapes(config, flat, str(folder))
    cast = {path: jnp.asarray(array, dtype) for path, array in flat.items()}
    return Backbone(config.name, config, unflatten_dict(cast, sep="/"), str(folder / "spiece.model"), fingerprint(flat))


def check_shapes(config: T5Config, flat: dict, where: str) -> None:
    """Raises UserError unless the weights have exactly the names and shapes that the configuration asks for."""
    wanted = parameter_shapes(config)
    problems = [f"{path} is missing" for path in sorted(wanted.keys() - flat.keys())]
    problems += [f"{path} is not part of this T5" for path in sorted(flat.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & flat.keys()):
        if tuple(flat[path].shape) != wanted[path]:
            problems.append(f"{path} has shape {tuple(flat[path].shape)}, not {wanted[path]}")
    if problems:
        rest = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(f"backbone {where!r} does not fit its configuration {config.name!r}: {'; '.join(problems[:8])}{rest}.")


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by path, without making any array."""
    shapes = jax.eval_shape(lambda: init_backbone(config, 0))
    return {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}


def save_backbone(folder: str | Path, config: T5Config, flat: dict, vocabulary: bytes, dtype: str = "float32") -> None:
    """Writes a backbone folder (config.json, model.safetensors, spiece.model). ``flat`` by path without ``backbone/``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    as_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    save_file({path: np.ascontiguousarray(np.asarray(array).astype(as_dtype)) for path, array in flat.items()}, folder / FILES[1])
    fields = dataclasses.asdict(config)
    del fields["dtype"]
    (folder / FILES[0]).write_text(json.dumps(fields, indent=2) + "\n")
    (folder / FILES[2]).write_bytes(vocabulary)
