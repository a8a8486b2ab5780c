"""Shapes of T5: one dataclass, and the table of published sizes."""

import dataclasses

from mpt_jax.checks import check_range, check_types
from mpt_jax.errors import UserError

# Hugging Face's feed_forward_proj: the activations of the feed-forward layer's input matrices
ACTIVATIONS = {"relu": ("relu",), "gated-gelu": ("gelu", "linear"), "gated-silu": ("silu", "linear")}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder-decoder. Fields named as in T5X's minimal T5 (t5x/examples/t5/network.py)."""

    name: str
    vocab_size: int
    d_model: int
    num_heads: int
    head_dim: int
    d_ff: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple = ("gelu", "linear")  # ('relu',) in T5 v1.0, ('silu', 'linear') in UL2
    logits_via_embedding: bool = False  # True in T5 v1.0: tied, output scaled by d_model ** -0.5
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    relative_bias_per_layer: bool = False  # True in UMT5 and T5X's scalable_t5: each layer has a bias of its own
    decoder_start_id: int = 0  # the decoder's first input token

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        check_types(self)
        for name in ("vocab_size", "d_model", "num_heads", "head_dim", "d_ff", "num_encoder_layers", "num_decoder_layers"):
            check_range(f"T5Config.{name}", getattr(self, name), 1)
        check_range("T5Config.layer_norm_epsilon", self.layer_norm_epsilon, 0.0, 1.0)
        check_range("T5Config.relative_attention_num_buckets", self.relative_attention_num_buckets, 4)
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            distance, buckets = self.relative_attention_max_distance, self.relative_attention_num_buckets
            raise UserError(f"T5Config.relative_attention_max_distance = {distance}; it must be more than half of the {buckets} buckets.")
        if self.mlp_activations not in ACTIVATIONS.values():
            known = " and ".join(map(str, ACTIVATIONS.values()))
            raise UserError(f"T5Config.mlp_activations = {self.mlp_activations}; known: {known}.")
        if not 0 <= self.decoder_start_id < self.vocab_size:
            raise UserError(f"T5Config.decoder_start_id = {self.decoder_start_id} is not one of the vocabulary's {self.vocab_size} ids.")

    @property
    def gated(self) -> bool:
        """True for the feed-forward layer of v1.1, with two input matrices."""
        return len(self.mlp_activations) == 2

    @property
    def num_layers(self) -> int:
        """Layers of both stacks."""
        return self.num_encoder_layers + self.num_decoder_layers

    def num_parameters(self) -> int:
        """Number of backbone parameters, worked out from the shapes."""
        attention = 4 * self.d_model * self.num_heads * self.head_dim
        mlp = (3 if self.gated else 2) * self.d_model * self.d_ff
        encoder = self.num_encoder_layers * (attention + mlp + 2 * self.d_model)
        decoder = self.num_decoder_layers * (2 * attention + mlp + 3 * self.d_model)
        embeddings = self.vocab_size * self.d_model * (1 if self.logits_via_embedding else 2)
        biases = self.num_layers if self.relative_bias_per_layer else 2
        relative = biases * self.relative_attention_num_buckets * self.num_heads
        return encoder + decoder + embeddings + relative + 2 * self.d_model


def _v1_0(name, d_model, num_heads, head_dim, d_ff, layers):
    return T5Config(name, 32128, d_model, num_heads, head_dim, d_ff, layers, layers, ("relu",), True)


def _v1_1(name, d_model, num_heads, d_ff, encoder_layers, decoder_layers, vocab_size):
    return T5Config(name, vocab_size, d_model, num_heads, 64, d_ff, encoder_layers, decoder_layers)


def _umt5(name, *shape):
    return dataclasses.replace(_v1_1(f"umt5_{name}", *shape, 256384), relative_bias_per_layer=True)


_V1_0_ROWS = (  # T5X: t5x/examples/t5/t5_1_0/*.gin
    ("t5_small", 512, 8, 64, 2048, 6),
    ("t5_base", 768, 12, 64, 3072, 12),
    ("t5_large", 1024, 16, 64, 4096, 24),
    ("t5_3b", 1024, 32, 128, 16384, 24),
    ("t5_11b", 1024, 128, 128, 65536, 24),
)
_V1_1_ROWS = (  # T5X: t5x/examples/t5/t5_1_1/*.gin; mT5 differs in the vocabulary alone
    ("small", 512, 6, 1024, 8, 8),
    ("base", 768, 12, 2048, 12, 12),
    ("large", 1024, 16, 2816, 24, 24),
    ("xl", 2048, 32, 5120, 24, 24),
    ("xxl", 4096, 64, 10240, 24, 24),
)
_BYT5_ROWS = (  # T5X: t5x/examples/t5/byt5/*.gin
    ("byt5_small", 1472, 6, 3584, 12, 4),
    ("byt5_base", 1536, 12, 3968, 18, 6),
    ("byt5_large", 1536, 16, 3840, 36, 12),
    ("byt5_xl", 2560, 32, 6720, 36, 12),
    ("byt5_xxl", 4672, 64, 12352, 36, 12),
)
_UMT5_ROWS = tuple(row for row in _V1_1_ROWS if row[0] != "large")  # Hugging Face: google/umt5-*; no large one is published
# Hugging Face: google/ul2, google/flan-ul2
_UL2 = T5Config("ul2", 32128, 4096, 16, 256, 16384, 32, 32, ACTIVATIONS["gated-silu"])
_CODET5P_ROWS = (("codet5p_220m", 768, 12, 64, 3072, 12), ("codet5p_770m", 1024, 16, 64, 4096, 24))  # Hugging Face: Salesforce/codet5p-*
NANO = T5Config("nano", 8192, 192, 6, 32, 512, 4, 3)

T5_SIZES: dict[str, T5Config] = {
    "nano": NANO,
    **{row[0]: _v1_0(*row) for row in _V1_0_ROWS},
    **{f"t5_1_1_{row[0]}": _v1_1(f"t5_1_1_{row[0]}", *row[1:], 32128) for row in _V1_1_ROWS},
    **{f"mt5_{row[0]}": _v1_1(f"mt5_{row[0]}", *row[1:], 250112) for row in _V1_1_ROWS},
    **{row[0]: _v1_1(*row, 384) for row in _BYT5_ROWS},
    **{f"umt5_{row[0]}": _umt5(*row) for row in _UMT5_ROWS},
    "ul2": _UL2,
    **{row[0]: dataclasses.replace(_v1_0(*row), vocab_size=32100) for row in _CODET5P_ROWS},
}
