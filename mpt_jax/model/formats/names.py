"""The table of names: which array of a T5 is called what in which format, and its shape.

Every reader and writer is driven by TABLE. Our own names are those of T5X's minimal T5
(t5x/examples/t5/network.py), so T5X and Orbax files need no second column; Hugging Face's are those of
transformers' T5ForConditionalGeneration.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mpt_jax.config import T5_SIZES, T5Config
from mpt_jax.errors import UserError
from mpt_jax.model.formats.arrays import MAX_NAMES_IN_MESSAGE, LazyArray, listed
from mpt_jax.regular_files import shown

SCANNED = "encoder/encoder/"  # how T5X's scalable_t5 names layers that it stacked


@dataclasses.dataclass(frozen=True)
class Name:
    """A row: our name and Hugging Face's, with {i} for the layer; shape in words of `sizes`; when it exists.

    turned: Hugging Face keeps the transpose (torch.nn.Linear stores output x input).
    """

    ours: str
    huggingface: str
    shape: tuple[str, ...]
    turned: bool = False
    layers: str = ""  # 'encoder' | 'decoder': one for each layer of it
    only: str = ""  # 'gated' | 'plain' | 'untied': only in such models


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


def _relative(stack: str) -> Name:
    return Name(
        f"{stack}/relpos_bias/rel_embedding",
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ("heads", "buckets"),
        True,
    )


TABLE: tuple[Name, ...] = (
    Name("token_embedder/embedding", "shared.weight", ("vocabulary", "width")),
    _relative("encoder"),
    _norm("encoder", "pre_attention_layer_norm", 0),
    *_attention("encoder", "attention", "0.SelfAttention"),
    _norm("encoder", "pre_mlp_layer_norm", 1),
    *_mlp("encoder", 1),
    Name("encoder/encoder_norm/scale", "encoder.final_layer_norm.weight", ("width",)),
    _relative("decoder"),
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


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array that a T5Config has: both names, our shape, and whether Hugging Face's is the transpose."""

    ours: str
    huggingface: str
    shape: tuple[int, ...]
    turned: bool


def sizes(config: T5Config) -> dict[str, int]:
    """The words of the table's shapes as numbers."""
    return {
        "vocabulary": config.vocab_size,
        "width": config.d_model,
        "joined": config.num_heads * config.head_dim,
        "heads": config.num_heads,
        "mlp": config.d_ff,
        "buckets": config.relative_attention_num_buckets,
    }


def entries(config: T5Config) -> list[Entry]:
    """All arrays of a model, in the order of the table, the layers of a stack together."""
    size = sizes(config)
    absent = {"plain" if len(config.mlp_activations) == 2 else "gated"}
    if config.logits_via_embedding:
        absent.add("untied")
    layers = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    return [
        Entry(
            name.ours.format(i=i),
            name.huggingface.format(i=i),
            tuple(size[word] for word in name.shape),
            name.turned,
        )
        for name in TABLE
        if name.only not in absent
        for i in range(layers.get(name.layers, 1))
    ]


SIZES = (
    "vocab_size", "d_model", "num_heads", "head_dim", "d_ff", "num_encoder_layers", "num_decoder_layers", "relative_attention_num_buckets",
    "relative_attention_max_distance",
)  # fmt: skip

KINDS = {"name": str, "logits_via_embedding": bool, "dropout_rate": float, "dtype": str, "remat": str, "attention": str}


def make_config(fields: Mapping[str, Any], where: str, called: Mapping[str, str] | None = None) -> T5Config:
    """The T5Config of a file's settings by T5Config's names. Raises UserError for what makes no T5; `called`: the file's own names."""
    called = called or {}
    for name in SIZES:
        value = fields.get(name, 1)
        if type(value) is not int or not 1 <= value < 2**31:
            raise UserError(f"{where}: {called.get(name, name)} = {shown(value)}; it takes a whole number from 1 to {2**31 - 1:,}.")
    for name, kind in KINDS.items():
        value = fields.get(name, kind())
        if not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise UserError(f"{where}: {called.get(name, name)} = {shown(value)}; it takes a value of type {kind.__name__}.")
    epsilon = fields.get("layer_norm_epsilon", 1e-6)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        raise UserError(f"{where}: layer_norm_epsilon = {shown(epsilon)}; it takes a number from 0 to 1.")
    buckets, distance = fields.get("relative_attention_num_buckets", 32), fields.get("relative_attention_max_distance", 128)
    if buckets < 4 or distance <= buckets // 2:
        raise UserError(
            f"{where}: relative_attention_num_buckets = {buckets} and relative_attention_max_distance = {distance}; at least 4 "
            "buckets, and a distance beyond half of them, are needed."
        )
    try:
        return T5Config(**{**fields, "layer_norm_epsilon": float(epsilon)})
    except TypeError as error:
        raise UserError(f"{where} is not complete: {error}.") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def check_layers(config: T5Config, arrays: Mapping[str, LazyArray], source: str) -> None:
    """UserError for a config with more layers than the file has arrays: each has several, and none is made up to find that out."""
    layers = config.num_encoder_layers + config.num_decoder_layers
    if layers > len(arrays):
        counted = f"{config.num_encoder_layers:,} + {config.num_decoder_layers:,} layers by its config"
        raise UserError(f"{source} has {counted}, but holds only {len(arrays):,} arrays.")


