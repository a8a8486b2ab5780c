"""Prompt files in: Google prompt-tuning's .npy, npz, PEFT adapters, T5X checkpoints; all as one PromptFile.

N tasks, G groups that share a prompt, P prompt positions, D model width, R rank. Writers: prompt_writers.py.
"""

import collections
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import PromptBank, compose_all, select
from mpt_jax.model.formats import names, safetensors, t5x, torch_file
from mpt_jax.model.formats.arrays import LazyArray
from mpt_jax.model.formats.detect import detect
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.huggingface import read_json

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
METADATA = "mpt_jax"  # entry of a safetensors file's metadata: JSON with what is known of the prompts
SINGLE, MULTITASK = "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"
ENCODER_PROMPT = "encoder/prompt/prompt/prompt"  # prompt_tuning/scripts/extract_variable.py
BANK_ARRAYS = ("shared_GPD", "cols_NPR", "rows_NRD", "group_N")


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """The prompt bank of a file (methods/bank.py), float32, with the names of its tasks.

    shared_GPD (G, P, D); cols_NPR (N, P, R) and rows_NRD (N, R, D), or None where prompts have no factors;
    group_N (N,) int32; task_names: N labels; metadata: what the file tells about backbone, settings and
    scores.
    """

    shared_GPD: np.ndarray
    cols_NPR: np.ndarray | None
    rows_NRD: np.ndarray | None
    group_N: np.ndarray
    task_names: tuple[str, ...]
    metadata: dict[str, Any]

    def __post_init__(self):
        num_tasks, num_groups = len(self.group_N), self.shared_GPD.shape[0]
        if self.shared_GPD.ndim != 3 or len(self.task_names) != num_tasks or num_tasks == 0:
            raise UserError(
                f"A bank of shape {self.shared_GPD.shape} with {len(self.task_names)} task names and {num_tasks} "
                "groups is no set of prompts."
            )
        if min(self.group_N) < 0 or max(self.group_N) >= num_groups:
            raise UserError(f"Tasks use the groups {sorted(set(self.group_N))}; there are {num_groups}.")
        if (self.cols_NPR is None) != (self.rows_NRD is None):
            raise UserError("A bank has both factors, cols and rows, or neither.")
        if self.cols_NPR is not None and self.rows_NRD is not None:
            rank, (_, length, width) = self.cols_NPR.shape[-1], self.shared_GPD.shape
            wanted = (num_tasks, length, rank), (num_tasks, rank, width)
            if (self.cols_NPR.shape, self.rows_NRD.shape) != wanted:
                raise UserError(
                    f"Factors have shapes {self.cols_NPR.shape} and {self.rows_NRD.shape}, not {wanted[0]} and "
                    f"{wanted[1]} (tasks, prompt length, rank, width)."
                )

    @property
    def width(self) -> int:
        """D."""
        return self.shared_GPD.shape[2]

    @property
    def bank(self) -> PromptBank:
        """The arrays alone."""
        return PromptBank(self.shared_GPD, self.cols_NPR, self.rows_NRD, self.group_N)

    def compose(self) -> np.ndarray:
        """The prompts (N, P, D) of all tasks."""
        return np.asarray(compose_all(self.bank))

    def select(self, tasks: Sequence[int]) -> "PromptFile":
        """The prompts of some tasks alone, with the groups they use."""
        runs = self.metadata.get("runs", ())
        metadata = self.metadata | {"runs": [runs[n] for n in tasks]} if len(runs) == len(self.group_N) else dict(self.metadata)
        return PromptFile(*select(self.bank, list(tasks)), tuple(self.task_names[n] for n in tasks), metadata)


def plain(prompts_NPD: np.ndarray, task_names: Sequence[str], metadata: Mapping[str, Any]) -> PromptFile:
    """Prompts (N, P, D) without factors, each its own group."""
    group_N = np.arange(len(prompts_NPD), dtype=np.int32)
    where = str(metadata.get("source", "The prompt array"))
    return PromptFile(_float32(prompts_NPD, where), None, None, group_N, tuple(task_names), dict(metadata))


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
        raise UserError(f"{where} holds numbers of type {array.dtype}; prompts are floating point.")
    return np.ascontiguousarray(array.astype(np.float32))


