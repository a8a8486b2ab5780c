"""LoRA, (IA)3 and prefix tuning as PEFT's adapters, out and in, and folded into weights (adapters.py); PEFT itself computes."""

import json

import ml_dtypes
import numpy as np
import pytest
from test_causal import their_model
from test_peft_causal import peft_answers
from tiny_causal import CONFIGS, flat_params
from tiny_causal import rows as causal_rows
from tiny_families import T5S, real_only, rows, weights
from tiny_methods import moved
from tiny_model import run_forward
from tiny_run import row, write_run

from mpt_jax import adapters
from mpt_jax.checkpoint import load_trainable
from mpt_jax.config import Computation, PromptSettings, Settings, TrainSettings
from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.methods.bitfit import BitfitSettings
from mpt_jax.methods.ia3 import Ia3Settings
from mpt_jax.methods.lora import LoraSettings
from mpt_jax.methods.method import Start
from mpt_jax.methods.prefix import PrefixSettings
from mpt_jax.methods.table import method_named
from mpt_jax.model import formats
from mpt_jax.model.backbone import fingerprint_of
from mpt_jax.model.families.family import Network
from mpt_jax.model.formats import safetensors
from mpt_jax.model.formats.arrays import flatten, in_memory, unflatten

SETTINGS = {"lora": LoraSettings(rank=3, alpha=5.0, matrices=("query", "out", "wo")), "ia3": Ia3Settings(),
            "prefix": PrefixSettings(stacks=("decoder",), init_scale=0.5), "bitfit": BitfitSettings()}  # fmt: skip
BACKBONES = {"t5": T5S["ul2"], "llama": CONFIGS["llama"]}
SLOTS = np.zeros(3, np.int32)


def flat_weights(name: str) -> dict:
    return flatten(weights(BACKBONES[name])) if name == "t5" else flat_params(BACKBONES[name])


def own_of(method: str, backbone: str) -> dict:
    """Random parameters of a run."""
    settings = Settings(TrainSettings("teacher", method=method), prompt=PromptSettings(length=4), method=SETTINGS[method])
    start = Start(settings, Network(BACKBONES[backbone], Computation()), {}, np.zeros(1, np.int32), [1], ["a"])
    return moved(method_named(method).init(start), method_named(method).parts)


def run_of(method: str, backbone: str, folder) -> tuple[str, dict]:
    """A run folder of it and its backbone's folder ``backbone`` next to it; its parameters."""
    own = own_of(method, backbone)
    formats.write_backbone("own", str(folder / "backbone"), BACKBONES[backbone], flat_weights(backbone))
    _, arrays, _ = formats.read_backbone(str(folder / "backbone"))
    write_run(folder / "run", [row("a")], own, backbone=str(folder / "backbone"), fingerprint=fingerprint_of(arrays))
    written = json.loads((folder / "run" / "run.json").read_text())
    (folder / "run" / "run.json").write_text(json.dumps(written | {"method": method}))
    return str(folder / "run"), own


def ours(backbone: str, params: dict, method: str = "", own: dict | None = None) -> np.ndarray:
    """Logits at real target positions."""
    config = BACKBONES[backbone]
    network = Network(config, adaptation=method_named(method).adaptation if method else None)
    batch = rows(config) if backbone == "t5" else causal_rows()
    logits_BTV = np.asarray(run_forward(network, unflatten(params.items()), batch._replace(slot_B=SLOTS), own).logits_BTV)
    if backbone == "t5":
        return real_only(logits_BTV)
    return np.concatenate([logits_BTV[n, :length] for n, length in enumerate(batch.target_length_B)])


def bare_model(backbone: str, folder):
    """transformers' model of the backbone."""
    if backbone == "llama":
        return their_model(BACKBONES[backbone], folder / "model")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    formats.write_backbone("hf", str(folder / "model"), BACKBONES[backbone], flat_weights(backbone))
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "model")


def theirs(backbone: str, model) -> np.ndarray:
    """The same logits of PEFT's model."""
    import torch

    if backbone == "llama":
        return peft_answers(model, None)["logits"]
    config, batch = BACKBONES[backbone], rows(BACKBONES[backbone])
    targets_BT = torch.tensor(batch.targets_BT, dtype=torch.long)
    shifted_BT = torch.cat([torch.full((3, 1), config.decoder_start_id), targets_BT[:, :-1]], dim=1)
    mask_BL = (torch.arange(batch.inputs_BL.shape[1])[None] < torch.tensor(batch.input_length_B)[:, None]).long()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(batch.inputs_BL, dtype=torch.long), attention_mask=mask_BL, decoder_input_ids=shifted_BT)
    return real_only(out.logits.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("method", ["lora", pytest.param("ia3", marks=pytest.mark.long), "prefix"])
def test_peft_computes_our_logits_and_what_it_writes_comes_back(method, backbone, tmp_path):
    """1e-4 of the largest logit; arrays that come back, 1e-6."""
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    run, own = run_of(method, backbone, tmp_path)
    expected = ours(backbone, flat_weights(backbone), method, own)
    assert np.abs(expected - ours(backbone, flat_weights(backbone))).max() > 1e-2
    convert(run, "peft", str(tmp_path / "adapter"))
    model = peft.PeftModel.from_pretrained(bare_model(backbone, tmp_path), tmp_path / "adapter").eval()
    np.testing.assert_allclose(theirs(backbone, model), expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1.0))
    model.save_pretrained(tmp_path / "written")
    convert(str(tmp_path / "written"), "run", str(tmp_path / "back"), task="b", backbone=str(tmp_path / "backbone"))
    arrays, described = load_trainable(tmp_path / "back")
    assert described["method"] == method and described["tasks"] == ["b"] and described["converted"]
    assert arrays.keys() == own.keys()
    for path, array in own.items():
        np.testing.assert_allclose(arrays[path], array, rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("method, backbone", [("lora", "t5"), pytest.param("ia3", "llama", marks=pytest.mark.slow)])
def test_a_backbone_with_a_run_folded_in_gives_its_logits(method, backbone, tmp_path):
    run, own = run_of(method, backbone, tmp_path)
    convert(run, "own", str(tmp_path / "merged"))
    config, arrays, _ = formats.read_backbone(str(tmp_path / "merged"))
    assert config == BACKBONES[backbone]
    found = ours(backbone, {path: lazy.load(np.float32) for path, lazy in arrays.items()})
    expected = ours(backbone, flat_weights(backbone), method, own)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1.0))


