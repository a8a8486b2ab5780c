"""Prompts of several sources together (convert_prompts.py), and as tokens (model/formats/prompt_tokens.py, prompt_tokenizer.py): arithmetic
is parsed, texts get the ids they had, and greedy answers of other engines are ours."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tiny_bank
import tiny_families
import tiny_tokenizers
from fixture_folders import data_folder
from tiny_data import SENTENCES, piece_file
from tiny_model import CONFIG, tiny, weights

import mpt_jax
from mpt_jax.convert import convert
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import queries, requests
from mpt_jax.infer.queries import Query
from mpt_jax.model import formats
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.formats import prompt_tokenizer, prompts
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.regular_files import parse_json

os.environ["HF_HUB_OFFLINE"] = "1"
TASKS = ("sst2", "odd name", "mrpc")
TEXTS = ("a film", "the quick brown fox", "no", "An animal rests in the sun.", "  spaces  between  ", "café 東京", "yes", "where?")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two runs on one backbone over bytes: three tasks, and two, of which one is in both."""
    folder = tmp_path_factory.mktemp("bank")
    described = tiny_bank.write_backbone(folder / "backbone")
    tiny_bank.write_prompts(folder / "a", described, TASKS)
    tiny_bank.write_prompts(folder / "b", described, ("mrpc", "rte"), seed=1)
    return folder


def combine(bank, text):
    """The one prompt that an expression over both runs makes."""
    folder = bank / "combined" / str(abs(hash(text)))
    convert([str(bank / "a"), str(bank / "b")], "npz", str(folder), combine=text)
    return prompts.read(f"{folder}.npz")


@pytest.mark.parametrize(
    ("text", "name", "weights_of"),
    [
        ("0.5*sst2 + 0.5*rte", "combined", {"sst2": 0.5, "rte": 0.5}),
        ("mine = sst2 - 2 * (rte - 0.25*sst2) * 3", "mine", {"sst2": 2.5, "rte": -6.0}),
        ('"odd name" * 2', "combined", {"odd name": 2.0}),
        ("-a.mrpc + b.mrpc", "combined", {"a.mrpc": -1.0, "b.mrpc": 1.0}),
        ("1e-1*sst2+.9*sst2", "combined", {"sst2": 1.0}),
    ],
)
def test_prompts_are_added_and_scaled(bank, text, name, weights_of):
    found = combine(bank, text)
    a, b = tiny_bank.prompts(3, 4, 16), tiny_bank.prompts(2, 4, 16, 1)
    known = {"sst2": a[0], "odd name": a[1], "a.mrpc": a[2], "b.mrpc": b[0], "rte": b[1]}
    np.testing.assert_allclose(found.compose()[0], sum(w * known[label] for label, w in weights_of.items()), rtol=1e-6, atol=1e-6)
    assert found.task_names == (name,) and found.metadata["runs"][0]["combined"] == pytest.approx(weights_of)
    assert found.metadata["backbone"]["fingerprint"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os')", "is not a number, a name or one of"),
        ("sst2 * rte", "two prompts cannot be multiplied"),
        ("sst2 + 1", "a number cannot be added to a prompt"),
        ("2 * 3", "it is a number, and names no prompt"),
        ("mrpc", "'mrpc' is not among the prompts of the sources: a.mrpc, b.mrpc"),
        ("(sst2", "a bracket is not closed"),
        ("sst2 rte", "'rte' is not expected there"),
        ("sst2 +", "it ends too early"),
        ("1e999 * sst2", "is too large"),
        ("(" * 1000 + "sst2", "nested deeper than 50"),
        ("-" * 5000 + "sst2", "nested deeper than 50"),
        ("sst2+" * 5000, "has 25,000 letters; at most 10,000"),
    ],
)
def test_expressions_that_are_none(bank, text, message):
    with pytest.raises(UserError, match="--combine") as error:
        combine(bank, text)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_sources_that_do_not_go_together(bank, tmp_path):
    other = tiny_bank.write_backbone(tmp_path / "other", tiny(d_ff=24))
    tiny_bank.write_prompts(tmp_path / "c", other, ("cola",))
    a, b, described = str(bank / "a"), str(bank / "b"), json.loads((bank / "a" / "run.json").read_text())["settings"]["backbone"]
    described = {"backbone": described["path"], "fingerprint": tiny_bank.fingerprint(described["path"])}
    spoken = tiny_bank.write_prompts(tmp_path / "spoken", described, ("x",), vocabulary="/elsewhere.model")
    cued = tiny_bank.write_prompts(tmp_path / "cued", described, ("y",), cue=" so:")
    for sources, to, more, message in (
        ([a, str(tmp_path / "c")], "tokens", {}, "the sources are of different backbones (fingerprint"),
        ([a, a], "tokens", {}, "two sources have a prompt called 'a.sst2'"),
        ([a, spoken], "tokens", {}, "different vocabularies (VOCABULARY a: '', spoken: '/elsewhere.model')"),
        ([b, spoken], "npz", {"combine": "rte + x"}, "different vocabularies (VOCABULARY b: '', spoken: '/elsewhere.model')"),
        ([a, cued], "npz", {"combine": "sst2 + y"}, "one cue (CUE sst2: '', y: ' so:')"),
        ([a, a], "npz", {}, "--to npz takes one --from, 2 are given"),
        ([a], "tokens", {"task": "cola"}, "--task 'cola' is not among the prompts of the sources"),
        ([a], "tokens", {"backbone": str(tmp_path / "other")}, "these prompts were trained on backbone"),
        ([str(bank / "backbone")], "hf", {"combine": "a"}, "--combine 'a' makes a prompt; --to hf writes a backbone"),
    ):
        with pytest.raises(UserError) as error:
            convert(sources, to, str(tmp_path / "out"), **more)
        assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_names_that_cannot_be_tokens(tmp_path):
    described = tiny_bank.write_backbone(tmp_path / "backbone", tiny(name="custom", vocab_size=200), piece_file())
    for names, message in ((("a b", "a_b"), "would both have the tokens <a_b_0>"), (("extra_id",), "has the token '<extra_id_0>' already")):
        run = tiny_bank.write_prompts(tmp_path / names[0], described, names)
        with pytest.raises(UserError, match=message):
            convert(run, "tokens", str(tmp_path / "out"))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "t5_32k", *tiny_tokenizers.KINDS])
