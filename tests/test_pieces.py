"""Any tokenizer.json gives the ids that transformers gives, with what stands around texts; damaged ones are refused, not a panic
(pieces.py, frame.py, tokenizer_bounds.py, seqio_pieces.py)."""

import base64
import json

import numpy as np
import pytest
from bounds import within_bounds
from hostile import refused
from tiny_data import SENTENCES
from tiny_tokenizers import KINDS, TEXTS, tokenizer, write

from mpt_jax import tasks
from mpt_jax.data import tokenizer_bounds
from mpt_jax.data.cache import open_cache
from mpt_jax.data.frame import Frame
from mpt_jax.data.vocabulary import PiecesVocabulary, load_vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families.causal_config import CausalConfig


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(write(tmp_path, kind)), load_vocabulary(tmp_path)
    assert isinstance(ours, PiecesVocabulary)
    assert (ours.size, ours.ends, ours.pad_id) == (len(theirs), (theirs.eos_token_id,), theirs.pad_token_id)
    for text in TEXTS:
        assert [*ours.start, *ours.encode(text)] == theirs(text).input_ids
        if "</s>" not in text:  # where an answer ends
            assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("change", [{"add_bos_token": True}, {"add_bos_token": False}, {"extra_special_tokens": ["dog", "<|user|>"]}])