def test_what_is_folded_in_keeps_the_type_that_the_file_has(tmp_path):
    run, own = run_of("lora", "t5", tmp_path)
    half = {path: in_memory(np.asarray(array).astype(ml_dtypes.bfloat16)) for path, array in flat_weights("t5").items()}
    formats.write_backbone("own", str(tmp_path / "half"), BACKBONES["t5"], half)
    held = adapters.of_run(run, None)
    held.run["backbone"]["fingerprint"] = fingerprint_of(half)
    _, arrays, _ = adapters.folded(held, str(tmp_path / "half"))
    assert {lazy.dtype.name for lazy in arrays.values()} == {"bfloat16"}
    whole = ours("t5", flat_weights("t5"), "lora", own)
    found = ours("t5", {path: lazy.load(np.float32) for path, lazy in arrays.items()})
    np.testing.assert_allclose(found, whole, rtol=0, atol=5e-2 * max(np.abs(whole).max(), 1.0))


def test_an_adapter_that_is_larger_than_its_backbone_is_refused_before_it_is_read(tmp_path):
    formats.write_backbone("own", str(tmp_path / "backbone"), BACKBONES["llama"], flat_weights("llama"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(GOOD))
    number = BACKBONES["llama"].num_parameters() + 1
    held = {"x": in_memory(np.ones(number, np.float32))}
    safetensors.write(str(tmp_path / "adapter" / "adapter_model.safetensors"), held, {"format": "pt"})
    with pytest.raises(UserError, match="holds .* numbers, and backbone .* has .*: it is not an adapter of it"):
        convert(str(tmp_path / "adapter"), "run", str(tmp_path / "x"), backbone=str(tmp_path / "backbone"))


GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    "settings, factors, message",
    [
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights = 'pissa'; only True is read"),
        ({"alora_invocation_tokens": [1, 2]}, {}, r"alora_invocation_tokens = \[1, 2\] is not known here"),
        ({}, {"A": (2, 48)}, r"has factors of ranks 2 \(A\) and 0 \(B\); r = 2"),
        ({}, {"A": (2, 48), "B": (48, 3)}, r"has factors of ranks 2 \(A\) and 3 \(B\); r = 2"),
        ({"r": 4}, {"A": (2, 48), "B": (48, 2)}, r"has factors of ranks 2 \(A\) and 2 \(B\); r = 4"),
    ],
)
def test_an_adapter_whose_numbers_mean_something_else_is_refused(settings, factors, message, tmp_path):
    formats.write_backbone("own", str(tmp_path / "backbone"), BACKBONES["llama"], flat_weights("llama"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(GOOD | settings))
    held = {QUERY.format(name): in_memory(np.ones(shape, np.float32), name) for name, shape in factors.items()}
    safetensors.write(str(adapter / "adapter_model.safetensors"), held, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        convert(str(adapter), "run", str(tmp_path / "x"), backbone=str(tmp_path / "backbone"))


def test_what_is_added_to_positions_or_modules_cannot_be_folded(tmp_path):
    """DePT adds a row to each position, whatever token stands there; an embedding table has a row for each token."""
    own = {"dept/down": np.ones((1, 8, 2), np.float32), "dept/up": np.ones((1, 2, 16), np.float32), "bank/shared": np.ones((1, 3, 16))}
    run = write_run(tmp_path / "run", [row("a")], own)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    for method in ("dept", "bitfit", "adapter"):
        (tmp_path / "run" / "run.json").write_text(json.dumps(written | {"method": method}))
        with pytest.raises(UserError, match=f"a backbone has no place for what METHOD = '{method}' trains; lora and ia3 can be folded"):
            convert(run, "own", str(tmp_path / "merged"))


def test_what_weights_and_peft_have_no_place_for_is_refused(tmp_path):
    run, _ = run_of("prefix", "llama", tmp_path)
    with pytest.raises(UserError, match="a backbone has no place for what METHOD = 'prefix' trains; lora and ia3 can be folded"):
        convert(run, "own", str(tmp_path / "merged"))
    with pytest.raises(UserError, match="--task 'c' is not one of its runs; give one of a"):
        convert(run, "peft", str(tmp_path / "adapter"), task="c")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True, "r": 2}))
    with pytest.raises(UserError, match="is a PEFT adapter that changes a network: give --to run --backbone FOLDER"):
        convert(str(adapter), "npz", str(tmp_path / "x"))
    with pytest.raises(UserError, match="use_dora = True; only False is read"):
        convert(str(adapter), "run", str(tmp_path / "x"), backbone=str(tmp_path / "backbone"))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    with pytest.raises(UserError, match="has an adapter_config.json but no adapter_model.safetensors"):
        convert(str(adapter), "run", str(tmp_path / "x"), backbone=str(tmp_path / "backbone"))
    with pytest.raises(UserError, match="--to run writes a PEFT adapter of LoRA"):
        convert(str(tmp_path / "backbone"), "run", str(tmp_path / "x"))
