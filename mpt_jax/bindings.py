"""Values of ``--gin.NAME=VALUE`` as one types them: a text without quotes, a list without brackets. What gin reads is made from them here.

What kind of value a name takes decides: `--gin.MODEL_DIR=runs/a,b` is one text, `--gin.TASKS=sst2,mrpc` are two.
"""

import ast
import re
import typing
from types import UnionType

from mpt_jax.errors import UserError

REFERENCE = re.compile(r"(^|[\[({,:=\s])[@%]\w")  # @configurable() and %MACRO are gin's own
ENTRY = re.compile(r"\s*['\"]?([A-Za-z_]\w*)['\"]?\s*[:=]\s*([^,{}:=]+?)\s*")
MIXED = set("'\"[](){}")


def as_gin(name: str, text: str, hint: typing.Any = None) -> str:
    """The value of a binding as gin reads it. hint: the type of the field that the name fills, None where it is not known.

    Raises UserError that names the binding and says what to type where the text can mean several things.
    """
    kinds = _kinds(hint)
    text = text.strip()
    if REFERENCE.search(text):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return repr(_untyped(name, text, kinds))
    except (RecursionError, MemoryError) as error:
        raise _ambiguous(name, text, kinds) from error
    return _typed(name, text, value, kinds)


def _kinds(hint: typing.Any) -> set[type]:
    options = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return {typing.get_origin(option) or option for option in options if option is not None}


def _typed(name: str, text: str, value: typing.Any, kinds: set[type]) -> str:
    """A text that Python reads as a value, where the name takes something else."""
    bare = not text.startswith(("(", "[", "{"))
    if kinds == {str} and bare and not isinstance(value, str):
        return repr(text)  # a folder named 2024
    takes_list = bool(kinds & {list, tuple}) or not kinds
    if isinstance(value, tuple) and bare and takes_list:
        return repr(list(value))
    if kinds and kinds <= {list, tuple} and not isinstance(value, list | tuple | dict):
        return repr([value])
    if isinstance(value, tuple) and bare:
        raise _ambiguous(name, text, kinds)
    return text


def _untyped(name: str, text: str, kinds: set[type]) -> typing.Any:
    """The value that is meant by a text that Python does not read."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if dict in kinds:
        return _dict(name, text, kinds)
    if kinds & {list, tuple}:
        inside = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        return [_element(name, text, part.strip(), kinds) for part in inside.split(",") if part.strip()]
    if (not text and kinds - {str}) or set("'\"") & set(text[:1] + text[-1:]):
        raise _ambiguous(name, text, kinds)
    return text


def _element(name: str, text: str, part: str, kinds: set[type]) -> typing.Any:
    try:
        return ast.literal_eval(part)
    except (ValueError, SyntaxError, TypeError) as error:
        if MIXED & set(part):
            raise _ambiguous(name, text, kinds) from error
        return part


def _dict(name: str, text: str, kinds: set[type]) -> dict:
    inside = text[1:-1] if text[:1] + text[-1:] == "{}" else text
    entries = [ENTRY.fullmatch(part) for part in inside.split(",") if part.strip()]
    if not entries or None in entries:
        raise _ambiguous(name, text, kinds)
    return {entry[1]: _element(name, text, entry[2], kinds) for entry in entries}


def _ambiguous(name: str, text: str, kinds: set[type]) -> UserError:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    if dict in kinds:
        example = f"""--gin.{name}="{{'inputs': 256, 'targets': 128}}\""""
    elif kinds & {list, tuple}:
        example = f"--gin.{name}=a,b or --gin.{name}=\"['a', 'b']\""
    elif kinds & {int, float}:
        example = f"--gin.{name}=1"
    elif bool in kinds:
        example = f"--gin.{name}=True"
    else:
        example = f"--gin.{name}=text or --gin.{name}=\"'text'\""
    return UserError(f"--gin.{name}={shown}: the value cannot be read (brackets or quotes do not match?). Type {example}.")
