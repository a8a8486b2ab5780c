"""Byte-level BPE in two files, vocab.json and merges.txt, as RoBERTa's tokenizer writes them (CodeT5+).

Which tokens are special, and how they are looked for in a text, is in special_tokens_map.json, added_tokens.json and tokenizer_config.json.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpt_jax.data import tokenizer_bounds, tokenizer_files
from mpt_jax.data.tokenizer_files import FLAGS, text_of
from mpt_jax.errors import UserError
from mpt_jax.regular_files import parse_json, read_regular, shown

NAME, MERGES = "vocab.json", "merges.txt"
MOST_BYTES = 16 * 2**20  # of either; RoBERTa's have 1 MB and 0.5 MB
CLASSES = ("RobertaTokenizer", "RobertaTokenizerFast")
ROLES = ("bos", "eos", "unk", "sep", "cls", "pad", "mask")
UNSUPPORTED = {"do_lower_case": (False, None), "split_special_tokens": (False, None), "auto_map": ({}, None)}


def from_files(path: str):
    """(tokenizers.Tokenizer, ids: 'start' and 'ends' of texts, 'pad') of a vocab.json and the files beside it.

    Raises UserError saying what is missing, damaged or unknown.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    folder = Path(path).parent
    settings, added = tokenizer_files.as_transformers(lambda name: _object(folder / name))
    _check_options(settings, folder / tokenizer_files.CONFIG)
    vocab = _vocab(Path(path))
    tokens = _special(folder, settings, added, vocab)
    ids = {token["content"]: token["id"] for token in tokens}
    roles = {role: ids[text_of(settings[f"{role}_token"])] for role in ROLES if settings.get(f"{role}_token") is not None}
    missing = [f"{role}_token" for role in ("cls", "sep", "pad") if role not in roles]
    if missing:
        raise UserError(f"{folder} names no {missing[0]} in special_tokens_map.json or tokenizer_config.json.")
    prefix = settings.get("add_prefix_space", False)
    if not isinstance(prefix, bool):
        raise UserError(f"{folder / tokenizer_files.CONFIG}: add_prefix_space = {shown(prefix)}; it takes true or false.")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_merges(folder / MERGES, vocab)))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    tokenizer_bounds.check_added(len(tokens), f"{path}")
    tokenizer.add_tokens([AddedToken(token["content"], **{flag: token[flag] for flag in (*FLAGS, "special")}) for token in tokens])
    sep, cls = ((text_of(settings[f"{role}_token"]), roles[role]) for role in ("sep", "cls"))
    tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, prefix)
    for token in tokens:  # those that the vocabulary lacks get the next ids that are free
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            shown_token = f"{shown(token['content'])} has {token['id']}"
            raise UserError(f"{folder}: ids of added tokens do not follow the {len(vocab):,} of {NAME}: {shown_token}.")
    return tokenizer, {"start": (roles["cls"],), "ends": (roles["sep"],), "pad": roles["pad"]}


def _check_options(settings: dict[str, Any], where: Path) -> None:
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in CLASSES:
        raise UserError(f"{where}: tokenizer_class = {shown(kind)}; with {NAME} {' or '.join(CLASSES)} is read.")
    for key, allowed in UNSUPPORTED.items():
        if settings.get(key) not in allowed:
            raise UserError(f"{where}: {key} = {shown(settings[key])}; only {allowed[0]!r} is supported.")


def _object(path: Path) -> dict[str, Any]:
    found = parse_json(read_regular(path, MOST_BYTES), str(path)) if path.exists() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, not a JSON object.")
    return found


def _vocab(path: Path) -> dict[str, int]:
    vocab = _object(path)
    if not vocab or not all(type(number) is int for number in vocab.values()) or set(vocab.values()) != set(range(len(vocab))):
        raise UserError(f"{path} does not give its {len(vocab):,} tokens the ids 0 .. {len(vocab) - 1:,}; it is damaged.")
    return vocab


def _merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}.") from error
    merges = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(part in vocab for part in (*pair, "".join(pair))):
            raise UserError(f"{path}:{number}: {shown(line)} does not join two tokens of {NAME} to a third.")
        merges.append((pair[0], pair[1]))
    return merges


def _special(folder: Path, settings: dict[str, Any], added: dict[str, Any], vocab: dict[str, int]) -> list[dict[str, Any]]:
    """The tokens that are looked for in a text before anything else, in the order of their ids."""
    by_id = tokenizer_files.tokens_by_id(settings, str(folder))
    ids = added | {text: int(number) for number, row in by_id.items() if isinstance(text := text_of(row), str)}
    found: dict[int, dict[str, Any]] = {}
    for token, flags in _named(folder, settings, added, [*by_id.values()]):
        number = ids.get(token, vocab.get(token))
        if type(number) is not int or not 0 <= number < len(vocab) + len(ids) or vocab.get(token, number) != number:
            raise UserError(f"{folder}: special token {shown(token)} has the id {shown(number)}, which {NAME} does not have free for it.")
        if number not in found:
            found[number] = {"id": number, "content": token, **flags}
        elif found[number]["content"] != token:
            raise UserError(f"{folder}: {shown(token)} and {shown(found[number]['content'])} have the same id {number}.")
    return [found[number] for number in sorted(found)]


def _named(folder: Path, settings: dict[str, Any], added: dict[str, Any], by_id: list[Any]) -> Iterator[tuple[str, dict[str, bool]]]:
    """(text, how it is looked for) of the special tokens that the files name; a text may come again.

    Those of added_tokens.json take no spaces beside them, whatever other files say [transformers from 4.34 on].
    """
    listed = [settings[f"{role}_token"] for role in ROLES if settings.get(f"{role}_token") is not None]
    listed += tokenizer_files.listed_tokens(settings, str(folder))
    special = {text for token in listed if isinstance(text := text_of(token), str)}
    for token in (*by_id, *listed, *added):
        text = text_of(token)
        given = token if isinstance(token, dict) and isinstance(text, str) and text not in added else {}
        flags = {flag: given.get(flag, False) for flag in (*FLAGS, "special")}
        if not isinstance(text, str) or not text or not all(isinstance(value, bool) for value in flags.values()):
            raise UserError(f"{folder}: {shown(token)} is not a special token.")
        yield text, flags | {"special": flags["special"] or text in special}
