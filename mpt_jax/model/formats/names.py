"""Matching the arrays of a file to the names of a family, and T5's shapes from its arrays alone."""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args

from mpt_jax.errors import UserError
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Family
from mpt_jax.model.families.naming import Entry
from mpt_jax.model.families.t5 import FAMILY as T5
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats.arrays import MAX_NAMES_IN_MESSAGE, LazyArray, listed
from mpt_jax.regular_files import shown

# what no array of a T5 tells
UNTOLD = ("mlp_activations", "decoder_start_id", "relative_attention_max_distance", "layer_norm_epsilon")
OURS, HUGGING_FACE, GGUF = "ours", "huggingface", "gguf"  # columns of the tables of names


def entries(config: Any) -> list[Entry]:
    """All arrays of a model, in the order of its family's table."""
    return list(family_of(config).entries(config))


def make_config(family: Family, fields: Mapping[str, Any], where: str, called: Mapping[str, str] | None = None) -> Any:
    """The shape of a file's settings by our names. Raises UserError for what makes none; ``called``: the file's own names."""
    kinds = _kinds(family.config)
    _check_values(fields, kinds, where, called or {})
    numbers = {name: float(value) for name, value in fields.items() if kinds[name] is float}
    try:
        return family.config(**{name: tuple(value) if isinstance(value, list) else value for name, value in (fields | numbers).items()})
    except TypeError as error:
        raise UserError(f"{where} is not complete: {error}.") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _kinds(cls: Any) -> dict[str, Any]:
    """Types of a dataclass's fields; of one that may be None the other type."""
    found = {field.name: field.type for field in dataclasses.fields(cls)}
    return {name: next((each for each in get_args(kind) if each is not NoneType), kind) for name, kind in found.items()}


def _check_values(fields: Mapping[str, Any], kinds: Mapping[str, Any], where: str, called: Mapping[str, str]) -> None:
    """UserError for a value that its field does not take, in shapes within the shape too: encoder.head_dim, decoder.rotary.base."""
    for name, value in fields.items():
        kind, said = kinds.get(name), called.get(name, name)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            inner = _kinds(kind)
            _check_values(value, inner, where, {field: f"{said}.{field}" for field in inner})
            continue
        wanted = _wanted(kind, value)
        if wanted:
            raise UserError(f"{where}: {said} = {shown(value)}; it takes {wanted}.")


def _wanted(kind: Any, value: Any) -> str:
    """What a field of this type takes, if the value is something else."""
    if kind is int and (type(value) is not int or not 0 <= value < 2**31):
        return f"a whole number from 0 to {2**31 - 1:,}"
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30):
        return "a number"
    if kind is tuple and not (isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)):
        return "a list of texts"
    if kind in (str, bool) and type(value) is not kind:
        return "a text" if kind is str else "true or false"
    return ""


def check_layers(config: Any, arrays: Mapping[str, LazyArray], source: str) -> None:
    """UserError for a config with more layers than the file has arrays: each has several, and none is made up to find that out."""
    layers = family_of(config).num_layers(config)
    if layers > len(arrays):
        raise UserError(f"{source} has {layers:,} layers by its config, but holds only {len(arrays):,} arrays.")


def match(config: Any, arrays: Mapping[str, LazyArray], column: str, source: str) -> dict[str, LazyArray]:
    """The arrays of a file under our names, turned where the table says so, in the table's order.

    arrays: by the names of a column (OURS, HUGGING_FACE, GGUF). Raises UserError that lists every missing,
    left-over or wrongly shaped array by the name it has in the file.
    """
    wanted = {getattr(entry, column): entry for entry in entries(config)}
    missing, extra = wanted.keys() - arrays.keys(), arrays.keys() - wanted.keys()
    problems = []
    if missing:
        problems.append(f"missing: {listed(missing)}")
    if extra:
        problems.append(f"left over: {listed(extra)}")
    found = {}
    for name, entry in wanted.items():
        if name in missing:
            continue
        turned = column != OURS and entry.turned
        lazy = arrays[name].transposed() if turned else arrays[name]
        if lazy.shape != entry.shape:
            expected = entry.shape[::-1] if turned else entry.shape
            problems.append(f"{name} has shape {arrays[name].shape}, not {expected}{_vocabulary_hint(config, entry, lazy.shape)}")
        found[entry.ours] = lazy
    if problems:
        raise UserError(f"{source} is not a {family_of(config).words(config)}: " + "; ".join(problems[:MAX_NAMES_IN_MESSAGE]) + ".")
    return found


