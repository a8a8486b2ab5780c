"""Conversion of backbones and prompts between T5X, Hugging Face, PEFT, Google prompt-tuning and this package.

`convert` is what the command `mpt-jax convert` runs: SOURCE is a run folder, a checkpoint folder or file in
any format, a gs:// path or the name of a shipped backbone; the format asked for decides whether backbone or
prompts are taken.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpt_jax.convert_prompts import combined, write_tokens
from mpt_jax.distributed import say
from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK
from mpt_jax.methods.method import BACKBONE
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, check_weights, fingerprint_of
from mpt_jax.model.formats import prompt_writers, prompts, t5x
from mpt_jax.model.formats.files import Folder, is_remote
from mpt_jax.model.formats.folder_writer import write_folder
from mpt_jax.paths import writable_run
from mpt_jax.regular_files import shown
from mpt_jax.run_folder import is_number, read_run_json, write_json

BACKBONE_FORMATS = ("t5x", "t5x_scanned", "orbax", "hf", "own")
BANK_FORMAT, TOKENS, RUN_FORMAT = "t5x_bank", "tokens", "run"
FORMATS = (*BACKBONE_FORMATS, *prompt_writers.FORMATS, BANK_FORMAT, TOKENS, RUN_FORMAT)


def convert(
    source: str | Sequence[str], to: str, output: str, task: str | None = None, backbone: str | None = None, combine: str | None = None
) -> list[str]:
    """Writes SOURCE in the format `to` to `output`; returns the files written.

    to: 't5x' (native), 't5x_scanned' (as scalable_t5), 'orbax' (T5X on Orbax), 'hf', 'own' for backbones; 'peft' (multitask adapter),
    'peft_single', 'npz', 'npy' for prompts; 't5x_bank' for both together, as T5X's trainer restores them;
    'tokens' for a Hugging Face folder whose vocabulary has them. Several sources: for 'tokens' and `combine`, an expression over their
    prompts (convert_prompts.py) whose one result is written.
    A run of LoRA, (IA)3 or prefix tuning becomes a PEFT adapter, or with a backbone's format its backbone with LoRA or (IA)3 folded in;
    such an adapter becomes a run with 'run'. task: only
    this task's prompt; where a run trained it several times, `TASK#ROW`. backbone: the one that the prompts were trained on,
    where the source does not tell: 't5x_bank' holds it, and PEFT's adapters depend on its family. Raises UserError saying
    what is wrong; output is written whole or not at all.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to!r} is none of {', '.join(FORMATS)}.")
    if not output:
        raise UserError("--output is empty; give a folder or file to write.")
    if os.path.exists(output) and not (os.path.isdir(output) or os.path.isfile(output)):
        raise UserError(f"--output {output!r} is a device or pipe; give the name of a folder or file.")
    if to == "orbax":
        writable_run("--output", output)
    sources = [_resolve(each, "--from") for each in ([source] if isinstance(source, str) else source)]
    if len(sources) > 1 and (to in BACKBONE_FORMATS or not (to == TOKENS or combine)):
        raise UserError(f"--to {to} takes one --from, {len(sources)} are given; --to tokens and --combine take several.")
    source = sources[0]
    adapted = None if combine or len(sources) > 1 else _adapted(source, to, output, task, backbone)
    if adapted is not None:
        return adapted
    if to == RUN_FORMAT:
        raise UserError(f"--to {to} writes a PEFT adapter of LoRA, (IA)3 or prefix tuning as a run folder; {source!r} holds none.")
    if to in BACKBONE_FORMATS:
        if task or combine:
            given = f"--task {task!r} chooses a prompt" if task else f"--combine {combine!r} makes a prompt"
            raise UserError(f"{given}; --to {to} writes a backbone.")
        config, arrays, vocabulary = formats.read_backbone(source)
        return formats.write_backbone(to, output, config, arrays, vocabulary)
    named = [(_name(each), read_prompts(each, backbone)) for each in sources]
    if combine:
        named = [("combined", combined(combine, named))]
    if to == TOKENS:
        return write_tokens(output, named, task, backbone)
    (_, held) = named[0]
    if task:
        held = held.select([_row(held, label.strip()) for label in task.split(",")])
    if to == BANK_FORMAT:
        return _write_t5x_bank(output, held, backbone)
    if to in ("peft", "peft_single") and "task_type" not in held.metadata.get("backbone", {}):
        say("the source does not tell its backbone: the adapter is for a sequence-to-sequence model; add --backbone FOLDER for another")
    return prompt_writers.write(to, output, held)


