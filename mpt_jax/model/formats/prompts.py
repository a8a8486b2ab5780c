"""Prompt files in: Google prompt-tuning's .npy, npz, PEFT adapters, T5X checkpoints; all as one PromptFile.

N tasks, G groups that share a prompt, P prompt positions, D model width, R rank. Writers: prompt_writers.py.
"""

import collections
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK, PromptBank, compose_all, select
from mpt_jax.model.families import family_of
from mpt_jax.model.formats import npy_file, safetensors, t5x, torch_file
from mpt_jax.model.formats.arrays import LazyArray, check_finite, check_name, listed
from mpt_jax.model.formats.detect import detect
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import parse_json, shown
from mpt_jax.run_folder import is_number

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
METADATA = "mpt_jax"  # entry of a safetensors file's metadata: JSON with what is known of the prompts
SINGLE, MULTITASK = "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"
SEQ_2_SEQ, CAUSAL = "SEQ_2_SEQ_LM", "CAUSAL_LM"  # PEFT's task_type
ENCODER_PROMPT = "encoder/prompt/prompt/prompt"  # prompt_tuning/scripts/extract_variable.py
BANK_ARRAYS = ("shared_GPD", "cols_NPR", "rows_NRD")
FACTORS = ("prefix_task_cols", "prefix_task_rows")


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
        where = str(self.metadata.get("source", "The bank"))
        num_tasks, num_groups = len(self.group_N), self.shared_GPD.shape[0] if self.shared_GPD.ndim else 0
        if self.shared_GPD.ndim != 3 or len(self.task_names) != num_tasks or 0 in (num_tasks, *self.shared_GPD.shape):
            raise UserError(
                f"{where}: a bank of shape {self.shared_GPD.shape} with {len(self.task_names)} task names and {num_tasks} "
                "groups is not a set of prompts."
            )
        if min(self.group_N) < 0 or max(self.group_N) >= num_groups:
            raise UserError(f"{where}: tasks use the groups {shown(sorted({int(g) for g in self.group_N}))}; there are {num_groups}.")
        if (self.cols_NPR is None) != (self.rows_NRD is None):
            raise UserError(f"{where}: a bank has both factors, cols and rows, or neither.")
        if self.cols_NPR is not None and self.rows_NRD is not None:
            rank, (_, length, width) = self.cols_NPR.shape[-1] if self.cols_NPR.ndim else 0, self.shared_GPD.shape
            wanted = (num_tasks, length, rank), (num_tasks, rank, width)
            if (self.cols_NPR.shape, self.rows_NRD.shape) != wanted or not rank:
                raise UserError(
                    f"{where}: factors have shapes {self.cols_NPR.shape} and {self.rows_NRD.shape}, not {wanted[0]} and "
                    f"{wanted[1]} (tasks, prompt length, rank, width)."
                )
        for name in ("shared_GPD", "cols_NPR", "rows_NRD"):
            if getattr(self, name) is not None:
                check_finite(getattr(self, name), f"{where}: {name}")

    @property
    def width(self) -> int:
        """D."""
        return self.shared_GPD.shape[2]

    @property
    def bank(self) -> PromptBank:
        """The arrays alone."""
        return PromptBank(self.shared_GPD, self.cols_NPR, self.rows_NRD, self.group_N)

    def compose(self) -> np.ndarray:
        """The prompts (N, P, D) of all tasks. Raises UserError where they are not finite."""
        prompt_NPD = np.asarray(compose_all(self.bank))
        check_finite(prompt_NPD, f"{self.metadata.get('source', 'The bank')}: the composed prompts (tasks, length, width)")
        return prompt_NPD

    def select(self, tasks: Sequence[int]) -> "PromptFile":
        """The prompts of some tasks alone, with the groups they use."""
        runs = self.metadata.get("runs", ())
        metadata = self.metadata | {"runs": [runs[n] for n in tasks]} if len(runs) == len(self.group_N) else dict(self.metadata)
        return PromptFile(*select(self.bank, list(tasks)), tuple(self.task_names[n] for n in tasks), metadata)


def peft_facts(config: Any) -> dict[str, Any]:
    """What PEFT does with a prompt of a backbone of this shape: its task_type, and what our prompt is multiplied by there.

    Ours are stored like rows of the embedding table. transformers 5 multiplies those of Gemma 1 to 3 and T5Gemma 2 by sqrt(D) where it
    looks them up, and PEFT's prompt is put beside the result, so there it has that factor already.
    """
    scale = getattr(config, "lookup_scale", 1.0)
    return {"task_type": CAUSAL if family_of(config).decoder_only else SEQ_2_SEQ, "prompt_scale": scale}


