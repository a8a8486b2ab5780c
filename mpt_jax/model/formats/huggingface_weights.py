"""The weight files of a Hugging Face folder, whatever the model: safetensors or torch's, whole or in shards with an index."""

import os

from mpt_jax.errors import UserError
from mpt_jax.model.formats import safetensors, torch_file
from mpt_jax.model.formats.arrays import FLOAT_TYPES, LazyArray, listed
from mpt_jax.model.formats.files import Folder
from mpt_jax.regular_files import shown

COMPARED_BYTES = 2**24  # of two embeddings at once
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read(folder: Folder) -> dict[str, LazyArray]:
    """Arrays by Hugging Face's names from whichever weight file the folder has, in the order of WEIGHTS."""
    for name in WEIGHTS:
        if not folder.exists(name):
            continue
        if not name.endswith(".index.json"):
            return _file(folder, name)
        return _shards(folder, name)
    raise UserError(f"{folder.path} has a config.json but no weights; looked for {', '.join(WEIGHTS)}.")


def _file(folder: Folder, name: str) -> dict[str, LazyArray]:
    arrays = safetensors.read(folder, name)[0] if name.endswith(".safetensors") else torch_file.read(folder, name)
    for key, lazy in arrays.items():
        if lazy.dtype not in FLOAT_TYPES.values():
            raise UserError(f"{lazy.source} ({key}) has type {lazy.dtype}; weights may be {', '.join(FLOAT_TYPES)}.")
    return arrays


def _shards(folder: Folder, index_name: str) -> dict[str, LazyArray]:
    shard_of = folder.read_json(index_name).get("weight_map", {})
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise UserError(f"{folder.where(index_name)}: weight_map is {shown(shard_of)}, not names of files by names of arrays.")
    arrays: dict[str, LazyArray] = {}
    for name in sorted(set(shard_of.values())):
        if os.path.basename(name) != name or not name.isprintable() or not name.endswith((".safetensors", ".bin")):
            raise UserError(f"{folder.where(index_name)} names the shard {shown(name)}, which is not a weight file in the folder itself.")
        if not folder.exists(name):
            count = sum(where == name for where in shard_of.values())
            raise UserError(f"{folder.where(name)} is missing; {index_name} lists {count} arrays in it. Copy or download it again.")
        shard = _file(folder, name)
        absent = {key for key, where in shard_of.items() if where == name} - shard.keys()
        if absent:
            raise UserError(f"{folder.where(name)} lacks {listed(absent)}, which {index_name} lists in it.")
        arrays.update({key: lazy for key, lazy in shard.items() if shard_of.get(key) == name})
    return arrays


def equal(first: LazyArray, second: LazyArray) -> bool:
    """Whether two arrays hold the same numbers, compared a block of rows at a time."""
    if first.shape != second.shape:
        return False
    if len(first.shape) != 2 or (first.origin is not None and first.origin == second.origin):
        return True  # of another number of axes: names.match tells
    rows = max(1, COMPARED_BYTES // max(1, first.shape[1] * first.dtype.itemsize))
    for start in range(0, first.shape[0], rows):
        index = (slice(start, start + rows), slice(None))
        if first.load(index=index).tobytes() != second.load(first.dtype, index).tobytes():
            return False
    return True
