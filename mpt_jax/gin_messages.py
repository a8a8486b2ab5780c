"""What gin says of a file or a binding, in one line that names what to change; gin itself is imported in main.py alone."""

import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator
from tokenize import TokenError

from mpt_jax.errors import UserError


@contextlib.contextmanager
def gin_errors(classes: Iterable[type], binding: str) -> Iterator[None]:
    """Turns what gin raises in the block into a UserError that names the binding, or the line of a file.

    classes: settings dataclasses, whose names and fields are offered where one was mistyped.
    """
    try:
        yield
    except (ValueError, SyntaxError, LookupError, OSError, TypeError, AttributeError, ImportError, RecursionError, TokenError) as error:
        raise UserError(binding + _message(error, classes)) from error


def _message(error: Exception, classes: Iterable[type]) -> str:
    text = " ".join(str(error).split())
    fields = {cls.__name__: [field.name for field in dataclasses.fields(cls)] for cls in classes}
    unknown = re.search(r"No configurable matching '([\w./]+)'", text)
    if unknown:
        near = difflib.get_close_matches(unknown[1], list(fields), 1, 0.3)
        return f"unknown gin name {unknown[1]!r}" + (f"; did you mean {near[0]!r}?" if near else ".") + f" ({text})"
    field = re.search(r"Configurable '(\w+)' doesn't have a parameter named '(\w+)'", text)
    if field and field[1] in fields:
        near = difflib.get_close_matches(field[2], fields[field[1]], 1, 0.5)
        known = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields[field[1]])}."
        return f"{field[1]} has no field {field[2]!r}; {known}{_where(text)}"
    macro = re.search(r"No bindings specified for '(\w+)/gin.macro'", text)
    if macro:
        return f"%{macro[1]} is used and nothing defines it; bind {macro[1]}."
    if isinstance(error, RecursionError):
        return "gin: the files include one another without end."
    if isinstance(error, SyntaxError) and error.filename:
        reason = "a text needs quotes, a list brackets" if "malformed node" in text or "Expected" in text else text.partition(" (")[0]
        return f"{error.filename}, line {error.lineno}, {' '.join((error.text or '').split())!r}: {reason}."
    return f"gin: {text[:400]}"


def _where(text: str) -> str:
    found = re.search(r'In file "([^"]+)", line (\d+)', text)
    return f" ({found[1]}, line {found[2]})" if found else ""
