"""Prompt files out: PEFT adapters (multitask, or one for each task), npz and npy, each with a model card."""

import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK
from mpt_jax.model.formats import safetensors
from mpt_jax.model.formats.arrays import in_memory
from mpt_jax.model.formats.card import card
from mpt_jax.model.formats.folder_writer import write_files, write_folder
from mpt_jax.model.formats.prompts import METADATA, MULTITASK, SEQ_2_SEQ, SINGLE, PromptFile
from mpt_jax.output import file_name

FORMATS = ("peft", "peft_single", "npz", "npy")


def write(kind: str, dest: str, prompts: PromptFile) -> list[str]:
    """Writes prompts in a format of FORMATS; returns the files written.

    peft: one MULTITASK_PROMPT_TUNING adapter of all tasks, which must share one prompt. peft_single: a
    PROMPT_TUNING adapter of composed prompts, in DEST itself for one task, else in DEST/<task>. npy: composed
    prompts likewise, DEST.npy or DEST/<task>.npy. npz: the whole bank in one file. Raises UserError if the
    format cannot hold the bank or dest is there already.

    >>> np.save("mood.npy", np.zeros((20, 192), np.float32))  # (P, D)
    >>> files = write("npz", "moods", formats.prompts.read("mood.npy"))
    >>> sorted(np.load("moods.npz"))
    [...'mood'...]
    """
    if kind not in FORMATS:
        raise UserError(f"Prompts cannot be written as {kind!r}; formats: {', '.join(FORMATS)}.")
    _check_labels(prompts)
    if kind == "peft":
        return write_folder(dest, lambda folder: _multitask(folder, prompts))
    if kind == "npz":
        return _write_file(dest, ".npz", prompts, _npz)
    one = len(prompts.task_names) == 1
    if kind == "npy" and one:
        return _write_file(dest, ".npy", prompts, _npy)
    if kind == "peft_single" and one:
        return write_folder(dest, lambda folder: _single(folder, prompts))
    return write_folder(dest, lambda folder: _each(kind, folder, prompts))


def _each(kind: str, folder: str, prompts: PromptFile) -> None:
    """One file or sub-folder for each task. Raises UserError if two tasks would get the same one."""
    taken: dict[str, str] = {}
    for label in prompts.task_names:
        other = taken.setdefault(file_name(label).casefold(), label)
        if other != label:
            message = f"The tasks {other!r} and {label!r} would both be written to {file_name(label)!r}"
            raise UserError(f"{message}; write them one by one with --task.")
    for n, label in enumerate(prompts.task_names):
        write(kind, os.path.join(folder, file_name(label)), prompts.select([n]))


def _check_labels(prompts: PromptFile) -> None:
    """Raises UserError for two prompts of one name, and for a name that an npz gives to its own arrays."""
    for n, label in enumerate(prompts.task_names):
        first = prompts.task_names.index(label)
        if first != n:
            raise UserError(f"Prompts {first} and {n} are both called {label!r}, and would become one: rename a task and train it again.")
        if label.startswith(BANK):
            raise UserError(f"The prompt called {label!r} has the name of an array of the bank: rename its task.")


def _write_file(dest: str, suffix: str, prompts: PromptFile, save: Callable[[BinaryIO, PromptFile], None]) -> list[str]:
    """Writes DEST (with its suffix) and its card."""
    path = dest if dest.endswith(suffix) else dest + suffix
    text = card(suffix[1:], prompts).encode()
    return write_files({path: lambda file: save(file, prompts), f"{path}.md": lambda file: file.write(text)})


def _npy(file: BinaryIO, prompts: PromptFile) -> None:
    file.write(_as_npy(prompts.compose()[0]))


def _as_npy(array: np.ndarray) -> bytes:
    """The .npy file of an array. np.save writes to a file past Python, which then cannot tell that a disk is full."""
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(array), allow_pickle=False)
    return content.getvalue()