def plain(prompts_NPD: np.ndarray, task_names: Sequence[str], metadata: Mapping[str, Any]) -> PromptFile:
    """Prompts (N, P, D) without factors, each its own group."""
    group_N = np.arange(len(prompts_NPD), dtype=np.int32)
    where = str(metadata.get("source", "The prompt array"))
    return PromptFile(_float32(prompts_NPD, where), None, None, group_N, tuple(task_names), dict(metadata))


def _float32(array: np.ndarray, where: str) -> np.ndarray:
    """The prompt numbers of a file in float32. Raises UserError for other types and for what float32 cannot hold."""
    if not (np.issubdtype(array.dtype, np.floating) or array.dtype.name == "bfloat16"):
        raise UserError(f"{where} holds numbers of type {array.dtype}; prompts are floating point.")
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.ascontiguousarray(array.astype(np.float32))
    check_finite(numbers, where, array.dtype)
    return numbers


def read(path: str | os.PathLike, width: int | None = None, drop_decoder_half: bool = False, scale: float | None = None) -> PromptFile:
    """The prompts of a file or folder; its format is recognised from its contents.

    width: D of the backbone they are for; UserError if the file's differs. drop_decoder_half: accept a PEFT
    multitask adapter that prompts the decoder too (PEFT's default for sequence-to-sequence) and keep its
    encoder half, which is all that PEFT's own `generate` uses. scale: peft_facts' prompt_scale of the backbone, where it is known; an
    adapter written here says it itself. Raises UserError naming what is missing, of a wrong shape, or not a prompt.

    >>> np.save("mood.npy", np.zeros((20, 192), np.float32))  # (P, D)
    >>> prompts = read("mood.npy", width=192)
    >>> prompts.task_names, prompts.compose().shape  # (N, P, D)
    (('mood',), (1, 20, 192))
    """
    kind, path = detect(str(path))
    readers = {"npy": _read_npy, "npz": _read_npz}
    if kind in readers:
        prompts = readers[kind](path)
    elif kind == "peft":
        prompts = _read_peft(Folder(path), drop_decoder_half, scale)
    elif kind in ("t5x", "t5x_file", "orbax"):
        prompts = _read_t5x(t5x.read(kind, path), path)
    elif kind == "run":
        advice = f"write one of its prompts to a file: mpt-jax convert --from {path} --to npy --task TASK --output FILE"
        raise UserError(f"{path} is a run folder, not a file of prompts; {advice}.")
    else:
        raise UserError(f"{path} holds a backbone ({kind}), no prompts.")
    size = 4 * math.prod((len(prompts.task_names), *prompts.shared_GPD.shape[1:]))
    if size > npy_file.MOST_BYTES:
        raise UserError(f"{path} makes prompts of {size:,} bytes from what it holds; a file's have at most {npy_file.MOST_BYTES:,}.")
    twice = [name for name, count in collections.Counter(prompts.task_names).items() if count > 1]
    if twice:
        raise UserError(f"{path} has several prompts called {listed(map(shown, twice))}; give each task another name.")
    if width is not None and prompts.width != width:
        raise UserError(
            f"{path} holds prompts of width {prompts.width}, the backbone has width {width}: they were trained for "
            "another model."
        )
    return prompts


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _read_npy(path: str) -> PromptFile:
    array = npy_file.read_npy(path)
    if array.ndim not in (2, 3):
        raise UserError(f"{path} holds an array of shape {array.shape}; a prompt is (length, width).")
    if array.ndim == 2:
        return plain(array[None], [_stem(path)], {"source": path})
    return plain(array, [f"{_stem(path)}_{n}" for n in range(len(array))], {"source": path})


def _read_npz(path: str) -> PromptFile:
    """A bank as written here, or one prompt (P, D) for each name."""
    held = npy_file.read_npz(path)
    arrays = {name.removeprefix(BANK): array for name, array in held.items() if name.startswith(BANK)}
    if "shared_GPD" in arrays:
        return _npz_bank(arrays, path)
    if any(array.ndim != 2 for array in held.values()) or len({array.shape for array in held.values()}) != 1:
        shapes = listed(f"{name} {array.shape}" for name, array in held.items())
        raise UserError(f"{path} must hold prompts (length, width) of one shape and nothing else; it has {shapes or 'nothing'}.")
    for name, array in held.items():
        _float32(array, f"{path}: {name}")
    return plain(np.stack(list(held.values())), list(held), {"source": path})


