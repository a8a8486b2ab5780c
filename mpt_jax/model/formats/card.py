"""The model card that goes with exported prompts: tasks, scores, settings, backbone and its fingerprint."""

import json
from collections.abc import Mapping
from typing import Any

from mpt_jax.methods.bank import BANK
from mpt_jax.model.formats.prompts import CAUSAL, PromptFile

USE = {
    "peft": (
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AUTO_CLASS\n\n"
        'backbone = AUTO_CLASS.from_pretrained("BACKBONE")\n'
        'model = PeftModel.from_pretrained(backbone, "THIS_FOLDER")\n'
        "# a multitask adapter also takes task_ids: the number of the task in `task_names` of "
        "adapter_config.json\n"
        "```\n"
    ),
    "npy": 'A prompt (length, width) float32: `numpy.load("FILE.npy")`; prepend it to the embedded input.\n',
    "npz": (
        "Each task's prompt (length, width) float32 under its name: `numpy.load(\"FILE.npz\")[\"TASK\"]`; prepend it to the embedded "
        f"input. The bank that they come from: `{BANK}shared_GPD` and `{BANK}group_N`FACTORS.\n"
    ),
}


def card(kind: str, prompts: PromptFile) -> str:
    """Markdown with the YAML head that model hubs read. kind: 'peft', 'npy' or 'npz'."""
    metadata = prompts.metadata
    backbone = metadata.get("backbone", {})
    base = backbone.get("name") or metadata.get("base_model_name_or_path")
    head = [
        "---",
        *([f"base_model: {json.dumps(base)}"] if base else []),
        f"tags: [prompt-tuning, mpt_jax, {kind}]",
        "---",
    ]
    rank = 0 if prompts.cols_NPR is None else prompts.cols_NPR.shape[2]
    groups, length, width = prompts.shared_GPD.shape
    facts = {
        "tasks": ", ".join(prompts.task_names),
        "prompt": f"{length} vectors of width {width}, rank {rank}",
        "shared prompts": groups,
        "backbone": base or "not recorded",
        "backbone fingerprint": backbone.get("fingerprint", "not recorded"),
        "stage": metadata.get("stage", "not recorded"),
        "from": metadata.get("source", "not recorded"),
    }
    lines = [*head, "", f"# Prompts for {facts['tasks']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Tasks, in the order of the file", "", *_tasks(prompts), "", "## Use", "", _use(kind, backbone, rank)]
    if metadata.get("settings"):
        lines += ["## Settings", "", "```json", json.dumps(metadata["settings"], indent=2), "```", ""]
    return "\n".join(lines)


def _use(kind: str, backbone: Mapping[str, Any], rank: int) -> str:
    """How to use the file with the backbone."""
    causal, scale = backbone.get("task_type") == CAUSAL, backbone.get("prompt_scale", 1.0)
    product = f"`{BANK}shared_GPD[{BANK}group_N[n]] * ({BANK}cols_NPR[n] @ {BANK}rows_NRD[n])`"
    factors = f"; the prompt of task n is {product}" if rank else ""
    text = USE[kind].replace("AUTO_CLASS", "AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM").replace("FACTORS", factors)
    if kind == "peft" and causal:
        text += (
            "\nAnswer texts of one length together, or one by one: PEFT passes over positions, so tokens that fill a row up on its left "
            "push the prompt away from the text.\n"
        )
    if kind == "peft" and scale != 1:
        text += (
            f"\nThe prompt is multiplied by {scale:.6g}, the square root of its width, as transformers from 5 on multiplies this model's "
            "embedded tokens before the prompt comes in front of them. transformers 4 does so afterwards for Gemma 1 and 2: use 5.\n"
        )
    if kind != "peft" and scale != 1:
        text += "\nIts vectors are like rows of the embedding table: the model multiplies them by the square root of their width.\n"
    return text


def _tasks(prompts: PromptFile) -> list[str]:
    """A table of tasks with what is known of their runs and scores."""
    runs = prompts.metadata.get("runs", [])
    rows = ["| n | task | seed | learning rate | scores |", "|---|---|---|---|---|"]
    for n, task in enumerate(prompts.task_names):
        row: Mapping[str, Any] = runs[n] if n < len(runs) else {}
        scores = ", ".join(f"{name} {value:.2f}" for name, value in row.get("scores", {}).items()) or "not recorded"
        scored = row.get("scored") or {}
        scores += f" ({scored.get('split')}, {scored.get('rows')} rows)" if scored else ""
        rate = f"{row.get('learning_rate', '')}" + (f", from {row['source']}" if row.get("source") else "")
        rows.append(f"| {n} | {task} | {row.get('seed', '')} | {rate} | {scores} |")
    return rows