def read(path: str | os.PathLike, width: int | None = None, drop_decoder_half: bool = False) -> PromptFile:
    """The prompts of a file or folder; its format is recognised from its contents.

    width: D of the backbone they are for; UserError if the file's differs. drop_decoder_half: accept a PEFT
    multitask adapter that prompts the decoder too (PEFT's default for sequence-to-sequence) and keep its
    encoder half, which is all that PEFT's own `generate` uses. Raises UserError naming what is missing, of a
    wrong shape, or not a prompt.
    """
    kind, path = detect(str(path))
    readers = {"npy": _read_npy, "npz": _read_npz}
    if kind in readers:
        prompts = readers[kind](path)
    elif kind == "peft":
        prompts = _read_peft(Folder(path), drop_decoder_half)
    elif kind in ("t5x", "t5x_file", "orbax"):
        prompts = _read_t5x(t5x.read(kind, path), path)
    else:
        raise UserError(f"{path} holds a backbone ({kind}), no prompts.")
    if width is not None and prompts.width != width:
        raise UserError(
            f"{path} holds prompts of width {prompts.width}, the backbone has width {width}: they were trained for "
            "another model."
        )
    return prompts


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _load(path: str) -> Any:
    """np.load without object arrays. Raises UserError for anything it cannot read."""
    folder, name = os.path.split(os.path.abspath(path))
    Folder(folder).start(name, 64)
    try:
        with open(path, "rb") as file:
            loaded = np.load(io.BytesIO(file.read()), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        return {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is no {path[-4:]} file of numbers, or truncated: {error}") from error


def _read_npy(path: str) -> PromptFile:
    array = _load(path)
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3):
        raise UserError(f"{path} holds an array of shape {np.shape(array)}; a prompt is (length, width).")
    if array.ndim == 2:
        return plain(array[None], [_stem(path)], {"source": path})
    return plain(array, [f"{_stem(path)}_{n}" for n in range(len(array))], {"source": path})


def _read_npz(path: str) -> PromptFile:
    """A bank as written here, or one prompt (P, D) for each name."""
    held = _load(path)
    arrays = {name.removeprefix("bank/"): array for name, array in held.items() if name.startswith("bank/")}
    if "shared_GPD" in arrays:
        missing = {"group_N", "task_names"} - arrays.keys()
        if missing:
            raise UserError(f"{path} lacks {names.listed(missing)}.")
        factors = [arrays.get(name) for name in ("cols_NPR", "rows_NRD")]
        try:
            metadata = json.loads(str(arrays.get("metadata", "{}")))
        except ValueError as error:
            raise UserError(f"{path}: its metadata is no JSON ({error}).") from error
        return PromptFile(
            _float32(arrays["shared_GPD"], path),
            *(None if array is None else _float32(array, path) for array in factors),
            arrays["group_N"].astype(np.int32),
            tuple(str(name) for name in arrays["task_names"]),
            metadata,
        )
    arrays = held
    prompts = {name: array for name, array in arrays.items() if array.ndim == 2}
    if not prompts or len({array.shape for array in prompts.values()}) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise UserError(f"{path} must hold prompts (length, width) of one shape; it has {shapes or 'nothing'}.")
    return plain(np.stack(list(prompts.values())), list(prompts), {"source": path})


def _read_peft(folder: Folder, drop_decoder_half: bool) -> PromptFile:
    settings = read_json(folder, "adapter_config.json")
    where, kind = folder.where("adapter_config.json"), settings.get("peft_type")
    if kind not in (SINGLE, MULTITASK):
        raise UserError(f"{where}: peft_type {kind!r} is no prompt; {SINGLE} and {MULTITASK} are.")
    weights, told = _adapter_weights(folder)
    shared_PD = _tensor(weights, "prompt_embeddings", folder)
    length, width = settings.get("num_virtual_tokens"), settings.get("token_dim") or shared_PD.shape[-1]
    parts = settings.get("num_transformer_submodules") or (2 if settings.get("task_type") == "SEQ_2_SEQ_LM" else 1)
    length = length or len(shared_PD) // parts
    if shared_PD.shape != (length * parts, width):
        raise UserError(
            f"{folder.path}: prompt_embeddings has shape {shared_PD.shape}; adapter_config.json says "
            f"{(length * parts, width)} (num_virtual_tokens x num_transformer_submodules, token_dim)."
        )
    base = settings.get("base_model_name_or_path")
    metadata = {**({"base_model_name_or_path": base} if base else {}), **told, "source": folder.path}
    listed = settings.get("task_names") or metadata.pop("task_names", None)
    metadata.pop("task_names", None)
    if kind == SINGLE:  # PEFT's forward and generate both use the encoder's part alone
        return plain(shared_PD[None, :length], listed or [os.path.basename(folder.path)], metadata)
    if parts != 1 and not drop_decoder_half:
        raise UserError(
            f"{where}: num_transformer_submodules = {parts}, so the adapter also holds a prompt for the decoder, "
            "which PEFT uses in training but not in `generate`. Train it with num_transformer_submodules=1, or "
            "read it with drop_decoder_half=True to keep what `generate` uses."
        )
    cols, rows = _tensor(weights, "prefix_task_cols", folder), _tensor(weights, "prefix_task_rows", folder)
    task_names = tuple(listed or (f"task_{n}" for n in range(len(cols))))
    group_N = np.zeros(len(cols), np.int32)
    return PromptFile(shared_PD[None, :length], cols[:, :length], rows, group_N, task_names, metadata)


def _adapter_weights(folder: Folder) -> tuple[dict[str, LazyArray], dict[str, Any]]:
    """Arrays of an adapter, and what this package wrote about them."""
    safe, torch = ADAPTER_WEIGHTS
    if folder.exists(safe):
        weights, metadata = safetensors.read(folder, safe)
        try:
            told = json.loads(metadata.get(METADATA, "{}"))
        except ValueError as error:
            raise UserError(f"{folder.where(safe)}: its metadata {METADATA} is no JSON ({error}).") from error
        return weights, told
    if folder.exists(torch):
        return torch_file.read(folder, torch), {}
    raise UserError(f"{folder.path} has an adapter_config.json but no weights; looked for {safe} and {torch}.")


def _tensor(weights: Mapping[str, LazyArray], name: str, folder: Folder) -> np.ndarray:
    if name not in weights:
        raise UserError(f"{folder.path} lacks {name}; its weights are {names.listed(weights) or 'none'}.")
    return _float32(weights[name].load(), f"{folder.path}: {name}")


def _read_t5x(arrays: Mapping[str, LazyArray], path: str) -> PromptFile:
    """The prompt bank of a run under T5X's trainer, or the encoder's prompt variable of prompt-tuning's models."""
    found = {name: lazy for name, lazy in arrays.items() if t5x.is_prompt(name)}
    if f"{t5x.BANK}shared" in found:
        return _read_t5x_bank(found, path)
    if not found:
        raise UserError(f"{path} holds no prompt variable (such as {ENCODER_PROMPT}); it is a backbone.")
    unknown = found.keys() - {ENCODER_PROMPT}
    if unknown:
        raise UserError(
            f"{path} holds the prompt variables {names.listed(found)}; only {ENCODER_PROMPT} is known. Decoder "
            "prompts have no place here, and how prompt-tuning's shared_prompt and task_prompts combine is not in "
            "a checkpoint."
        )
    array = found[ENCODER_PROMPT].load()
    if array.ndim != 2:
        raise UserError(f"{path}: {ENCODER_PROMPT} has shape {array.shape}; a prompt is (length, width).")
    return plain(array[None], ["prompt"], {"source": path})


def _read_t5x_bank(arrays: Mapping[str, LazyArray], path: str) -> PromptFile:
    """A bank with the labels and groups of the run.json beside the checkpoint.

    Without that file labels are numbers from 1, and tasks share prompts evenly in their order.
    """
    shared_GPD, cols_NPR, rows_NRD = (
        _float32(arrays[t5x.BANK + name].load(), path) if t5x.BANK + name in arrays else None for name in ("shared", "cols", "rows")
    )
    around = Folder(os.path.dirname(path.rstrip("/")) or ".")
    if around.exists("run.json"):
        run = read_json(around, "run.json")
        group_N, labels = np.array([row["group"] for row in run["runs"]], np.int32), task_labels(run["runs"])
        return PromptFile(shared_GPD, cols_NPR, rows_NRD, group_N, labels, run_metadata(run, path))
    num_groups, num_tasks = len(shared_GPD), len(shared_GPD if cols_NPR is None else cols_NPR)
    if num_tasks % num_groups:
        raise UserError(f"{path} holds {num_tasks} tasks over {num_groups} shared prompts, and no run.json beside it says which share one.")
    group_N = np.repeat(np.arange(num_groups, dtype=np.int32), num_tasks // num_groups)
    return PromptFile(shared_GPD, cols_NPR, rows_NRD, group_N, tuple(f"task_{n + 1}" for n in range(num_tasks)), {"source": path})


def task_labels(runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A label for each row of a bank: its task's name, `task#n` for row n of a task that was trained several times."""
    counts = collections.Counter(row["task"] for row in runs)
    return tuple(row["task"] if counts[row["task"]] == 1 else f"{row['task']}#{n}" for n, row in enumerate(runs))


def run_metadata(run: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a run.json tells of its prompts."""
    rows = [{key: value for key, value in row.items() if key != "few_shot"} for row in run["runs"]]
    kept = ("stage", "backbone", "vocabulary", "settings", "parameters", "versions")
    return {"source": os.path.basename(os.path.abspath(source)), "runs": rows, **{key: run[key] for key in kept if key in run}}
