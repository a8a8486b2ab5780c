"""Parity with transformers and peft: same logits, same generated tokens, in both directions."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixture_folders import TINY, TINY_V1_0, data_folder, random_params
from tiny_model import given, own, rows_of, run_forward
from tiny_world import arguments, write_world

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.main import main
from mpt_jax.methods.bank import compose
from mpt_jax.model import formats
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config
from mpt_jax.model.formats import prompt_writers, prompts
from mpt_jax.model.formats.prompts import PromptFile

torch = pytest.importorskip("torch", reason="parity needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity needs the extra `parity`")
LENGTH, TASKS = 5, ("first", "second", "third")
os.environ["HF_HUB_OFFLINE"] = "1"


def tokens(config: T5Config, rows: int, length: int, seed: int) -> np.ndarray:
    """Random ids with an end of sequence and padding."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, config.vocab_size, (rows, length)).astype(np.int32)
    for row in range(rows):
        ids[row, length - 1 - row % 3 :] = 0
        ids[row, length - 1 - row % 3 - 1] = 1
    return ids


def their_logits(model, inputs_BL, targets_BT, **more) -> np.ndarray:
    """Logits of transformers' model; labels, since PEFT's forward drops decoder_input_ids."""
    inputs, labels = (torch.tensor(ids, dtype=torch.long) for ids in (inputs_BL, targets_BT))
    with torch.no_grad():
        return model(input_ids=inputs, attention_mask=(inputs > 0).long(), labels=labels, **more).logits.numpy()


def load(folder):
    """transformers' model of a folder."""
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def our_model(folder) -> tuple[T5Config, dict]:
    config, arrays, _ = formats.read_backbone(folder)
    return config, formats.restore(arrays, np.float32, lambda _, array: jnp.asarray(array))


def check_logits(folder, tolerance: float) -> None:
    config, params = our_model(folder)
    inputs_BL, targets_BT = tokens(config, 4, 11, 0), tokens(config, 4, 6, 1)
    theirs = their_logits(load(folder), inputs_BL, targets_BT)
    ours = np.asarray(run_forward(Network(config), params, rows_of(inputs_BL, targets_BT)).logits_BTV)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_fixture_has_the_logits_of_transformers():
    check_logits(data_folder("checkpoints/hf_t5_tiny"), 1e-4)


@pytest.mark.parametrize("config", [TINY, TINY_V1_0], ids=["v1.1", "v1.0"])
def test_written_folders_have_our_logits_in_transformers(config, tmp_path):
    formats.write_backbone("hf", tmp_path / "x", config, random_params(config))
    check_logits(tmp_path / "x", 1e-4)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1", "mt5"])
@pytest.mark.parametrize("safe", [True, False])
def test_folders_that_transformers_writes(kind, safe, tmp_path):
    size = dict(vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0)
    torch.manual_seed(0)
    if kind == "mt5":
        model = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**size))
    else:
        gated = {} if kind == "v1.0" else {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**size, **gated))
    if kind != "v1.0":  # the published files have an output matrix of their own
        model.lm_head.weight = torch.nn.Parameter(torch.randn(48, 16))
    model.save_pretrained(tmp_path / "x")
    if not safe:
        os.remove(tmp_path / "x" / "model.safetensors")
        torch.save(model.state_dict(), tmp_path / "x" / "pytorch_model.bin")
    check_logits(tmp_path / "x", 1e-4)


def bank_of(config: T5Config, rank: int = 2) -> PromptFile:
    """A bank of three tasks with one shared prompt, its factors far from trivial."""
    rng = np.random.default_rng(3)

    def draw(*shape):
        return rng.normal(0, 0.7, shape).astype(np.float32)

    count = len(TASKS)
    factors = draw(count, LENGTH, rank), draw(count, rank, config.d_model)
    metadata = {"stage": "source", "backbone": {"name": "tiny", "fingerprint": "0123456789abcdef"}}
    return PromptFile(draw(1, LENGTH, config.d_model), *factors, np.zeros(count, np.int32), TASKS, metadata)


def our_outputs(config, params, held: PromptFile, task: int, inputs_BL, targets_BT, steps: int = 7):
    """(logits, greedily decoded tokens) of one task's prompt."""
    prompt_BPD = compose(held.bank, jnp.full(len(inputs_BL), task))
    logits_BTV = run_forward(given(config), params, rows_of(inputs_BL, targets_BT), own(prompt_BPD)).logits_BTV
    tokens_BT = greedy_decode(given(config), params, own(prompt_BPD), rows_of(inputs_BL), steps, ends=(1,))
    return np.asarray(logits_BTV), np.asarray(tokens_BT)


