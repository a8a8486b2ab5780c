"""The folder of a run: config.gin, run.json, metrics.jsonl, TensorBoard events, checkpoints/, eval/."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import jax

from mpt_jax.distributed import is_first
from mpt_jax.errors import UserError
from mpt_jax.output import replaceable

VERSIONED = ("mpt_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# changing these does not change what a run computes, up to the order of sums
FREE_TO_CHANGE = (
    "model_dir", "checkpoint_steps", "log_steps", "cache_dir", "prefetch", "data", "fsdp", "tensor", "remat", "skip_damaged_checkpoints",
    "trust_caches",
)  # fmt: skip


def write_json(path: Path, value: dict) -> None:
    """Writes JSON from the first process, by way of a temporary file, so that a kill leaves the old file or the new one."""
    if not is_first():
        return
    path = replaceable(path, "the output")
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
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


def open_run_folder(model_dir: str, description: dict, config_gin: str) -> Path:
    """Makes the folder, or checks that it holds the same run. Writes run.json and config.gin. Returns the folder.

    Raises UserError listing the settings that differ when the folder holds another run's configuration.
    """
    folder = Path(model_dir).absolute()
    path = folder / "run.json"
    if path.exists():
        old, new = (_flatten(json.loads(json.dumps(d))["settings"]) for d in (json.loads(path.read_text()), description))
        names = sorted(name for name in old.keys() | new.keys() if name.split(".")[-1] not in FREE_TO_CHANGE)
        changed = [f"{name}: {old.get(name)!r} there, {new.get(name)!r} now" for name in names if old.get(name) != new.get(name)]
        if changed:
            message = f"MODEL_DIR = {str(folder)!r} holds a run of another configuration ({'; '.join(changed[:6])})"
            raise UserError(f"{message}. Give another MODEL_DIR, or the settings of {path.name} to continue that run.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, description)
        if is_first():
            (folder / "config.gin").write_text(config_gin)
    except OSError as error:
        raise UserError(f"MODEL_DIR = {str(folder)!r} cannot be written: {error.strerror}. Give another MODEL_DIR.") from error
    return folder