def test_a_tokenizer_with_prompts_gives_texts_the_ids_they_had(kind, tmp_path):
    """Rows that fill the embedding up have ids of their own, and no prompt's."""
    tokenizers = pytest.importorskip("tokenizers")
    path = {"bytes": "bytes", "sentencepiece": piece_file()}.get(kind)
    path = data_folder("vocab/t5_32k.model") if kind == "t5_32k" else path or str(tiny_tokenizers.write(tmp_path / "in", kind))
    vocabulary = load_vocabulary(path)
    size, added = 32_128 if kind == "t5_32k" else vocabulary.size + 7, [f"<a_{n}>" for n in range(3)]
    prompt_tokenizer.write(str(tmp_path), vocabulary, size, added, False)
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [written.token_to_id(token) for token in added] == [size, size + 1, size + 2]
    assert len(set(written.get_vocab().values())) == written.get_vocab_size()
    start = "".join(vocabulary.token(number) for number in vocabulary.frame.input_start)
    for text in SENTENCES + TEXTS:
        found = written.encode("".join(added) + start + text).ids
        assert found == [size, size + 1, size + 2, *vocabulary.input_tokens(text)], text


def test_numbers_that_the_type_of_the_weights_cannot_hold(tmp_path):
    flat = flatten(weights(CONFIG))
    half = {path: np.asarray(array, np.float16) for path, array in flat.items()}
    formats.write_backbone("own", str(tmp_path / "half"), CONFIG, half, "bytes")
    described = {"backbone": str(tmp_path / "half"), "fingerprint": tiny_bank.fingerprint(str(tmp_path / "half"))}
    run = tiny_bank.write_prompts(tmp_path / "run", described, ("big",), scale=1e5)
    with pytest.raises(UserError, match="prompt of task 'big' has numbers up to .* float16 holds up to 65504"):
        convert(run, "tokens", str(tmp_path / "out"))


def our_tokens(runs, asked) -> list[list[int]]:
    """Our greedy answers; runs whose prompts have different lengths have a model each."""
    predictor = mpt_jax.load(runs)
    found = queries.asked(asked, predictor.sources)
    answers: list = [None] * len(found)
    for model in {id(one.source.model): one.source.model for one in found}.values():
        places = [n for n, one in enumerate(found) if one.source.model is model]
        given = requests.Requests(*([getattr(found[n], name) for n in places] for name in ("tokens", "row", "limit")))
        for n, row in zip(places, requests.decode(model, given, predictor.spec), strict=True):
            answers[n] = until(row.tolist()[: found[n].limit], predictor.vocabulary.ends)
    return answers


