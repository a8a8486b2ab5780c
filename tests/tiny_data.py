"""Small vocabularies and token caches for the tests of mpt_jax/data; none of it needs SeqIO or TensorFlow."""

import functools
import os
import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from mpt_jax.data import cache_writer
from mpt_jax.data.cache import TokenCache, read_cache
from mpt_jax.data.vocabulary import Vocabulary, load_vocabulary

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "premise: A dog sleeps in the sun. hypothesis: An animal rests.",
    "question: Where do sparrows build their nests? answer: under the roof",
    "entailment neutral contradiction yes no true false positive negative",
    "Le café était fermé; 1,234.56 € (naïve) — 東京",
)


@functools.cache
def piece_file(normalisation: str = "nmt_nfkc") -> str:
    """A SentencePiece model of some 90 pieces, trained in a moment; normalisation 'nmt_nfkc_cf' lowers all letters."""
    prefix = Path(tempfile.mkdtemp(prefix="pieces-")) / "tiny"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5), model_prefix=str(prefix), vocab_size=120,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, normalization_rule_name=normalisation,
    )  # fmt: skip
    return f"{prefix}.model"


def shared_vocabulary_file() -> str:
    """The real T5 vocabulary, or a skipped test."""
    folder = os.environ.get("MPT_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data"
    file = Path(folder) / "vocab" / "t5_32k.model"
    if not file.is_file():
        pytest.skip(f"no T5 vocabulary {file}: set MPT_DATA_DIR to the folder of test data")
    return str(file)


def byte_vocabulary() -> Vocabulary:
    return load_vocabulary("bytes")


def token_cache(
    folder: Path, rows: Iterable[tuple[Sequence[int], Sequence[int]]], name: str = "toy", embedding: int = 0
) -> TokenCache:
    """A cache of the given (inputs, targets) ids, written and read as any other."""
    key = {"format": 1, "task": name, "split": "train", "vocabulary": "", "ingredients": {}}
    examples = ({"inputs": np.array(inputs), "targets": np.array(targets)} for inputs, targets in rows)
    if embedding:
        examples = (
            example | {"embedding": np.full(embedding, row, np.float32)}
            for row, example in enumerate(examples)
        )
    cache_writer.write(key, examples, byte_vocabulary(), folder / name)
    return read_cache(folder / name)


def text_cache(folder: Path, texts: Sequence[str], targets: Sequence[str], name: str) -> TokenCache:
    """A cache of texts over bytes, as a task with the split 'validation' has it; ``number`` counts the rows."""
    vocabulary = byte_vocabulary()
    key = {"format": 1, "task": name, "split": "validation", "vocabulary": vocabulary.fingerprint, "ingredients": {}}
    examples = []
    for number, (text, target) in enumerate(zip(texts, targets, strict=True)):
        tokens = {feature: np.array([*vocabulary.encode(part), 1], np.int32) for feature, part in (("inputs", text), ("targets", target))}
        examples.append(tokens | {"inputs_pretokenized": text, "targets_pretokenized": target, "number": number})
    cache_writer.write(key, examples, vocabulary, folder / name)
    return read_cache(folder / name)


def sized_cache(folder: Path, size: int, name: str = "toy", longest: int = 30) -> TokenCache:
    """`size` rows of random lengths that end with 1; the first input token is 3 + row % 250."""
    lengths = random.Random(size)
    rows = []
    for row in range(size):
        inputs = [3 + row % 250] + [5] * lengths.randrange(longest) + [1]
        rows.append((inputs, [7] * lengths.randrange(1, 6) + [1]))
    return token_cache(folder, rows, name)