def _npz_bank(arrays: Mapping[str, np.ndarray], path: str) -> PromptFile:
    """The bank of a file written here. Raises UserError for what is missing or of another type."""
    missing = {"group_N", "task_names"} - arrays.keys()
    if missing:
        raise UserError(f"{path} lacks {listed(BANK + name for name in missing)}.")
    group_N, task_names, metadata = arrays["group_N"], arrays["task_names"], arrays.get("metadata", np.array("{}"))
    if group_N.ndim != 1 or group_N.dtype.kind not in "iu" or (len(group_N) and not 0 <= group_N.min() <= group_N.max() < 2**31):
        held = shown(group_N.reshape(-1)[:7].tolist())
        raise UserError(f"{path}: {BANK}group_N is {held} of type {group_N.dtype}; it takes the number of each task's shared prompt.")
    if task_names.ndim != 1 or task_names.dtype.kind != "U" or metadata.ndim or metadata.dtype.kind != "U":
        raise UserError(f"{path}: {BANK}task_names and {BANK}metadata must be texts, one for each task and one in all.")
    return PromptFile(
        *(_float32(arrays[name], f"{path}: {BANK}{name}") if name in arrays else None for name in BANK_ARRAYS),
        group_N.astype(np.int32),
        _task_names(_texts(task_names, path), f"{path}: {BANK}task_names"),
        _metadata("".join(_texts(metadata.reshape(1), path)), f"{path}: {BANK}metadata"),
    )


def _texts(array: np.ndarray, path: str) -> list[str]:
    """The texts of an array. Its bytes may be no letters at all."""
    letters = np.frombuffer(array.tobytes(), array.dtype.str[0] + "u4")
    if letters.size and letters.max() > 0x10FFFF:
        raise UserError(f"{path} is damaged: a text in it is not Unicode.")
    return [str(text) for text in array]


def _metadata(text: str, where: str) -> dict[str, Any]:
    """What the JSON in a file written here tells of its prompts. Raises UserError where that is not what is written here."""
    metadata = parse_json(text, where)
    _check_described(metadata, where)
    return metadata


def _check_described(metadata: Any, where: str) -> None:
    """Raises UserError where what is said of prompts is not what is written here."""
    metadata = metadata if isinstance(metadata, dict) else {"runs": None}
    runs, backbone = metadata.get("runs", []), metadata.get("backbone", {})
    right = isinstance(runs, list) and all(isinstance(row, dict) and isinstance(row.get("scores", {}), dict) for row in runs)
    right = right and all(is_number(score) for row in runs for score in row.get("scores", {}).values())
    right = right and all(isinstance(row.get("scored", {}), dict) and is_number(row.get("best_dev", 0)) for row in runs)
    right = right and all(isinstance(row.get("source", ""), str) for row in runs)
    texts = ("name", "fingerprint", "task_type")
    right = right and isinstance(backbone, dict) and all(isinstance(backbone.get(key), str | None) for key in texts)
    factor = backbone.get("prompt_scale", 1.0) if isinstance(backbone, dict) else None
    right = right and isinstance(factor, int | float) and not isinstance(factor, bool) and 0.5 < factor < 1000
    if not right or not isinstance(metadata.get("source", ""), str):
        raise UserError(f"{where} is damaged: its runs or its backbone are not described as mpt_jax does.")


def _task_names(names: Any, where: str) -> tuple[str, ...]:
    """Names of tasks. Raises UserError unless they are short texts."""
    if not isinstance(names, list | tuple):
        raise UserError(f"{where} is {shown(names)}, not a list of names.")
    return tuple(check_name(name, where) for name in names)