def until(ids, ends) -> list[int]:
    """Tokens before the first end."""
    return next((ids[:n] for n, token in enumerate(ids) if token in ends), ids)


def their_tokens(folder, asked, limit: int, seq2seq: bool) -> list[list[int]]:
    """Greedy answers of transformers from the texts of prompts.json, one mixed batch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    # in float32 whatever the files hold: nano's weights are bfloat16, in which transformers would compute
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder, dtype=torch.float32).eval()
    texts = json.loads((folder / "prompts.json").read_text())["tasks"]
    lines = [texts[query.task]["before"] + query.text + texts[query.task]["after"] for query in asked]
    batch = tokenizer(lines, return_tensors="pt", padding=True)
    with torch.no_grad():
        made = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=limit)
    made = made[:, 1 if seq2seq else batch["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    return [until(row, ends if isinstance(ends, list) else [ends]) for row in made]


def ct2_tokens(folder, asked, limit: int) -> list[list[int]]:
    """Greedy answers of CTranslate2."""
    ctranslate2, transformers = pytest.importorskip("ctranslate2"), pytest.importorskip("transformers")
    place = f"{folder}-ct2"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    told = json.loads((folder / "prompts.json").read_text())
    lines = [tokenizer.convert_ids_to_tokens(tokenizer(told["tasks"][query.task]["before"] + query.text)["input_ids"]) for query in asked]
    new = [[token] for token in tokenizer.convert_ids_to_tokens(range(told["first_id"], len(tokenizer)))]
    translator = ctranslate2.Translator(place, device="cpu", intra_threads=1)
    found = translator.translate_batch(lines, beam_size=1, max_decoding_length=limit, suppress_sequences=new)
    return [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in found]


T5 = {
    "t5_v1.1": dataclasses.replace(tiny_families.t5(), vocab_size=200),
    "t5_v1.0": dataclasses.replace(tiny_families.T5S["codet5p"], vocab_size=200, decoder_start_id=0),
    "umt5": dataclasses.replace(tiny_families.T5S["umt5"], vocab_size=200),
}
LLAMA = CausalConfig("custom", 510, 16, 3, 4, 2, 8, 32)
OTHERS = {
    "llama_tied": (LLAMA, "llama"),
    "gemma_untied": (dataclasses.replace(LLAMA, logits_via_embedding=False, scaled_embedding=True, norm_plus_one=True,
                                         activation="gelu", head_dim=8), "gemma"),
    "bytes_tied": (LLAMA, "bytes"),
}  # fmt: skip


def check_engines(tmp_path, config, vocabulary, length: int = 16, ct2: bool = False, cue: str = "") -> None:
    """Two runs as tokens: a batch of mixed tasks has our greedy answers in transformers, and in CTranslate2."""
    described = tiny_bank.write_backbone(tmp_path / "backbone", config, vocabulary)
    runs = [tiny_bank.write_prompts(tmp_path / "a", described, ("sst2", "x#1"), config.d_model, scale=0.5, cue=cue),
            tiny_bank.write_prompts(tmp_path / "b", described, ("mrpc",), config.d_model, 7, 1, scale=0.5, cue=cue)]  # fmt: skip
    asked = [Query(text, ("sst2", "mrpc", "x#1")[n % 3]) for n, text in enumerate(TEXTS + SENTENCES)]
    convert(runs, "tokens", str(tmp_path / "hf"))
    ours = our_tokens(runs, asked)
    assert len({tuple(row) for row in ours}) > 3  # they are not all the same
    assert their_tokens(tmp_path / "hf", asked, length, not isinstance(config, CausalConfig)) == ours
    first = json.loads((tmp_path / "hf" / "prompts.json").read_text())["first_id"]
    assert first == config.vocab_size and max(map(max, filter(None, ours))) < first
    assert "`<sst2_0>" in (tmp_path / "hf" / "README.md").read_text()
    if ct2:
        assert ct2_tokens(tmp_path / "hf", asked, length) == ours


@pytest.mark.parametrize("kind", ["t5_v1.1", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("t5_v1.0", "umt5"))])
def test_greedy_answers_of_mixed_tasks_are_ours_in_transformers_and_ctranslate2(kind, tmp_path):
    check_engines(tmp_path, T5[kind], piece_file(), ct2=kind != "umt5")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma_untied", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("llama_tied", "bytes_tied"))])
def test_greedy_answers_of_decoder_only_models(kind, tmp_path):
    config, tokenizer = OTHERS[kind]
    vocabulary = tiny_tokenizers.write(tmp_path / "tokenizer", tokenizer)
    check_engines(tmp_path, config, str(vocabulary / "tokenizer.json"), cue="\nAnswer:")


def test_without_padding_and_spare_rows_new_ids_are_no_answers_even_unsuppressed(tmp_path):
    """The output row that they copy is the start's: padding stands for the end there, whose copies would end answers."""
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = tiny_tokenizers.write(tmp_path / "tokenizer", "bytes_cut", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})
    vocabulary = load_vocabulary(folder / "tokenizer.json")
    assert vocabulary.pad_id in vocabulary.ends
    config = dataclasses.replace(LLAMA, vocab_size=vocabulary.size, max_positions=4096)
    described = tiny_bank.write_backbone(tmp_path / "backbone", config, str(folder / "tokenizer.json"))
    run = tiny_bank.write_prompts(tmp_path / "a", described, ("sst2",), config.d_model, scale=0.5)
    convert(run, "tokens", str(tmp_path / "hf"))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["max_position_embeddings"] == 4096
    path = tmp_path / "hf" / "generation_config.json"
    settings = json.loads(path.read_text())
    assert settings.pop("suppress_tokens") == list(range(vocabulary.size, vocabulary.size + 4))
    path.write_text(json.dumps(settings))
    output_DV = formats.read_backbone(str(tmp_path / "hf"))[1]["decoder/logits_dense/kernel"].load(np.float32)
    (start,) = vocabulary.start
    for number in range(vocabulary.size, output_DV.shape[1]):
        np.testing.assert_array_equal(output_DV[:, number], output_DV[:, start])
    assert f"a copy of the row of id {start}." in (tmp_path / "hf" / "README.md").read_text()
    asked = [Query(text, "sst2") for text in TEXTS]
    assert their_tokens(tmp_path / "hf", asked, 16, False) == our_tokens([run], asked)


