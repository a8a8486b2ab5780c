"""Trains the nano backbone's own SentencePiece vocabulary: 8,092 unigram pieces, 8,192 ids with the 100 sentinels."""

from collections.abc import Iterable
from pathlib import Path

PIECES = 8092
EXTRA_IDS = 100
SIZE = PIECES + EXTRA_IDS
ASCII = "".join(chr(code) for code in range(33, 127) if not chr(code).isupper())


def train(lines: Iterable[str], label_words: Iterable[str], path: Path, label_weight: int = 400) -> None:
    """Writes `path` (spiece.model): pad 0, eos 1, unk 2 as in T5; lower case (nmt_nfkc_cf), digits apart, no bytes.

    Lower case because 8,092 pieces are few: "The" and "the" cost one. Each label word is repeated `label_weight`
    times as a line of its own, so that it becomes a piece and a task's answer is one token.
    """
    import io

    import sentencepiece

    repeated = (word for word in sorted(set(label_words)) for _ in range(label_weight))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *repeated]),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        normalization_rule_name="nmt_nfkc_cf",
        split_digits=True,
        byte_fallback=False,
        character_coverage=0.9998,
        required_chars=ASCII,
        max_sentence_length=4096,
        num_threads=2,
        minloglevel=1,
    )
    path.write_bytes(model.getvalue())


def load(path: Path):
    """The trained pieces as a SentencePieceProcessor (without the sentinels, which no text contains)."""
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(path))
