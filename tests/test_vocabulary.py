"""Vocabularies: the same ids and texts as SeqIO's, checked at loading, no TensorFlow."""

import random
import subprocess
import sys

import pytest
import sentencepiece
from tiny_data import SENTENCES, byte_vocabulary, piece_file, shared_vocabulary_file

from mpt_jax.data.vocabulary import load_vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError

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


def test_a_model_with_its_own_sentinels_needs_extra_ids_0(tmp_path):
    theirs = seqio_vocabulary(load_vocabulary(piece_file()))
    (tmp_path / "own.model").write_bytes(theirs.sp_model)
    with pytest.raises(UserError, match="extra_ids = 0"):
        load_vocabulary(tmp_path / "own.model")
    own = load_vocabulary(tmp_path / "own.model", 0)
    assert own.encode("<extra_id_0> dog") == list(theirs.encode("<extra_id_0> dog"))


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