def _adapted(source: str, to: str, output: str, task: str | None, backbone: str | None) -> list[str] | None:
    """What becomes of runs and adapters of LoRA, (IA)3 and prefix tuning (adapters.py); None where the source is something else."""
    from mpt_jax import adapters

    kind, path = formats.detect(source)
    if kind == "peft" and adapters.is_adapter(path):
        if to != RUN_FORMAT or not backbone:
            message = f"{source!r} is a PEFT adapter that changes a network"
            raise UserError(f"{message}: give --to {RUN_FORMAT} --backbone FOLDER to make a run folder of it.")
        return adapters.write_run(output, adapters.read(path, backbone), task or os.path.basename(path) or "task", backbone)
    held = adapters.of_run(path, task) if kind == "run" and to in ("peft", "peft_single", *BACKBONE_FORMATS) else None
    if held is None:
        method = read_run_json(path)["method"] if kind == "run" else ""
        if to in BACKBONE_FORMATS and method not in ("", "prompt", "weights"):
            raise adapters.no_place(f"what METHOD = {method!r} trains")
        return None
    if to in BACKBONE_FORMATS:
        config, arrays, vocabulary = adapters.folded(held, backbone)
        return formats.write_backbone(to, output, config, arrays, vocabulary)
    return adapters.write(output, held, backbone)


def _write_t5x_bank(output: str, held: prompts.PromptFile, backbone: str | None) -> list[str]:
    """A run folder as T5X's trainer leaves it: run.json, and checkpoint_0 with the backbone's weights and the bank."""
    known = held.metadata.get("backbone", {})
    name = backbone or known.get("name")
    if not name:
        raise UserError(f"--to {BANK_FORMAT} writes prompts with their backbone, and the source names none: give --backbone NAME.")
    config, arrays, _ = formats.read_backbone(_resolve(name, "--backbone"))
    formats.check_t5(config, BANK_FORMAT)
    if config.d_model != held.width:
        raise UserError(f"--backbone {name!r} has width {config.d_model}, the prompts have width {held.width}.")
    fingerprint = fingerprint_of(arrays)
    if "fingerprint" in known:
        check_weights(known, name, fingerprint, "these prompts were", "give the folder of the same weights as --backbone")
    rows = held.metadata.get("runs", [])
    if len(rows) != len(held.task_names) or not all(isinstance(row.get("task"), str) for row in rows):
        rows = [{"task": label, "seed": 0} for label in held.task_names]
    rows = [{**row, "group": int(group)} for row, group in zip(rows, held.group_N, strict=True)]
    run = {
        **{key: value for key, value in held.metadata.items() if key not in ("source", "runs")},
        "tasks": list(dict.fromkeys(row["task"] for row in rows)),
        "runs": rows,
        "converted": True,
        "backbone": {**known, "name": os.path.abspath(os.path.join(output, "checkpoint_0")), "fingerprint": fingerprint},
    }
    bank = {f"{BANK}{name}": formats.in_memory(array) for name, array in held.bank.trainable().items()}

    def write(folder: str) -> None:
        os.makedirs(os.path.join(folder, "checkpoint_0"))
        t5x.write_native(os.path.join(folder, "checkpoint_0"), {**arrays, **bank})
        write_json(pathlib.Path(folder) / "run.json", run)

    return write_folder(output, write)


def _name(source: str) -> str:
    """What a source is called among several: its last folder or file."""
    return os.path.basename(source.rstrip("/")).removesuffix(".npz").removesuffix(".npy") or source


def _resolve(source: str, given_as: str) -> str:
    """A path as it is; the name of a shipped backbone as its folder."""
    if source and (is_remote(source) or os.path.exists(source)):
        return source
    return str(backbone_folder(source, given_as))


def read_prompts(source: str, backbone: str | None = None) -> prompts.PromptFile:
    """The prompts of a run folder (its best ones) or of a file in any format, with what PEFT does with those of the backbone, if given."""
    kind, path = formats.detect(source)
    held = _from_run(path) if kind == "run" else None
    if not backbone:
        return held or prompts.read(source)
    config, arrays, _ = formats.read_backbone(_resolve(backbone, "--backbone"))
    facts = prompts.peft_facts(config)
    held = held or prompts.read(source, width=config.d_model, scale=facts["prompt_scale"])
    if held.width != config.d_model:
        raise UserError(f"--backbone {backbone!r} has width {config.d_model}, the prompts of {source!r} have width {held.width}.")
    known = {"name": backbone} | held.metadata.get("backbone", {}) | facts | ({"name": backbone} if kind == "run" else {})
    if kind == "run" and "fingerprint" in known:
        there, advice = held.metadata["backbone"], "give the folder of the same weights as --backbone"
        check_weights(there, backbone, fingerprint_of(arrays), "these prompts were", advice)
    return dataclasses.replace(held, metadata=held.metadata | {"backbone": known})


