"""Zarr arrays through TensorStore: a folder of chunks, plain or inside an OCDBT database.

TensorStore ends the process where memory for a chunk is not given, and reads a missing chunk as zeros: so the metadata of an
array is checked here before TensorStore sees it, and all chunks are looked for before one is read.
"""

import collections
import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import tensorstore as ts

from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import FLOAT_TYPES, Index, LazyArray, check_shape
from mpt_jax.model.formats.files import REMOTE_SECONDS, is_remote, kvstore_spec
from mpt_jax.regular_files import check_regular, parse_json, shown

AT_ONCE_BYTES = 16 * 2**20  # chunks of an array read at once: each lives twice (compressed, decoded) beside the array it is copied to
CHUNK_BYTES = 8 * 2**20  # of what is written here; T5X: 64 MiB, but smaller chunks need less memory to read
METADATA = {"zarr": ".zarray", "zarr3": "zarr.json"}
COMPRESSORS = ("gzip", "zlib", "zstd")  # T5X's and Orbax'; blosc takes the memory that its chunk asks for
CODECS = ("bytes", "transpose", "crc32c", *COMPRESSORS)
MOST_ARRAYS = 20_000
MOST_METADATA, MOST_MANIFEST = 2**20, 2**24  # bytes of an array's metadata, and of a database's first file
MOST_CHUNKS = 100_000
ERRORS = (ValueError, OSError, RuntimeError, IndexError, TimeoutError)  # what TensorStore's refusals become in Python
# what a file may be larger than on disk: a whole of zeros packs 1,000 times at gzip's best, weights hardly twice
UNPACKED_BYTES, UNPACKED_TIMES = 64 * 2**20, 1100


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What an array's metadata says: shape of array and stored chunks, type, and how the chunks' keys are spelled."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    prefix: str  # of a key
    separator: str  # between the numbers of a key

    def keys(self) -> set[str]:
        """The keys of all chunks."""
        grid = [range(-(-size // part)) for size, part in zip(self.shape, self.chunk, strict=True)]
        if not grid:
            return {self.prefix.rstrip("/.") or "0"}
        return {self.prefix + self.separator.join(map(str, chunk)) for chunk in itertools.product(*grid)}


def spec(folder: str, name: str, ocdbt: bool = False, zarr3: bool = False) -> dict:
    """TensorStore's description of the array `name` ('target.encoder...') of a checkpoint folder."""
    store = _store(folder, ocdbt)
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store | {"path": store.get("path", "") + name + "/"}}


def _store(folder: str, ocdbt: bool) -> dict:
    """TensorStore's description of what holds a checkpoint folder's arrays."""
    if not ocdbt:
        return kvstore_spec(folder)
    base = folder if is_remote(folder) else "file://" + os.path.abspath(folder)
    return {"driver": "ocdbt", "base": base.rstrip("/") + "/"}


def _stored(path: str, head: str, most_bytes: int) -> dict[str, int]:
    """Bytes of each file in a local folder. UserError for what is neither file nor folder, and for a `head` that is too large.

    TensorStore would wait forever for a pipe, and end the process where a file does not fit into memory.
    """
    sizes = {}
    for root, _, files in os.walk(path):
        sizes |= {os.path.join(root, name): check_regular(os.path.join(root, name)) for name in files}
    if sizes.get(f"{path}/{head}", 0) > most_bytes:
        raise UserError(f"{path}/{head} has {sizes[f'{path}/{head}']:,} bytes; at most {most_bytes:,} are read.")
    return sizes


def _check_sizes(layout: _Layout, files: dict[str, int], source: str) -> None:
    """UserError for a file that is larger than a chunk can be, however badly it packs."""
    most = MOST_METADATA + 2 * math.prod(layout.chunk) * layout.dtype.itemsize
    large = max(files, key=lambda name: files[name])
    if files[large] > most:
        raise UserError(f"{large} has {files[large]:,} bytes; a chunk of {source} has at most {most:,}. The checkpoint is damaged.")


def read(folder: str, names: Iterable[str], ocdbt: bool = False, zarr3: bool = False) -> dict[str, LazyArray]:
    """Arrays of a checkpoint folder by their names there, not read yet; all of them are opened at once.

    Raises UserError for one that is missing, whose metadata is damaged, or that is far larger than the files that hold it.
    """
    names, key = list(names), METADATA["zarr3" if zarr3 else "zarr"]
    if len(names) > MOST_ARRAYS:
        raise UserError(f"{folder} names {len(names):,} arrays; a checkpoint has at most {MOST_ARRAYS:,}.")
    database = _stored(folder, "manifest.ocdbt", MOST_MANIFEST) if ocdbt and not is_remote(folder) else None
    context = ts.Context()
    kvstore = _wait(ts.KvStore.open(_store(folder, ocdbt), context=context), folder)
    waiting, layouts = [], {}
    for name in names:
        files = database if ocdbt or is_remote(folder) else _stored(f"{folder}/{name}", key, MOST_METADATA)
        waiting.append((name, files, kvstore.read(f"{name}/{key}")))
    for name, files, future in waiting:
        layouts[name] = _layout(_wait(future, f"{folder}/{name}"), files, f"{folder}/{name}", key)
        if files is not None and not ocdbt:
            _check_sizes(layouts[name], files, f"{folder}/{name}")
    opened = {name: ts.open(spec(folder, name, ocdbt, zarr3), open=True, read=True, context=context) for name in names}
    return {name: _lazy(_wait(opened[name], f"{folder}/{name}"), layouts[name], f"{folder}/{name}") for name in names}


def _layout(found: Any, files: dict[str, int] | None, source: str, key: str) -> _Layout:
    """The layout in an array's metadata. files: bytes of those that hold the array, None where they are not counted."""
    if found.state != "value":
        raise UserError(f"{source} is missing: the checkpoint names it, but it has no files. Copy the checkpoint again.")
    if len(found.value) > MOST_METADATA:
        raise UserError(f"{source}/{key} has {len(found.value):,} bytes; at most {MOST_METADATA:,} are read.")
    settings = parse_json(found.value, f"{source}/{key}")
    layout = (_layout3 if key == METADATA["zarr3"] else _layout2)(settings, f"{source}/{key}")
    size, stored = math.prod(layout.shape) * layout.dtype.itemsize, sum((files or {}).values())
    if files is not None and size > UNPACKED_BYTES + UNPACKED_TIMES * stored:
        raise UserError(f"{source} has {size:,} bytes by its shape {shown(layout.shape)}, its files {stored:,}: it is damaged.")
    return layout


def _wait(future: Any, source: str) -> Any:
    try:
        return future.result(timeout=REMOTE_SECONDS)
    except ERRORS as error:
        raise UserError(f"{source} cannot be opened: {line(error)}") from error


def line(error: Exception) -> str:
    """The message of one of TensorStore's errors without its addresses in TensorStore's source."""
    return re.sub(r"\s+", " ", str(error)).split(" [source locations=")[0] or "no answer"


def write_failure(error: Exception) -> OSError:
    """What TensorStore says where a disk is full or a folder forbidden, as the system says it."""
    return OSError(0, re.sub(r" \[os_error_code.*", "", line(error)).split(": ")[-1])


def _lazy(store: ts.TensorStore, layout: _Layout, source: str) -> LazyArray:
    chunk = store.chunk_layout.read_chunk.shape or ()  # None for a single number
    chunk_bytes = math.prod(map(min, chunk, store.shape)) * layout.dtype.itemsize
    at_once = max(1, AT_ONCE_BYTES // max(chunk_bytes, 1))

    def fill(out: np.ndarray, index: Index) -> None:
        _check_chunks(store.kvstore, layout, source)
        part = store if out.dtype == layout.dtype else ts.cast(store, _type(out.dtype))
        waiting: collections.deque[ts.Future] = collections.deque()
        try:
            for box in itertools.product(*map(_cuts, index, chunk)):
                if len(waiting) == at_once:
                    waiting.popleft().result()
                where = tuple(slice(cut.start - whole.start, cut.stop - whole.start) for cut, whole in zip(box, index, strict=True))
                waiting.append(ts.array(out[where] if box else out).write(part[box] if box else part))
            while waiting:
                waiting.popleft().result()
        except ERRORS as error:
            raise UserError(f"{source} is damaged or cannot be read: {line(error)}") from error

    return LazyArray(layout.shape, layout.dtype, source, fill, beside=2 * at_once * chunk_bytes)


def _cuts(index: slice, size: int) -> list[slice]:
    """A range cut where chunks of so many elements end."""
    starts = [index.start, *range((index.start // size + 1) * size, index.stop, size)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], index.stop], strict=True)]


def _type(dtype: np.dtype) -> ts.dtype:
    return ts.dtype("bfloat16" if dtype == FLOAT_TYPES["bfloat16"] else dtype.name)


def _check_chunks(kvstore: ts.KvStore, layout: _Layout, source: str) -> None:
    """UserError if one of the array's chunks is not there; files that are none of them do not count."""
    wanted = layout.keys()
    try:
        missing = wanted - {key.decode(errors="replace") for key in kvstore.list().result()}
    except ERRORS as error:
        raise UserError(f"{source} is damaged or cannot be read: {line(error)}") from error
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of its {len(wanted)} chunk files ({min(missing)}), which would be read as zeros. Copy the "
            "checkpoint again."
        )


def _layout2(settings: Any, source: str) -> _Layout:
    """The layout in a .zarray."""
    settings = settings if isinstance(settings, dict) else {}
    compressor = settings.get("compressor", 0)
    packing = compressor.get("id") if isinstance(compressor, dict) else compressor
    separator = settings.get("dimension_separator", ".")
    facts = {"zarr_format": 2, "filters": (None, []), "order": ("C", "F"), "dimension_separator": (".", "/")}
    for key, allowed in facts.items():
        value = settings.get(key, "." if key == "dimension_separator" else None)
        if value not in (allowed if isinstance(allowed, tuple) else (allowed,)) or isinstance(value, bool):
            raise _unknown(source, key, value)
    if packing is not None and (not isinstance(packing, str) or packing not in COMPRESSORS):
        raise _unknown(source, "compressor", compressor)
    name = settings.get("dtype")
    known = isinstance(name, str) and (name == "bfloat16" or re.fullmatch(r"<[fiu][248]|\|[iub]1", name))
    if not known:
        raise _unknown(source, "dtype", name)
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return _Layout(*_shapes(settings.get("shape"), settings.get("chunks"), source), dtype, "", separator)


def _layout3(settings: Any, source: str) -> _Layout:
    """The layout in a zarr.json."""
    try:
        grid, keys = settings["chunk_grid"], settings["chunk_key_encoding"]
        chunk, codecs, kind = grid["configuration"]["chunk_shape"], settings["codecs"], settings["data_type"]
        encoding, separator = keys["name"], (keys.get("configuration") or {}).get("separator")
        facts = (settings["zarr_format"], settings["node_type"], grid["name"], settings.get("storage_transformers", []))
        shapes = _shapes(settings.get("shape"), chunk, source)
        _check_codecs(codecs, shapes[1], source)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} is damaged: it does not say {shown(error.args[0] if error.args else error)}.") from error
    if facts != (3, "array", "regular", []):
        raise _unknown(source, "zarr_format, node_type, chunk_grid, storage_transformers", facts)
    if encoding not in ("default", "v2") or separator not in (None, ".", "/"):
        raise _unknown(source, "chunk_key_encoding", keys)
    known = {**FLOAT_TYPES, **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint32", "bool")}}
    if not isinstance(kind, str) or kind not in known:
        raise _unknown(source, "data_type", kind)
    separator = separator or ("/" if encoding == "default" else ".")
    return _Layout(*shapes, known[kind], f"c{separator}" if encoding == "default" else "", separator)


def _check_codecs(codecs: Any, shard: Sequence[int], source: str) -> None:
    """UserError for a codec that is not known, or a shard's inner chunk that does not fit into it."""
    for codec in codecs:
        if codec["name"] == "sharding_indexed":
            inner = codec["configuration"]
            _shapes(shard, inner["chunk_shape"], source)
            _check_codecs([*inner["codecs"], *inner["index_codecs"]], inner["chunk_shape"], source)
        elif codec["name"] not in CODECS:
            raise _unknown(source, "codecs", codec)


def _shapes(shape: Any, chunk: Any, source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, chunk shape). UserError unless both are whole numbers, as many, and the chunks lie within the array."""
    shape, chunk = check_shape(shape, source), check_shape(chunk, source)
    if len(shape) != len(chunk) or not all(1 <= part <= max(size, 1) for size, part in zip(shape, chunk, strict=True)):
        raise UserError(f"{source} is damaged: chunks of shape {shown(chunk)} do not divide an array of shape {shown(shape)}.")
    if math.prod(-(-size // part) for size, part in zip(shape, chunk, strict=True)) > MOST_CHUNKS:
        raise UserError(f"{source} is damaged: shape {shown(shape)} in chunks of {shown(chunk)} makes more than {MOST_CHUNKS:,} files.")
    return shape, chunk


def _unknown(source: str, key: str, value: Any) -> UserError:
    return UserError(f"{source} says {key} = {shown(value)}, which no checkpoint of T5X or Orbax has; it is damaged or of another program.")


def chunk_shape(shape: tuple[int, ...], itemsize: int, most_bytes: int) -> list[int]:
    """A divisor of each size, largest axes cut first, so that a chunk has at most so many bytes (as T5X
    chooses)."""
    chunk = list(shape)
    while math.prod(chunk) * itemsize > most_bytes:
        axis = int(np.argmax(chunk))
        size = chunk[axis]
        chunk[axis] = next(part for part in range(size - 1, 0, -1) if shape[axis] % part == 0)
    return chunk


def write(folder: str, name: str, array: np.ndarray, chunk_bytes: int = CHUNK_BYTES) -> dict:
    """Writes one array as gzip'ed zarr chunks of at most so many bytes; returns the row that T5X's index holds for it.

    Raises OSError if it cannot be written.
    """
    metadata = {
        "chunks": chunk_shape(array.shape, array.dtype.itemsize, chunk_bytes),
        "compressor": {"id": "gzip", "level": 1},
        "dtype": "bfloat16" if array.dtype == FLOAT_TYPES["bfloat16"] else array.dtype.str,
        "shape": list(array.shape),
    }
    full = {**spec(folder, name), "metadata": metadata, "store_data_equal_to_fill_value": True}
    try:
        ts.open(full, create=True, open=False).result().write(array).result()
    except ERRORS as error:
        raise write_failure(error) from error
    return {
        "driver": "zarr",
        "dtype": _type(array.dtype).name,
        "kvstore": {"driver": "file", "path": name},
        "metadata": metadata,
    }
