"""T5's table of names. Ours are those of T5X's minimal T5 (t5x/examples/t5/network.py), so T5X and Orbax files need no second column;
Hugging Face's are those of transformers' T5ForConditionalGeneration."""

from collections.abc import Iterator

from mpt_jax.model.families.naming import Entry, Name, expand
from mpt_jax.model.families.t5_config import T5Config


def _attention(stack: str, ours: str, theirs: str) -> tuple[Name, ...]:
    letters = (("query", "q"), ("key", "k"), ("value", "v"))
    return (
        *(
            Name(
                f"{stack}/layers_{{i}}/{ours}/{word}/kernel",
                f"{stack}.block.{{i}}.layer.{theirs}.{letter}.weight",
                ("width", "joined"),
                True,
                stack,
            )
            for word, letter in letters
        ),
        Name(
            f"{stack}/layers_{{i}}/{ours}/out/kernel",
            f"{stack}.block.{{i}}.layer.{theirs}.o.weight",
            ("joined", "width"),
            True,
            stack,
        ),
    )


def _norm(stack: str, ours: str, sublayer: int) -> Name:
    return Name(
        f"{stack}/layers_{{i}}/{ours}/scale",
        f"{stack}.block.{{i}}.layer.{sublayer}.layer_norm.weight",
        ("width",),
        False,
        stack,
    )


def _mlp(stack: str, sublayer: int) -> tuple[Name, ...]:
    ours, theirs = f"{stack}/layers_{{i}}/mlp", f"{stack}.block.{{i}}.layer.{sublayer}.DenseReluDense"
    return (
        Name(f"{ours}/wi/kernel", f"{theirs}.wi.weight", ("width", "mlp"), True, stack, "plain"),
        Name(f"{ours}/wi_0/kernel", f"{theirs}.wi_0.weight", ("width", "mlp"), True, stack, "gated"),
        Name(f"{ours}/wi_1/kernel", f"{theirs}.wi_1.weight", ("width", "mlp"), True, stack, "gated"),
        Name(f"{ours}/wo/kernel", f"{theirs}.wo.weight", ("mlp", "width"), True, stack),
    )


def _relative(stack: str) -> tuple[Name, ...]:
    theirs = f"{stack}.block.{{}}.layer.0.SelfAttention.relative_attention_bias.weight"
    shape = ("heads", "buckets")
    return (
        Name(f"{stack}/relpos_bias/rel_embedding", theirs.format(0), shape, True, only="shared bias"),
        Name(f"{stack}/layers_{{i}}/relpos_bias/rel_embedding", theirs.format("{i}"), shape, True, stack, "bias in layers"),
    )


TABLE: tuple[Name, ...] = (
    Name("token_embedder/embedding", "shared.weight", ("vocabulary", "width")),
    *_relative("encoder"),
    _norm("encoder", "pre_attention_layer_norm", 0),
    *_attention("encoder", "attention", "0.SelfAttention"),
    _norm("encoder", "pre_mlp_layer_norm", 1),
    *_mlp("encoder", 1),
    Name("encoder/encoder_norm/scale", "encoder.final_layer_norm.weight", ("width",)),
    *_relative("decoder"),
    _norm("decoder", "pre_self_attention_layer_norm", 0),
    *_attention("decoder", "self_attention", "0.SelfAttention"),
    _norm("decoder", "pre_cross_attention_layer_norm", 1),
    *_attention("decoder", "encoder_decoder_attention", "1.EncDecAttention"),
    _norm("decoder", "pre_mlp_layer_norm", 2),
    *_mlp("decoder", 2),
    Name("decoder/decoder_norm/scale", "decoder.final_layer_norm.weight", ("width",)),
    Name("decoder/logits_dense/kernel", "lm_head.weight", ("width", "vocabulary"), True, "", "untied"),
)

# Other names under which Hugging Face files hold the shared embedding; all of them must be equal.
EMBEDDING_ALIASES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# An array that the first T5 files hold and no code has ever used.
UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def entries(config: T5Config) -> Iterator[Entry]:
    """All arrays of a T5."""
    sizes = {
        "vocabulary": config.vocab_size,
        "width": config.d_model,
        "joined": config.num_heads * config.head_dim,
        "heads": config.num_heads,
        "mlp": config.d_ff,
        "buckets": config.relative_attention_num_buckets,
    }
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    facts = {
        "gated": config.gated,
        "plain": not config.gated,
        "untied": not config.logits_via_embedding,
        "bias in layers": config.relative_bias_per_layer,
        "shared bias": not config.relative_bias_per_layer,
    }
    present = {word for word, holds in facts.items() if holds}
    return expand(TABLE, sizes, layers, present)


def words(config: T5Config) -> str:
    """What a message calls such a model."""
    kind = ("gated (v1.1)" if config.gated else "plain (v1.0)") + (", bias in every layer" if config.relative_bias_per_layer else "")
    tied = "tied" if config.logits_via_embedding else "untied"
    layers = f"{config.num_encoder_layers}+{config.num_decoder_layers} layers"
    heads = f"{config.num_heads} heads of {config.head_dim}"
    return f"{kind}, {tied} T5 with {layers}, width {config.d_model}, {heads}, MLP {config.d_ff}, vocabulary {config.vocab_size}"
