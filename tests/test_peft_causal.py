"""Prompts of decoder-only models in PEFT's format, both ways (formats/prompts.py, prompt_writers.py, card.py), and in PEFT itself.

PEFT is asked for one row at a time: it passes over positions, so tokens that fill a row up would push its prompt away from its text.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_causal import END, SLOTS, STEPS, ours, their_model
from tiny_causal import CONFIGS, flat_params, given, own, params, prompts, rows, smaller
from tiny_families import T5GEMMAS
from tiny_model import run_forward

from mpt_jax.convert import convert, read_prompts
from mpt_jax.errors import UserError
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.prompt import read_prompt_array
from mpt_jax.model import formats
from mpt_jax.model.formats import prompt_writers
from mpt_jax.model.formats.prompts import CAUSAL, PromptFile, peft_facts, plain, read

NAMES = ("first", "second")


def backbone_of(name: str) -> dict:
    """What run.json says of a backbone, as far as PEFT is concerned."""
    return {"name": f"some/{name}", **peft_facts(CONFIGS[name])}


def bank_of(name: str) -> PromptFile:
    """Two tasks with one shared prompt and factors that give the prompts of tiny_causal.py."""
    wanted_UPD = prompts()
    shared_PD = np.random.default_rng(3).uniform(0.5, 1.5, wanted_UPD.shape[1:]).astype(np.float32)
    # rank P: a column for each position, so that the rows can be anything
    cols = np.broadcast_to(np.eye(len(shared_PD), dtype=np.float32), (2, len(shared_PD), len(shared_PD)))
    group_N = np.zeros(2, np.int32)
    return PromptFile(shared_PD[None], cols.copy(), wanted_UPD / shared_PD, group_N, NAMES, {"backbone": backbone_of(name)})


def test_what_peft_does_with_prompts_of_a_backbone():
    assert peft_facts(CONFIGS["llama"]) == {"task_type": "CAUSAL_LM", "prompt_scale": 1.0}
    assert peft_facts(CONFIGS["gemma2"]) == {"task_type": "CAUSAL_LM", "prompt_scale": 32**0.5}
    assert peft_facts(T5GEMMAS["t5gemma"]) == {"task_type": "SEQ_2_SEQ_LM", "prompt_scale": 1.0}
    assert peft_facts(T5GEMMAS["t5gemma2"]) == {"task_type": "SEQ_2_SEQ_LM", "prompt_scale": 4.0}


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("kind", ["peft", "peft_single"])
def test_adapters_come_back_as_they_were(name, kind, tmp_path):
    held = bank_of(name) if kind == "peft" else plain(prompts()[:1], NAMES[:1], {"backbone": backbone_of(name)})
    prompt_writers.write(kind, str(tmp_path / "x"), held)
    settings = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert settings["task_type"] == CAUSAL and settings["num_transformer_submodules"] == 1
    again = read(tmp_path / "x")
    np.testing.assert_allclose(again.compose(), prompts()[: len(again.task_names)], rtol=0, atol=1e-6)
    assert again.task_names == held.task_names and again.metadata["backbone"] == backbone_of(name)
    card = (tmp_path / "x" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card and ("square root of its width" in card) == (name == "gemma")


def without_our_metadata(folder) -> None:
    """The adapter as PEFT itself would have written it."""

    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, {"format": "pt"})


def test_of_a_foreign_adapter_only_the_backbone_can_tell_t5gemmas_factor(tmp_path):
    known = {"name": "google/t5gemma-2-270m-270m", **peft_facts(T5GEMMAS["t5gemma2"])}
    prompt_writers.write("peft_single", str(tmp_path / "x"), plain(prompts()[:1], NAMES[:1], {"backbone": known}))
    without_our_metadata(tmp_path / "x")
    with pytest.raises(UserError, match="'google/t5gemma-2-270m-270m' may be multiplied by the square root of their width.*--backbone"):
        read(tmp_path / "x")
    found = read(tmp_path / "x", scale=known["prompt_scale"])
    np.testing.assert_allclose(found.compose(), prompts()[:1], rtol=0, atol=1e-6)
    prompt_writers.write("peft_single", str(tmp_path / "again"), found)  # with the factor that it had
    np.testing.assert_allclose(read(tmp_path / "again").compose(), prompts()[:1], rtol=0, atol=1e-6)
    numbers = [load_file(tmp_path / name / "adapter_model.safetensors")["prompt_embeddings"] for name in ("x", "again")]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-5)


def test_of_a_foreign_adapter_only_the_backbone_can_tell_gemmas_factor(tmp_path):
    held = plain(prompts()[:1], NAMES[:1], {"backbone": backbone_of("gemma")})
    prompt_writers.write("peft_single", str(tmp_path / "x"), held)
    without_our_metadata(tmp_path / "x")
    with pytest.raises(UserError, match="'some/gemma' may be multiplied by the square root of their width.*--backbone FOLDER"):
        read(tmp_path / "x")
    formats.write_backbone("own", str(tmp_path / "gemma"), CONFIGS["gemma"], flat_params(CONFIGS["gemma"]))
    found = read_prompts(str(tmp_path / "x"), str(tmp_path / "gemma"))
    np.testing.assert_allclose(found.compose(), prompts()[:1], rtol=0, atol=1e-6)
    started = read_prompt_array(str(tmp_path / "x"), 6, 32, peft_facts(CONFIGS["gemma"])["prompt_scale"])
    np.testing.assert_allclose(started, prompts()[0], rtol=0, atol=1e-6)


def test_a_prompt_of_a_plain_file_gets_the_backbones_task_type(tmp_path):
    np.save(tmp_path / "x.npy", prompts()[0])
    formats.write_backbone("own", str(tmp_path / "gemma"), CONFIGS["gemma"], flat_params(CONFIGS["gemma"]))
    convert(str(tmp_path / "x.npy"), "peft", str(tmp_path / "out"), backbone=str(tmp_path / "gemma"))
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["task_type"] == CAUSAL and settings["base_model_name_or_path"] == str(tmp_path / "gemma")
    np.testing.assert_allclose(read(tmp_path / "out").compose(), prompts()[:1], rtol=0, atol=1e-6)
    wide = smaller("llama", d_model=40)
    formats.write_backbone("own", str(tmp_path / "wide"), wide, flat_params(wide))
    with pytest.raises(UserError, match="prompts of width 32, the backbone has width 40"):
        convert(str(tmp_path / "x.npy"), "peft", str(tmp_path / "other"), backbone=str(tmp_path / "wide"))


def peft_answers(model, prompt_of_row) -> dict[str, np.ndarray]:
    """Logits of the target positions and greedy tokens of PEFT's model; prompt_of_row: the task of each row, None where there is one."""
    import torch

    some = rows()
    logits, tokens = [], np.zeros((3, STEPS), np.int32)
    for row, (inputs, length, targets, count) in enumerate(zip(*some[:4], strict=True)):
        task = {"task_ids": torch.tensor([prompt_of_row[row]])} if prompt_of_row else {}
        whole = torch.tensor(np.concatenate([inputs[:length], targets[: count - 1]])[None].astype(np.int64))
        with torch.no_grad():
            found = model(input_ids=whole, attention_mask=torch.ones_like(whole), **task).logits[0]
            seen = whole[:, :length]
            made = model.generate(
                input_ids=seen, attention_mask=torch.ones_like(seen), max_new_tokens=STEPS, do_sample=False, eos_token_id=END,
                pad_token_id=0, **task,
            )[0, length:]  # fmt: skip
        logits.append(found[-count:].numpy())
        tokens[row, : len(made)] = made
    return {"logits": np.concatenate(logits), "tokens": tokens}


