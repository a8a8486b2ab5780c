"""The table of names of decoder-only models: ours, Hugging Face's (transformers' …ForCausalLM) and GGUF's (llama.cpp)."""

from collections.abc import Iterator

from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.naming import Entry, Name, expand

_OURS, _THEIRS, _GGUF = "decoder/layers_{i}", "model.layers.{i}", "blk.{i}"


def _kernel(ours: str, theirs: str, gguf: str, *shape: str) -> Name:
    return Name(f"{_OURS}/{ours}/kernel", f"{_THEIRS}.{theirs}.weight", shape, True, "decoder", gguf=f"{_GGUF}.{gguf}.weight")


def _bias(ours: str, theirs: str, gguf: str, size: str) -> Name:
    return Name(f"{_OURS}/{ours}/bias", f"{_THEIRS}.{theirs}.bias", (size,), False, "decoder", "bias", f"{_GGUF}.{gguf}.bias")


def _norm(ours: str, theirs: str, gguf: str, only: str = "", size: str = "width") -> Name:
    return Name(f"{_OURS}/{ours}/scale", f"{_THEIRS}.{theirs}.weight", (size,), False, "decoder", only, f"{_GGUF}.{gguf}.weight")


TABLE: tuple[Name, ...] = (
    Name("token_embedder/embedding", "model.embed_tokens.weight", ("vocabulary", "width"), gguf="token_embd.weight"),
    _norm("pre_attention_norm", "input_layernorm", "attn_norm"),
    _kernel("attention/query", "self_attn.q_proj", "attn_q", "width", "queries"),
    _kernel("attention/key", "self_attn.k_proj", "attn_k", "width", "keys"),
    _kernel("attention/value", "self_attn.v_proj", "attn_v", "width", "keys"),
    _bias("attention/query", "self_attn.q_proj", "attn_q", "queries"),
    _bias("attention/key", "self_attn.k_proj", "attn_k", "keys"),
    _bias("attention/value", "self_attn.v_proj", "attn_v", "keys"),
    _norm("attention/query_norm", "self_attn.q_norm", "attn_q_norm", "head norms", "head"),
    _norm("attention/key_norm", "self_attn.k_norm", "attn_k_norm", "head norms", "head"),
    _kernel("attention/out", "self_attn.o_proj", "attn_output", "queries", "width"),
    _norm("post_attention_norm", "post_attention_layernorm", "post_attention_norm", "post norms"),
    _norm("pre_mlp_norm", "post_attention_layernorm", "ffn_norm", "no post norms"),
    _norm("pre_mlp_norm", "pre_feedforward_layernorm", "ffn_norm", "post norms"),
    _kernel("mlp/wi_0", "mlp.gate_proj", "ffn_gate", "width", "mlp"),
    _kernel("mlp/wi_1", "mlp.up_proj", "ffn_up", "width", "mlp"),
    _kernel("mlp/wo", "mlp.down_proj", "ffn_down", "mlp", "width"),
    _norm("post_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm", "post norms"),
    Name("decoder/decoder_norm/scale", "model.norm.weight", ("width",), gguf="output_norm.weight"),
    Name("decoder/logits_dense/kernel", "lm_head.weight", ("width", "vocabulary"), True, only="untied", gguf="output.weight"),
)


def sizes_of(config: CausalConfig) -> dict[str, int]:
    """The words of shapes in tables of names."""
    return {
        "vocabulary": config.vocab_size,
        "width": config.d_model,
        "queries": config.num_heads * config.head_dim,
        "keys": config.num_kv_heads * config.head_dim,
        "head": config.head_dim,
        "mlp": config.d_ff,
    }


def present_in(config: CausalConfig) -> set[str]:
    """The words of ``Name.only`` that hold."""
    facts = {
        "bias": config.query_key_value_bias,
        "head norms": config.query_key_norm,
        "post norms": config.post_norms,
        "no post norms": not config.post_norms,
        "untied": not config.logits_via_embedding,
    }
    return {word for word, holds in facts.items() if holds}


def entries(config: CausalConfig) -> Iterator[Entry]:
    """All arrays of a decoder-only model."""
    return expand(TABLE, sizes_of(config), {"decoder": config.num_layers}, present_in(config))


def words(config: CausalConfig) -> str:
    """What a message calls such a model."""
    heads = f"{config.num_heads} heads of {config.head_dim} over {config.num_kv_heads} keys"
    sizes = f"width {config.d_model}, {heads}, MLP {config.d_ff}, vocabulary {config.vocab_size}"
    return f"{'tied' if config.logits_via_embedding else 'untied'} decoder-only model with {config.num_layers} layers, {sizes}"
