"""Hugging Face's tokenizer.json as the SentencePiece model it was made from, so that one code turns text into ids.

A T5 tokenizer.json holds SentencePiece's pieces and scores (Unigram), its character map (Precompiled) and its way with
spaces (Metaspace). Anything beyond that raises UserError: ids would differ.
"""

import base64
import binascii
import math
import re
from pathlib import Path
from typing import Any

from mpt_jax.data import tokenizer_files
from mpt_jax.errors import UserError
from mpt_jax.regular_files import parse_json, read_regular, shown

NAME = "tokenizer.json"
MOST_BYTES = 40 * 2**20  # mT5's has 16 MB, Gemma 3's 33; parsed, JSON takes up to 20 times as much
# its keys: read, or how it was last called and how it writes text, which is SentencePiece's affair here
KEYS = {"model", "normalizer", "pre_tokenizer", "post_processor", "added_tokens", "version", "truncation", "padding", "decoder"}
MODEL_KEYS = {"type", "vocab", "unk_id", "byte_fallback"}
MODEL_HEAD = re.compile(rb'"model"\s*:\s*\{\s*"type"\s*:\s*"(\w+)"\s*,\s*"(\w+)"\s*:\s*(\w*)')  # as the library writes it
SENTINEL = re.compile(r"▁?<extra_id_([0-9]{1,6})>")  # mT5's model holds them with their ▁
SPECIAL = {"<pad>": 0, "</s>": 1, "<unk>": 2}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # sentencepiece_model.proto: SentencePiece.Type
SPACES = ({"Regex": " {2,}"}, {"String": "  "})  # what a Replace after the character map may join to one: remove_extra_whitespaces does it


def sentencepiece_model(path: str | Path) -> tuple[bytes, int]:
    """(serialised SentencePiece model, number of sentinels that end the vocabulary and are not in the model).

    Sentinels anywhere else stay in the model, as `▁<extra_id_0>` and so on. Raises UserError if the file is not a Unigram
    tokenizer of the T5 kind, or adds tokens to it.
    """
    from sentencepiece import sentencepiece_model_pb2

    settings = read(path)
    unigram, rows = settings["model"], _rows(settings, path)
    _check_spaces(_object(settings, "pre_tokenizer", path), path)
    _check_end(_object(settings, "post_processor", path), path)
    fallback = unigram.get("byte_fallback", False)
    if not isinstance(fallback, bool | None):
        raise UserError(f"vocabulary {str(path)!r}: byte_fallback = {shown(fallback)}; it takes true or false")
    sentinels = _last_sentinels([piece for piece, _ in rows])
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for number, (piece, score) in enumerate(rows[: len(rows) - sentinels]):
        kind = _kind(number, piece, unigram)
        text = f"▁{piece.removeprefix('▁')}" if kind == USER_DEFINED else piece
        try:
            model.pieces.add(piece=text, score=score, type=kind)
        except ValueError as error:
            raise UserError(f"vocabulary {str(path)!r} is damaged: piece {number} is {shown(piece)}, not a text") from error
    for field, value in {"model_type": 1, "vocab_size": len(model.pieces), "unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}.items():
        setattr(model.trainer_spec, field, value)
    model.trainer_spec.byte_fallback = bool(fallback)
    for field, number in {"pad_piece": 0, "eos_piece": 1, "unk_piece": 2}.items():
        setattr(model.trainer_spec, field, rows[number][0])
    model.normalizer_spec.name = "tokenizer.json"
    model.normalizer_spec.precompiled_charsmap = _character_map(_object(settings, "normalizer", path), path)
    return model.SerializeToString(), sentinels


def is_t5(path: str | Path) -> bool:
    """Whether a tokenizer.json is of T5's kind: SentencePiece's Unigram pieces with the unknown one third. UserError if it is not JSON."""
    content = read_regular(path, MOST_BYTES)
    head = MODEL_HEAD.search(content)
    if head and (head[1] != b"Unigram" or head[2] == b"unk_id"):  # a large file is not parsed for that
        return head.groups() == (b"Unigram", b"unk_id", b"2")
    settings = parse_json(content, f"vocabulary {str(path)!r}")
    model = settings.get("model") if isinstance(settings, dict) else None
    return not isinstance(model, dict) or (model.get("type", "Unigram") == "Unigram" and model.get("unk_id", 2) == 2)


def read(path: str | Path) -> dict[str, Any]:
    """A tokenizer.json whose keys are known. Raises UserError if it is none, or no Unigram one."""
    where = f"vocabulary {str(path)!r}"
    settings = parse_json(read_regular(path, MOST_BYTES), where)
    unigram = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(unigram, dict):
        raise UserError(f"{where} is not a Unigram tokenizer.json: it has no model")
    if unigram.get("type", "Unigram") != "Unigram":
        raise UserError(f"{where} is a {shown(unigram['type'])} tokenizer; T5's are Unigram")
    unknown = [*sorted(settings.keys() - KEYS), *(f"model.{key}" for key in sorted(unigram.keys() - MODEL_KEYS))]
    if unknown:
        raise UserError(f"{where} says {shown(unknown)}, which is not known here and may change the ids")
    return settings


def added_tokens(settings: dict[str, Any], where: str) -> list[tuple[str, Any, Any]]:
    """(file, text, id) of the tokens that a tokenizer.json looks for in a text before anything else."""
    added = settings.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{where}: added_tokens is {shown(added)}, not a list of tokens")
    return [(where, token.get("content"), token.get("id", -1)) for token in added]


def _rows(settings: dict[str, Any], path: str | Path) -> list[tuple[str, float]]:
    """(piece, score) of each id: the model's, then the sentinels that follow them as added tokens."""
    where = f"vocabulary {str(path)!r}"
    listed = settings["model"].get("vocab")
    right = isinstance(listed, list) and all(isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) for row in listed)
    if not right or not all(isinstance(score, int | float) and abs(score) < 1e30 and math.isfinite(score) for _, score in listed):
        raise UserError(f"{where} is not a Unigram tokenizer.json: its vocab is not a list of pieces with their scores")
    if len(listed) < 3:
        raise UserError(f"{where} has {len(listed)} pieces; padding, end of sequence and unknown are the first three")
    rows = [(piece, float(score)) for piece, score in listed]
    misplaced = [piece for number, (piece, _) in enumerate(rows[:3]) if SPECIAL.get(piece, number) != number]
    if misplaced:
        raise UserError(f"{where} begins with {shown([piece for piece, _ in rows[:3]])}; T5's with {shown(list(SPECIAL))}")
    added = added_tokens(settings, where)
    after = sorted((row for row in added if type(row[2]) is int and row[2] >= len(rows)), key=lambda row: row[2])
    if all(isinstance(token, str) and SENTINEL.fullmatch(token) for _, token, _ in after) and [row[2] for row in after] == [
        *range(len(rows), len(rows) + len(after))
    ]:
        rows += [(token, 0.0) for _, token, _ in after]
    ids = {piece: number for number, (piece, _) in enumerate(rows) if number < 3 or SENTINEL.fullmatch(piece)}
    tokenizer_files.check_added(added, ids.get)
    return rows


