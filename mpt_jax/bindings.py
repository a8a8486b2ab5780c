"""Values of settings as one types them: a text without quotes, a list without brackets. What gin reads is made from them here.

What kind of value a name takes decides: `--model_dir=runs/a,b` is one text, `--tasks=sst2,mrpc` are two.
"""

import ast
import re
import typing
from types import UnionType
from typing import NamedTuple

from mpt_jax.errors import UserError

REFERENCE = re.compile(r"(^|[\[({,:=\s])[@%]\w")  # @configurable() and %MACRO are gin's own
WHOLE_REFERENCE = re.compile(r"[@%][\w./]+(\(\))?")
ENTRY = re.compile(r"\s*['\"]?([A-Za-z_]\w*)['\"]?\s*[:=]\s*([^,{}:=]+?)\s*")
# kinds of fields that take nothing else: what is expected, and an example
EXPECTED = {
    int: ("a whole number", "1"),
    float: ("a number", "0.1"),
    bool: ("True or False", "True"),
    dict: ("a length for inputs and one for targets", "inputs=256,targets=128"),
}
LIST = ("a list with matching quotes and brackets", "a,b")
TEXT = ("a text with matching quotes", "text, without quotes")
MIXED = set("'\"[](){}")
WORDS = "words"
Words = typing.Annotated[str, WORDS]  # a text that a model reads
WordsOfTasks = typing.Annotated[str | dict, WORDS]  # the same, or one for each task


class Binding(NamedTuple):
    """A setting as it was typed: ``--train_steps 5`` and ``--gin.TRAIN_STEPS=5`` are both TRAIN_STEPS = 5."""

    name: str  # of the macro or the field
    text: str
    flag: str  # for messages

    @classmethod
    def of(cls, text: str) -> "Binding":
        """From gin's own NAME=VALUE."""
        name, _, value = (part.strip() for part in text.partition("="))
        return cls(name, value, f"--gin.{name}")


def as_gin(flag: str, text: str, hint: typing.Any = None) -> str:
    """The value of a setting as gin reads it. flag: as it was typed; hint: the type of the field it fills, None where it is not known.

    Raises UserError that names flag and value, and says what to type, where the text can mean several things or nothing.
    """
    if WORDS in getattr(hint, "__metadata__", ()):
        return _words(flag, text, _kinds(typing.get_args(hint)[0]))
    kinds = _kinds(hint)
    text = text.strip()
    if REFERENCE.search(text):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return repr(_untyped(flag, text, kinds))
    except (RecursionError, MemoryError) as error:
        raise _ambiguous(flag, text, kinds) from error
    return _typed(flag, text, value, kinds)


def _words(flag: str, text: str, kinds: set[type]) -> str:
    r"""A text that a model reads, with its white space; `\n` is a line break. In quotes or braces it is as Python reads it."""
    bare = text.strip()
    if WHOLE_REFERENCE.fullmatch(bare):
        return bare
    if not bare.startswith(("'", '"')) and not (dict in kinds and bare.startswith("{")):
        return repr(_with_line_breaks(text))
    try:
        value = ast.literal_eval(bare)
    except (ValueError, SyntaxError, TypeError) as error:
        if not bare.startswith("{"):
            raise _ambiguous(flag, text, {str}) from error
        quoted = set("'\"") & set(bare)
        value = {task: words if quoted else _with_line_breaks(str(words)) for task, words in _dict(flag, bare, kinds).items()}
    except (RecursionError, MemoryError) as error:
        raise _ambiguous(flag, text, {str}) from error
    if not isinstance(value, str | dict):
        raise _ambiguous(flag, text, {str})
    return repr(value)


def _with_line_breaks(text: str) -> str:
    return text.replace("\\n", "\n")


def _kinds(hint: typing.Any) -> set[type]:
    options = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return {typing.get_origin(option) or option for option in options if option is not None}


def _typed(flag: str, text: str, value: typing.Any, kinds: set[type]) -> str:
    """A text that Python reads as a value, where the name takes something else."""
    bare = not text.startswith(("(", "[", "{"))
    if kinds == {str} and bare and not isinstance(value, str):
        return repr(text)  # a folder named 2024
    takes_list = bool(kinds & {list, tuple}) or not kinds
    if isinstance(value, tuple) and bare and takes_list:
        return repr(list(value))
    if kinds and kinds <= {list, tuple} and not isinstance(value, list | tuple | dict):
        return repr([value])
    plain = bool(kinds) and kinds <= set(EXPECTED)
    if (isinstance(value, tuple) and bare) or (plain and not _fits(value, kinds)):
        raise _ambiguous(flag, text, kinds)
    return text


def _fits(value: typing.Any, kinds: set[type]) -> bool:
    """Whether a field of plain kinds takes a value."""
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds | ({int} if float in kinds else set())))


def _untyped(flag: str, text: str, kinds: set[type]) -> typing.Any:
    """The value that is meant by a text that Python does not read."""
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    lists = bool(kinds & {list, tuple})
    if dict in kinds and (str not in kinds or text.startswith("{")):
        return _dict(flag, text, kinds)
    if lists and (str not in kinds or "," in text or text.startswith(("[", "("))):
        inside = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
        return [_element(flag, text, part.strip(), kinds) for part in inside.split(",") if part.strip()]
    if (kinds and kinds <= set(EXPECTED)) or set("'\"") & set(text[:1] + text[-1:]):
        raise _ambiguous(flag, text, kinds)
    return text


def _element(flag: str, text: str, part: str, kinds: set[type]) -> typing.Any:
    try:
        return ast.literal_eval(part)
    except (ValueError, SyntaxError, TypeError) as error:
        if MIXED & set(part):
            raise _ambiguous(flag, text, kinds) from error
        return part


def _dict(flag: str, text: str, kinds: set[type]) -> dict:
    inside = text[1:-1] if text[:1] + text[-1:] == "{}" else text
    parts = [part for part in inside.split(",") if part.strip()]
    entries = [entry for entry in map(ENTRY.fullmatch, parts) if entry]
    if not parts or len(entries) < len(parts):
        raise _ambiguous(flag, text, kinds)
    return {entry[1]: _element(flag, text, entry[2], kinds) for entry in entries}


def _ambiguous(flag: str, text: str, kinds: set[type]) -> UserError:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    kind = next((kind for kind in (list, tuple, dict, int, float, bool) if kind in kinds), str)
    if kind is int and float in kinds:
        kind = float
    expected, example = EXPECTED.get(kind, LIST if kind in (list, tuple) else TEXT)
    return UserError(f"{flag}={shown}: {expected} is expected; type {flag}={example}")
