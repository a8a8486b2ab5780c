"""Decoder-only models in one GGUF file (llama.cpp), read by the library `gguf`: shape, weights, quantised or not, and tokenizer.

Quantised weights are turned into numbers in blocks of rows, so that no whole array is held twice.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.gguf_parts import parts
from mpt_jax.model.families.causal_config import CausalConfig, Rotary
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import BLOCK_BYTES, Index, LazyArray
from mpt_jax.regular_files import shown

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_GEMMA = {"activation": "gelu", "norm_plus_one": True, "scaled_embedding": True}
# by general.architecture: what its models have in common. llama.cpp turns Llama's queries and keys by pairs of neighbours, so their
# rows come in another order
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"query_key_value_bias": True},
    "qwen3": {"query_key_norm": True},
    "gemma": _GEMMA,
}
NEIGHBOURS = ("llama",)
# keys after the architecture's name: read below, or of no consequence for the arithmetic
READ_KEYS = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count", "rope.scaling.type",
    "rope.scaling.factor", "vocab_size", "context_length",
)  # fmt: skip


def read(path: str) -> tuple[CausalConfig, dict[str, LazyArray], str]:
    """(config, arrays by our names, not read yet, vocabulary: the file itself). Raises UserError saying what is unknown or damaged."""
    fields, tensors = parts(path)
    config = _config(fields, tensors, path)
    arrays = {name: _lazy(tensor, path) for name, tensor in tensors.items()}
    names.check_layers(config, arrays, path)
    if fields["general.architecture"] in NEIGHBOURS:
        for name in arrays:
            if name.endswith((".attn_q.weight", ".attn_k.weight")):
                arrays[name] = _halves(arrays[name], config.head_dim)
    if config.norm_plus_one:
        arrays = {name: _less_one(lazy) if name.endswith("norm.weight") else lazy for name, lazy in arrays.items()}
    return names.named(config), names.match(config, arrays, names.GGUF, path), path


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any], path: str) -> CausalConfig:
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path}: general.architecture = {shown(kind)} is none of {', '.join(ARCHITECTURES)}.")
    unknown = [key for key in fields if key.startswith(f"{kind}.") and key.removeprefix(f"{kind}.") not in READ_KEYS]
    if unknown:
        raise UserError(f"{path} says {unknown[0]} = {shown(fields[unknown[0]])}, which is not known here and may change the arithmetic.")

    def number(key: str, default: Any = None) -> Any:
        value = fields.get(f"{kind}.{key}", default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{path}: {kind}.{key} = {shown(value)}; it takes a number.")
        return value

    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} has no token_embd.weight.")
    heads, width = number("attention.head_count"), number("embedding_length")
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise UserError(f"{path}: {kind}.rope.scaling.type = {shown(scaling)}; 'none' and 'linear' are known.")
    rotary = Rotary(float(number("rope.freq_base", 10_000.0)), float(number("rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0)
    head_dim = number("attention.key_length", width // max(heads, 1))
    turned = number("rope.dimension_count", head_dim)
    if turned != head_dim:
        message = f"{path}: {kind}.rope.dimension_count = {turned}, but a head has {head_dim} numbers"
        raise UserError(f"{message}; partial rotation is not known.")
    return CausalConfig(
        "custom", int(tensors["token_embd.weight"].shape[1]), width, number("block_count"), heads,
        number("attention.head_count_kv", heads), head_dim, number("feed_forward_length"),
        # in float32, as the file has it: 1e-5 comes as 9.99999974e-06
        norm_epsilon=float(np.format_float_positional(np.float32(number("attention.layer_norm_rms_epsilon")), unique=True)),
        rotary=rotary, logits_via_embedding="output.weight" not in tensors, **ARCHITECTURES[kind],
    )  # fmt: skip


def _lazy(tensor: Any, path: str) -> LazyArray:
    """An array of the file; GGUF writes the sizes of an array last one first."""
    import gguf

    shape = tuple(int(size) for size in tensor.shape[::-1])
    kind, source = tensor.tensor_type.name, f"{path}: {tensor.name}"
    if kind not in TYPES:
        raise UserError(f"{source} is of type {kind}; {', '.join(TYPES)} are read.")
    data, row_bytes = tensor.data, 4 * max(int(np.prod(shape[1:], dtype=np.int64)), 1)
    rows_at_once = max(BLOCK_BYTES // row_bytes, 1)

    def fill(out: np.ndarray, index: Index) -> None:
        rows, columns = index[0], index[1:]
        for start in range(rows.start, rows.stop, rows_at_once):
            stop = min(start + rows_at_once, rows.stop)
            block = gguf.quants.dequantize(np.asarray(data[start:stop]), tensor.tensor_type)
            out[start - rows.start : stop - rows.start] = block.reshape(stop - start, *shape[1:])[(slice(None), *columns)]

    return LazyArray(shape, np.dtype(np.float32), source, fill, None, 2 * rows_at_once * row_bytes)


def _halves(lazy: LazyArray, head_dim: int) -> LazyArray:
    """Rows of heads whose pairs are neighbours, in the order in which a pair is a number of either half."""

    def fill(out: np.ndarray, index: Index) -> None:
        held = lazy.load(np.float32, (slice(0, lazy.shape[0]), *index[1:]))
        turned = held.reshape(-1, head_dim // 2, 2, held.shape[1]).swapaxes(1, 2).reshape(held.shape)
        out[...] = turned[index[0]]

    return LazyArray(lazy.shape, lazy.dtype, lazy.source, fill, None, 2 * 4 * int(np.prod(lazy.shape)))


def _less_one(lazy: LazyArray) -> LazyArray:
    """llama.cpp adds to Gemma's norms the one that they multiply by."""

    def fill(out: np.ndarray, index: Index) -> None:
        out[...] = lazy.load(np.float32, index) - 1.0

    return LazyArray(lazy.shape, lazy.dtype, lazy.source, fill, None, lazy.beside)