def test_a_vocabulary_whose_special_tokens_all_end_texts_is_refused(tmp_path):
    folder = tiny_tokenizers.write(tmp_path / "tokenizer", "bytes", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["added_tokens"] = [row for row in settings["added_tokens"] if row["content"] == "</s>"]
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    vocabulary = load_vocabulary(folder / "tokenizer.json")
    described = tiny_bank.write_backbone(
        tmp_path / "backbone", dataclasses.replace(LLAMA, vocab_size=vocabulary.size), str(folder / "tokenizer.json")
    )  # fmt: skip
    with pytest.raises(UserError, match="every special token of vocabulary .* ends a text"):
        convert(tiny_bank.write_prompts(tmp_path / "a", described, ("sst2",)), "tokens", str(tmp_path / "hf"))


@pytest.mark.slow
def test_the_encoder_of_t5gemma_alone_has_the_prompts(tmp_path):
    config = tiny_families.T5GEMMAS["t5gemma"]
    # a window that is longer than the rows: transformers' encoder sees one position more on either side
    sides = {side: dataclasses.replace(getattr(config, side), vocab_size=510, window=64) for side in ("encoder", "decoder")}
    vocabulary = tiny_tokenizers.write(tmp_path / "tokenizer", "gemma")
    check_engines(tmp_path, dataclasses.replace(config, **sides), str(vocabulary / "tokenizer.json"))
    written = parse_json((tmp_path / "hf" / "config.json").read_bytes(), "config.json")
    assert (written["encoder"]["vocab_size"], written["decoder"]["vocab_size"]) == (510 + 4 + 4 + 7, 510)


@pytest.mark.slow
def test_nano_as_tokens(tmp_path):
    described = {"backbone": "nano", "fingerprint": tiny_bank.fingerprint("nano")}
    runs = [tiny_bank.write_prompts(tmp_path / name, described, names, 192, 20, seed, 1.0) for name, names, seed in
            (("a", ("sst2", "trec"), 0), ("b", ("mrpc",), 1))]  # fmt: skip
    asked = [Query(text, ("sst2", "mrpc", "trec")[n % 3]) for n, text in enumerate(TEXTS + SENTENCES)]
    convert(runs, "tokens", str(tmp_path / "hf"))
    ours = our_tokens(runs, asked)
    assert their_tokens(tmp_path / "hf", asked, 16, True) == ours == ct2_tokens(tmp_path / "hf", asked, 16)
