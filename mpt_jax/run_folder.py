"""The folder of a run: config.gin, run.json, metrics.jsonl, TensorBoard events, checkpoints/, eval/."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mpt_jax.config import WEIGHT_STAGES, BackboneSettings, Settings
from mpt_jax.distributed import is_first
from mpt_jax.errors import UserError
from mpt_jax.output import replaceable
from mpt_jax.regular_files import parse_json, read_regular, shown

CHECKPOINTS = "checkpoints"  # folder of a run's checkpoints, each named after its step
ASIDE = "damaged_checkpoints"  # where damaged ones are put, by the same names with `_` added to those that are taken
VERSIONED = ("mpt_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# how rows are padded and computed together: free unless dropout draws a mask for each micro-batch
LAYOUT = ("micro_batch_size", "smallest_micro_batch", "input_buckets", "target_buckets", "attention")
# changing these does not change what a run computes, up to the order of sums
# path and vocabulary are places: weights and rows are told by their digests
FREE_TO_CHANGE = (
    "model_dir", "checkpoint_steps", "log_steps", "cache_dir", "prefetch", "data", "fsdp", "tensor", "remat", "skip_damaged_checkpoints",
    "trust_caches", "allow_unfinished", "eval_batch_size", "path", "vocabulary", *LAYOUT,
)  # fmt: skip
NUMBER = (int, float)
MOST_RUN_BYTES = 2**28  # of a run.json; ten thousand few-shot runs write a hundredth of that
# what readers take from run.json, and its type; an entry may be missing (``require`` names those that must not)
ENTRIES: dict[str, Any] = {
    "stage": str, "method": str, "tasks": list, "runs": list, "settings": dict, "parameters": dict, "backbone": dict, "made_from": dict,
    "parameters.trainable": int, "parameters.per_task": int, "parameters.fraction_of_backbone": NUMBER,
    "backbone.name": str, "backbone.fingerprint": str, "backbone.parameters": int,
    "settings.train": dict, "settings.backbone": dict, "settings.distillation": dict, "settings.data": dict, "settings.train.stage": str,
    **{f"settings.backbone.{field.name}": field.type for field in dataclasses.fields(BackboneSettings)},
    **{f"settings.train.{name}": int for name in ("train_steps", "patience", "eval_steps")},
    "settings.data.feature_lengths": dict, "settings.data.feature_lengths.inputs": int, "settings.data.feature_lengths.targets": int,
    "settings.data.k_shot": int, "settings.data.cue": str,
}  # fmt: skip
ROW = {"task": str, "group": int, "seed": int, "learning_rate": NUMBER, "factor_learning_rate": NUMBER, "source": str}


def folder_names(folders: Sequence[str | Path]) -> list[str]:
    """What run folders are called: their last part; where two are the same, as much of the path as tells them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def parse_run(content: bytes, path: str | Path) -> dict:
    """The content of a run.json, its entries checked. Raises UserError naming what is damaged."""
    run = parse_json(content, repr(str(path)))
    wrong = _wrong_entry(run) or _wrong_entry(run := _of_today(run))
    if wrong:
        raise UserError(f"{str(path)!r} is damaged: {wrong}.")
    return run


def _of_today(run: dict) -> dict:
    """A description as this version writes it: 0.1 kept the backbone's settings among those of training, and had one method."""
    settings = run.get("settings") or {}
    train, distillation = (settings.get(name) or {} for name in ("train", "distillation"))
    names = {"backbone": "path", "vocabulary": "vocabulary", "dtype": "dtype", "remat": "remat", "attention": "attention"}
    if "backbone" not in settings and "backbone" in train:
        settings["backbone"] = {new: train.pop(old) for old, new in names.items() if old in train}
    if "teacher" in distillation:
        distillation["teacher_mode"] = distillation.pop("teacher")
    trains_backbone = run.get("stage") in WEIGHT_STAGES
    return {"method": "weights" if trains_backbone else "prompt", **run}


def read_run_json(run_dir: str | Path) -> dict:
    """The run's description. Raises UserError for a folder that is not a run folder, or naming what is damaged in the file."""
    folder = Path(run_dir)
    path = folder / "run.json"
    if not os.path.lexists(path):
        there = "it has no run.json" if folder.is_dir() else "it is a file" if folder.exists() else "it does not exist"
        raise UserError(f"{str(run_dir)!r} is not a run folder: {there}.")
    return parse_run(read_regular(path, MOST_RUN_BYTES), path)


def checkpoint_steps(run_dir: str | Path) -> list[int]:
    """Steps of the whole checkpoints in a run folder, ascending; empty where there is none. Raises UserError where it cannot be read."""
    folder = Path(run_dir) / CHECKPOINTS
    try:
        names = os.listdir(folder) if folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9][0-9]*", name) and (folder / name).is_dir())
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be read: {error.strerror or type(error).__name__}.") from error


def require(run: Mapping[str, Any], run_dir: str | Path, *names: str) -> None:
    """Raises UserError naming entries that run.json lacks, ``settings.backbone.path`` for one."""
    missing = [name for name in names if _entry(run, name) is None]
    if missing:
        raise UserError(f"{str(Path(run_dir) / 'run.json')!r} lacks {', '.join(missing)}: it was written by hand, or is damaged.")


def _entry(run: Any, name: str) -> Any:
    for part in name.split("."):
        run = run.get(part) if isinstance(run, Mapping) else None
    return run


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number that can be worked with: no truth value, no integer of hundreds of digits."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, NUMBER) or (is_number(value) and math.isfinite(value)))


