"""A tokenizer.json gives the ids of Hugging Face's own reader, and of the SentencePiece model it was made from."""

import base64
import json
from pathlib import Path

import pytest
from bounds import within_bounds
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


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


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
        "pre_tokenizer": METASPACE,
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
        ({"model": {"type": "BPE", "vocab": []}}, "cannot be read by the library tokenizers"),
        ({"model": {"vocab": {"a": 1}}}, "not a Unigram tokenizer.json"),
        ({"normalizer": {"type": "Lowercase"}}, "normalises text by .'Lowercase'"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "splits words by"),
        ({"pre_tokenizer": None}, "splits words by None"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE | {"prepend_scheme": "first"}],
                }
            },
            "splits",
        ),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "pretokenizers is 3, not a list of steps"),
        ({"pre_tokenizer": "Metaspace"}, "pre_tokenizer is 'Metaspace', not an object"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}}, "normalises text by .'Replace'"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "§"}}, "precompiled_charsmap is damaged"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": 7}}, "precompiled_charsmap is damaged"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {}}]}},
            "around a text",
        ),
        ({"post_processor": {"type": "RobertaProcessing"}}, "around a text"),
        ({"dropout": 0.1}, "says .'dropout'., which is not known here"),
        ({"model": {"vocab": [["<pad>", 0.0]]}}, "has 1 pieces; padding, end of sequence and unknown are the first three"),
        ({"model": {"vocab": []}}, "has 0 pieces"),
        ({"model": {"vocab": [["</s>", 0.0], ["<pad>", 0.0], ["<unk>", 0.0]]}}, "begins with .'</s>', '<pad>', '<unk>'.; T5's with"),
        ({"model": {"vocab": [["a", float("nan")]] * 3}}, "not a list of pieces with their scores"),
        ({"model": {"vocab": [["a", "1"]] * 3}}, "not a list of pieces with their scores"),
        ({"model": {"vocab": [["a"]] * 3}}, "not a list of pieces with their scores"),
        ({"model": {"vocab": [["\ud800", 0.0]] * 3}}, "piece 0 is .*, not a text"),
        ({"model": 3}, "it has no model"),
        ({"model": {"vocab": [["a", 0.0]] * 3, "fuse_unk": True}}, "says .'model.fuse_unk'."),
        ({"added_tokens": 3}, "added_tokens is 3, not a list"),
        ({"added_tokens": [{"content": "</s>", "id": 5}]}, "gives '</s>' the id 5; here it is 1"),
    ],
)
def test_other_tokenizers_are_refused(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_vocabulary(convert(piece_file(), tmp_path, 0, **changes))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "is not JSON"),
        (b"[]", "it has no model"),
        (b"", "is not JSON"),
        (b'{"model": [' + b"[]," * 2_000_000 + b"[]]}", "lists and objects"),
    ],
)
def test_files_that_are_no_tokenizer(content, message, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with within_bounds(), pytest.raises(UserError, match=message):
        load_vocabulary(tmp_path)


def test_the_end_that_t5_tokenizers_add_is_taken(tmp_path):
    end = {
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        "type": "TemplateProcessing",
    }
    spaces = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Strip"}]}
    load_vocabulary(convert(piece_file(), tmp_path, 100, post_processor=end, normalizer=spaces, truncation={"max_length": 9}, padding=None))