def their_tokens(model, inputs_BL, steps: int = 7, **more) -> np.ndarray:
    """Tokens of `generate`, without the start token and padded to `steps`."""
    inputs = torch.tensor(inputs_BL, dtype=torch.long)
    mask = (inputs > 0).long()
    made = model.generate(
        input_ids=inputs, attention_mask=mask, max_new_tokens=steps, do_sample=False, num_beams=1, **more
    )
    made = made[:, 1:].numpy()
    return np.pad(made, ((0, 0), (0, steps - made.shape[1])))


@pytest.fixture
def scene(request, tmp_path):
    """(folder of a Hugging Face backbone, our config, our params, inputs, targets)."""
    config = getattr(request, "param", TINY)
    formats.write_backbone("hf", tmp_path / "hf", config, random_params(config))
    config, params = our_model(tmp_path / "hf")
    return tmp_path / "hf", config, params, tokens(config, 3, 9, 0), tokens(config, 3, 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scene", [TINY, TINY_V1_0], ids=["v1.1", "v1.0"], indirect=True)
def test_a_bank_in_peft(scene, tmp_path):
    peft = pytest.importorskip("peft")
    folder, config, params, inputs_BL, targets_BT = scene
    held = bank_of(config)
    prompt_writers.write("peft", str(tmp_path / "multi"), held)
    prompt_writers.write("peft_single", str(tmp_path / "single"), held)
    multi = peft.PeftModel.from_pretrained(load(folder), tmp_path / "multi").eval()
    for n, task in enumerate(TASKS):
        ours, decoded = our_outputs(config, params, held, n, inputs_BL, targets_BT)
        ids = torch.full((len(inputs_BL),), n)
        scale = np.abs(ours).max()
        np.testing.assert_allclose(
            their_logits(multi, inputs_BL, targets_BT, task_ids=ids), ours, rtol=0, atol=1e-4 * scale
        )
        np.testing.assert_array_equal(their_tokens(multi, inputs_BL, task_ids=ids), decoded)
        single = peft.PeftModel.from_pretrained(load(folder), tmp_path / "single" / task).eval()
        np.testing.assert_allclose(their_logits(single, inputs_BL, targets_BT), ours, rtol=0, atol=1e-4 * scale)
        np.testing.assert_array_equal(their_tokens(single, inputs_BL), decoded)


@pytest.mark.parametrize("safe", [True, False])
def test_a_multitask_adapter_of_peft(scene, safe, tmp_path):
    peft = pytest.importorskip("peft")
    folder, config, params, inputs_BL, targets_BT = scene
    settings = peft.MultitaskPromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, num_tasks=2, num_ranks=2, num_transformer_submodules=1
    )
    torch.manual_seed(1)
    model = peft.get_peft_model(load(folder), settings).eval()
    for parameter in model.prompt_encoder.parameters():
        parameter.data = torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs", safe_serialization=safe)
    held = prompts.read(tmp_path / "theirs", width=config.d_model)
    assert held.task_names == ("task_0", "task_1")
    for n in range(2):
        ours, decoded = our_outputs(config, params, held, n, inputs_BL, targets_BT)
        ids = torch.full((len(inputs_BL),), n)
        theirs = their_logits(model, inputs_BL, targets_BT, task_ids=ids)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
        np.testing.assert_array_equal(their_tokens(model, inputs_BL, task_ids=ids), decoded)


def test_an_adapter_that_prompts_the_decoder(scene, tmp_path):
    peft = pytest.importorskip("peft")
    folder, config, params, inputs_BL, targets_BT = scene
    settings = peft.MultitaskPromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH, num_tasks=1)
    model = peft.get_peft_model(load(folder), settings).eval()
    for parameter in model.prompt_encoder.parameters():
        parameter.data = torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="num_transformer_submodules = 2"):
        prompts.read(tmp_path / "theirs")
    held = prompts.read(tmp_path / "theirs", drop_decoder_half=True)
    _, decoded = our_outputs(config, params, held, 0, inputs_BL, targets_BT)
    np.testing.assert_array_equal(their_tokens(model, inputs_BL, task_ids=torch.zeros(3, dtype=torch.long)), decoded)


