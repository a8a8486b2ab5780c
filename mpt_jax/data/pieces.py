"""Vocabularies of decoder-only models by the library `tokenizers`: any tokenizer.json, and what a GGUF file holds.

A tokenizer comes with its ids: 'start', tokens that it puts in front of every text; 'ends', tokens that end one; 'pad'.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpt_jax.data import tokenizer_bounds, tokenizer_files, tokenizer_json
from mpt_jax.errors import UserError
from mpt_jax.gguf_parts import parts
from mpt_jax.regular_files import MOST_JSON_BYTES, parse_json, read_regular, shown

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type of tokens that are looked for in a text before anything else
# tokenizer.ggml.pre: how a text is cut before pieces are joined, as the models' own tokenizer.json say it
_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CUT_BYTES = _BYTES | {"use_regex": False}
_LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN_2 = _LLAMA_3.replace("{1,3}", "")


def _cut(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE: dict[str, list[dict[str, Any]]] = {
    "smollm": [_DIGITS, _BYTES],
    "gpt-2": [_BYTES],
    "llama-bpe": [_cut(_LLAMA_3), _CUT_BYTES],
    "qwen2": [_cut(_QWEN_2), _CUT_BYTES],
}
NORMALIZERS = {"qwen2": {"type": "NFC"}}
WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is that token, whatever the merges
STARTED = ("llama-bpe",)  # llama.cpp puts the first token in front where the file does not say
# of a tokenizer_config.json: refused unless absent, null, or one of these
OPTIONS: dict[str, tuple] = {"do_lower_case": (False,), "split_special_tokens": (False,), "auto_map": ({},)}
# tokenizer_class, without Fast, of those that take a tokenizer.json as it is, whatever add_prefix_space says
AS_THE_FILE = ("PreTrainedTokenizer", "TokenizersBackend", "GemmaTokenizer")
SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level tokenizers write a space


def is_gguf(path: str) -> bool:
    """Whether a path names a GGUF file."""
    return str(path).endswith(".gguf")


def from_gguf(path: str):
    """(tokenizers.Tokenizer, its ids) of a GGUF file. Raises UserError for a kind that is not known."""
    fields = parts(path)[0]
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or not isinstance(pre, str) or pre not in PRE:
        known = ", ".join(f"'gpt2' with {name!r}" for name in PRE)
        message = f"{path} holds a tokenizer of the kind {shown(kind)} with {shown(pre)}; known: {known}"
        raise UserError(f"{message}. Give the model's tokenizer.json: --vocabulary …/tokenizer.json.")
    tokens, merges, types = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "merges", "token_type"))
    if not isinstance(tokens, list) or not isinstance(merges, list) or getattr(types, "shape", None) != (len(tokens),):
        raise UserError(f"{path} lacks tokens, merges or token types of its tokenizer, or has them for other tokens.")
    special = {CONTROL: True, USER_DEFINED: False}
    settings = {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": token, "special": special[type_], **_AS_IT_STANDS}
            for number, (token, type_) in enumerate(zip(tokens, types.tolist(), strict=True)) if type_ in special
        ],
        "normalizer": NORMALIZERS.get(pre),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges,
            "ignore_merges": pre in WHOLE_WORDS,
        },
    }  # fmt: skip
    ids = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("eot", "eot"), ("pad", "padding")):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and (type(number) is not int or not 0 <= number < len(tokens)):
            raise UserError(f"{path}: tokenizer.ggml.{name}_token_id = {shown(number)} is not one of its {len(tokens):,} tokens.")
        ids[role] = number
    start = (ids["bos"],) if ids["bos"] is not None and fields.get("tokenizer.ggml.add_bos_token", pre in STARTED) else ()
    ends = tuple(dict.fromkeys(ids[role] for role in ("eos", "eot") if ids[role] is not None))
    if start:
        settings["post_processor"] = _starting(tokens[start[0]], start[0])
    return made(json.dumps(settings), path), _ids(start, ends, ids["pad"])


def _starting(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a token in front of every text."""
    texts = [[{"SpecialToken": {"id": token, "type_id": n}}, {"Sequence": {"id": text, "type_id": n}}] for n, text in enumerate("AB")]
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": texts[0], "pair": texts[0] + texts[1], "special_tokens": special}


_AS_IT_STANDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _ids(start: tuple[int, ...], ends: tuple[int, ...], pad: int | None) -> dict[str, Any]:
    """The ids; without a token of its own padding is what ends a text, so that no answer shows it."""
    return {"start": start, "ends": ends, "pad": pad if pad is not None else ends[0] if ends else 0}


def from_json(path: str):
    """(tokenizers.Tokenizer, its ids) of a tokenizer.json and the files beside it, as transformers' TokenizersBackend reads them.

    What stands in front of a text is what the tokenizer's post-processor puts there: add_bos_token changes nothing in transformers 5 where
    there is a tokenizer.json. A text ends with the tokenizer's end token, and with those that generation_config.json and config.json name.
    Raises UserError saying what is damaged, missing or unknown.
    """
    try:
        content = read_regular(path, tokenizer_json.MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"vocabulary {path!r} is not UTF-8 ({error.reason} at byte {error.start:,}).") from error
    tokenizer, folder = made(content, path), Path(path).parent
    settings, added = tokenizer_files.as_transformers(lambda name: _object(folder / name))
    _check_options(settings, folder / tokenizer_files.CONFIG)
    with library(path):
        roles = _name_special(tokenizer, settings, added, folder, path)
        whole, alone = tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False)
    plain = alone.ids
    _check_prefix_space(tokenizer, settings, "".join(alone.tokens[:1]), folder / tokenizer_files.CONFIG)
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0) if plain else 0
    start = tuple(whole[:before])
    ends = [roles["eos"]] if "eos" in roles else []
    for name in ("generation_config.json", "config.json"):
        told = _object(folder / name).get("eos_token_id")
        told = told if isinstance(told, list) else [] if told is None else [told]
        if not all(type(number) is int and 0 <= number < 2**31 for number in told):
            raise UserError(f"{folder / name}: eos_token_id = {shown(told)}; it takes ids of tokens.")
        ends += told
    return tokenizer, _ids(start, tuple(dict.fromkeys(ends)), roles.get("pad"))