def _read_peft(folder: Folder, drop_decoder_half: bool, scale: float | None) -> PromptFile:
    settings = folder.read_json("adapter_config.json")
    where, kind = folder.where("adapter_config.json"), settings.get("peft_type")
    if kind not in (SINGLE, MULTITASK):
        raise UserError(f"{where}: peft_type {shown(kind)} is not a prompt; {SINGLE} and {MULTITASK} are.")
    weights, described = _adapter_weights(folder)
    unknown = weights.keys() - {"prompt_embeddings", *(FACTORS if kind == MULTITASK else ())}
    if unknown:
        raise UserError(f"{folder.path} also holds {listed(unknown)}, weights that a prompt alone does not have (modules_to_save?).")
    shared_PD = _tensor(weights, "prompt_embeddings", folder)
    if shared_PD.ndim != 2:
        raise UserError(f"{folder.path}: prompt_embeddings has shape {shared_PD.shape}; a prompt is (length, width).")
    facts = described.get("backbone", {})
    scale = _scale(settings, facts.get("prompt_scale", scale), where)
    shared_PD = shared_PD / np.float32(scale)
    length, width = _whole(settings, "num_virtual_tokens", where), _whole(settings, "token_dim", where) or shared_PD.shape[-1]
    parts = _whole(settings, "num_transformer_submodules", where) or (2 if settings.get("task_type") == "SEQ_2_SEQ_LM" else 1)
    length = length or len(shared_PD) // parts
    if shared_PD.shape != (length * parts, width):
        raise UserError(
            f"{folder.path}: prompt_embeddings has shape {shared_PD.shape}; adapter_config.json says "
            f"{(length * parts, width)} (num_virtual_tokens x num_transformer_submodules, token_dim)."
        )
    base = settings.get("base_model_name_or_path")
    metadata = {**({"base_model_name_or_path": base} if isinstance(base, str) and base else {}), **described, "source": folder.path}
    causal = settings.get("task_type") == CAUSAL
    if isinstance(settings.get("task_type"), str) or scale != 1.0:
        metadata["backbone"] = {**facts, "task_type": CAUSAL if causal else SEQ_2_SEQ, "prompt_scale": scale}
    names = settings.get("task_names") or metadata.pop("task_names", None)
    metadata.pop("task_names", None)
    if kind == SINGLE:  # PEFT's forward and generate both use the encoder's part alone
        return plain(shared_PD[None, :length], _task_names(names or [os.path.basename(folder.path) or "prompt"], where), metadata)
    if parts != 1 and not drop_decoder_half:
        raise UserError(
            f"{where}: num_transformer_submodules = {parts}, so the adapter also holds a prompt for the decoder, "
            "which PEFT uses in training but not in `generate`. Train it with num_transformer_submodules=1, or "
            "read it with drop_decoder_half=True to keep what `generate` uses."
        )
    cols, rows = (_tensor(weights, name, folder) for name in FACTORS)
    if cols.ndim != 3 or rows.ndim != 3 or cols.shape[1] != length * parts:
        shapes = f"{FACTORS[0]} has shape {cols.shape}, {FACTORS[1]} {rows.shape}"
        raise UserError(f"{folder.path}: {shapes}, for a prompt of {shared_PD.shape}.")
    for key, size in (("num_tasks", len(cols)), ("num_ranks", cols.shape[2])):
        if _whole(settings, key, where) not in (None, size):
            raise UserError(f"{where}: {key} = {settings[key]}, but {FACTORS[0]} has shape {cols.shape} (tasks, length, rank).")
    task_names = _task_names(names or [f"task_{n}" for n in range(len(cols))], where)
    group_N = np.zeros(len(cols), np.int32)
    return PromptFile(shared_PD[None, :length], cols[:, :length], rows, group_N, task_names, metadata)


def _scale(settings: Mapping[str, Any], known: float | None, where: str) -> float:
    """What PEFT's prompt is multiplied by beside ours. UserError where only the backbone can tell."""
    base = settings.get("base_model_name_or_path")
    if known is None and "gemma" in str(base).lower():
        meaning = f"prompts for {shown(base)} may be multiplied by the square root of their width, as those of Gemma and T5Gemma 2 are"
        raise UserError(f"{where}: {meaning}; name the backbone that they were trained on (--backbone FOLDER).")
    return 1.0 if known is None else float(known)


def _whole(settings: Mapping[str, Any], key: str, where: str) -> int | None:
    """A setting that is a size, or None where it is not set."""
    value = settings.get(key)
    if value is not None and (type(value) is not int or not 1 <= value < 2**31):
        raise UserError(f"{where}: {key} = {shown(value)}; it takes a whole number from 1 on, or null.")
    return value


def _adapter_weights(folder: Folder) -> tuple[dict[str, LazyArray], dict[str, Any]]:
    """Arrays of an adapter, and what this package wrote about them."""
    safe, torch = ADAPTER_WEIGHTS
    if folder.exists(safe):
        weights, metadata = safetensors.read(folder, safe)
        return weights, _metadata(metadata.get(METADATA, "{}"), f"{folder.where(safe)}: its metadata {METADATA}")
    if folder.exists(torch):
        return torch_file.read(folder, torch), {}
    raise UserError(f"{folder.path} has an adapter_config.json but no weights; looked for {safe} and {torch}.")