def test_plain_prompt_tuning_of_peft(scene, tmp_path):
    """PEFT's default keeps a decoder half that neither its forward nor its generate uses."""
    peft = pytest.importorskip("peft")
    folder, config, params, inputs_BL, targets_BT = scene
    model = peft.get_peft_model(
        load(folder), peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH)
    ).eval()
    model.save_pretrained(tmp_path / "theirs")
    ours, decoded = our_outputs(config, params, prompts.read(tmp_path / "theirs"), 0, inputs_BL, targets_BT)
    theirs = their_logits(model, inputs_BL, targets_BT)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
    np.testing.assert_array_equal(their_tokens(model, inputs_BL), decoded)


@pytest.mark.long
@pytest.mark.parametrize("size", ["t5_base", "t5_1_1_base"])
def test_base_size_has_the_logits_of_transformers(size, tmp_path):
    config = T5_SIZES[size]
    rng = np.random.default_rng(0)
    params = {
        entry.ours: np.ones(entry.shape, np.float32)
        if len(entry.shape) == 1
        else (rng.standard_normal(entry.shape, np.float32) * _scale(entry.ours, config))
        for entry in formats.names.entries(config)
    }
    formats.write_backbone("hf", tmp_path / "x", config, params)
    del params
    jax.clear_caches()
    check_logits(tmp_path / "x", 1e-3)


def _scale(path: str, config: T5Config) -> float:
    """Spread of T5's own initialisation, so that activations have the sizes they have in real models."""
    if "query" in path:
        return (config.d_model * config.head_dim) ** -0.5
    fan_in = {"wo": config.d_ff, "out": config.num_heads * config.head_dim}
    return next((size**-0.5 for word, size in fan_in.items() if f"/{word}/" in path), config.d_model**-0.5)


def test_tokenizers_of_written_folders(tmp_path):
    """transformers' tokenizer of a folder written here has our ids, and so has the tokenizer.json that it saves."""
    texts = ("Hello world, this is a <extra_id_0> test.", "  two  spaces\tand tabs ", "ﬁ ½ naïve 東京 🙂", "premise: A <extra_id_99> x")
    formats.write_backbone("hf", tmp_path / "pieces", TINY, random_params(TINY), data_folder("vocab/t5_32k.model"))
    formats.write_backbone("hf", tmp_path / "bytes", TINY, random_params(TINY), "bytes")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "pieces").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").exists()
    for name in ("pieces", "bytes", "saved"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        ours = load_vocabulary("bytes" if name == "bytes" else tmp_path / name)
        assert len(theirs) == ours.size
        for text in texts if name != "bytes" else ("héllo 🙂",):
            assert theirs(text).input_ids == [*ours.encode(text), 1]


@pytest.mark.slow
def test_a_bank_trained_here_in_peft(table, tmp_path):
    """Trained by the command, exported by the command, answered by PEFT as by us."""
    peft = pytest.importorskip("peft")
    world = write_world(tmp_path)
    run, names = str(tmp_path / "source"), ("vowel", "long")
    train = arguments("train", "source.gin", world, TASKS=list(names), MODEL_DIR=run, DistillationSettings__weight=0.0)
    assert main(train) == 0
    for source, to in ((run, "peft"), (world["BACKBONE"], "hf")):
        assert main(["convert", "--from", source, "--to", to, "--output", str(tmp_path / to)]) == 0
    config, params = our_model(tmp_path / "hf")
    inputs_BL, targets_BT = tokens(config, 3, 9, 0), tokens(config, 3, 5, 1)
    held = prompts.read(tmp_path / "peft", width=config.d_model)
    assert held.task_names == names
    model = peft.PeftModel.from_pretrained(load(tmp_path / "hf"), tmp_path / "peft").eval()
    found = []
    for n in range(len(names)):
        ours, decoded = our_outputs(config, params, held, n, inputs_BL, targets_BT)
        ids = torch.full((len(inputs_BL),), n)
        theirs = their_logits(model, inputs_BL, targets_BT, task_ids=ids)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())
        np.testing.assert_array_equal(their_tokens(model, inputs_BL, task_ids=ids), decoded)
        found.append(ours)
    assert not np.array_equal(*found)  # each task has a prompt of its own