def _object(settings: dict[str, Any], key: str, path: str | Path) -> dict[str, Any] | None:
    value = settings.get(key)
    if not isinstance(value, dict | None):
        raise UserError(f"vocabulary {str(path)!r}: {key} is {shown(value)}, not an object or null")
    return value


def _parts(row: dict[str, Any] | None, key: str, path: str | Path) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre_tokenizer, one or a Sequence of them."""
    parts = (row.get(key) if row.get("type") == "Sequence" else [row]) if row else []
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"vocabulary {str(path)!r}: {key} is {shown(parts)}, not a list of steps")
    return parts


def _last_sentinels(pieces: list[str]) -> int:
    """How many of the last pieces are <extra_id_N-1> ... <extra_id_0>."""
    count = 0
    while count < len(pieces) and pieces[-1 - count] == f"<extra_id_{count}>":
        count += 1
    return count


def _kind(number: int, piece: str, unigram: dict[str, Any]) -> int:
    if number == unigram.get("unk_id", 2):
        return UNKNOWN
    if number < 2:  # padding and end of sequence
        return CONTROL
    if SENTINEL.fullmatch(piece):
        return USER_DEFINED
    return BYTE if unigram.get("byte_fallback") and re.fullmatch(r"<0x[0-9A-F]{2}>", piece) else NORMAL


def _check_spaces(row: dict[str, Any] | None, path: str | Path) -> None:
    """Raises UserError unless words are split at spaces and start with ▁, the first one too."""
    parts = _parts(row, "pretokenizers", path)
    kinds = [part.get("type") for part in parts]
    metaspace = parts[-1] if parts else {}
    schemes = ("always",) if len(parts) > 1 else ("always", "first")  # of words that are split before, only the first would get its ▁
    prefix = metaspace.get("add_prefix_space", True) is True and metaspace.get("prepend_scheme", "always") in schemes
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or metaspace.get("replacement") != "▁" or not prefix:
        raise UserError(f"vocabulary {str(path)!r} splits words by {shown(row)}; T5's do by Metaspace with a ▁ in front")


def _check_end(row: dict[str, Any] | None, path: str | Path) -> None:
    """Raises UserError if the tokenizer puts something else around a text than the end of sequence, which tasks add here."""
    if row is None:
        return
    single = row.get("single")
    kinds = [next(iter(part)) if isinstance(part, dict) and part else None for part in single] if isinstance(single, list) else None
    special = row.get("special_tokens")
    end = single[-1].get("SpecialToken") if kinds == ["Sequence", "SpecialToken"] else None
    name = end.get("id") if isinstance(end, dict) else None
    found = special.get(name) if isinstance(special, dict) and isinstance(name, str) else None
    if row.get("type") != "TemplateProcessing" or not isinstance(found, dict) or found.get("ids") != [1]:
        raise UserError(f"vocabulary {str(path)!r} puts {shown(single or row)} around a text; T5's add the end of sequence (id 1) alone")


def _character_map(row: dict[str, Any] | None, path: str | Path) -> bytes:
    """SentencePiece's compiled normalisation; empty for none."""
    where = f"vocabulary {str(path)!r}"
    parts = _parts(row, "normalizers", path)
    maps = [part for part in parts if part.get("type") == "Precompiled"]
    unknown = [part.get("type") for part in parts if part.get("type") != "Precompiled" and not _spaces_only(part)]
    if unknown or len(maps) > 1:
        raise UserError(f"{where} normalises text by {shown(unknown or 'two character maps')}; T5's by one Precompiled map")
    try:
        return base64.b64decode(maps[0]["precompiled_charsmap"] or "", validate=True) if maps else b""
    except (binascii.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its precompiled_charsmap is damaged ({error})") from error


def _spaces_only(part: dict[str, Any]) -> bool:
    """Whether a step joins or strips spaces alone."""
    return part.get("type") == "Strip" or (
        part.get("type") == "Replace" and part.get("pattern") in SPACES and part.get("content") in (" ", "▁")
    )