def _check_options(settings: Mapping[str, Any], where: Path) -> None:
    for key, allowed in OPTIONS.items():
        value = settings.get(key)
        if value is not None and value not in allowed:
            raise UserError(f"{where}: {key} = {shown(value)}; only {allowed[0]!r} is supported.")


def _check_prefix_space(tokenizer: Any, settings: Mapping[str, Any], first: str, where: Path) -> None:
    """UserError where tokenizer_config.json and tokenizer.json disagree on a space before every text, and transformers takes the former.

    first: the first token of a text.
    """
    wanted, kind = settings.get("add_prefix_space"), str(settings.get("tokenizer_class")).removesuffix("Fast")
    byte_level_llama = kind == "LlamaTokenizer" and type(tokenizer.decoder).__name__ == "ByteLevel"
    if wanted is None or not first or kind in AS_THE_FILE or byte_level_llama or wanted is first.startswith(SPACES):
        return
    there = "puts a space in front of every text" if first.startswith(SPACES) else "puts no space in front of a text"
    advice = "set tokenizer_class to 'PreTrainedTokenizerFast' to read the file as it is"
    raise UserError(f"{where}: add_prefix_space = {shown(wanted)}, but {tokenizer_json.NAME} {there}; {advice}.")


def _name_special(tokenizer: Any, settings: Mapping[str, Any], added: Mapping[str, Any], folder: Path, path: str) -> dict[str, int]:
    """Ids of bos, eos and pad. Tokens that the files name are looked for in texts; UserError for those that the tokenizer lacks.

    settings, added: of tokenizer_files.as_transformers.
    """
    import tokenizers

    known = {token.content: repr(token) for token in tokenizer.get_added_tokens_decoder().values()}
    missing: list[str] = []
    changed: dict[str, Any] = {}
    for text, number, flags in _named(settings, added, str(folder)):
        found = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if found is None:
            missing.append(shown(text))
        elif number is not None and str(found) != number:
            raise UserError(f"{folder} names the token {shown(text)} with the id {shown(number)}; {Path(path).name} has the id {found}.")
        elif text not in known or len(flags) > 1:
            changed[text] = tokenizers.AddedToken(text, **flags)
    if missing:
        advice = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one that has all"
        raise UserError(f"{folder} names the token {', '.join(dict.fromkeys(missing[:6]))}; {Path(path).name} has none. {advice}.")
    new = [token for text, token in changed.items() if known.get(text) != repr(token)]
    tokenizer_bounds.check_added(len(known) + len(new), f"vocabulary {path!r}")
    tokenizer.add_tokens(new)  # at once: each call makes the library's table of tokens anew
    roles = {role: tokenizer_files.text_of(settings.get(f"{role}_token")) for role in ("bos", "eos", "pad")}
    return {role: tokenizer.token_to_id(text) for role, text in roles.items() if isinstance(text, str)}


def _named(settings: Mapping[str, Any], added: Mapping[str, Any], where: str) -> Iterator[tuple[Any, str | None, dict[str, Any]]]:
    """(text, id as it is written, how it is looked for) of the tokens that the files name. A later one goes before an earlier."""
    roles = {text for key, value in settings.items() if key.endswith("_token") and isinstance(text := tokenizer_files.text_of(value), str)}
    listed = list(map(tokenizer_files.text_of, tokenizer_files.listed_tokens(settings, where)))
    yield from ((text, None, {"special": True}) for text in (*sorted(roles), *listed))
    special = roles.union(text for text in listed if isinstance(text, str))
    yield from ((text, str(number), {"special": text in special}) for text, number in added.items())
    for number, row in tokenizer_files.tokens_by_id(settings, where).items():
        text = tokenizer_files.text_of(row)
        given = {flag: row[flag] for flag in (*tokenizer_files.FLAGS, "special") if flag in row} if isinstance(row, dict) else {}
        yield text, number, given | {"special": given.get("special", False) or text in roles}


def without(tokenizer: Any, size: int, path: str):
    """The tokenizer without the added tokens from an id on, for a model that has no embeddings of them."""
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = [row for row in settings["added_tokens"] if row["id"] < size]
    return made(json.dumps(settings), path)


def _object(path: Path) -> dict:
    if not path.exists():
        return {}
    found = parse_json(read_regular(path, MOST_JSON_BYTES), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object.")
    return found


@contextlib.contextmanager
def library(path: str) -> Iterator[None]:
    """Turns whatever the library tokenizers raises into a UserError that names the vocabulary.

    For a damaged file it raises Exception itself, or pyo3's PanicException, which is not even one.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"vocabulary {path!r} cannot be read by the library tokenizers ({reason}).") from error


def made(content: str, path: str):
    """The tokenizer of a JSON text, which neither cuts nor pads."""
    import tokenizers

    tokenizer_bounds.check(content, f"vocabulary {path!r}")
    with library(path):
        tokenizer = tokenizers.Tokenizer.from_str(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
