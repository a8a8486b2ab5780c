"""Tokens and options around a vocabulary: the same ids as the tokenizer, or an error that names the tokens."""

import json
import shutil

import pytest
from fixture_folders import TINY, random_params
from test_tokenizer_json import convert
from tiny_data import piece_file

from mpt_jax.convert import convert as convert_backbone
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats

TOKEN = {"content": "{", "id": 220, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
SPECIAL = [{"id": n, "content": text, "special": True} for n, text in enumerate(("<pad>", "</s>", "<unk>"))]


@pytest.fixture
def pieces(tmp_path):
    """A folder with a SentencePiece model alone."""
    shutil.copyfile(piece_file(), tmp_path / "spiece.model")
    return tmp_path


def size() -> int:
    return load_vocabulary(piece_file()).size


@pytest.mark.parametrize(
    "name, content",
    [
        ("tokenizer_config.json", {"added_tokens_decoder": {"220": TOKEN}}),
        ("tokenizer_config.json", {"additional_special_tokens": ["{"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "{"}}),
        ("tokenizer_config.json", {"mask_token": "{"}),
        ("special_tokens_map.json", {"sep_token": {"content": "{"}}),
        ("added_tokens.json", {"{": 220}),
    ],
)
def test_added_tokens_around_a_model_are_named(name, content, pieces):
    (pieces / name).write_text(json.dumps(content))
    for path in (pieces, pieces / "spiece.model"):
        with pytest.raises(UserError, match=f"{name} adds the tokens '{{', which are not read here"):
            load_vocabulary(path)


def test_added_tokens_in_a_tokenizer_json(tmp_path):
    added = [*SPECIAL, TOKEN, TOKEN | {"content": "}", "id": 5}]
    convert(piece_file(), tmp_path, 100, added_tokens=added)
    with pytest.raises(UserError, match="tokenizer.json' adds the tokens '{', '}', which are not read here"):
        load_vocabulary(tmp_path)


def test_a_tokenizer_json_next_to_the_model_that_adds_tokens(pieces):
    convert(piece_file(), pieces, 100, added_tokens=[*SPECIAL, TOKEN])
    with pytest.raises(UserError, match="tokenizer.json adds the tokens '{'"):
        load_vocabulary(pieces)
    formats.write_backbone("hf", pieces / "hf", TINY, random_params(TINY))
    for name in ("spiece.model", "tokenizer.json"):
        shutil.copyfile(pieces / name, pieces / "hf" / name)
    for to in ("hf", "own"):  # nothing is dropped on the way
        with pytest.raises(UserError, match="tokenizer.json adds the tokens '{'"):
            convert_backbone(str(pieces / "hf"), to, str(pieces / "out"))
    assert not (pieces / "out").exists()


def test_a_tokenizer_json_with_other_pieces_than_the_model(pieces):
    file = convert(piece_file(), pieces, 100, added_tokens=SPECIAL)
    load_vocabulary(pieces)  # the same
    settings = json.loads(file.read_text())
    settings["model"]["vocab"][7][0] = "other"
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="tokenizer.json has 'other' for id 7"):
        load_vocabulary(pieces)


def test_what_t5_tokenizers_say_is_taken(pieces):
    ids = {str(token["id"]): token for token in SPECIAL} | {str(size() - 1): {"content": "<extra_id_0>"}}
    settings = {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 100,
        "eos_token": "</s>",
        "pad_token": {"content": "<pad>"},
        "unk_token": "<unk>",
        "additional_special_tokens": [f"<extra_id_{n}>" for n in range(100)],
        "sp_model_kwargs": {},
        "legacy": True,
        "model_max_length": 512,
        "added_tokens_decoder": ids,
        "clean_up_tokenization_spaces": True,
        "add_prefix_space": None,
        "name_or_path": "t5-small",
        "sep_token": None,
    }
    (pieces / "tokenizer_config.json").write_text(json.dumps(settings))
    (pieces / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "additional_special_tokens": ["<extra_id_0>"]}))
    assert load_vocabulary(pieces).fingerprint == load_vocabulary(piece_file()).fingerprint


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eos_token": "<pad>"}, "gives '<pad>' the id 1; here it is 0"),
        ({"added_tokens_decoder": {"7": {"content": "<extra_id_0>"}}}, "gives '<extra_id_0>' the id 7"),
        ({"extra_ids": 0}, "extra_ids = 0; 100 <extra_id_.> are read"),
        ({"extra_ids": "100"}, "extra_ids = '100'"),
        ({"tokenizer_class": "LlamaTokenizer"}, "tokenizer_class = 'LlamaTokenizer' is none of T5Tokenizer"),
        ({"do_lower_case": True}, "do_lower_case = True; only False"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs = "),
        ({"add_prefix_space": False}, "add_prefix_space = False; only True"),
        ({"additional_special_tokens": "x"}, "additional_special_tokens is 'x', not a list"),
        ({"added_tokens_decoder": {"x": {}}}, "added_tokens_decoder is"),
        ({"eos_token": {"content": None}}, "adds the tokens None"),
        ([1], "holds a list, not a JSON object"),
    ],
)
def test_options_that_change_the_ids_are_named(settings, message, pieces):
    (pieces / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"tokenizer_config.json.*{message}"):
        load_vocabulary(pieces)


def test_sentinels_that_a_tokenizer_json_adds_after_its_pieces_are_used(tmp_path):
    plain = load_vocabulary(piece_file(), 0).size
    added = [*SPECIAL, *({"id": plain + n, "content": f"<extra_id_{99 - n}>"} for n in range(100))]
    convert(piece_file(), tmp_path, 0, added_tokens=added)
    wanted = load_vocabulary(piece_file())
    assert load_vocabulary(tmp_path).size == wanted.size
    assert load_vocabulary(tmp_path).encode("a <extra_id_0> dog") == wanted.encode("a <extra_id_0> dog")


@pytest.mark.parametrize(
    "content, message",
    [
        (
            {
                "extra_ids": 125,
                "eos_token": "</s>",
                "added_tokens_decoder": {"0": {"content": "<pad>"}, "300": {"content": "<extra_id_41>"}},
            },
            None,
        ),
        ({"extra_ids": 0}, "extra_ids = 0"),
        ({"additional_special_tokens": ["<mine>"]}, "adds the tokens '<mine>'"),
    ],
)
def test_byte_tokenizers(content, message, tmp_path):
    formats.write_backbone("hf", tmp_path / "x", TINY, random_params(TINY), "bytes")
    (tmp_path / "x" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"} | content))
    if message is None:
        assert formats.read_backbone(tmp_path / "x")[2] == "bytes"
    else:
        with pytest.raises(UserError, match=message):
            formats.read_backbone(tmp_path / "x")
