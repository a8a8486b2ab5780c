"""A tokenizer.json gives the ids of Hugging Face's own reader, and of the SentencePiece model it was made from."""

import base64
import json
from pathlib import Path

import pytest
from fixture_folders import data_folder
from sentencepiece import sentencepiece_model_pb2
from tiny_data import SENTENCES, piece_file, shared_vocabulary_file

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError

TEXTS = (
    *SENTENCES,
    "Hello <extra_id_0> world <extra_id_7>",
    "  two  spaces\tand tabs ",
    "ﬁ ½ ① naïve café 東京 ✓ 🙂🙂",
    "sst2 sentence: it 's a charming and often affecting journey .",
    "",
)


def convert(model_file: str, folder: Path, sentinels: int, **changes) -> Path:
    """The tokenizer.json of a SentencePiece model, laid out as transformers' converter does."""
    model = sentencepiece_model_pb2.ModelProto.FromString(Path(model_file).read_bytes())
    vocabulary = [[piece.piece, piece.score] for piece in model.pieces]
    vocabulary += [[f"<extra_id_{i}>", 0.0] for i in reversed(range(sentinels))]
    settings = {
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode(),
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": False},
    }
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(settings | changes))
    return file


@pytest.mark.parametrize("real", [False, True])
def test_ids_are_those_of_the_sentencepiece_model(real, tmp_path):
    model_file = shared_vocabulary_file() if real else piece_file()
    wanted = load_vocabulary(model_file)
    vocabulary = load_vocabulary(convert(model_file, tmp_path, 100))
    assert vocabulary.size == wanted.size
    assert load_vocabulary(tmp_path).fingerprint == vocabulary.fingerprint  # the folder, too
    for text in TEXTS:
        assert vocabulary.encode(text) == wanted.encode(text)
        assert vocabulary.decode(vocabulary.encode(text)) == wanted.decode(wanted.encode(text))


def test_ids_are_those_of_the_tokenizers_package():
    tokenizers = pytest.importorskip("tokenizers")
    path = data_folder("checkpoints/hf_t5_tiny/tokenizer.json")
    reference, vocabulary = tokenizers.Tokenizer.from_file(path), load_vocabulary(path)
    assert vocabulary.size == reference.get_vocab_size() == 1302  # sentinels have the ids 3 to 102 here
    for text in TEXTS:
        assert vocabulary.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_seqio_gets_a_model_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "cache"))
    vocabulary = load_vocabulary(convert(piece_file(), tmp_path, 100))
    again = load_vocabulary(vocabulary.model_file())
    assert [again.encode(text) for text in TEXTS] == [vocabulary.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"type": "BPE", "vocab": []}}, "a 'BPE' tokenizer"),
        ({"model": {"vocab": {"a": 1}}}, "not a Unigram tokenizer.json"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text by .'Lowercase'"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "splits words by"),
        ({"pre_tokenizer": None}, "splits words by None"),
    ],
)
def test_other_tokenizers_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_vocabulary(convert(piece_file(), tmp_path, 0, **changes))
