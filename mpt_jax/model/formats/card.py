"""The model card that goes with exported prompts: tasks, scores, settings, backbone and its fingerprint."""

import json
from collections.abc import Mapping
from typing import Any

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
        "A prompt bank: the prompt of task n is `shared_GPD[group_N[n]] * (cols_NPR[n] @ rows_NRD[n])`, "
        "which is "
        "`prompt_NPD[n]` (`prompt_PD` for one task).\n"
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
    lines += ["", "## Tasks, in the order of the file", "", *_tasks(prompts), "", "## Use", "", _use(kind, backbone)]
    if metadata.get("settings"):
        lines += ["## Settings", "", "```json", json.dumps(metadata["settings"], indent=2), "```", ""]
    return "\n".join(lines)


def _use(kind: str, backbone: Mapping[str, Any]) -> str:
    """How to use the file with the backbone."""
    causal, scale = backbone.get("task_type") == CAUSAL, backbone.get("prompt_scale", 1.0)
    text = USE[kind].replace("AUTO_CLASS", "AutoModelForCausalLM" if causal else "AutoModelForSeq2SeqLM")
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
        rows.append(f"| {n} | {task} | {row.get('seed', '')} | {row.get('learning_rate', '')} | {scores} |")
    return rows
