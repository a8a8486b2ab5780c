"""What the files of a Hugging Face tokenizer say besides its pieces: tokens that were added, and options.

Each token that they name must be one of the vocabulary (padding, end, unknown or a sentinel, with the id that it has here), and
each option must ask for what is done here. Anything else raises UserError by name: ids would differ. Options that
T5's tokenizers do not have change nothing in transformers either, and are not looked at.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.regular_files import shown

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# T5's, and those that take a tokenizer.json as it is
CLASSES = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
BYTE_CLASS = "ByT5Tokenizer"
BYTE_TOKENS = {"<pad>": 0, "</s>": 1, "<unk>": 2}
# of tokenizer_config.json: refused unless absent, null, or one of these
OPTIONS: dict[str, tuple] = {
    **dict.fromkeys(("do_lower_case", "add_bos_token", "keep_accents", "split_special_tokens"), (False,)),
    **dict.fromkeys(("add_eos_token", "add_prefix_space", "remove_space"), (True,)),
    **dict.fromkeys(("sp_model_kwargs", "auto_map"), ({},)),
}
LISTS = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # how a token is looked for in a text
ROLES = {"pad_token": 0, "eos_token": 1, "unk_token": 2}  # and the ids that they have here
Reader = Callable[[str], Mapping[str, Any]]  # a file's JSON object by its name; empty if it is not there


def as_transformers(read: Reader) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, added_tokens.json) as transformers takes them for anything but T5's tokenizers.

    Where tokenizer_config.json has added_tokens_decoder, neither special_tokens_map.json nor added_tokens.json is read; else the map goes
    before tokenizer_config.json [tokenization_utils_base.py, _from_pretrained].
    """
    settings = dict(read(CONFIG))
    if settings.get("added_tokens_decoder") is not None:
        return settings, {}
    return settings | read(SPECIAL), dict(read(ADDED))


def is_bytes(settings: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json is that of ByT5."""
    return str(settings.get("tokenizer_class", "")).startswith("ByT5")


def check_bytes(read: Reader, where: str) -> None:
    """UserError unless the files of a ByT5 tokenizer name its 3 special tokens and 125 sentinels alone."""
    _check_options(read(CONFIG), f"{where}/{CONFIG}", (BYTE_CLASS,))
    _check_sentinels(read(CONFIG), f"{where}/{CONFIG}", (125,))
    check_tokens(read, where, lambda token: BYTE_TOKENS.get(token, -1 if token.startswith("<extra_id_") else None))


def check(read: Reader, where: str, id_of: Callable[[str], int | None], sentinels: tuple[int, ...] | None) -> None:
    """UserError unless the tokenizer's files in a folder name no other tokens and ask for no other ways.

    id_of: the id that a special token or sentinel has here, None for anything else. sentinels: numbers of them that
    `extra_ids` may be, None: any, since the user gave one.
    """
    settings = read(CONFIG)
    _check_options(settings, f"{where}/{CONFIG}", CLASSES)
    if sentinels is not None:
        _check_sentinels(settings, f"{where}/{CONFIG}", sentinels)
    check_tokens(read, where, id_of)


def check_tokens(read: Reader, where: str, id_of: Callable[[str], int | None]) -> None:
    """UserError for tokens that id_of does not know (it gives -1 for one whose id does not matter), or knows by another id."""
    named = [(f"{where}/{name}", token, id) for name in (CONFIG, SPECIAL) for token, id in _named(read(name), f"{where}/{name}")]
    named += [(f"{where}/{ADDED}", token, id) for token, id in read(ADDED).items()]
    check_added(named, id_of)


def check_added(named: list[tuple[str, Any, Any]], id_of: Callable[[str], int | None]) -> None:
    """UserError that names the tokens (file, text, id or None) which the vocabulary does not have, or has under another id."""
    unknown = [row for row in named if not isinstance(row[1], str) or id_of(row[1]) is None]
    if unknown:
        tokens = list(dict.fromkeys(shown(token) for _, token, _ in unknown))
        more = f" and {len(tokens) - 6} more" if len(tokens) > 6 else ""
        raise UserError(
            f"{unknown[0][0]} adds the tokens {', '.join(tokens[:6])}{more}, which are not read here: texts would get other ids. Use a "
            "tokenizer without them, or give its SentencePiece model in a folder of its own as VOCABULARY."
        )
    for where, token, id in named:
        if id is not None and id_of(token) not in (-1, id):
            raise UserError(f"{where} gives {shown(token)} the id {shown(id)}; here it is {id_of(token)}.")


def _named(settings: Mapping[str, Any], where: str) -> Iterator[tuple[Any, int | None]]:
    """(text, id where it is given) of the tokens in a tokenizer_config.json or special_tokens_map.json."""
    for key, token in settings.items():
        if key.endswith("_token") and token is not None and not isinstance(token, bool):
            yield text_of(token), ROLES.get(key)
    yield from ((text_of(token), None) for token in listed_tokens(settings, where))
    yield from ((text_of(token), int(id)) for id, token in tokens_by_id(settings, where).items())


def listed_tokens(settings: Mapping[str, Any], where: str) -> list[Any]:
    """The further special tokens that a file lists: texts, or objects with their content."""
    found: list[Any] = []
    for key in LISTS:
        tokens = settings.get(key) or []
        if not isinstance(tokens, list | dict):
            raise UserError(f"{where}: {key} is {shown(tokens)}, not a list of tokens.")
        found += tokens.values() if isinstance(tokens, dict) else tokens
    return found


def tokens_by_id(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tokens of added_tokens_decoder by their ids, as they are written."""
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(id.isascii() and id.isdigit() and len(id) < 10 for id in decoder):
        raise UserError(f"{where}: added_tokens_decoder is {shown(decoder)}, not tokens by their ids.")
    return decoder


def text_of(token: Any) -> Any:
    """The text of a token, which is that text or an object with it."""
    return token.get("content") if isinstance(token, dict) else token


def _check_options(settings: Mapping[str, Any], where: str, classes: tuple[str, ...]) -> None:
    kind = settings.get("tokenizer_class")
    if kind is not None and kind not in classes:
        raise UserError(f"{where}: tokenizer_class = {shown(kind)} is none of {', '.join(classes)}.")
    for key, allowed in OPTIONS.items():
        value = settings.get(key)
        if value is not None and not any(value == each and type(value) is type(each) for each in allowed):
            raise UserError(f"{where}: {key} = {shown(value)}; only {allowed[0]!r} is supported.")


def _check_sentinels(settings: Mapping[str, Any], where: str, allowed: tuple[int, ...]) -> None:
    value = settings.get("extra_ids")
    if value is not None and (type(value) is not int or value not in allowed):
        raise UserError(f"{where}: extra_ids = {shown(value)}; {' or '.join(map(str, allowed))} <extra_id_*> are read here.")
