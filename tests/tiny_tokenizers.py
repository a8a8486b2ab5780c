"""Small tokenizers of the kinds that decoder-only models have, made by the library tokenizers in a moment, and texts to try them on."""

import json
from pathlib import Path

from tiny_data import SENTENCES

TEXTS = (
    *SENTENCES,
    "Hello world",
    "  two  spaces\tand tabs \n\n new  lines\r\n",
    "1234567 8.90 ½ ① ٣",
    "don't we'll I'M",
    "naïve café ﬁ e\u0301 東京 ✓ كتاب \u200b",
    "🙂🙂 👩‍👩‍👧 🇫🇷",
    "<s>in</s> text <|user|> and <pad> <unk> <0x41> ▁ Ġ",
    "a" * 30 + " " * 12 + "b",
    " ",
    "",
)
SPECIAL = ("<pad>", "</s>", "<s>", "<unk>", "<|user|>")
KINDS = ("bytes", "bytes_cut", "llama", "gemma", "unigram")


def tokenizer(kind: str):
    """A tokenizer. bytes: as GPT-2's; bytes_cut: as Llama 3's and Qwen's; llama: Llama 2's, a space in front of all; gemma; unigram."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special, pieces = [AddedToken(token, special=True, normalized=False) for token in SPECIAL], [f"<0x{n:02X}>" for n in range(256)]
    if kind.startswith("bytes"):
        made = Tokenizer(models.BPE(ignore_merges=kind == "bytes_cut"))
        cut = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "bytes")
        made.pre_tokenizer = byte if kind == "bytes" else pre_tokenizers.Sequence([cut, byte])
        made.normalizer = None if kind == "bytes" else normalizers.NFC()
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        made.normalizer = normalizers.NFKC()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        space = normalizers.Replace(" ", "▁")
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if kind == "llama" else space
        strip = [decoders.Strip(" ", 1, 0)] if kind == "llama" else []
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *pieces], show_progress=False)
    made.train_from_iterator(SENTENCES * 3, trainer)
    if kind in ("llama", "gemma", "bytes_cut"):
        first = [("<s>", made.token_to_id("<s>"))]
        made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=first)
    settings = json.loads(made.to_str())  # bytes are pieces, not tokens to look for in a text
    settings["added_tokens"] = [row for row in settings["added_tokens"] if row["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(settings))


def write(folder: Path, kind: str, config: dict | None = None, **changes) -> Path:
    """A folder with a tokenizer.json (with keys changed) and a tokenizer_config.json (with others than the usual)."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(tokenizer(kind).to_str()) | changes
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    usual = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(usual if config is None else config))
    return folder
