"""The keys of a decoder-only model's config.json and generation_config.json: read, ignored for a reason, or refused.

A key that is in none of these tables, and not null, stops the reading by name: it may change the arithmetic.
"""

from collections.abc import Mapping
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.model.formats import huggingface_keys
from mpt_jax.model.formats.huggingface_keys import same
from mpt_jax.regular_files import shown

# what makes the network of every model_type; read by huggingface_causal.py, which adds those of one model_type
READ = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings",
    "max_position_embeddings",
)  # fmt: skip
# refused unless they have one of these values: what this package does. None: the key is absent or null
NETWORK: dict[str, tuple] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bidirectional_attention", "rope_interleaved", "use_mrope"), (False, None)),
    **dict.fromkeys(("is_encoder_decoder", "add_cross_attention", "tie_encoder_decoder"), (False, None)),
    "partial_rotary_factor": (1, None),
    "pruned_heads": ({}, None),
    "auto_map": ({}, None),
    "quantization_config": (None,),
}
ANSWERS = {key: allowed for key, allowed in huggingface_keys.ANSWERS.items() if key != "repetition_penalty"}
IGNORED = {
    **huggingface_keys.IGNORED,
    "read with the tokenizer": ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    "rotary positions have no end, and layers without a window see everything": ("max_sequence_length", "max_window_layers"),
    "training": ("attention_dropout", "hidden_dropout", "router_aux_loss_coef"),
    "an instruct model's way to sample, which a tuned prompt is not trained for": ("repetition_penalty",),
    "how the same numbers are computed": ("pretraining_tp", "is_llama_config"),
    "notes of who saved it": ("transformers.js_config", "unsloth_fixed", "unsloth_version"),
}
_IGNORED_KEYS = frozenset(key for keys in IGNORED.values() for key in keys)


def check_config(settings: Mapping[str, Any], read: tuple[str, ...], where: str) -> None:
    """Raises UserError naming each key of a config.json that is unknown or asks for something else. read: what is read besides READ."""
    _check(settings, {*READ, *read}, where)


def check_generation(settings: Mapping[str, Any], where: str) -> None:
    """The same for a generation_config.json."""
    _check(settings, set(), where)


def _check(settings: Mapping[str, Any], read: set[str], where: str) -> None:
    for key, allowed in (NETWORK | ANSWERS).items():
        if key in settings and not any(same(settings[key], value) for value in allowed):
            choices = " or ".join(repr(value) for value in allowed if value is not None) or "null"
            raise UserError(f"{where}: {key} = {shown(settings[key])}; only {choices} is supported.")
    known = read.union(NETWORK, ANSWERS, _IGNORED_KEYS)
    unknown = [key for key, value in settings.items() if key not in known and value is not None and not key.startswith("_")]
    if unknown:
        names = ", ".join(f"{shown(key)} = {shown(settings[key])}" for key in sorted(unknown)[:6])
        raise UserError(f"{where} says {names}, which is not known here and may change the arithmetic. Take it out if it does not.")
