"""T5X checkpoints: native (msgpack index + zarr arrays), legacy Flax msgpack, and Orbax.

The parameters lie under optimizer/target (native, legacy) or target (Orbax); the optimiser state beside them
is never read. Layouts: t5x/checkpoints.py, Checkpointer (VERSION 3) and OrbaxCheckpointManagerInterface.
"""

import ast
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK
from mpt_jax.model.formats import msgpack_file, zarr
from mpt_jax.model.formats.arrays import LazyArray, check_name, listed, unflatten
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

INDEX = "checkpoint"  # name of the msgpack index in a native checkpoint's folder
VERSION = 3  # t5x/checkpoints.py; version 2 wrote bfloat16 as uint16
ORBAX_MARKS = ("_METADATA", "manifest.ocdbt")
ORBAX_ITEMS = ("state", "default", "params")  # T5X's item, Orbax' unnamed one, our runs'
ROOTS = ("optimizer/target/", "target/", "params/params/", "params/")
MOST_KEY = 1000  # letters of a path in Orbax' _METADATA
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
    if version != VERSION or isinstance(version, bool):
        raise UserError(
            f"{folder.path} is a T5X checkpoint of version {shown(version)}; version {VERSION} (since June 2021) is read. "
            "Restore and save it once with a current T5X."
        )
    target: Any = index.get("optimizer", index)
    if isinstance(target, Mapping):
        target = target.get("target", target.get("params", target))
    if not isinstance(target, Mapping) or not target:
        raise UserError(f"{folder.path} holds no optimizer/target; it has {listed(index) or 'nothing'}.")
    found: dict[str, LazyArray | str] = {}
    for path, value in _leaves(target):
        if path in found:
            raise UserError(f"{folder.path}: the index names {path} twice; it is damaged.")
        found[path] = _indexed(folder, path, value)
    stored = zarr.read(folder.path, {name for name in found.values() if isinstance(name, str)})
    return {path: stored[value] if isinstance(value, str) else value for path, value in found.items()}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, what the index says of it) of each array; msgpack_file.py bounds how deep an index is."""
    for key, value in node.items():
        if isinstance(value, Mapping) and not isinstance(value.get("driver"), str):
            yield from _leaves(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", value


def _indexed(folder: Folder, path: str, value: Any) -> LazyArray | str:
    """The array of a leaf, where it is in the index itself, or the name of its zarr folder."""
    if isinstance(value, LazyArray):
        return value
    if isinstance(value, Mapping):
        return _array_name(folder, path, value)
    if isinstance(value, str) and value.startswith(OLD_PLACEHOLDER):
        return _checked_name(folder, path, value[len(OLD_PLACEHOLDER) :])
    raise UserError(f"{folder.path}: {path} is {shown(value)}, not an array.")


def _array_name(folder: Folder, path: str, row: Mapping[str, Any]) -> str:
    """Folder name of an array. The index of a checkpoint written to a bucket names another store: only the
    last part counts."""
    inner = row.get("base") if row["driver"] == "cast" else row
    store = inner.get("kvstore") if isinstance(inner, Mapping) else None
    if not isinstance(store, Mapping) or inner.get("driver") != "zarr":
        raise UserError(f"{folder.path}: the index describes {path} by {shown(dict(row))}; a zarr array's name is needed.")
    name = store.get("path") or inner.get("path", "")
    return _checked_name(folder, path, name.rstrip("/").split("/")[-1] if isinstance(name, str) else name)


def _checked_name(folder: Folder, path: str, name: Any) -> str:
    """The name of an array's folder inside the checkpoint. UserError for what is none, or leads outside."""
    if not isinstance(name, str) or not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise UserError(f"{folder.path}: {path} lies in {shown(name)}, which is not the name of a folder of the checkpoint.")
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
        raise UserError(f"{folder.path} is not an Orbax checkpoint of a tree: it has no _METADATA file.")
    metadata = inner.read_json("_METADATA")
    rows = _orbax_rows(inner, metadata.get("tree_metadata"))
    root = next((root for root in ROOTS if any(path.startswith(root) for path in rows)), "")
    names = {}
    for path, row in rows.items():
        facts = row.get("value_metadata")
        if path.startswith(root) and not (isinstance(facts, Mapping) and facts.get("skip_deserialize")):
            names[path[len(root) :]] = _checked_name(inner, path, path.replace("/", "."))
    stored = zarr.read(inner.path, set(names.values()), inner.exists("manifest.ocdbt"), bool(metadata.get("use_zarr3")))
    return {path: stored[name] for path, name in names.items()}


def _orbax_rows(folder: Folder, tree: Any) -> dict[str, Mapping[str, Any]]:
    """The rows of a _METADATA file by path; its keys are tuples as Python writes them."""
    where = folder.where("_METADATA")
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} is damaged: its tree_metadata is {shown(tree)}, not arrays by path.")
    rows = {}
    for key, row in tree.items():
        try:
            parts = ast.literal_eval(key) if len(key) < MOST_KEY else None
            path = "/".join(parts) if isinstance(parts, tuple) and isinstance(row, Mapping) else ""
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            path = ""
        if not path:
            raise UserError(f"{where} is damaged: {shown(key)} is not the path of an array.")
        rows[check_name(path, where)] = row
    return rows


def steps(folder: Folder) -> list[str]:
    """Names of the checkpoints in a T5X model directory (checkpoint_3, ...), the latest last."""
    names = [name for name in folder.names() if re.fullmatch(r"checkpoint_[0-9]{1,18}", name)]
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
    """Writes the folder `state` of a T5X-on-Orbax checkpoint (all parameters in memory at once). Raises OSError if it cannot."""
    import orbax.checkpoint as ocp

    target = unflatten((path, lazy.load()) for path, lazy in arrays.items())
    tree = {"target": target, "state": {"step": np.asarray(step, np.int32)}}
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # Orbax prints the stack of each of its threads where a disk is full
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True)) as checkpointer:
            checkpointer.save(os.path.join(os.path.abspath(folder), "state"), args=ocp.args.PyTreeSave(tree))
    except zarr.ERRORS as error:
        raise zarr.write_failure(error) from error
    finally:
        logger.setLevel(level)
