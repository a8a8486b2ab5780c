"""The keys of a Hugging Face T5's config.json and generation_config.json: read, ignored for a reason, or refused.

A key that is in none of these tables stops the reading by name: it may change the arithmetic. docs/formats.md shows the tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.regular_files import shown

# what makes the network and its vocabulary; read by huggingface.py
READ = (
    "model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads", "feed_forward_proj",
    "relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon", "tie_word_embeddings",
    "scale_decoder_outputs", "decoder_start_token_id", "tokenizer_class",
)  # fmt: skip
# transformers' general names (T5Config.attribute_map): read as the others
ALIASES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers", "head_dim": "d_kv"}
DEFAULT_PROJECTION = {"t5": "relu", "mt5": "gated-gelu", "umt5": "gated-gelu"}  # where a config.json does not say feed_forward_proj
GATED = {"gated-gelu": "gelu_new", "gated-silu": "silu"}  # transformers' own names of the functions
# refused unless they have one of these values: what this package does. None: the key is absent or null
NETWORK = {
    "is_encoder_decoder": (True,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": ({}, None),
}
# what `generate` of transformers changes in the answers of greedy decoding, refused unless it changes nothing
ANSWERS: dict[str, tuple] = {
    **dict.fromkeys(("min_length", "min_new_tokens", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, None)),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), (1, None)),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "forced_decoder_ids"), (None, [])),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), (None, [])),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), (None,)),
    **dict.fromkeys(("stop_strings", "dola_layers"), (None,)),
    **dict.fromkeys(("sequence_bias", "watermarking_config"), (None, {}, [])),
    "token_healing": (False, None),
}
# refused unless they have one of these values, where the tokenizer is T5's, which has them; other tokenizers say their own
TEXT_IDS = {"eos_token_id": (1, [1]), "pad_token_id": (0, None)}
IGNORED = {
    "training: a setting here, or not done to a frozen backbone": (
        "dropout_rate", "classifier_dropout", "initializer_factor", "initializer_range", "gradient_checkpointing", "label_smoothing",
    ),
    "how and by what it was saved; the weights themselves say their type": (
        "architectures", "transformers_version", "torch_dtype", "dtype", "torchscript", "use_bfloat16", "tf_legacy_loss",
    ),
    "what transformers' code returns, and how it computes the same numbers": (
        "return_dict", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_past", "output_scores",
        "output_logits", "use_cache", "use_return_dict", "chunk_size_feed_forward", "remove_invalid_values", "renormalize_logits",
        "cache_implementation", "cache_config", "compile_config", "disable_compile", "continuous_batching_config", "low_memory",
        "max_cache_len",
        "prefill_chunk_size", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
        "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
        "target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size",
        "speculation_type", "use_mtp",
    ),
    "T5 has no use for it: its positions are relative, its encoder and decoder are what they are": (
        "n_positions", "max_position_embeddings", "is_decoder", "add_cross_attention", "cross_attention_hidden_size", "bos_token_id",
        "sep_token_id", "cls_token_id", "mask_token_id",
    ),
    "texts and labels of transformers' pipelines; here they belong to tasks": (
        "task_specific_params", "prefix", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    ),
    "how `generate` searches and where it stops; here a setting of the command (greedy, or ranking of labels)": (
        "max_length", "max_new_tokens", "max_time", "num_beams", "num_beam_groups", "num_return_sequences", "do_sample", "temperature",
        "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "early_stopping", "length_penalty",
        "diversity_penalty", "penalty_alpha",
    ),
}  # fmt: skip
_IGNORED_KEYS = frozenset(key for keys in IGNORED.values() for key in keys)


def check_config(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a config.json by T5's names. Raises UserError naming each key that is unknown or asks for something else."""
    _check(settings, where)
    known = dict(settings)
    for alias, name in ALIASES.items():
        if alias in settings and known.setdefault(name, settings[alias]) != settings[alias]:
            message = f"{alias} = {shown(settings[alias])} and {name} = {shown(known[name])} are the same setting; take one out."
            raise UserError(f"{where}: {message}")
    projection = known.get("feed_forward_proj", DEFAULT_PROJECTION.get(known.get("model_type", ""), "relu"))
    if isinstance(projection, str) and projection in ("relu", *GATED):  # others are refused by who reads the projection
        _check_value(settings, "is_gated_act", (projection in GATED,), where)
        _check_value(settings, "dense_act_fn", (GATED.get(projection, "relu"),), where)
    return known


def check_generation(settings: Mapping[str, Any], where: str) -> None:
    """Raises UserError naming each key of a generation_config.json that is unknown or asks for something else."""
    _check(settings, where)


def other_ids(settings: Mapping[str, Any]) -> bool:
    """Whether padding or end of sequence have other ids than T5's."""
    return any(key in settings and not any(same(settings[key], value) for value in allowed) for key, allowed in TEXT_IDS.items())


def check_ids(settings: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless padding and end of sequence have T5's ids."""
    for key, allowed in TEXT_IDS.items():
        _check_value(settings, key, allowed, where)


def start_id(found: Sequence[tuple[Mapping[str, Any], str]]) -> Any:
    """decoder_start_token_id of (settings, file) that agree on it; 0 where none says it."""
    told = [(settings["decoder_start_token_id"], where) for settings, where in found if settings.get("decoder_start_token_id") is not None]
    for value, where in told[1:]:
        if value != told[0][0]:
            first = f"{told[0][1]} says decoder_start_token_id = {shown(told[0][0])}, {where} says {shown(value)}"
            raise UserError(f"{first}; transformers trains with one and answers with the other. Make them the same.")
    return told[0][0] if told else 0


def _check(settings: Mapping[str, Any], where: str) -> None:
    if settings.get("decoder_start_token_id") is None:  # `generate` then starts with this one
        _check_value(settings, "bos_token_id", (0, None), where)
    if settings.get("model_type") == "mt5":  # transformers never scales its output
        _check_value(settings, "scale_decoder_outputs", (False, None), where)
    for key, allowed in (NETWORK | ANSWERS).items():
        _check_value(settings, key, allowed, where)
    derived = ("is_gated_act", "dense_act_fn")
    known = {*READ, *ALIASES, *NETWORK, *TEXT_IDS, *ANSWERS, *_IGNORED_KEYS, *derived}
    unknown = [key for key in settings if key not in known and not key.startswith("_")]  # _: transformers' own notes
    if unknown:
        names = ", ".join(f"{shown(key)} = {shown(settings[key])}" for key in sorted(unknown)[:6])
        raise UserError(f"{where} says {names}, which is not known here and may change the arithmetic. Take it out if it does not.")


def _check_value(settings: Mapping[str, Any], key: str, allowed: tuple, where: str) -> None:
    if key in settings and not any(same(settings[key], value) for value in allowed):
        choices = " or ".join(repr(value) for value in allowed if value is not None) or "null"
        raise UserError(f"{where}: {key} = {shown(settings[key])}; only {choices} is supported.")


def same(value: Any, allowed: Any) -> bool:
    """Equality, but 1 is not True."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
