"""What a tokenizer.json may say to the library tokenizers, which a damaged or hostile file makes abort the process, or never end."""

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.regular_files import parse_json, shown

MOST_ID = 2**22  # the library walks over every id up to the largest; Gemma 3's is 262,144
MOST_GROWTH = 1000  # letters that one letter of a text may become
MOST_ADDED = 2**16  # tokens that are looked for in a text first; the library takes a quarter of a second for so many. Gemma 3 has 6,415


def check(content: str, where: str) -> None:
    """UserError for a tokenizer.json that is not JSON, or beyond these bounds, or whose ids are drawn at random."""
    settings = parse_json(content, where)
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{where} is not a tokenizer.json: it has no model.")
    vocab, added = model.get("vocab"), settings.get("added_tokens") or []
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    ids += [row.get("id") for row in added if isinstance(row, dict)] if isinstance(added, list) else []
    wrong = next((number for number in ids if type(number) is not int or not 0 <= number < MOST_ID), None)
    if wrong is not None:
        raise UserError(f"{where} gives a token the id {shown(wrong)}; ids are whole numbers in 0 .. {MOST_ID - 1:,}.")
    check_added(len(added) if isinstance(added, list) else 0, where)
    if model.get("dropout"):
        raise UserError(f"{where}: model.dropout = {shown(model['dropout'])} draws the ids of a text at random; set it to null.")
    for part in ("normalizer", "decoder"):
        growth = 1
        for step in _steps(settings.get(part)):
            if step.get("type") == "Precompiled":
                _check_map(step.get("precompiled_charsmap"), where)
            if step.get("type") in ("Replace", "Prepend"):
                text = step.get("content", step.get("prepend"))
                growth *= max(len(text), 1) if isinstance(text, str) else 1
        if growth > MOST_GROWTH:
            raise UserError(f"{where}: its {part} turns a letter into {shown(growth)}; at most {MOST_GROWTH:,} are allowed.")


def check_added(count: int, where: str) -> None:
    """UserError for more added tokens than are read."""
    if count > MOST_ADDED:
        raise UserError(f"{where} has {count:,} added tokens; at most {MOST_ADDED:,} are read.")


def _steps(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of the file."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check_map(text: Any, where: str) -> None:
    """UserError for a character map of SentencePiece whose first number, the bytes of a table, is more than it has."""
    try:
        content = base64.b64decode(text or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UserError(f"{where}: its precompiled_charsmap is damaged ({error}).") from error
    size = int.from_bytes(content[:4], "little")
    if content and (len(content) < 4 or size > len(content) - 4 or size % 4):
        raise UserError(f"{where}: its precompiled_charsmap is damaged: it says {size:,} bytes of {len(content):,}.")