@pytest.mark.parametrize("kind", ["bytes", "llama"])
def test_options_of_tokenizer_config_are_those_of_transformers(kind, change, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    end = {"content": "</s>", "__type": "AddedToken"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end, **change}
    if "extra_special_tokens" in change:
        config["extra_special_tokens"] = [tokenizer(kind).id_to_token(300), "<|user|>"]
    theirs, ours = transformers.AutoTokenizer.from_pretrained(write(tmp_path, kind, config)), load_vocabulary(tmp_path)
    for text in (*TEXTS, f"a{tokenizer(kind).id_to_token(300)}b"):
        assert [*ours.start, *ours.encode(text)] == theirs(text).input_ids


@pytest.mark.parametrize("by_id", [False, True])
def test_files_beside_tokenizer_config_count_where_transformers_reads_them(by_id, tmp_path):
    """Only beside a tokenizer_config.json without added_tokens_decoder."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    word, end = tokenizer("bytes").id_to_token(300), {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    config |= {"added_tokens_decoder": {"1": end | {"single_word": False, "special": True}}} if by_id else {}
    write(tmp_path, "bytes", config)
    (tmp_path / "added_tokens.json").write_text(json.dumps({word: 300}))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<|user|>"}')
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_vocabulary(tmp_path)
    assert ours.pad_id == theirs.pad_token_id == (0 if by_id else 4)
    assert ours.encode(f"a{word}b") == theirs(f"a{word}b").input_ids
    assert (300 in ours.encode(f"a{word}b")) != by_id
    assert ours.decode([300, 301]) == theirs.decode([300, 301], skip_special_tokens=True)


def test_flags_of_added_tokens_decoder_go_before_those_of_the_file(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    user = {"content": "<|user|>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False, "special": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "added_tokens_decoder": {"4": user}}
    theirs, ours = transformers.AutoTokenizer.from_pretrained(write(tmp_path, "bytes", config)), load_vocabulary(tmp_path)
    assert ours.encode("a <|user|> b") == theirs("a <|user|> b").input_ids == ours.encode("a<|user|>b")


@pytest.mark.parametrize("kind, prefix", [("GPT2Tokenizer", False), ("PreTrainedTokenizerFast", True), ("PreTrainedTokenizerFast", False)])
def test_a_space_in_front_is_what_transformers_has(kind, prefix, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_prefix_space": prefix}
    theirs, ours = transformers.AutoTokenizer.from_pretrained(write(tmp_path, "bytes", config)), load_vocabulary(tmp_path)
    assert ours.encode("The dog") == theirs("The dog", add_special_tokens=False).input_ids


def with_words(count: int) -> dict:
    """The model of a tokenizer with so many more tokens."""
    model = json.loads(tokenizer("bytes").to_str())["model"]
    return model | {"vocab": model["vocab"] | {f"word{n}": 400 + n for n in range(count)}}


@pytest.mark.parametrize("key", ["extra_special_tokens", "added_tokens_decoder", "added_tokens.json"])
def test_thousands_of_special_tokens_are_read_or_refused_in_little_time(key, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_bounds, "MOST_ADDED", 15_000)
    for count in (10_000, 20_000):
        named = {f"word{n}": 400 + n for n in range(count)}
        by_id = {str(number): {"content": text, "special": True} for text, number in named.items()}
        more = {"extra_special_tokens": [*named], "added_tokens_decoder": by_id}
        write(tmp_path, "bytes", {"eos_token": "</s>"} | {key: more[key] for key in [key] if key in more}, model=with_words(count))
        (tmp_path / "added_tokens.json").write_text(json.dumps(named if key == "added_tokens.json" else {}))
        if count == 10_000:
            with within_bounds():
                assert load_vocabulary(tmp_path).encode("word7word9999") == [407, 10_399]
        else:
            refused(lambda: load_vocabulary(tmp_path), "has 20,005 added tokens; at most 15,000 are read")


def test_thousands_of_added_tokens_in_the_file_itself_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_bounds, "MOST_ADDED", 4)
    with pytest.raises(UserError, match="has 5 added tokens; at most 4 are read"):
        load_vocabulary(write(tmp_path, "bytes"))


def test_limits_in_the_file_do_not_cut_or_fill_texts(tmp_path):
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>", "pad_to_multiple_of": None}
    ours = load_vocabulary(write(tmp_path, "bytes", truncation=cut, padding=fill))
    assert ours.encode(SENTENCES[1]) == tokenizer("bytes").encode(SENTENCES[1], add_special_tokens=False).ids


@pytest.mark.parametrize(
    "kind, cue, target", [("bytes_cut", "Ċ", "Ġyes"), ("gemma", "<0x0A>", "▁"), ("llama", "<0x0A>", "▁"), ("unigram", "▁", "▁")]
)
def test_a_target_goes_on_after_the_cue_with_one_space(kind, cue, target, tmp_path):
    ours = load_vocabulary(write(tmp_path, kind)).continuing("\nAnswer:")
    inputs, targets = ours.input_tokens("The dog"), ours.target_tokens("yes no")
    start = (2,) if kind in ("llama", "gemma", "bytes_cut") else ()
    plain = load_vocabulary(tmp_path).encode("The dog")
    assert tuple(inputs[: len(start)]) == start and inputs[len(start) : len(start) + len(plain)] == plain
    if kind != "unigram":  # whose normaliser makes a space of a new line
        assert ours.token(inputs[len(start) + len(plain)]) == cue
    assert ours.token(targets[0]) == target and targets[-1] == 1
    assert ours.text_of(targets) == "yes no"
    assert (
        ours.decode([*inputs[len(start) :], *targets]).replace("\n", " ").split() == ["The", "dog", "Answer:", "yes", "no"]
        or kind == "unigram"
    )


def test_ends_are_the_tokenizers_and_generation_configs(tmp_path):
    write(tmp_path, "bytes")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [4, 1]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    ours = load_vocabulary(tmp_path).continuing()
    assert ours.ends == (1, 4, 5)
    assert ours.frame == Frame((), (), " ", (1,))
    word = ours.encode("The dog")
    assert ours.decode([*word, 4, *word]) == ours.decode([*word, 5]) == "The dog"


def test_without_a_token_for_padding_the_end_pads(tmp_path):
    ours = load_vocabulary(write(tmp_path, "bytes", {"eos_token": "</s>"}))
    assert ours.pad_id == 1
    assert ours.decode([*ours.encode("The dog"), 1, 1]) == "The dog"


def test_padding_is_no_part_of_an_answer(tmp_path):
    """An answer that ends at its limit is filled up, whatever the token is that fills."""
    ours = load_vocabulary(write(tmp_path, "bytes", {"eos_token": "</s>", "pad_token": tokenizer("bytes").id_to_token(300)}))
    assert ours.pad_id == 300
    assert ours.decode([*ours.encode("dog"), 300, 300]) == "dog"


@pytest.mark.parametrize(
    "config, message",
    [
        ({}, "names no end token"),
        ({"eos_token": "<end>"}, "names the token '<end>'; tokenizer.json has none"),
        ({"eos_token": "</s>", "added_tokens_decoder": {"3": {"content": "</s>"}}}, "'</s>' with the id '3'; tokenizer.json has the id 1"),
        ({"eos_token": "</s>", "extra_special_tokens": ["<|new|>"]}, "names the token '<|new|>'; tokenizer.json has none"),
        ({"eos_token": "</s>", "add_prefix_space": True, "tokenizer_class": "GPT2Tokenizer"}, "= True, but .* puts no space in front"),
        ({"eos_token": "</s>", "extra_special_tokens": 5}, "extra_special_tokens is 5, not a list"),
        ({"eos_token": "</s>", "split_special_tokens": True}, "split_special_tokens = True; only False is supported"),
        ({"eos_token": "</s>", "auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map = .*; only {} is supported"),
    ],
)
def test_tokenizers_whose_ids_would_differ_are_refused(config, message, tmp_path):
    with pytest.raises(UserError, match=message.replace("|", "[|]")):
        load_vocabulary(write(tmp_path, "bytes", config))


def test_tokens_of_added_tokens_that_the_tokenizer_lacks_are_named(tmp_path):
    write(tmp_path, "bytes")
    (tmp_path / "added_tokens.json").write_text('{"<mine>": 400, "<yours>": 401}')
    with pytest.raises(UserError, match="names the token '<mine>', '<yours>'; tokenizer.json has none. AutoTokenizer.from_pretrained"):
        load_vocabulary(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<s>": 400}')
    with pytest.raises(UserError, match="'<s>' with the id '400'; tokenizer.json has the id 2"):
        load_vocabulary(tmp_path)


def test_ends_that_are_no_ids_are_refused(tmp_path):
    write(tmp_path, "bytes")
    for value in ('"</s>"', "[1, null]", "-1", "true"):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
        with pytest.raises(UserError, match="generation_config.json: eos_token_id = .*; it takes ids of tokens"):
            load_vocabulary(tmp_path)


VOCAB = {"a": 0, "b": 1, "ab": 2, "</s>": 3}
MERGES = {"type": "BPE", "continuing_subword_prefix": "##########", "vocab": VOCAB, "merges": ["a b"]}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}}
GROWING = 12 * [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}]
LONG_MAP = base64.b64encode(b"\xff\xff\xff\x7f").decode()


@pytest.mark.parametrize(
    "changes, message",
    [
        # these make the library panic
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "cannot be read by the library tokenizers .chunk size must be non-zero"),
        ({"model": MERGES}, "cannot be read by the library tokenizers"),
        ({"post_processor": TEMPLATE}, "cannot be read by the library tokenizers .no entry found for key"),
        # these would abort the process, or never end
        (
            {"model": {"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}},
            "gives a token the id 4000000000; ids are whole numbers in 0",
        ),
        ({"added_tokens": [{"id": 2**31, "content": "x"}]}, "gives a token the id 2147483648"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": LONG_MAP}}, "says 2,147,483,647 bytes of 4"),
        ({"normalizer": {"type": "Sequence", "normalizers": GROWING}}, "its normalizer turns a letter into 1000000000000"),
        ({"model": MERGES | {"dropout": 0.5}}, "draws the ids of a text at random"),
        ({"model": {"type": "Other", "vocab": {}}}, "cannot be read by the library tokenizers"),
        ({"model": 3}, "is not a Unigram tokenizer.json|has no model"),
    ],
)
def test_damaged_and_hostile_files_are_one_sentence(changes, message, tmp_path):
    write(tmp_path, "bytes", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_vocabulary(tmp_path).encode("a b")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_no_json_or_text_are_refused(tmp_path):
    write(tmp_path, "bytes")
    content = (tmp_path / "tokenizer.json").read_bytes()
    for damaged in (content[:1000], content.replace(b"dog", b"d\xffg"), b"", b"[" * 100_000, b"[]"):
        (tmp_path / "tokenizer.json").write_bytes(damaged)
        with pytest.raises(UserError, match="tokenizer.json"):
            load_vocabulary(tmp_path)


def test_texts_with_lone_surrogates_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read by the library tokenizers"):
        load_vocabulary(write(tmp_path, "bytes")).encode("a\ud800")


def test_special_tokens_that_a_model_does_not_embed_are_left_out(tmp_path):
    """Gemma 3 1B embeds 262,144 tokens, its tokenizer has one more, for images."""
    made = tokenizer("gemma")
    made.add_special_tokens(["<image>"])
    write(tmp_path, "gemma")
    (tmp_path / "tokenizer.json").write_text(made.to_str())
    size = made.token_to_id("<image>")
    config = CausalConfig("small", size, 8, 1, 1, 1, 8, 8)
    whole, ours = load_vocabulary(tmp_path), Backbone("x", config, {}, str(tmp_path), "").vocabulary("?")
    assert whole.size == size + 1 and whole.encode("<image>") == [size]
    assert ours.size == size and max(ours.encode("an <image> of")) < size
    assert ours.input_tokens("The dog") == whole.continuing("?").input_tokens("The dog")
    with pytest.raises(UserError, match=f"has {size:,} ids, backbone 'x' embeds {size - 7:,}"):
        Backbone("x", CausalConfig("small", size - 7, 8, 1, 1, 1, 8, 8), {}, str(tmp_path), "").vocabulary()


@pytest.mark.parametrize("kind", [pytest.param("bytes_cut", marks=pytest.mark.slow), "llama"])
def test_seqio_has_the_same_ids(kind, tmp_path):
    pytest.importorskip("seqio")
    import tensorflow as tf

    ours = load_vocabulary(write(tmp_path, kind))
    theirs = seqio_vocabulary(ours.continuing("?"))
    assert theirs == seqio_vocabulary(ours) != seqio_vocabulary(load_vocabulary(write(tmp_path / "other", "bytes")))
    assert (theirs.vocab_size, theirs.eos_id, theirs.pad_id, theirs.bos_id) == (ours.size, 1, 0, 2)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text) == ids == theirs.encode_tf(tf.constant(text)).numpy().tolist()
        assert theirs.decode(ids) == ours.decode(ids)
        assert theirs.decode_tf(tf.constant(ids, tf.int32)).numpy().decode() == ours.decode(ids)
    rows = theirs.encode_tf(tf.constant(TEXTS[:3]))
    assert rows.to_list() == [ours.encode(text) for text in TEXTS[:3]]
    assert theirs.decode_tf(rows).numpy().tolist() == [ours.decode(row).encode() for row in rows.to_list()]


@pytest.fixture
def seqio_tasks(tmp_path):
    """Two SeqIO tasks with the pieces: of texts, and of tokens that a preprocessor has changed."""
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    ours = load_vocabulary(write(tmp_path / "tokenizer", "bytes_cut"))
    rows = {"inputs": ["The dog", "A cat"], "targets": ["yes", "no way"]}

    def add(name, *more, **kind):
        feature = seqio.Feature(seqio_vocabulary(ours), **kind)
        seqio.TaskRegistry.add(
            name, source=seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=["train"]),
            preprocessors=[seqio.preprocessors.tokenize, *more, seqio.preprocessors.append_eos],
            output_features={"inputs": feature, "targets": feature}, metric_fns=[],
        )  # fmt: skip

    def first_two(dataset):
        return dataset.map(lambda row: row | {"inputs": row["inputs"][:2]})

    add("pieces_texts", add_eos=True)
    add("pieces_open", add_eos=False)
    add("pieces_cut", first_two, add_eos=True)
    yield ours
    for name in ("pieces_texts", "pieces_open", "pieces_cut"):
        seqio.TaskRegistry.remove(name)


def test_seqio_tasks_are_cached_as_the_tables_tasks_are(seqio_tasks, table, tmp_path):
    ours = seqio_tasks.continuing("\nAnswer:")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"q": q, "a": a}) + "\n" for q, a in (("The dog", "yes"), ("A cat", "no way"))))
    tasks.jsonl("pieces_table", files={"train": str(file)}, template="{q}", target="{a}")
    wanted = open_cache("pieces_table", "train", ours, tmp_path / "cache")
    for name in ("pieces_texts", "pieces_open"):
        found = open_cache(name, "train", ours, tmp_path / "cache")
        for row in range(2):
            assert found.inputs(row).tolist() == wanted.inputs(row).tolist() == ours.input_tokens(("The dog", "A cat")[row])
            assert found.targets(row).tolist() == wanted.targets(row).tolist() == ours.target_tokens(("yes", "no way")[row])
    cut = open_cache("pieces_cut", "train", ours, tmp_path / "cache")
    assert cut.inputs(0).tolist() == [2, *ours.encode("The dog")[:2], *ours.frame.input_end]
    assert np.array_equal(cut.targets(0), wanted.targets(0))


def test_a_seqio_task_with_other_pieces_is_refused(seqio_tasks, tmp_path):
    other = load_vocabulary(write(tmp_path / "other", "bytes")).continuing()
    with pytest.raises(UserError, match="task 'pieces_texts' has its 'inputs' in another vocabulary"):
        open_cache("pieces_texts", "train", other, tmp_path / "cache")
