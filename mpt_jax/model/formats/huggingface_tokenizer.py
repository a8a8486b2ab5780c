"""A tokenizer of the library `tokenizers` written as transformers reads it: tokenizer.json, what lies beside it, and the ids it uses."""

import os
from typing import Any

from mpt_jax.data import tokenizer_json
from mpt_jax.data.vocabulary import PiecesVocabulary, load_vocabulary
from mpt_jax.model.formats import huggingface
from mpt_jax.model.formats.files import Folder, copy_file, is_remote
from mpt_jax.model.formats.folder_writer import write_json

CONFIG = "tokenizer_config.json"
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def write(folder: str, vocabulary: str) -> dict[str, Any]:
    """Writes the files of a vocabulary into a folder. Returns the ids that config.json and generation_config.json say."""
    if is_remote(vocabulary):
        copy_file(vocabulary, os.path.join(folder, os.path.basename(vocabulary)))
        return {}
    held = load_vocabulary(vocabulary)
    if isinstance(held, PiecesVocabulary):
        write_pieces(folder, held)
    else:
        huggingface.write_tokenizer(folder, vocabulary)
    ids = {"eos_token_id": held.ends[0] if len(held.ends) == 1 else list(held.ends), "pad_token_id": held.pad_id}
    return ids | ({"bos_token_id": held.start[0]} if held.start else {})


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
        write_json(os.path.join(folder, CONFIG), settings)