def _from_run(run_dir: str) -> prompts.PromptFile:
    """The best bank of a run. Labels are task names, `task#n` for row n of a task that was trained several
    times."""
    from mpt_jax.checkpoint import load
    from mpt_jax.infer.history import best_dev
    from mpt_jax.methods.prompt import bank_alone

    trained, run, step, _ = load(run_dir)
    bank = bank_alone(trained, run, run_dir)
    if bank is None:
        if any(path.startswith(BACKBONE) for path in trained):
            raise UserError(f"{run_dir} trained a backbone, not prompts; convert it with --to hf, t5x, orbax or own.")
        ways = "lora, ia3 and prefix go to peft, lora and ia3 into a backbone (hf, own); the others stay run folders"
        raise UserError(f"{run_dir} trained {run['method']!r}, not prompts alone: {ways}.")
    metadata = prompts.run_metadata(run, run_dir)
    evaluated, on_dev = _scores(run_dir, step), best_dev(run_dir)
    for n, row in enumerate(metadata["runs"]):
        row |= evaluated.get(n, {}) | ({"best_dev": on_dev[n]} if n in on_dev else {})
    factors = (None if array is None else np.asarray(array, np.float32) for array in (bank.cols_NPR, bank.rows_NRD))
    return prompts.PromptFile(
        np.asarray(bank.shared_GPD, np.float32),
        *factors,
        np.asarray(bank.group_N, np.int32),
        prompts.task_labels(run["runs"]),
        metadata,
    )


def _scores(run_dir: str, step: int) -> dict[int, dict[str, Any]]:
    """What the run's eval/*.json say of the bank's rows, where these weights were scored: their scores, the split and its rows."""
    path, found = os.path.join(run_dir, "eval"), {}
    for name in Folder(path).names() if os.path.isdir(path) else ():
        if not name.endswith(".json"):
            continue
        told = Folder(path).read_json(name)
        if told.get("checkpoint") != "best" or told.get("step") != step:
            continue  # of other weights
        rows = told.get("runs", [])
        for row in rows if isinstance(rows, list) else [None]:
            number, scores = (row.get("run"), row.get("scores")) if isinstance(row, dict) else (None, None)
            numbers = isinstance(scores, dict) and all(map(is_number, scores.values()))
            if type(number) is not int or not numbers:
                raise UserError(f"{path}/{name} is damaged: it has {shown(row)} for a run; run `mpt-jax eval` again.")
            found[number] = {"scores": scores, "scored": {"split": str(told.get("split")), "rows": told.get("rows")}}
    return found


def _row(held: prompts.PromptFile, task: str) -> int:
    """The row of a task's label. Raises UserError if there is none, or several that it fits."""
    fits = [n for n, label in enumerate(held.task_names) if label == task]
    if len(fits) == 1:
        return fits[0]
    if fits:
        runs = held.metadata.get("runs", [])
        described = [f"row {n}" + (f" (task {runs[n]['task']!r})" if n < len(runs) else "") for n in fits]
        raise UserError(f"--task {task!r} fits {' and '.join(described)}: rename a task and train it again.")
    several = [label for label in held.task_names if label.rpartition("#")[:2] == (task, "#")]
    if several:
        raise UserError(f"--task {task!r} was trained {len(several)} times; give one of {_described(held, several)}.")
    raise UserError(f"--task {task!r} is not among the tasks of the source: {', '.join(held.task_names)}.")


def _described(held: prompts.PromptFile, labels: list[str]) -> str:
    runs = held.metadata.get("runs", [])
    texts = []
    for label in labels:
        row = runs[held.task_names.index(label)] if len(runs) == len(held.task_names) else {}
        facts = [f"seed {row['seed']}, learning rate {row.get('learning_rate', 'unknown')}"] if "seed" in row else []
        facts += [f"from {row['source']}"] if row.get("source") else []
        facts += [f"best dev score {row['best_dev']:.1f}"] if "best_dev" in row else []
        facts += [f"{name} {value:.2f}" for name, value in row.get("scores", {}).items()]
        texts.append(f"{label} ({', '.join(facts)})" if facts else label)
    return ", ".join(texts)
