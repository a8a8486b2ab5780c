"""Decoder-only models in one GGUF file (llama.cpp): shape, weights, quantised or not, and tokenizer.

Quantised weights are turned into numbers by the library `gguf`, in blocks of rows, so that no whole array is held twice.
Keys and what they mean: llama.cpp's src/llama-model.cpp and convert_hf_to_gguf.py.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.gguf_parts import Tensor, parts
from mpt_jax.model.families.causal import FAMILY
from mpt_jax.model.families.causal_config import LLAMA_31, MOST_LAYERS, CausalConfig, Rotary
from mpt_jax.model.formats import memory, names
from mpt_jax.model.formats.arrays import Index, LazyArray, raw
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.rotary import frequencies
from mpt_jax.regular_files import shown

NUMBERS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
DEQUANTISED_BYTES = 2**20  # made at once; several times as much passes through while it is made
ROPE_FACTORS = "rope_freqs.weight"  # what Llama 3.1's stretching divides each pair's frequency by
# keys after the architecture's name: read below, or of no consequence for the arithmetic
READ_KEYS = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "vocab_size", "context_length",
)  # fmt: skip
_WINDOW_KEYS = ("attention.sliding_window", "final_logit_softcapping")
_GEMMA = {"activation": "gelu", "norm_plus_one": True, "scaled_embedding": True}
_GEMMA_3 = _GEMMA | {"post_norms": True, "query_key_norm": True, "window_rotary": Rotary(10_000.0)}


class Architecture(NamedTuple):
    """A row, by general.architecture. facts: CausalConfig's fields that its models have in common; keys: those it has besides READ_KEYS.

    every: each so-maniest layer sees everything, the others have a window. neighbours: queries and keys are turned by pairs of
    neighbours, so their rows come in another order. scaled_by_width: layers of the size whose queries are scaled by width over heads.
    """

    facts: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    every: int = 0
    neighbours: bool = False
    scaled_by_width: int = 0


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture({}, neighbours=True),
    "qwen2": Architecture({"query_key_value_bias": True}),
    "qwen3": Architecture({"query_key_norm": True}),
    "gemma": Architecture(_GEMMA),
    "gemma2": Architecture(_GEMMA | {"post_norms": True}, (*_WINDOW_KEYS, "attn_logit_softcapping"), 2, scaled_by_width=46),
    "gemma3": Architecture(_GEMMA_3, (*_WINDOW_KEYS, "rope.freq_base_swa"), 6, scaled_by_width=62),
}


def read(path: str) -> tuple[CausalConfig, dict[str, LazyArray], str]:
    """(config, arrays by our names, not read yet, vocabulary: the file itself). Raises UserError saying what is unknown or damaged."""
    fields, tensors = parts(path)
    kind = fields.get("general.architecture")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise UserError(f"{path}: general.architecture = {shown(kind)} is none of {', '.join(ARCHITECTURES)}.")
    if fields.get("split.count", 1) not in (0, 1):
        raise UserError(f"{path} is one of {shown(fields['split.count'])} parts of a model; join them with llama-gguf-split --merge.")
    row, tensors = ARCHITECTURES[kind], dict(tensors)
    factors = tensors.pop(ROPE_FACTORS, None)
    config = Keys(path, kind, fields).config(row, tensors)
    if factors is not None:
        config = _stretched(config, lazy_array(factors, ROPE_FACTORS, path), path)
    names.check_layers(config, tensors, path)
    arrays = {name: lazy_array(tensor, name, path) for name, tensor in tensors.items()}
    if row.neighbours:
        for name in arrays:
            if name.endswith((".attn_q.weight", ".attn_k.weight")):
                arrays[name] = _halves(arrays[name], config.head_dim)
    if config.norm_plus_one:
        arrays = {name: _less_one(lazy) if name.endswith("norm.weight") else lazy for name, lazy in arrays.items()}
    return names.named(config), names.match(config, arrays, names.GGUF, path), path


class Keys:
    """The metadata of an architecture."""

    def __init__(self, path: str, kind: str, fields: Mapping[str, Any]):
        self.path, self.kind, self.fields = path, kind, fields

    def number(self, key: str, default: Any = None) -> Any:
        value = self.fields.get(f"{self.kind}.{key}", default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise UserError(f"{self.path}: {self.kind}.{key} = {shown(value)}; it takes a number from 0 on.")
        # in float32, as the file has it: 1e-5 comes as 9.99999974e-06
        return float(np.format_float_positional(np.float32(value), unique=True)) if isinstance(value, float) else value

    def config(self, row: Architecture, tensors: Mapping[str, Tensor]) -> CausalConfig:
        """The shape. Raises UserError for a key that is missing, unknown or means what is not done here."""
        start, known = f"{self.kind}.", (*READ_KEYS, *row.keys)
        unknown = [key for key in self.fields if key.startswith(start) and key.removeprefix(start) not in known]
        if unknown:
            value = shown(self.fields[unknown[0]])
            raise UserError(f"{self.path} says {shown(unknown[0])} = {value}, which is not known here and may change the arithmetic.")
        if len(tensors.get("token_embd.weight", Tensor("", (), 0, 0)).shape) != 2:
            raise UserError(f"{self.path} has no token_embd.weight, a table of tokens and widths.")
        heads, width, layers = (self.number(key) for key in ("attention.head_count", "embedding_length", "block_count"))
        head_dim = self.number("attention.key_length", width // heads if type(width) is type(heads) is int and heads else 0)
        for key in ("rope.dimension_count", "attention.value_length"):
            if self.number(key, head_dim) != head_dim:
                found = f"{self.path}: {self.kind}.{key} = {self.number(key)}"
                raise UserError(f"{found}, but keys of a head have {head_dim} numbers; that is not known here.")
        facts = {**row.facts, **self._windows(row, layers), "logits_via_embedding": "output.weight" not in tensors}
        if row.scaled_by_width and layers == row.scaled_by_width and heads and width:
            facts["query_scale"] = (width / heads) ** -0.5
        fields = {
            "name": "custom", "vocab_size": tensors["token_embd.weight"].shape[0], "d_model": width, "num_layers": layers,
            "num_heads": heads, "num_kv_heads": self.number("attention.head_count_kv", heads), "head_dim": head_dim,
            "d_ff": self.number("feed_forward_length"),
            "norm_epsilon": self.number("attention.layer_norm_rms_epsilon"), "rotary": self._rotary(),
            "max_positions": self.number("context_length", 0), **facts,
        }  # fmt: skip
        return names.make_config(FAMILY, fields, self.path)

    def _rotary(self) -> Rotary:
        scaling = self.fields.get(f"{self.kind}.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise UserError(f"{self.path}: {self.kind}.rope.scaling.type = {shown(scaling)}; 'none' and 'linear' are known.")
        factor = self.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
        try:
            return Rotary(float(self.number("rope.freq_base", 1_000_000.0 if self.kind == "gemma3" else 10_000.0)), float(factor))
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    def _windows(self, row: Architecture, layers: Any) -> dict[str, Any]:
        """Windows, their positions and caps of the architectures that have such."""
        found: dict[str, Any] = {}
        if row.every and type(layers) is int and layers <= MOST_LAYERS:
            window = self.number("attention.sliding_window")
            found |= {"window": window, "layer_kinds": tuple("window" if (layer + 1) % row.every else "full" for layer in range(layers))}
        for field, key in (("attention_cap", "attn_logit_softcapping"), ("logits_cap", "final_logit_softcapping")):
            default = {"attention_cap": 50.0, "logits_cap": 30.0}[field] if self.kind == "gemma2" else 0.0
            if key in row.keys:
                found[field] = float(self.number(key, default))
        if "rope.freq_base_swa" in row.keys:
            found["window_rotary"] = Rotary(float(max(self.number("rope.freq_base_swa", 10_000.0), 1.0)))
        return found


def _stretched(config: CausalConfig, lazy: LazyArray, path: str) -> CausalConfig:
    """The shape with Llama 3.1's stretched positions, of which the file has the factors alone."""
    if lazy.shape != (config.head_dim // 2,):
        raise UserError(f"{path}: {ROPE_FACTORS} has shape {lazy.shape}, not {(config.head_dim // 2,)}.")
    factors = lazy.load(np.float32)
    if np.all(factors == 1):
        return config
    try:
        rotary = dataclasses.replace(LLAMA_31, base=config.rotary.base, factor=float(factors.max()))
        wanted = frequencies(Rotary(config.rotary.base), config.head_dim) / frequencies(rotary, config.head_dim)
    except UserError as error:
        raise UserError(f"{path}: {ROPE_FACTORS}: {error}") from error
    if config.rotary.factor != 1 or not np.allclose(factors, wanted, rtol=1e-4):
        raise UserError(f"{path}: {ROPE_FACTORS} stretches positions in another way than Llama 3.1; that is not known here.")
    return dataclasses.replace(config, rotary=rotary)


def lazy_array(tensor: Tensor, name: str, path: str) -> LazyArray:
    """An array of the file, not read yet."""
    folder, file, source = Folder(os.path.dirname(path) or "."), os.path.basename(path), f"{path}: {name}"
    if tensor.kind in NUMBERS:
        return raw(folder, file, tensor.start, NUMBERS[tensor.kind], tensor.shape, source)
    if tensor.kind not in QUANTISED:
        raise UserError(f"{source} is of type {tensor.kind}; {', '.join((*NUMBERS, *QUANTISED))} are read.")
    if len(tensor.shape) < 2 or not tensor.bytes:
        raise UserError(f"{source} of type {tensor.kind} has the shape {tensor.shape}; only matrices are quantised.")
    import gguf

    kind = gguf.GGMLQuantizationType[tensor.kind]
    row_bytes, row_numbers = tensor.bytes // tensor.shape[0], math.prod(tensor.shape[1:])
    rows_at_once = max(DEQUANTISED_BYTES // (4 * row_numbers), 1)

    def fill(out: np.ndarray, index: Index) -> None:
        rows, columns = index[0], index[1:]
        packed = memory.empty((min(rows_at_once, max(rows.stop - rows.start, 0)), row_bytes), np.uint8, source)
        for start in range(rows.start, rows.stop, rows_at_once):
            block = packed[: min(rows_at_once, rows.stop - start)]
            folder.read_into(file, tensor.start + start * row_bytes, block)
            numbers = gguf.quants.dequantize(block, kind).reshape(len(block), *tensor.shape[1:])
            out[start - rows.start : start - rows.start + len(block)] = numbers[(slice(None), *columns)]

    return LazyArray(tensor.shape, np.dtype(np.float32), source, fill, None, 6 * rows_at_once * 4 * row_numbers)


def _halves(lazy: LazyArray, head_dim: int) -> LazyArray:
    """Rows of heads whose pairs are neighbours, in the order in which a pair is a number of either half. A head at a time."""

    def fill(out: np.ndarray, index: Index) -> None:
        rows, columns = index
        for first in range(rows.start - rows.start % head_dim, rows.stop, head_dim):
            stop = min(first + head_dim, lazy.shape[0])
            head = lazy.read(np.float32, (slice(first, stop), columns))
            turned = head.reshape(head_dim // 2, 2, -1).swapaxes(0, 1).reshape(head.shape)
            low, high = max(first, rows.start), min(stop, rows.stop)
            out[low - rows.start : high - rows.start] = turned[low - first : high - first]

    whole_heads = len(lazy.shape) == 2 and lazy.shape[0] % head_dim == 0
    return LazyArray(lazy.shape, lazy.dtype, lazy.source, fill, None, lazy.beside + 8 * head_dim * lazy.shape[-1]) if whole_heads else lazy


def _less_one(lazy: LazyArray) -> LazyArray:
    """llama.cpp adds to Gemma's norms the one that they multiply by."""

    def fill(out: np.ndarray, index: Index) -> None:
        out[...] = lazy.read(np.float32, index) - 1.0

    return LazyArray(lazy.shape, lazy.dtype, lazy.source, fill, None, lazy.beside + 4 * math.prod(lazy.shape))
