"""Checks of settings: types, choices, ranges, lists, paths. Each names the field and what it takes."""

import dataclasses
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mpt_jax import paths
from mpt_jax.errors import UserError
from mpt_jax.regular_files import shown

MOST_FLOAT = 3.4e38  # of float32, in which numbers are used


def check_types(settings) -> None:
    """Raises UserError for a field whose value is of another type than its annotation (gin checks none), or not finite."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        allowed = tuple(typing.get_origin(option) or option for option in options)
        if float in allowed:
            allowed += (int,)
        wrong_bool = isinstance(value, bool) and bool not in allowed
        if wrong_bool or not isinstance(value, allowed):
            name = f"{type(settings).__name__}.{field.name}"
            kind = type(value).__name__
            raise UserError(f"{name} = {shown(value)} is of type {kind}; it takes {_named(hint)}. Change the gin binding.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{type(settings).__name__}.{field.name} = {value!r} is not a finite number.")
        if float in allowed and isinstance(value, int | float) and abs(value) > MOST_FLOAT:
            raise UserError(f"{type(settings).__name__}.{field.name} = {shown(value)} is more than float32 holds, {MOST_FLOAT:.2g}.")


def _named(hint) -> str:
    """A type as one would say it."""
    return hint.__name__ if isinstance(hint, type) else str(hint).replace(" | ", " or ")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError if value is none of choices."""
    if value not in choices:
        raise UserError(f"{name} = {shown(value)} is not one of {', '.join(map(repr, choices))}.")


def check_folder(name: str, value: str) -> None:
    """Raises UserError for a folder that was not given."""
    if not value:
        raise UserError(f"{name} is empty; type --{name.lower()} FOLDER")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{name} = {shown(value)} is outside {low} .. {high}.")


def check_whole_numbers(name: str, values: Sequence, low: int, high: int) -> None:
    """Raises UserError unless values are different whole numbers in low .. high."""
    wrong = [value for value in values if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high]
    if wrong:
        raise UserError(f"{name} = {shown(list(values))}: {shown(wrong[0])} is not a whole number in {low} .. {high}.")
    check_different(name, values)


def check_texts(name: str, value: Any, lists: bool = False) -> None:
    """Raises UserError unless value is a text, or {name: text}; with ``lists`` a list of texts may stand for a text.

    Bytes of a command line that are not UTF-8 come as halves of surrogate pairs, which no vocabulary can read.
    """
    for one in value.values() if isinstance(value, dict) else (value,):
        for text in one if lists and isinstance(one, list | tuple) else (one,):
            if not isinstance(text, str):
                raise UserError(f"{name} = {shown(value)} holds {shown(text)}, which is not a text.")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"{name} = {shown(value)} is not UTF-8 text; type it again.") from error


def check_start(init: str, given: Mapping[str, Any]) -> None:
    """Raises UserError where what prompts start from is given for another ``init``, is no text, or is a file that is not given."""
    check_texts("PromptSettings.init_text", given["text"])
    for name, value in given.items():
        setting = f"PromptSettings.init_{name}"
        if value and init != name:
            message = f"{setting} = {shown(value)} is given, and PromptSettings.init = {init!r} does not read it"
            raise UserError(f"{message}: add --gin.PromptSettings.init={name}, or leave it out.")
    if init == "file" and not given["file"]:
        raise UserError("PromptSettings.init = 'file' needs a file: set PromptSettings.init_file.")


def check_different(name: str, values: Sequence) -> None:
    """Raises UserError for a value that is there twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise UserError(f"{name} = {shown(list(values))}: {shown(twice[0])} is there twice; give it once.")


def set_paths(settings, setting_of: dict[str, str], remote: tuple[str, ...] = ()) -> None:
    """Expands `~` in path fields. Raises UserError for an address instead of a path; setting_of: field -> the setting's name."""
    for field, setting in setting_of.items():
        object.__setattr__(settings, field, paths.local(setting, getattr(settings, field), remote))
