"""Vocabularies of decoder-only models by the library `tokenizers`: any tokenizer.json, and what a GGUF file holds."""

import json
from pathlib import Path
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.gguf_parts import parts
from mpt_jax.regular_files import MOST_JSON_BYTES, parse_json, read_regular, shown

MOST_BYTES = 64 * 2**20  # of a tokenizer.json; Gemma 3's has 33 MB
CONTROL = 3  # tokenizer.ggml.token_type of tokens that no text is turned into
# tokenizer.ggml.pre: how a text is cut before pieces are joined, as the models' own tokenizer.json say it
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE: dict[str, list[dict[str, Any]]] = {"smollm": [DIGITS, BYTES], "gpt-2": [BYTES]}


def is_gguf(path: str) -> bool:
    """Whether a path names a GGUF file."""
    return str(path).endswith(".gguf")


def from_gguf(path: str):
    """(tokenizers.Tokenizer, ids: 'start' and 'ends' of texts, 'pad') of a GGUF file. Raises UserError for a kind that is not known."""
    fields = parts(path)[0]
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE:
        known = ", ".join(f"'gpt2' with {name!r}" for name in PRE)
        message = f"{path} holds a tokenizer of the kind {shown(kind)} with {shown(pre)}; known: {known}"
        raise UserError(f"{message}. Give the model's tokenizer.json: --gin.VOCABULARY=\"'…/tokenizer.json'\".")
    tokens, merges, types = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    if not (isinstance(tokens, list) and isinstance(merges, list) and isinstance(types, list)) or len(types) != len(tokens):
        raise UserError(f"{path} lacks tokens, merges or token types of its tokenizer.")
    special = [(number, token) for number, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ == CONTROL]
    settings = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for number, token in special
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges},
    }
    bos, eos, pad = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding"))
    for name, number in (("bos", bos), ("eos", eos), ("padding", pad)):
        if number is not None and not 0 <= number < len(tokens):
            raise UserError(f"{path}: tokenizer.ggml.{name}_token_id = {shown(number)} is not one of its {len(tokens):,} tokens.")
    start = (bos,) if bos is not None and fields.get("tokenizer.ggml.add_bos_token", True) else ()
    return _made(json.dumps(settings), path), {"start": start, "ends": () if eos is None else (eos,), "pad": pad or 0}


def from_json(path: str):
    """(tokenizers.Tokenizer, ids as from_gguf's) of a tokenizer.json and the files beside it.

    A text ends with the tokenizer's end token, and with those that generation_config.json and config.json name.
    """
    content = read_regular(path, MOST_BYTES)
    tokenizer = _made(content.decode("utf-8", "strict"), path)
    folder = Path(path).parent
    settings = _object(folder / "tokenizer_config.json") | _object(folder / "special_tokens_map.json")
    ids: dict[str, int] = {}
    for role in ("bos", "eos", "pad"):
        token = settings.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            continue
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is None:
            raise UserError(f"{folder}: {role}_token = {shown(token)} is not a token of {Path(path).name}.")
        ids[role] = number
    ends = [ids["eos"]] if "eos" in ids else []
    for name in ("generation_config.json", "config.json"):
        told = _object(folder / name).get("eos_token_id")
        ends += [number for number in (told if isinstance(told, list) else [told]) if isinstance(number, int)]
    # what its own post-processor puts in front of a text, and only that
    first = tokenizer.encode("a").ids[:1]
    start = (ids["bos"],) if "bos" in ids and first == [ids["bos"]] else ()
    return tokenizer, {"start": start, "ends": tuple(dict.fromkeys(ends)), "pad": ids.get("pad", 0)}


def _object(path: Path) -> dict:
    if not path.exists():
        return {}
    found = parse_json(read_regular(path, MOST_JSON_BYTES), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object.")
    return found


def _made(content: str, path: str):
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # noqa: BLE001 (the library raises Exception itself)
        raise UserError(f"vocabulary {path!r} cannot be read by the library tokenizers ({str(error)[:200]}).") from error
