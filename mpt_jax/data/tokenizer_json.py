"""Hugging Face's tokenizer.json as the SentencePiece model it was made from, so that one code turns text into ids.

A T5 tokenizer.json holds SentencePiece's pieces and scores (Unigram), its character map (Precompiled) and its way with
spaces (Metaspace). Anything beyond that raises UserError: ids would differ.
"""

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from mpt_jax.errors import UserError

NAME = "tokenizer.json"
SENTINEL = re.compile(r"<extra_id_(\d+)>")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # sentencepiece_model.proto: SentencePiece.Type
SPACES_ONLY = {"Strip", "Replace"}  # in a Sequence after the character map: what remove_extra_whitespaces does


def sentencepiece_model(path: str | Path) -> tuple[bytes, int]:
    """(serialised SentencePiece model, number of sentinels that end the vocabulary and are not in the model).

    Sentinels anywhere else stay in the model, as `▁<extra_id_0>` and so on. Raises UserError if the file is no Unigram
    tokenizer of the T5 kind.
    """
    from sentencepiece import sentencepiece_model_pb2

    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
        unigram = settings["model"]
        rows = [(str(piece), float(score)) for piece, score in unigram["vocab"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"vocabulary {str(path)!r} is no Unigram tokenizer.json ({error!r})") from error
    if unigram.get("type", "Unigram") != "Unigram":
        raise UserError(f"vocabulary {str(path)!r} is a {unigram['type']} tokenizer; T5's are Unigram")
    _check_spaces(settings.get("pre_tokenizer"), path)
    sentinels = _last_sentinels([piece for piece, _ in rows])
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for number, (piece, score) in enumerate(rows[: len(rows) - sentinels]):
        kind = _kind(number, piece, unigram)
        text = f"▁{piece}" if kind == USER_DEFINED else piece
        model.pieces.add(piece=text, score=score, type=kind)
    for field, value in {"model_type": 1, "vocab_size": len(model.pieces), "unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}.items():
        setattr(model.trainer_spec, field, value)
    model.trainer_spec.byte_fallback = bool(unigram.get("byte_fallback"))
    for field, number in {"pad_piece": 0, "eos_piece": 1, "unk_piece": 2}.items():
        setattr(model.trainer_spec, field, rows[number][0])
    model.normalizer_spec.name = "tokenizer.json"
    model.normalizer_spec.precompiled_charsmap = _character_map(settings.get("normalizer"), path)
    return model.SerializeToString(), sentinels


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
    parts = (row.get("pretokenizers", []) if row.get("type") == "Sequence" else [row]) if row else []
    kinds = [part.get("type") for part in parts]
    metaspace = parts[-1] if parts else {}
    prefix = metaspace.get("add_prefix_space", True) and metaspace.get("prepend_scheme", "always") != "never"
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or metaspace.get("replacement") != "▁" or not prefix:
        raise UserError(f"vocabulary {str(path)!r} splits words by {row!r}; T5's do by Metaspace with a ▁ in front")


def _character_map(row: dict[str, Any] | None, path: str | Path) -> bytes:
    """SentencePiece's compiled normalisation; empty for none."""
    parts = (row.get("normalizers", []) if row.get("type") == "Sequence" else [row]) if row else []
    maps = [part for part in parts if part.get("type") == "Precompiled"]
    unknown = [part.get("type") for part in parts if part.get("type") not in {"Precompiled", *SPACES_ONLY}]
    if unknown or len(maps) > 1:
        raise UserError(f"vocabulary {str(path)!r} normalises text by {unknown or 'two character maps'}; T5's by one Precompiled map")
    try:
        return base64.b64decode(maps[0]["precompiled_charsmap"] or "", validate=True) if maps else b""
    except (binascii.Error, KeyError) as error:
        raise UserError(f"vocabulary {str(path)!r}: its precompiled_charsmap is damaged ({error})") from error