def _tensor(weights: Mapping[str, LazyArray], name: str, folder: Folder) -> np.ndarray:
    if name not in weights:
        raise UserError(f"{folder.path} lacks {name}; its weights are {listed(weights) or 'none'}.")
    return _loaded(weights[name], f"{folder.path}: {name}")


def _loaded(lazy: LazyArray, where: str) -> np.ndarray:
    """A prompt array in float32. Raises UserError if it is larger than prompts are."""
    size = math.prod(lazy.shape) * lazy.dtype.itemsize
    if size > npy_file.MOST_BYTES:
        raise UserError(f"{where} has {size:,} bytes; prompts have at most {npy_file.MOST_BYTES:,}.")
    return _float32(lazy.load(), where)


def _read_t5x(arrays: Mapping[str, LazyArray], path: str) -> PromptFile:
    """The prompt bank of a run under T5X's trainer, or the encoder's prompt variable of prompt-tuning's models."""
    found = {name: lazy for name, lazy in arrays.items() if t5x.is_prompt(name)}
    if f"{BANK}shared" in found:
        return _read_t5x_bank(found, path)
    if not found:
        raise UserError(f"{path} holds no prompt variable (such as {ENCODER_PROMPT}); it is a backbone.")
    unknown = found.keys() - {ENCODER_PROMPT}
    if unknown:
        raise UserError(
            f"{path} holds the prompt variables {listed(found)}; only {ENCODER_PROMPT} is known. Decoder "
            "prompts are not kept here, and how prompt-tuning's shared_prompt and task_prompts combine is not in "
            "a checkpoint."
        )
    array = _loaded(found[ENCODER_PROMPT], f"{path}: {ENCODER_PROMPT}")
    if array.ndim != 2:
        raise UserError(f"{path}: {ENCODER_PROMPT} has shape {array.shape}; a prompt is (length, width).")
    return plain(array[None], ["prompt"], {"source": path})


def _read_t5x_bank(arrays: Mapping[str, LazyArray], path: str) -> PromptFile:
    """A bank with the labels and groups of the run.json beside the checkpoint.

    Without that file labels are numbers from 1, and tasks share prompts evenly in their order.
    """
    names = (f"{BANK}{part}" for part in ("shared", "cols", "rows"))
    shared_GPD, cols_NPR, rows_NRD = (_loaded(arrays[name], f"{path}: {name}") if name in arrays else None for name in names)
    around = Folder(os.path.dirname(path.rstrip("/")) or ".")
    if around.exists("run.json"):
        run = around.read_json("run.json")
        metadata = run_metadata(run, path)
        group_N = [row.get("group") for row in metadata["runs"]]
        if not all(type(group) is int and 0 <= group < 2**31 for group in group_N):
            raise UserError(f"{around.where('run.json')} is damaged: its runs have the groups {shown(group_N)}.")
        return PromptFile(shared_GPD, cols_NPR, rows_NRD, np.array(group_N, np.int32), task_labels(metadata["runs"]), metadata)
    num_groups, num_tasks = len(shared_GPD), len(shared_GPD if cols_NPR is None else cols_NPR)
    if not num_groups or num_tasks % num_groups:
        raise UserError(f"{path} holds {num_tasks} tasks over {num_groups} shared prompts; a run.json next to it must say which share one.")
    group_N = np.repeat(np.arange(num_groups, dtype=np.int32), num_tasks // num_groups)
    return PromptFile(shared_GPD, cols_NPR, rows_NRD, group_N, tuple(f"task_{n + 1}" for n in range(num_tasks)), {"source": path})


def task_labels(runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A label for each row of a bank: its task's name, `task#n` for row n of a task that was trained several times."""
    counts = collections.Counter(row["task"] for row in runs)
    return tuple(row["task"] if counts[row["task"]] == 1 else f"{row['task']}#{n}" for n, row in enumerate(runs))


def run_metadata(run: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a run.json tells of its prompts. Raises UserError if that is not what a run writes."""
    rows = run.get("runs")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and isinstance(row.get("task"), str) for row in rows):
        raise UserError(f"The run.json of {source} is damaged: its runs are {shown(rows)}, not a list with a task each.")
    rows = [{key: value for key, value in row.items() if key != "few_shot"} for row in rows]
    kept = ("stage", "backbone", "vocabulary", "settings", "parameters", "versions")
    found = {"source": os.path.basename(os.path.abspath(source)), "runs": rows}
    found |= {key: run[key] for key in kept if run.get(key) is not None}
    _check_described(found, f"The run.json of {source}")
    return found
