"""Vocabularies: the same ids and texts as SeqIO's, checked at loading, no TensorFlow."""

import os
import random
import subprocess
import sys

import pytest
import sentencepiece
from bounds import within_bounds
from fixture_folders import TINY, random_params
from test_tokenizer_json import convert
from tiny_data import SENTENCES, byte_vocabulary, piece_file, shared_vocabulary_file

from mpt_jax.data.vocabulary import load_vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats

TEXTS = (
    *SENTENCES,
    "",
    "  two  spaces ",
    "I like <extra_id_0> and <extra_id_1>ly sandwiches<extra_id_99>",
    "<extra_id_0>",
    "tabs\tand\nlines ☃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "</s> <pad> <unk>",
)


@pytest.fixture(params=["tiny", "t5", "bytes"])
def vocabulary(request):
    if request.param == "bytes":
        return byte_vocabulary()
    return load_vocabulary(piece_file() if request.param == "tiny" else shared_vocabulary_file())


def test_ids_and_texts_equal_seqio(vocabulary):
    theirs = seqio_vocabulary(vocabulary)
    assert vocabulary.size == theirs.vocab_size
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert ids == list(theirs.encode(text)) == theirs.encode_tf(text).numpy().tolist(), text
        assert vocabulary.decode(ids) == theirs.decode(ids), text
    draws = random.Random(0)
    for _ in range(200):
        ids = [draws.randrange(vocabulary.size + 20) for _ in range(draws.randrange(30))]
        ids += [0] * draws.randrange(3)
        assert vocabulary.decode(ids) == theirs.decode(ids), ids


def test_sentinels_count_down_from_the_last_id():
    vocabulary = load_vocabulary(piece_file())
    assert vocabulary.encode("<extra_id_0>") == [vocabulary.size - 1]
    assert vocabulary.encode("<extra_id_99>") == [vocabulary.size - 100]


def test_decoding_stops_at_end_and_drops_padding():
    vocabulary = load_vocabulary(piece_file())
    dog = vocabulary.encode("the dog")
    assert vocabulary.decode([*dog, 1, *dog, 0, 0]) == "the dog"
    assert vocabulary.decode([0, *dog, 0]) == "the dog"
    assert byte_vocabulary().decode([3 + ord("a"), 1, 3 + ord("b")]) == "a"


def test_byte_vocabulary_has_the_size_of_byt5():
    assert byte_vocabulary().size == 384
    assert byte_vocabulary().encode("é") == [0xC3 + 3, 0xA9 + 3]


def test_known_ids_of_t5():
    vocabulary = load_vocabulary(shared_vocabulary_file())
    assert vocabulary.size == 32100
    assert vocabulary.encode("hello <extra_id_0> world") == [21820, 32099, 296]


def test_fingerprint_tells_models_and_sentinels_apart(tmp_path):
    copied = tmp_path / "spiece.model"
    with open(piece_file(), "rb") as file:
        copied.write_bytes(file.read())
    first = load_vocabulary(piece_file())
    assert load_vocabulary(tmp_path).fingerprint == first.fingerprint, "the place of the file must not matter"
    others = {load_vocabulary(piece_file(), 0).fingerprint, byte_vocabulary().fingerprint}
    assert len(others | {first.fingerprint}) == 3 and len(first.fingerprint) == 16


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.model"):
        load_vocabulary(tmp_path / "nowhere.model")
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="broken.model"):
        load_vocabulary(broken)
    with pytest.raises(UserError, match="extra_ids = -1"):
        load_vocabulary(piece_file(), -1)


def test_special_ids_must_be_those_of_t5(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="pad_id=0"):
        load_vocabulary(tmp_path / "m.model", 0)


@pytest.fixture(params=["tiny", "t5"])
def with_sentinels(request, tmp_path):
    """(the layout of T5X's cc_all.32000.100extra and of mT5's models: sentinels inside, the model without them)."""
    plain = piece_file() if request.param == "tiny" else shared_vocabulary_file()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sentencepiece.model").write_bytes(seqio_vocabulary(load_vocabulary(plain)).sp_model)
    return tmp_path / "own" / "sentencepiece.model", plain


