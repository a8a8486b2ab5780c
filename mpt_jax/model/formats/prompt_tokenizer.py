"""A tokenizer.json with more tokens than a vocabulary has: one for each position of each prompt.

Any vocabulary is written in the form of the library `tokenizers`, which every engine reads: SentencePiece's Unigram models, ByT5's bytes,
and what has a tokenizer.json already. Ids of the old tokens stay.
"""

import base64
import json
import os
from collections.abc import Sequence
from typing import Any

from mpt_jax.data import pieces, tokenizer_json
from mpt_jax.data.vocabulary import BYTES, PiecesVocabulary, SentencePieceVocabulary, Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.formats.folder_writer import write_json

CONFIG = "tokenizer_config.json"
UNIGRAM = 1  # sentencepiece_model.proto: TrainerSpec.ModelType
SPECIAL = ("<pad>", "</s>", "<unk>")
END = "</s>"


def write(folder: str, vocabulary: Vocabulary, size: int, added: Sequence[str], decoder_only: bool) -> None:
    """Writes tokenizer.json and tokenizer_config.json in which the tokens ``added`` have the ids ``size`` and on.

    Ids below ``size`` that no token has (rows that fill an embedding up to a round number) get tokens such as `<unused_190>`. What stands
    in front of every text is not put there any more, since a prompt stands before it: the texts of the prompts end with it. Raises
    UserError for a token that the vocabulary has already, and for a kind of SentencePiece model that `tokenizers` does not compute.
    """
    settings, roles = _settings(vocabulary)
    settings |= {"truncation": None, "padding": None}
    known = _known(settings)
    twice = next((token for token in added if token in known), None)
    if twice is not None:
        raise UserError(f"vocabulary {vocabulary.path!r} has the token {twice!r} already: give the task another name and train it again.")
    unused = [f"<unused_{number}>" for number in range(1 + max(known.values(), default=-1), size)]
    for number, token in enumerate([*unused, *added], size - len(unused)):
        settings["added_tokens"].append({"id": number, "content": token, "special": True, **_AS_IT_STANDS})
    settings["post_processor"] = _after(settings, vocabulary, roles)
    _spaces_after_special_tokens(settings)
    _check(json.dumps(settings), vocabulary, size, added)
    with open(os.path.join(folder, tokenizer_json.NAME), "w", encoding="utf-8") as file:
        json.dump(settings, file, ensure_ascii=False)
    padding = {"padding_side": "left"} if decoder_only else {}
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **padding}
    write_json(os.path.join(folder, CONFIG), named | {"model_input_names": ["input_ids", "attention_mask"]} | roles)


_AS_IT_STANDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _settings(vocabulary: Vocabulary) -> tuple[dict[str, Any], dict[str, str]]:
    """(tokenizer.json of a vocabulary, texts of its roles)."""
    if isinstance(vocabulary, PiecesVocabulary):
        numbers = {"eos_token": vocabulary.ends[0], "pad_token": vocabulary.pad_id}
        if vocabulary.start:
            numbers["bos_token"] = vocabulary.start[0]
        return json.loads(vocabulary.to_json()), {role: str(vocabulary.token(number)) for role, number in numbers.items()}
    roles = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    if vocabulary.path == BYTES:
        return _bytes(), roles
    assert isinstance(vocabulary, SentencePieceVocabulary)
    if os.path.basename(vocabulary.path) == tokenizer_json.NAME:
        settings = tokenizer_json.read(vocabulary.path)
        rows = settings["model"]["vocab"]
        settings.setdefault("added_tokens", None)
        settings["added_tokens"] = settings["added_tokens"] or _specials(rows)
        return settings, roles
    return _unigram(vocabulary), roles


def _specials(rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """T5's first three pieces and its sentinels as tokens that are looked for in a text before anything else."""
    found = [(number, row[0]) for number, row in enumerate(rows) if number < len(SPECIAL) or tokenizer_json.SENTINEL.fullmatch(row[0])]
    return [{"id": number, "content": token, "special": True, **_AS_IT_STANDS} for number, token in found]


def _unigram(vocabulary: SentencePieceVocabulary) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece model. UserError for one that is no Unigram model."""
    model = vocabulary.model_proto()
    if model.trainer_spec.model_type != UNIGRAM:
        kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type)
        message = f"vocabulary {vocabulary.path!r} is a SentencePiece model of the kind {kind}, and --to tokens writes UNIGRAM alone"
        raise UserError(f"{message}: give a backbone with a tokenizer.json.")
    rows: list[list[Any]] = []
    for number, piece in enumerate(model.pieces):
        rows.append([SPECIAL[number] if number < len(SPECIAL) else piece.piece.removeprefix("▁") if _is_sentinel(piece) else piece.piece,
                     0.0 if number < len(SPECIAL) else piece.score])  # fmt: skip
    spec = model.normalizer_spec
    charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
    steps: list[dict[str, Any]] = [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [{"type": "Replace", "pattern": {"Regex": regex}, "content": text} for regex, text in (("^ +| +$", ""), (" {2,}", " "))]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" if spec.add_dummy_prefix else "never", "split": True}
    return {
        "version": "1.0", "added_tokens": _specials(rows), "pre_tokenizer": metaspace, "decoder": metaspace,
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": rows, "byte_fallback": model.trainer_spec.byte_fallback},
    }  # fmt: skip


def _is_sentinel(piece: Any) -> bool:
    return tokenizer_json.SENTINEL.fullmatch(piece.piece) is not None


def _bytes() -> dict[str, Any]:
    """ByT5's bytes + 3: a model without pieces, so that every letter falls back to its bytes."""
    vocab = {token: number for number, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    return {
        "version": "1.0", "added_tokens": _specials([[token] for token in vocab]), "normalizer": None, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": False},
    }  # fmt: skip


def _known(settings: dict[str, Any]) -> dict[str, int]:
    """Ids of all tokens."""
    vocab = settings["model"]["vocab"]
    found = dict(vocab) if isinstance(vocab, dict) else {row[0]: number for number, row in enumerate(vocab)}
    return found | {token["content"]: token["id"] for token in settings["added_tokens"]}


def _after(settings: dict[str, Any], vocabulary: Vocabulary, roles: dict[str, str]) -> dict[str, Any] | None:
    """What the tokenizer puts around a text: the end that an input has, and nothing in front."""
    ends = vocabulary.frame.input_end if not vocabulary.continues else ()
    if not ends:
        kept = settings.get("post_processor")  # ByteLevel's, which moves offsets alone
        return kept if isinstance(kept, dict) and kept.get("type") == "ByteLevel" else None
    token = roles["eos_token"]
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}]
    special = {token: {"id": token, "ids": list(ends), "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _spaces_after_special_tokens(settings: dict[str, Any]) -> None:
    """A text that follows a prompt's tokens begins as it does alone: with a space, where the tokenizer puts one in front of a text."""
    row = settings.get("pre_tokenizer") or {}
    for part in (row, *(row.get("pretokenizers") or ())):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "always"


def _check(content: str, vocabulary: Vocabulary, size: int, added: Sequence[str]) -> None:
    """Raises UserError unless the tokenizer, read again, gives the tokens their ids."""
    tokenizer = pieces.made(content, vocabulary.path)
    wrong = next((token for number, token in enumerate(added, size) if tokenizer.token_to_id(token) != number), None)
    if wrong is not None or tokenizer.encode("".join(added), add_special_tokens=False).ids != [*range(size, size + len(added))]:
        message = f"vocabulary {vocabulary.path!r} cannot be given the token {wrong or added[0]!r} with an id of its own"
        raise UserError(f"{message}: use --to npz or --to peft instead.")
