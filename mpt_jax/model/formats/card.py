"""The model card that goes with exported prompts: tasks, scores, settings, backbone and its fingerprint."""

import json
from collections.abc import Mapping
from typing import Any

from mpt_jax.model.formats.prompts import PromptFile

USE = {
    "peft": (
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSeq2SeqLM\n\n"
        'backbone = AutoModelForSeq2SeqLM.from_pretrained("BACKBONE")\n'
        'model = PeftModel.from_pretrained(backbone, "THIS_FOLDER")\n'
        "# a multitask adapter also takes task_ids: the place of the task in `task_names` of "
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
    lines += ["", "## Tasks, in the order of the file", "", *_tasks(prompts), "", "## Use", "", USE[kind]]
    if metadata.get("settings"):
        lines += ["## Settings", "", "```json", json.dumps(metadata["settings"], indent=2), "```", ""]
    return "\n".join(lines)


def _tasks(prompts: PromptFile) -> list[str]:
    """A table of tasks with what is known of their runs and scores."""
    runs = prompts.metadata.get("runs", [])
    rows = ["| n | task | seed | learning rate | scores |", "|---|---|---|---|---|"]
    for n, task in enumerate(prompts.task_names):
        run: Mapping[str, Any] = runs[n] if n < len(runs) else {}
        scores = ", ".join(f"{name} {value:.2f}" for name, value in run.get("scores", {}).items()) or "not recorded"
        rows.append(f"| {n} | {task} | {run.get('seed', '')} | {run.get('learning_rate', '')} | {scores} |")
    return rows
