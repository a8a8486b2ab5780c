"""GGUF files of small models, written by the library gguf as llama.cpp's convert_hf_to_gguf.py lays them out."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from mpt_jax.model.families.causal_config import CausalConfig, Rotary
from mpt_jax.model.formats import names
from mpt_jax.model.rotary import frequencies

# the architecture of each variant (tiny_causal.py)
KINDS = {
    **dict.fromkeys(("llama", "llama31", "linear"), "llama"),
    **{name: name for name in ("qwen2", "qwen3", "gemma", "gemma2", "gemma3")},
}


def write_keys(writer: gguf.GGUFWriter, config: CausalConfig, kind: str) -> None:
    """The metadata of a shape."""
    writer.add_context_length(4096)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rotary.base)
    if kind not in ("gemma", "gemma2", "gemma3"):
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_vocab_size(config.vocab_size)
    if config.rotary.factor != 1 and not config.rotary.original_length:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rotary.factor)
    if config.window:
        writer.add_sliding_window(config.window)
    if config.attention_cap:
        writer.add_attn_logit_softcapping(config.attention_cap)
        writer.add_final_logit_softcapping(config.logits_cap)


def _tokenizer(writer: gguf.GGUFWriter, tokenizer, pre: str, special: Mapping[str, int]) -> None:
    """A byte-level tokenizer, with its special tokens as control tokens."""
    import json

    settings = json.loads(tokenizer.to_str())
    vocab = settings["model"]["vocab"]
    control = {row["id"] for row in settings["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(vocab, key=vocab.get))
    writer.add_token_types([3 if number in control else 1 for number in range(len(vocab))])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in settings["model"]["merges"]])
    for role, number in special.items():
        getattr(writer, f"add_{role}_token_id")(number)


def write(
    path: Path,
    kind: str,
    config: CausalConfig,
    params: Mapping[str, np.ndarray],
    quantised: str = "F32",
    tokenizer=None,
    pre="gpt-2",
    more=None,
) -> None:
    """A GGUF file of the architecture ``kind``; matrices quantised where the library can. more: keys besides, with uint32 or text."""
    writer = gguf.GGUFWriter(str(path), kind)
    write_keys(writer, config, kind)
    for key, value in (more or {}).items():
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    if tokenizer is not None:
        _tokenizer(writer, tokenizer, pre, {"bos": 2, "eos": 1, "pad": 0})
    else:
        writer.add_token_list([f"token {number}" for number in range(config.vocab_size)])  # whose number transformers counts
    type_ = gguf.GGMLQuantizationType[quantised]
    if config.rotary.original_length:
        plain, stretched = (frequencies(rotary, config.head_dim) for rotary in (Rotary(config.rotary.base), config.rotary))
        writer.add_tensor("rope_freqs.weight", (plain / stretched).astype(np.float32))
    for entry in names.entries(config):
        array = params[entry.ours].T if entry.turned else params[entry.ours]
        if kind == "llama" and entry.ours.endswith(("query/kernel", "key/kernel")):  # LlamaModel.permute
            array = array.reshape(-1, 2, config.head_dim // 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if config.norm_plus_one and entry.ours.endswith("scale"):
            array = array + 1
        array = np.ascontiguousarray(array, np.float32)
        if quantised in ("F32", "F16") or array.ndim == 1:
            writer.add_tensor(entry.gguf, array.astype(np.float16) if quantised == "F16" and array.ndim == 2 else array)
        else:
            writer.add_tensor(entry.gguf, gguf.quants.quantize(array, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