def _npz(file: BinaryIO, prompts: PromptFile) -> None:
    """Each task's composed prompt (P, D) under its name, then the bank that they come from under BANK.

    As np.savez does, which cannot take a task called `file`.
    """
    arrays = dict(zip(prompts.task_names, prompts.compose(), strict=True))
    bank = {"shared_GPD": prompts.shared_GPD, "cols_NPR": prompts.cols_NPR, "rows_NRD": prompts.rows_NRD, "group_N": prompts.group_N}
    bank |= {"task_names": np.array(prompts.task_names), "metadata": np.array(json.dumps(prompts.metadata))}
    arrays |= {f"{BANK}{name}": array for name, array in bank.items() if array is not None}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", _as_npy(array))


def _factors(prompts: PromptFile) -> tuple[np.ndarray, np.ndarray]:
    """The factors of a bank with one shared prompt; ones where a single prompt has none."""
    if prompts.shared_GPD.shape[0] != 1:
        raise UserError(
            f"The bank has {prompts.shared_GPD.shape[0]} shared prompts for {len(prompts.task_names)} tasks; a PEFT "
            f"multitask adapter has one. Give --task (one of {', '.join(prompts.task_names)}) or --to peft_single."
        )
    if prompts.cols_NPR is not None and prompts.rows_NRD is not None:
        return prompts.cols_NPR, prompts.rows_NRD
    num_tasks, (_, length, width) = len(prompts.task_names), prompts.shared_GPD.shape
    return np.ones((num_tasks, length, 1), np.float32), np.ones((num_tasks, 1, width), np.float32)


def _multitask(folder: str, prompts: PromptFile) -> None:
    cols_NPR, rows_NRD = _factors(prompts)
    settings = {
        "num_ranks": int(cols_NPR.shape[2]),
        "num_tasks": len(prompts.task_names),
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0,
    }
    arrays = {
        "prefix_task_cols": cols_NPR,
        "prefix_task_rows": rows_NRD,
        "prompt_embeddings": prompts.shared_GPD[0],
    }
    _adapter(folder, MULTITASK, prompts, settings, arrays)


def _single(folder: str, prompts: PromptFile) -> None:
    settings = {"prompt_tuning_init_text": None, "tokenizer_name_or_path": None, "tokenizer_kwargs": None}
    _adapter(folder, SINGLE, prompts, settings, {"prompt_embeddings": prompts.compose()[0]})


def _adapter(folder: str, kind: str, prompts: PromptFile, settings: Mapping, arrays: Mapping[str, np.ndarray]) -> None:
    """adapter_config.json, adapter_model.safetensors and README.md, as `save_pretrained` of PEFT names them.

    PEFT fills in what is null from the model, and says that it ignores task_names. What else is known of the prompts
    is in the metadata of the safetensors file, the factor of Gemma's prompts among it (prompts.peft_facts).
    """
    length, width = prompts.shared_GPD.shape[1:]
    backbone = prompts.metadata.get("backbone", {})
    scaled = arrays | {"prompt_embeddings": arrays["prompt_embeddings"] * np.float32(backbone.get("prompt_scale", 1.0))}
    full = {
        "peft_type": kind,
        "task_type": backbone.get("task_type", SEQ_2_SEQ),
        "base_model_name_or_path": backbone.get("name") or prompts.metadata.get("base_model_name_or_path"),
        "inference_mode": True,
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": int(length),
        "prompt_tuning_init": "RANDOM",
        "token_dim": int(width),
        **settings,
        "task_names": list(prompts.task_names),
    }
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump(full, file, indent=2)
        file.write("\n")
    metadata = {"format": "pt", METADATA: json.dumps({"task_names": prompts.task_names, **prompts.metadata})}
    lazy = {name: in_memory(np.asarray(array, np.float32), name) for name, array in scaled.items()}
    safetensors.write(os.path.join(folder, "adapter_model.safetensors"), lazy, metadata)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
        file.write(card("peft", prompts))
