"""T5X checkpoints: native (msgpack index + zarr arrays), legacy Flax msgpack, and Orbax.

The parameters lie under optimizer/target (native, legacy) or target (Orbax); the optimiser state beside them
is never read. Layouts: t5x/checkpoints.py, Checkpointer (VERSION 3) and OrbaxCheckpointManagerInterface.
"""

import ast
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.model.formats import msgpack_file, zarr
from mpt_jax.model.formats.arrays import LazyArray, unflatten
from mpt_jax.model.formats.files import Folder

INDEX = "checkpoint"  # name of the msgpack index in a native checkpoint's folder
VERSION = 3  # t5x/checkpoints.py; version 2 wrote bfloat16 as uint16
ORBAX_MARKS = ("_METADATA", "manifest.ocdbt")
ORBAX_ITEMS = ("state", "default", "params")  # T5X's item, Orbax' unnamed one, our runs'
ROOTS = ("optimizer/target/", "target/", "params/params/", "params/")
BANK = "bank/"  # where mpt_jax/t5x_bridge keeps the prompt bank in a T5X run's parameters
OLD_PLACEHOLDER = "PLACEHOLDER://"  # Orbax before its _METADATA file


def read(kind: str, path: str) -> dict[str, LazyArray]:
    """All parameters of a checkpoint of kind 't5x', 't5x_file' or 'orbax' by our names, prompt variables
    included."""
    if kind == "t5x_file":
        return read_file(path)
    return read_native(Folder(path)) if kind == "t5x" else read_orbax(Folder(path))


def is_prompt(name: str) -> bool:
    """Whether a parameter is a prompt variable (prompt_tuning/prompts.py, extended/multitask_prompts.py), or of a prompt bank."""
    return "prompt" in name.split("/") or name.startswith(BANK)


def read_native(folder: Folder) -> dict[str, LazyArray]:
    """All parameters of a native checkpoint by our names, prompt variables included; nothing is read yet."""
    return _from_index(folder, msgpack_file.read(folder, INDEX))


def read_file(path: str) -> dict[str, LazyArray]:
    """All parameters of a legacy checkpoint, which is one msgpack file."""
    folder, _, name = str(path).rpartition("/")
    folder = Folder(folder or ".")
    return _from_index(folder, msgpack_file.read(folder, name))


def _from_index(folder: Folder, index: Mapping[str, Any]) -> dict[str, LazyArray]:
    version = index.get("version", VERSION)
    if version != VERSION:
        raise UserError(
            f"{folder.path} is a T5X checkpoint of version {version}; version {VERSION} (since June 2021) is read. "
            "Restore and save it once with a current T5X."
        )
    target = index.get("optimizer", index)
    target = target.get("target", target.get("params", target))
    if not isinstance(target, Mapping) or not target:
        raise UserError(f"{folder.path} holds no optimizer/target; it has {', '.join(index)}.")
    arrays: dict[str, LazyArray] = {}
    _collect(folder, target, "", arrays)
    return arrays


def _collect(folder: Folder, node: Mapping[str, Any], prefix: str, arrays: dict[str, LazyArray]) -> None:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(value.get("driver"), str):
            name = _array_name(folder, path, value)
            arrays[path] = zarr.lazy(zarr.spec(folder.path, name), f"{folder.path}/{name}")
        elif isinstance(value, Mapping):
            _collect(folder, value, path + "/", arrays)
        elif isinstance(value, LazyArray):
            arrays[path] = value
        elif isinstance(value, str) and value.startswith(OLD_PLACEHOLDER):
            name = value[len(OLD_PLACEHOLDER) :]
            arrays[path] = zarr.lazy(zarr.spec(folder.path, name), f"{folder.path}/{name}")
        elif value is not None:
            raise UserError(f"{folder.path}: {path} is {value!r}, not an array.")


