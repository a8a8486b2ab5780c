"""Rotary positions in a config.json: transformers 4 says rope_theta and rope_scaling, 5 rope_parameters, for all layers or by kind."""

from collections.abc import Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.model.families.causal_config import CausalConfig, Rotary
from mpt_jax.regular_files import shown

FULL, WINDOW = "full_attention", "sliding_attention"
# rope_type: Rotary's fields by the keys that it needs
TYPES: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor",
        "original_max_position_embeddings": "original_length",
    },
}  # fmt: skip
SAID = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read_rope(values: Mapping[str, Any], by_kind: bool, where: str) -> dict[str, Rotary]:
    """CausalConfig's rotary and window_rotary of a config.json with its defaults.

    by_kind: layers with a window always have positions of their own (Gemma 3). Raises UserError for what is not known here.
    """
    old, new = values.get("rope_scaling"), values.get("rope_parameters")
    if old and new and old != new:
        raise UserError(f"{where} has both rope_scaling = {shown(old)} and rope_parameters = {shown(new)}; take one out.")
    given = old or new or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {'rope_scaling' if old else 'rope_parameters'} is {shown(given)}, not an object.")
    nested = bool(given.keys() & {FULL, WINDOW})
    if by_kind and given and not nested and not old:
        raise UserError(f"{where}: rope_parameters is {shown(given)}; this model_type has one for {FULL!r} and one for {WINDOW!r}.")
    if nested and given.keys() - {FULL, WINDOW}:
        raise UserError(f"{where} says {shown(sorted(given.keys() - {FULL, WINDOW}))} among the rotary positions, which is not known here.")
    full = _rotary((given.get(FULL) or {}) if nested else given, values["rope_theta"], values, where)
    if not nested and not by_kind:
        return {"rotary": full}
    theta = values["rope_local_base_freq"] if by_kind else values["rope_theta"]
    window = _rotary((given.get(WINDOW) or {}) if nested else {}, theta, values, where)
    return {"rotary": full} if window == full and not by_kind else {"rotary": full, "window_rotary": window}


def _rotary(given: Any, theta: Any, values: Mapping[str, Any], where: str) -> Rotary:
    """The positions of one kind of layer."""
    if not isinstance(given, dict):
        raise UserError(f"{where}: rotary positions are {shown(given)}, not an object.")
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{where}: rope_type = {shown(kind)}; {', '.join(TYPES)} are known.")
    if given.get("partial_rotary_factor", 1) not in (1, None):
        raise UserError(f"{where}: partial_rotary_factor = {shown(given['partial_rotary_factor'])}; only 1 is supported.")
    unknown = [key for key, value in given.items() if key not in (*SAID, *TYPES[kind]) and value is not None]
    if unknown:
        raise UserError(f"{where} says {shown(unknown[0])} = {shown(given[unknown[0]])} of rope_type {kind!r}, which is not known here.")
    found = {"base": given.get("rope_theta", theta)}
    for key, field in TYPES[kind].items():
        default = values.get("max_position_embeddings") if field == "original_length" else None
        found[field] = given.get(key, default)
    for field, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            raise UserError(f"{where}: rotary positions have {field} = {shown(value)}; it takes a number above 0.")
    numbers = {field: int(value) if field == "original_length" else float(value) for field, value in found.items()}
    try:
        return Rotary(**numbers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def rope_settings(config: CausalConfig, by_kind: bool) -> dict[str, Any]:
    """The keys of a config.json for a shape, in transformers 4's words, which 5 reads, too."""
    rotary = config.rotary
    kind = "llama3" if rotary.original_length else "linear" if rotary.factor != 1 else "default"
    scaling = {"rope_type": kind, **{key: getattr(rotary, field) for key, field in TYPES[kind].items()}} if kind != "default" else None
    local = {"rope_local_base_freq": (config.window_rotary or rotary).base} if by_kind else {}
    return {"rope_theta": rotary.base, "rope_scaling": scaling, **local}