def match(config: T5Config, arrays: Mapping[str, LazyArray], huggingface: bool, source: str) -> dict[str, LazyArray]:
    """The arrays of a file under our names, turned where the table says so, in the table's order.

    arrays: by the file's names (Hugging Face's, or ours). Raises UserError that lists every missing,
    left-over or wrongly shaped array by the name it has in the file.
    """
    wanted = {(entry.huggingface if huggingface else entry.ours): entry for entry in entries(config)}
    missing, extra = wanted.keys() - arrays.keys(), arrays.keys() - wanted.keys()
    problems = []
    if missing:
        problems.append(f"missing: {listed(missing)}")
    if extra:
        problems.append(f"left over: {listed(extra)}")
    found = {}
    for name, entry in wanted.items():
        if name in missing:
            continue
        lazy = arrays[name].transposed() if huggingface and entry.turned else arrays[name]
        if lazy.shape != entry.shape:
            shape, expected = (
                arrays[name].shape,
                entry.shape[::-1] if huggingface and entry.turned else entry.shape,
            )
            problems.append(f"{name} has shape {shape}, not {expected}{_vocabulary_hint(config, entry, lazy.shape)}")
        found[entry.ours] = lazy
    if problems:
        raise UserError(f"{source} is not a {_words(config)}: " + "; ".join(problems[:MAX_NAMES_IN_MESSAGE]) + ".")
    return found


def _vocabulary_hint(config: T5Config, entry: Entry, shape: tuple[int, ...]) -> str:
    if config.vocab_size not in entry.shape or len(shape) != 2:
        return ""
    axis = entry.shape.index(config.vocab_size)
    if shape[axis] == config.vocab_size:
        return ""
    return f" (the file has {shape[axis]} vocabulary rows, its config says vocab_size = {config.vocab_size})"


def _words(config: T5Config) -> str:
    kind = "gated (v1.1)" if len(config.mlp_activations) == 2 else "plain (v1.0)"
    tied = "tied" if config.logits_via_embedding else "untied"
    return (
        f"{kind}, {tied} T5 with {config.num_encoder_layers}+{config.num_decoder_layers} layers, width "
        f"{config.d_model}, {config.num_heads} heads of {config.head_dim}, MLP {config.d_ff}, vocabulary "
        f"{config.vocab_size}"
    )


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], source: str) -> T5Config:
    """The T5Config of a file that carries no config, from the shapes of its arrays under our names.

    The relative attention's longest distance is in no shape: 128, as in every published T5. Raises UserError
    naming the first array that is needed and not there.
    """

    def shape(path: str, axes: int = 2) -> tuple[int, ...]:
        if path not in shapes:
            held = listed(shapes) or "nothing"
            if any(name.startswith(SCANNED) for name in shapes):
                raise UserError(f"{source} holds stacked layers; save it once from T5X with scan_layers = False.")
            raise UserError(f"{source} is not a T5: {path} is missing. It holds {held}.")
        found = shapes[path]
        if len(found) != axes or 0 in found:
            raise UserError(f"{source}: {path} has shape {found}; {axes} sizes from 1 on are needed.")
        return found

    vocabulary, width = shape("token_embedder/embedding")
    heads, buckets = shape("encoder/relpos_bias/rel_embedding")
    joined = shape("encoder/layers_0/attention/query/kernel")[-1]
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    mlp = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")[-1]
    if joined % heads:
        raise UserError(f"{source}: {joined} query columns do not split into {heads} heads.")
    fields = {
        "name": "custom",
        "vocab_size": vocabulary,
        "d_model": width,
        "num_heads": heads,
        "head_dim": joined // heads,
        "d_ff": mlp,
        "num_encoder_layers": _layers(shapes, "encoder", source),
        "num_decoder_layers": _layers(shapes, "decoder", source),
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
        "relative_attention_num_buckets": buckets,
    }
    return named(make_config(fields, source))


def _layers(shapes: Mapping[str, tuple[int, ...]], stack: str, source: str) -> int:
    """How many layers the names of a stack count, from 0 on without a gap."""
    prefix = f"{stack}/layers_"
    found = {path[len(prefix) :].split("/")[0] for path in shapes if path.startswith(prefix)}
    wanted = {str(i) for i in range(len(found))}
    if found != wanted:
        raise UserError(f"{source}: {stack} has the layers {listed(found)}; {listed(wanted - found)} of {len(found)} are missing.")
    return len(found)


def named(config: T5Config) -> T5Config:
    """The config with the name of the row of the size table that has its shapes ('custom' if none has).

    LM-adapted and Flan models have the shapes of v1.1 and get its name.
    """
    for name, row in T5_SIZES.items():
        if entries(row) == entries(config):
            return dataclasses.replace(config, name=name)
    return dataclasses.replace(config, name="custom")
