"""Byte-level BPE in two files (data/byte_pairs.py), as CodeT5+ has it, against transformers' tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats

TEXTS = (
    "def add(a, b):\n    return a + b  # the sum",
    "print('café – 東京 🙂')",
    " leading and trailing ",
    "fill <extra_id_0> in <extra_id_1>\t<mask> here",
    "",
    "</s> is not the end of <s> this",
)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<mask>")
ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "cls": "<s>", "pad": "<pad>", "mask": "<mask>"}
SENTINELS = 4


def _token(content: str, lstrip: bool = False) -> dict:
    return {"content": content, "single_word": False, "lstrip": lstrip, "rstrip": False, "normalized": True}


def write_tokenizer(folder: Path) -> None:
    """The files of Salesforce/codet5p-220m: no tokenizer.json, sentinels as added tokens."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(list(TEXTS) * 3, vocab_size=300, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.save_model(str(folder))
    size = tokenizer.get_vocab_size()
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
    special = {f"{role}_token": _token(text, lstrip=role == "mask") for role, text in ROLES.items()}
    (folder / "special_tokens_map.json").write_text(
        json.dumps(special | {"additional_special_tokens": sentinels})  # objects, as CodeT5+ has them, end transformers 5 with an exception
    )
    (folder / "added_tokens.json").write_text(json.dumps({text: size + place for place, text in enumerate(sentinels)}))
    typed = {key: value | {"__type": "AddedToken"} for key, value in special.items()}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(typed | {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, "errors": "replace", "model_max_length": 512})
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny CodeT5+ with its tokenizer."""
    found = tmp_path_factory.mktemp("codet5p") / "model"
    config = tiny.t5(vocab_size=320, mlp_activations=("relu",), logits_via_embedding=True)
    formats.write_backbone("hf", str(found), config, tiny.weights(config))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((found / name).read_text()) | {"bos_token_id": 1, "eos_token_id": 2}
        (found / name).write_text(json.dumps(settings))
    write_tokenizer(found)
    return found


def test_ids_are_those_of_transformers(folder):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    import transformers

    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_vocabulary(folder).answering(0)
    for text in TEXTS:
        assert ours.input_tokens(text) == ours.target_tokens(text) == theirs(text).input_ids, text
    assert (ours.size, ours.pad_id, ours.ends) == (len(theirs), theirs.pad_token_id, (theirs.eos_token_id,))


def test_texts_come_back_up_to_the_end(folder):
    vocabulary = load_vocabulary(folder).answering(0)
    for text in TEXTS[:3]:
        assert vocabulary.text_of([*vocabulary.target_tokens(text), 7, 8]) == text.removeprefix(" ")


def test_added_tokens_take_no_spaces_whatever_their_flags_say(tmp_path):
    """As CodeT5+ names them: objects with lstrip, which transformers from 4.34 on passes over."""
    for folder in (tmp_path / "plain", tmp_path / "flags"):
        write_tokenizer(folder)
    file = tmp_path / "flags" / "special_tokens_map.json"
    settings = json.loads(file.read_text())
    settings["additional_special_tokens"] = [_token(text, lstrip=True) for text in settings["additional_special_tokens"]]
    file.write_text(json.dumps(settings))
    plain, flags = (load_vocabulary(tmp_path / name) for name in ("plain", "flags"))
    assert plain.encode(TEXTS[3]) == flags.encode(TEXTS[3])


def test_added_tokens_decoder_goes_before_the_other_files(tmp_path):
    """As transformers from 4.34 on writes them, next to files that say something else."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    ids = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True)) | json.loads((tmp_path / "added_tokens.json").read_text())
    rows = {number: _token(text, lstrip=text.startswith("<extra") or text == "<mask>") for text, number in ids.items()}
    settings["added_tokens_decoder"] = {str(number): row | {"special": True} for number, row in rows.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<mask>", "sep_token": "<unk>"}')
    (tmp_path / "added_tokens.json").write_text('{"fill": 300}')
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_vocabulary(tmp_path).answering(0)
    for text in TEXTS:
        assert ours.input_tokens(text) == theirs(text).input_ids, text
    assert (ours.size, ours.pad_id, ours.ends) == (len(theirs), theirs.pad_token_id, (theirs.eos_token_id,)) == (len(theirs), 0, (2,))


def test_the_folder_is_read_with_its_own_ids(folder):
    config, arrays, vocabulary = formats.read_backbone(str(folder))
    assert vocabulary == str(folder / "vocab.json") and config.decoder_start_id == 0
    held = load_vocabulary(vocabulary)
    assert held.frame.input_start == (1,) and held.frame.input_end == (2,) and held.frame.target_end == (2,)
    # a target starts as every text does, unless the decoder starts with that token already
    assert held.answering(0).frame.target_start == (1,) and held.answering(1) is held
    assert held.answering(0).fingerprint != held.fingerprint


@pytest.mark.parametrize("kind", ["hf", "own"])
def test_written_with_the_backbone_it_gives_the_same_ids(folder, kind, tmp_path):
    config, arrays, vocabulary = formats.read_backbone(str(folder))
    formats.write_backbone(kind, str(tmp_path / "x"), config, arrays, vocabulary)
    again, _, path = formats.read_backbone(str(tmp_path / "x"))
    found, expected = load_vocabulary(path), load_vocabulary(vocabulary)
    assert again == config and found.fingerprint == expected.fingerprint
    assert [found.input_tokens(text) for text in TEXTS] == [expected.input_tokens(text) for text in TEXTS]


CHANGES = {
    "a token without an id": ("vocab.json", lambda text: text.replace('"<mask>":4', '"<mask>":5'), "does not give its .* tokens the ids 0"),
    "a merge of nothing": ("merges.txt", lambda text: text + "qq zz\n", "does not join two tokens"),
    "another class": ("tokenizer_config.json", lambda text: text.replace("RobertaTokenizer", "GPT2Tokenizer"), "GPT2Tokenizer"),
    "lower case": ("tokenizer_config.json", lambda text: text.replace('"errors":', '"do_lower_case": true, "x":'), "do_lower_case = True"),
    "a gap": ("added_tokens.json", lambda text: text.replace("<extra_id_3>", "<x>"), "extra_id_3"),
    "no end": ("special_tokens_map.json", lambda text: text.replace('"sep_token"', '"no_token"'), "sep_token"),
    "no JSON": ("vocab.json", lambda text: text[:-3], "is not JSON"),
    "a list": ("added_tokens.json", lambda text: "[]", "holds a list"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_would_give_other_ids_is_refused(change, tmp_path):
    name, changed, message = CHANGES[change]
    write_tokenizer(tmp_path)
    if change == "no end":
        (tmp_path / "tokenizer_config.json").write_text("{}")
    before = (tmp_path / name).read_text()
    (tmp_path / name).write_text(changed(before))
    assert (tmp_path / name).read_text() != before
    with pytest.raises(UserError, match=message):
        load_vocabulary(tmp_path)


def test_a_vocabulary_without_merges_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match="merges.txt is missing"):
        load_vocabulary(tmp_path)


def test_a_t5_whose_targets_start_with_a_token_learns_to_write_it(folder):
    """What is trained on is what the decoder writes: the start of a text, the text, the end."""
    from mpt_jax.model.backbone import framed

    config, _, path = formats.read_backbone(str(folder))
    vocabulary = framed(load_vocabulary(path), config, "")
    tokens = np.array(vocabulary.target_tokens("a"))
    assert tokens[0] == 1 and tokens[-1] == 2 and vocabulary.text_of(tokens) == "a"