def _wrong_entry(run: Any) -> str:
    """What is wrong in the content of a run.json; empty if nothing is."""
    if not isinstance(run, dict):
        return f"it holds a {type(run).__name__}, not an object"
    for name, kind in ENTRIES.items():
        value = _entry(run, name)
        if value is not None and not _is(value, kind):
            return f"{name} is {shown(value)}"
    unknown = (_entry(run, "settings.backbone") or {}).keys() - {field.name for field in dataclasses.fields(BackboneSettings)}
    if unknown:
        return f"settings.backbone.{sorted(unknown)[0]} is not a setting"
    return _wrong_row(run)


def _wrong_row(run: dict) -> str:
    rows, tasks = run.get("runs") or [], run.get("tasks")
    if not all(isinstance(task, str) for task in tasks or ()):
        return f"tasks is {shown(tasks)}"
    for number, row in enumerate(rows):
        for name, kind in ROW.items():
            needed = name in ("task", "group", "seed")
            if not isinstance(row, dict) or (needed and name not in row) or (name in row and not _is(row[name], kind)):
                return f"runs[{number}].{name} is {shown(row.get(name) if isinstance(row, dict) else row)}"
        if not 0 <= row["group"] < len(rows):
            return f"runs[{number}].group is {row['group']}, there are {len(rows)} runs"
    named = list(dict.fromkeys(row["task"] for row in rows))
    if rows and run.get("tasks", named) != named:
        return f"tasks is {shown(run['tasks'])}, its runs are of {shown(named)}"
    return ""


@contextlib.contextmanager
def writes(path: str | Path, setting: str) -> Iterator[None]:
    """Turns what a full, read-only or forbidden folder raises in the block into a UserError that names the path and the setting."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{setting} = {str(path)!r} cannot be written: {error.strerror or error}. Give another {setting}.") from error


def write_json(path: Path, value: dict) -> None:
    """Writes JSON as ``write_text`` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text as ``write_bytes`` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file from the first process, by way of a temporary one, so that a kill leaves the old file or the new one.

    A pipe or a device of that name raises UserError: it would be waited for.
    """
    if not is_first():
        return
    path = replaceable(path, "the output")
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.write_bytes(content)
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices() -> dict:
    """Platform, kind and number of devices, and processes."""
    kind = jax.devices()[0].device_kind
    return {"platform": jax.default_backend(), "kind": kind, "count": jax.device_count(), "processes": jax.process_count()}


def _flatten(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _defaults() -> dict:
    """Settings by name that have a default: what a run did whose run.json is older than the setting."""
    found = {}
    for group, cls in typing.get_type_hints(Settings).items():
        for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():  # not those of a method, of which there are many
            if field.default is not dataclasses.MISSING:
                found[f"{group}.{field.name}"] = json.loads(json.dumps(field.default))
    return found


def _identity(run: dict) -> dict:
    """What makes a run the run it is, by name: settings, tasks, weights of the backbone, and what it was made from."""
    flat = _defaults() | _flatten(run.get("settings") or {})
    held = LAYOUT if flat["train.dropout_rate"] else ()
    flat = {name: value for name, value in flat.items() if (last := name.split(".")[-1]) in held or last not in FREE_TO_CHANGE}
    named = {"tasks": _entry(run, "tasks"), "weights of the backbone": _entry(run, "backbone.fingerprint"), **(run.get("made_from") or {})}
    return flat | {name: value for name, value in named.items() if value is not None}


def differences(old: dict, new: dict) -> list[str]:
    """What tells a run from another, each the content of a run.json: settings, tasks, weights, rows, prompts at the start, teachers.

    What an older version did not write into ``old`` is not compared; a setting that it did not have counts with its default.
    """
    new = json.loads(json.dumps(new))
    before, now = _identity(old), _identity(new)
    in_order = sorted(before, key=lambda name: (name != "tasks", name))
    changed = [name for name in in_order if now.get(name) != before[name]]
    if not changed and old.get("runs", new.get("runs")) != new.get("runs"):
        return ["seeds, learning rates, groups or few-shot rows of its runs"]
    return [f"{name}: {before[name]!r} there, {now.get(name)!r} now" for name in changed]


def check_same_run(folder: str | Path, old: dict, new: dict) -> None:
    """Raises UserError naming what differs if the folder, whose run.json is ``old``, holds another run than ``new``."""
    changed = differences(old, new)
    if changed:
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        message = f"MODEL_DIR = {str(folder)!r} holds a run of another configuration ({'; '.join(changed[:6])}{more})"
        raise UserError(f"{message}. Give another MODEL_DIR, or the settings, rows and weights of run.json to continue that run.")


def open_run_folder(model_dir: str, description: dict, config_gin: str) -> Path:
    """Makes the folder, or checks that it holds the same run. Writes run.json and config.gin. Returns the folder.

    Raises UserError listing what differs when the folder holds another run; nothing is written then.
    """
    folder = Path(model_dir).absolute()
    if os.path.lexists(folder / "run.json"):
        check_same_run(folder, read_run_json(folder), description)
    elif (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir()):
        message = f"MODEL_DIR = {str(folder)!r} holds checkpoints but no run.json, which says what they are of"
        raise UserError(f"{message}. Put it back, or give another MODEL_DIR.")
    with writes(folder, "MODEL_DIR"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "run.json", description)
        write_text(folder / "config.gin", config_gin)
    return folder
