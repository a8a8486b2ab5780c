"""T5Gemma's tables of names: ours, and Hugging Face's (transformers' T5GemmaForConditionalGeneration and T5Gemma2…)."""

from collections.abc import Iterator

from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.causal_names import present_in, sizes_of
from mpt_jax.model.families.naming import Entry, Name, expand
from mpt_jax.model.families.t5gemma_config import T5GemmaConfig

HEAD = "lm_head.out_proj.weight"
PREFIXES = {"encoder": "model.encoder", "decoder": "model.decoder"}  # of Hugging Face's names


def _table(side: str, theirs: str, cross: bool) -> tuple[Name, ...]:
    def norm(ours: str, name: str, only: str = "", size: str = "width") -> Name:
        return Name(f"{side}/layers_{{i}}/{ours}/scale", f"{theirs}.layers.{{i}}.{name}.weight", (size,), False, side, only)

    def kernel(ours: str, name: str, *shape: str) -> Name:
        return Name(f"{side}/layers_{{i}}/{ours}/kernel", f"{theirs}.layers.{{i}}.{name}.weight", shape, True, side)

    def attention(ours: str, name: str, seen: str) -> tuple[Name, ...]:
        return (
            kernel(f"{ours}/query", f"{name}.q_proj", "width", "queries"),
            kernel(f"{ours}/key", f"{name}.k_proj", seen, "keys"),
            kernel(f"{ours}/value", f"{name}.v_proj", seen, "keys"),
            norm(f"{ours}/query_norm", f"{name}.q_norm", "head norms", "head"),
            norm(f"{ours}/key_norm", f"{name}.k_norm", "head norms", "head"),
            kernel(f"{ours}/out", f"{name}.o_proj", "queries", "width"),
        )

    crossed = (
        norm("pre_cross_attention_norm", "pre_cross_attn_layernorm"),
        *attention("cross_attention", "cross_attn", "encoder width"),
        norm("post_cross_attention_norm", "post_cross_attn_layernorm", "post norms"),
    )
    return (
        norm("pre_attention_norm", "pre_self_attn_layernorm"),
        *attention("attention", "self_attn", "width"),
        norm("post_attention_norm", "post_self_attn_layernorm", "post norms"),
        *(crossed if cross else ()),
        norm("pre_mlp_norm", "pre_feedforward_layernorm"),
        kernel("mlp/wi_0", "mlp.gate_proj", "width", "mlp"),
        kernel("mlp/wi_1", "mlp.up_proj", "width", "mlp"),
        kernel("mlp/wo", "mlp.down_proj", "mlp", "width"),
        norm("post_mlp_norm", "post_feedforward_layernorm", "post norms"),
        Name(f"{side}/{side}_norm/scale", f"{theirs}.norm.weight", ("width",)),
    )


def entries(config: T5GemmaConfig) -> Iterator[Entry]:
    """All arrays of a T5Gemma."""
    embedding = ("vocabulary", "width")
    encoder = _table("encoder", PREFIXES["encoder"], False)
    encoder = (Name("token_embedder/embedding", f"{PREFIXES['encoder']}.embed_tokens.weight", embedding), *encoder)
    decoder = _table("decoder", PREFIXES["decoder"], not config.merged_attention)
    if not config.one_embedding:
        decoder = (Name("decoder/token_embedder/embedding", f"{PREFIXES['decoder']}.embed_tokens.weight", embedding), *decoder)
    decoder += (Name("decoder/logits_dense/kernel", HEAD, ("width", "vocabulary"), True, only="untied"),)
    for side, table in (("encoder", encoder), ("decoder", decoder)):
        shape = getattr(config, side)
        sizes = sizes_of(shape) | {"encoder width": config.encoder.d_model}
        yield from expand(table, sizes, {side: shape.num_layers}, present_in(shape))


def words(config: T5GemmaConfig) -> str:
    """What a message calls such a model."""
    tied = "tied" if config.decoder.logits_via_embedding else "untied"
    kind = "T5Gemma 2" if config.merged_attention else "T5Gemma"

    def stack(side: CausalConfig) -> str:
        heads = f"{side.num_heads} heads of {side.head_dim} over {side.num_kv_heads} keys"
        return f"{side.num_layers} layers of width {side.d_model}, {heads}, MLP {side.d_ff}"

    return f"{tied} {kind}, encoder: {stack(config.encoder)}, decoder: {stack(config.decoder)}, vocabulary {config.vocab_size}"