def check(found: dict, expected: dict) -> None:
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4 * max(np.abs(expected["logits"]).max(), 1))
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma"])
def test_our_adapter_in_peft_gives_our_logits_and_tokens(name, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    prompt_writers.write("peft", str(tmp_path / "adapter"), bank_of(name))
    model = peft.PeftModel.from_pretrained(their_model(CONFIGS[name], tmp_path / "model"), tmp_path / "adapter").eval()
    check(peft_answers(model, SLOTS), ours(CONFIGS[name], True))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_an_adapter_that_peft_trained_gives_its_logits_and_tokens(kind, tmp_path):
    peft, torch = pytest.importorskip("peft", reason="needs the extra `parity`"), pytest.importorskip("torch")


    config, some, several = CONFIGS["qwen3"], rows(slots=SLOTS), kind.startswith("MULTI")
    settings = (peft.MultitaskPromptTuningConfig if several else peft.PromptTuningConfig)(
        task_type=CAUSAL, num_virtual_tokens=6, **({"num_tasks": 2, "num_ranks": 2} if several else {})
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(their_model(config, tmp_path / "model"), settings).eval()
    for parameter in model.prompt_encoder.parameters():
        parameter.data = torch.randn_like(parameter) * 0.5
    model.save_pretrained(tmp_path / "theirs")
    held = read(tmp_path / "theirs")
    assert held.metadata["backbone"] == {"task_type": CAUSAL, "prompt_scale": 1.0}
    prompt_UPD = held.compose() if several else np.repeat(held.compose(), 2, axis=0)
    logits_BTV = np.asarray(run_forward(given(config), params(config), some, own(prompt_UPD)).logits_BTV)
    tokens_BT = np.asarray(greedy_decode(given(config), params(config), own(prompt_UPD), some, STEPS, (END,)))
    real = np.concatenate([logits_BTV[row, :length] for row, length in enumerate(some.target_length_B)])
    check({"logits": real, "tokens": tokens_BT}, peft_answers(model, SLOTS if several else None))
    assert np.allclose(prompt_UPD[0], prompt_UPD[1]) != several