def test_a_model_that_holds_its_sentinels_is_taken_as_it_is(with_sentinels):
    import seqio

    path, plain = with_sentinels
    own, wanted = load_vocabulary(path), load_vocabulary(plain)
    assert own.extra_ids == 0 and own.size == wanted.size
    for text in TEXTS:
        assert own.encode(text) == wanted.encode(text)
        assert own.decode(own.encode(text)) == wanted.decode(wanted.encode(text))
    theirs = seqio.SentencePieceVocabulary(str(path), 0)
    assert seqio_vocabulary(own) == theirs
    assert own.encode("<extra_id_0> dog") == list(theirs.encode("<extra_id_0> dog"))
    assert load_vocabulary(path, 0).fingerprint == own.fingerprint == load_vocabulary(path.parent).fingerprint
    with pytest.raises(UserError, match="already holds 100 <extra_id_.>: leave extra_ids out"):
        load_vocabulary(path, 100)


def test_the_vocabulary_of_a_seqio_task_may_hold_its_sentinels(with_sentinels):
    import seqio

    from mpt_jax.data.cache_writer import _check_vocabulary

    path, _ = with_sentinels
    theirs = seqio.SentencePieceVocabulary(str(path), 0)
    _check_vocabulary("task", "inputs", theirs, load_vocabulary(path))
    with pytest.raises(UserError, match="task .task. has its .inputs. in another vocabulary"):
        _check_vocabulary("task", "inputs", theirs, load_vocabulary("bytes"))


def test_transformers_gives_the_ids_of_a_written_folder_whose_model_holds_its_sentinels(with_sentinels, tmp_path):
    transformers = pytest.importorskip("transformers")
    path, _ = with_sentinels
    formats.write_backbone("hf", tmp_path / "hf", TINY, random_params(TINY), str(path))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), load_vocabulary(tmp_path / "hf")
    for text in ("the dog", "I like <extra_id_0> and <extra_id_7> .", "  two  spaces"):
        assert theirs(text).input_ids == [*ours.encode(text), 1]


@pytest.mark.parametrize("change, message", [
    (lambda model: setattr(model.pieces[7], "score", float("nan")), "has the piece .* with score nan"),
    (lambda model: setattr(model.pieces[7], "score", float("-inf")), "with score -inf"),
    (lambda model: setattr(model.pieces[7], "piece", ""), "cannot be loaded by SentencePiece|size"),
    (lambda model: setattr(model.pieces[7], "piece", model.pieces[8].piece), "cannot be loaded by SentencePiece"),
    (lambda model: setattr(model.trainer_spec, "pad_piece", "zzz"), "has padding, end, unknown"),
    (lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", b"\xff" * 40), "cannot be loaded by SentencePiece"),
    (lambda model: model.pieces.__delitem__(slice(2, None)), "cannot be loaded by SentencePiece|has padding"),
])  # fmt: skip
def test_models_that_would_be_read_wrongly(change, message, tmp_path):
    from sentencepiece import sentencepiece_model_pb2

    with open(piece_file(), "rb") as file:
        model = sentencepiece_model_pb2.ModelProto.FromString(file.read())
    change(model)
    (tmp_path / "x.model").write_bytes(model.SerializeToString())
    with within_bounds(), pytest.raises(UserError, match=message):
        load_vocabulary(tmp_path / "x.model")


def test_vocabularies_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "spiece.model")
    for path in (tmp_path, tmp_path / "spiece.model", "/dev/zero", tmp_path / "gone"):
        with within_bounds(), pytest.raises(UserError, match="is a pipe|is a device|is missing"):
            load_vocabulary(path)
    with pytest.raises(UserError, match="extra_ids = 1000000000: must be in 0 .. 100000"):
        load_vocabulary(piece_file(), 10**9)


def test_a_cache_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "file"))
    converted = load_vocabulary(convert(piece_file(), tmp_path, 100))
    with pytest.raises(UserError, match="cannot be written .*: set MPT_CACHE_DIR"):
        converted.model_file()


def test_loading_needs_no_tensorflow():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'seqio', 'jax')))\n"
        "from mpt_jax.data.vocabulary import load_vocabulary\n"
        "v = load_vocabulary(sys.argv[1]); print(v.decode(v.encode('the dog')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, piece_file()], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "the dog"
