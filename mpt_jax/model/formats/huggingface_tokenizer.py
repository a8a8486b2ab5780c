"""A tokenizer written as transformers reads it: its file, what lies beside it, and the ids that it uses."""

import os
import tempfile
from typing import Any

from mpt_jax.data import tokenizer_json
from mpt_jax.data.vocabulary import BYTE_SENTINELS, BYTES, PiecesVocabulary, SentencePieceVocabulary, load_vocabulary
from mpt_jax.model.formats.files import Folder, copy_file, is_remote
from mpt_jax.model.formats.folder_writer import write_json

CONFIG = "tokenizer_config.json"
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def write(folder: str, vocabulary: str) -> dict[str, Any]:
    """Writes the files of a vocabulary into a folder. Returns the ids that config.json and generation_config.json say."""
    if is_remote(vocabulary):
        with tempfile.TemporaryDirectory() as near:
            return write(folder, _fetched(vocabulary, near))
    held = load_vocabulary(vocabulary)
    if isinstance(held, PiecesVocabulary):
        write_pieces(folder, held)
    else:
        _write_t5(folder, vocabulary)
    ids = {"eos_token_id": held.ends[0] if len(held.ends) == 1 else list(held.ends), "pad_token_id": held.pad_id}
    return ids | ({"bos_token_id": held.start[0]} if held.start else {})


def _fetched(vocabulary: str, folder: str) -> str:
    """Copies a tokenizer and what lies beside it into a folder; its path there."""
    parent, _, name = vocabulary.rpartition("/")
    around = Folder(parent)
    for each in (name, *(other for other in (*BESIDE, "merges.txt") if around.exists(other))):
        copy_file(around.where(each), os.path.join(folder, each))
    return os.path.join(folder, name)


def write_pieces(folder: str, held: PiecesVocabulary) -> None:
    """The tokenizer's own files where it comes from such, else the same in new ones."""
    dest = os.path.join(folder, tokenizer_json.NAME)
    if os.path.basename(held.path) == tokenizer_json.NAME:
        copy_file(held.path, dest)
        around = Folder(os.path.dirname(held.path) or ".")
        for name in BESIDE:
            if around.exists(name):
                copy_file(around.where(name), os.path.join(folder, name))
    else:
        with open(dest, "w", encoding="utf-8") as file:
            file.write(held.to_json())
    if not os.path.exists(os.path.join(folder, CONFIG)):
        roles = {"eos_token": held.ends[0], "pad_token": held.pad_id, **({"bos_token": held.start[0]} if held.start else {})}
        tokens = {role: held.token(number) for role, number in roles.items()}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens}
        write_json(os.path.join(folder, CONFIG), settings | ({"add_bos_token": True} if held.start else {}))


def _write_t5(folder: str, vocabulary: str) -> None:
    """Copies a tokenizer and tells transformers its sentinels: those that a SentencePiece model lacks, or all of a tokenizer.json."""
    if vocabulary == BYTES:
        return write_json(os.path.join(folder, CONFIG), {"tokenizer_class": "ByT5Tokenizer", "extra_ids": BYTE_SENTINELS})
    converted = os.path.basename(vocabulary) == tokenizer_json.NAME
    dest = os.path.join(folder, tokenizer_json.NAME if converted else "spiece.model")
    copy_file(vocabulary, dest)
    copied = load_vocabulary(dest)
    assert isinstance(copied, SentencePieceVocabulary)
    kind, sentinels = ("T5TokenizerFast", copied.sentinels) if converted else ("T5Tokenizer", copied.extra_ids)
    write_json(os.path.join(folder, CONFIG), {"tokenizer_class": kind, "extra_ids": sentinels})