def _array_name(folder: Folder, path: str, row: Mapping[str, Any]) -> str:
    """Folder name of an array. The index of a checkpoint written to a bucket names another store: only the
    last part counts."""
    if row["driver"] == "cast":
        row = row["base"]
    name = str(row["kvstore"].get("path") or row.get("path", "")).rstrip("/").split("/")[-1]
    if row["driver"] != "zarr" or not name or name.startswith("."):
        raise UserError(f"{folder.path}: the index describes {path} by {dict(row)!r}; a zarr array's name is needed.")
    return name


def orbax_folder(folder: Folder) -> Folder | None:
    """The folder that holds the arrays of an Orbax checkpoint: itself or its item; None if it is no such
    checkpoint."""
    if any(folder.exists(mark) for mark in ORBAX_MARKS):
        return folder
    for item in ORBAX_ITEMS:
        if folder.has_folder(item) and any((folder / item).exists(mark) for mark in ORBAX_MARKS):
            return folder / item
    return None


def read_orbax(folder: Folder) -> dict[str, LazyArray]:
    """All parameters of an Orbax checkpoint (T5X's layout, or a plain tree of parameters) by our names."""
    inner = orbax_folder(folder)
    if inner is None or not inner.exists("_METADATA"):
        raise UserError(f"{folder.path} is no Orbax checkpoint of a tree: it has no _METADATA file.")
    try:
        metadata = json.loads(inner.read("_METADATA"))
        rows = {"/".join(ast.literal_eval(key)): row for key, row in metadata["tree_metadata"].items()}
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise UserError(f"{inner.where('_METADATA')} is damaged: {error}") from error
    root = next((root for root in ROOTS if any(path.startswith(root) for path in rows)), "")
    ocdbt = inner.exists("manifest.ocdbt")
    arrays = {}
    for path, row in rows.items():
        if not path.startswith(root) or row.get("value_metadata", {}).get("skip_deserialize"):
            continue
        name = path.replace("/", ".")
        spec = zarr.spec(inner.path, name, ocdbt, bool(metadata.get("use_zarr3")))
        arrays[path[len(root) :]] = zarr.lazy(spec, f"{inner.path}/{name}")
    return arrays


def steps(folder: Folder) -> list[str]:
    """Names of the checkpoints in a T5X model directory (checkpoint_3, ...), the latest last."""
    names = [name for name in folder.names() if name.startswith("checkpoint_") and name[len("checkpoint_") :].isdigit()]
    return sorted(names, key=lambda name: int(name[len("checkpoint_") :]))


def write_native(folder: str, arrays: Mapping[str, LazyArray], step: int = 0, chunk_bytes: int = zarr.CHUNK_BYTES) -> None:
    """Writes a native checkpoint of the parameters alone into an existing empty folder, chunks of at most `chunk_bytes`.

    It has the tree of T5X's InferenceState (no param_states: T5X stumbles over empty ones). Matrices become zarr folders,
    vectors lie in the index, as T5X writes them.
    """
    from flax import serialization

    target: dict[str, Any] = {}
    for path, lazy in arrays.items():
        *parents, leaf = path.split("/")
        node = target
        for parent in parents:
            node = node.setdefault(parent, {})
        array = lazy.load()
        small = array.ndim < 2 or leaf == "rel_embedding"
        node[leaf] = array if small else zarr.write(folder, "target." + path.replace("/", "."), array, chunk_bytes)
    index = {
        "version": VERSION,
        "optimizer": {"target": target, "state": {"step": np.asarray(step, np.int32)}},
    }
    with open(os.path.join(folder, INDEX), "wb") as file:
        file.write(serialization.msgpack_serialize(index))


def write_orbax(folder: str, arrays: Mapping[str, LazyArray], step: int = 0) -> None:
    """Writes the folder `state` of a T5X-on-Orbax checkpoint (all parameters in memory at once)."""
    import orbax.checkpoint as ocp

    target = unflatten((path, lazy.load()) for path, lazy in arrays.items())
    tree = {"target": target, "state": {"step": np.asarray(step, np.int32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
        checkpointer.save(os.path.join(os.path.abspath(folder), "state"), args=ocp.args.PyTreeSave(tree))