def _vocabulary_hint(config: Any, entry: Entry, shape: tuple[int, ...]) -> str:
    if config.vocab_size not in entry.shape or len(shape) != 2:
        return ""
    axis = entry.shape.index(config.vocab_size)
    if shape[axis] == config.vocab_size:
        return ""
    return f" (the file has {shape[axis]} vocabulary rows, its config says vocab_size = {config.vocab_size})"


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> T5Config:
    """The T5Config of a file that carries no config, from the shapes of its arrays under our names.

    What is in no shape (UNTOLD) is as in the row of T5_SIZES that has these shapes, else as in most published T5s. Raises UserError
    naming the first array that is needed and not there.
    """

    def shape(path: str, axes: int = 2) -> tuple[int, ...]:
        if path not in shapes:
            held = listed(shapes) or "nothing"
            raise UserError(f"{source} is not a T5: {path} is missing. It holds {held}.")
        found = shapes[path]
        if len(found) != axes or 0 in found:
            raise UserError(f"{source}: {path} has shape {found}; {axes} sizes from 1 on are needed.")
        return found

    vocabulary, width = shape("token_embedder/embedding")
    per_layer = "encoder/layers_0/relpos_bias/rel_embedding" in shapes
    heads, buckets = shape(f"encoder/{'layers_0/' if per_layer else ''}relpos_bias/rel_embedding")
    joined = shape("encoder/layers_0/attention/query/kernel")[-1]
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    mlp = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[-1]
    if joined % heads:
        raise UserError(f"{source}: {joined} query columns do not split into {heads} heads.")
    fields = {
        "name": "custom",
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": heads,
        "head_dim": joined // heads,
        "d_ff": mlp,
        "num_encoder_layers": _layers(shapes, "encoder", source),
        "num_decoder_layers": _layers(shapes, "decoder", source),
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
        "relative_attention_num_buckets": buckets,
        "relative_bias_per_layer": per_layer,
    }
    config = named(make_config(T5, fields, source))
    for row in T5.sizes.values() if config.name == "custom" else ():
        if row.gated == gated and dataclasses.replace(config, **{name: getattr(row, name) for name in ("name", *UNTOLD)}) == row:
            return row
    return config


def check_told(config: T5Config, to: str) -> None:
    """Raises UserError where a file of T5X's, which carries no config, would be read as another network."""
    read = config_from_shapes({entry.ours: entry.shape for entry in entries(config)}, "The backbone to write")
    for name in UNTOLD:
        if getattr(read, name) != getattr(config, name):
            lost = f"--to {to}: T5X's files do not tell {name} = {shown(getattr(config, name))}"
            raise UserError(f"{lost}, and would be read with {shown(getattr(read, name))}. Write it --to own or hf.")


def _layers(shapes: Mapping[str, tuple[int, ...]], stack: str, source: str) -> int:
    """How many layers the names of a stack count, from 0 on without a gap."""
    prefix = f"{stack}/layers_"
    found = {path[len(prefix) :].split("/")[0] for path in shapes if path.startswith(prefix)}
    wanted = {str(i) for i in range(len(found))}
    if found != wanted:
        raise UserError(f"{source}: {stack} has the layers {listed(found)}; {listed(wanted - found)} of {len(found)} are missing.")
    return len(found)


def named(config: Any) -> Any:
    """The config with the name of the row of its family's sizes that has its shapes ('custom' if none has).

    LM-adapted and Flan models have the shapes of v1.1 and get its name.
    """
    for name, row in family_of(config).sizes.items():
        if dataclasses.replace(row, name=config.name) == config:
            return dataclasses.replace(config, name=name)
    return dataclasses.replace(config, name="custom")
