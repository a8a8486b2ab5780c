"""Shapes of decoder-only models: one dataclass of facts, and the table of published sizes."""

import dataclasses

from mpt_jax.checks import check_choice, check_range, check_types
from mpt_jax.errors import UserError
from mpt_jax.model.rotary import Rotary
from mpt_jax.regular_files import shown

LAYER_KINDS = ("full", "window")
MOST_LAYERS = 10_000  # no model has a tenth of it; a damaged file may say anything


@dataclasses.dataclass(frozen=True)
class CausalConfig:
    """Shape of a decoder-only model of Llama's kind. Sources: config.json of each, transformers' modeling files."""

    name: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # keys and values are shared by groups of num_heads / num_kv_heads queries
    head_dim: int
    d_ff: int
    activation: str = "silu"  # of the gated feed-forward layer: 'silu' | 'gelu' (tanh form, Gemma)
    norm_epsilon: float = 1e-5
    norm_plus_one: bool = False  # Gemma: norms multiply by 1 + scale
    post_norms: bool = False  # Gemma 2 and 3: attention and feed-forward results are normed before they are added
    query_key_norm: bool = False  # Qwen 3, Gemma 3: queries and keys of a head are normed
    query_key_value_bias: bool = False  # Qwen 2
    query_scale: float = 0.0  # of attention's logits; 0 = head_dim ** -0.5
    attention_cap: float = 0.0  # Gemma 2: cap * tanh(logits / cap) of attention; 0 = none
    logits_cap: float = 0.0  # the same of the output
    rotary: Rotary = Rotary()  # of layers that see everything
    window_rotary: Rotary | None = None  # of layers with a window, where theirs differ [Gemma 3]
    window: int = 0  # positions that a 'window' layer sees, its own included
    layer_kinds: tuple = ()  # 'full' | 'window' for each layer; () = all 'full'
    scaled_embedding: bool = False  # Gemma: embedded positions, prompts too, are multiplied by sqrt(d_model)
    logits_via_embedding: bool = True  # tied output
    # longest text that its makers state, which other programs take for a limit; 0 = not stated. It changes nothing here, nor what is equal
    max_positions: int = dataclasses.field(default=0, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "layer_kinds", tuple(self.layer_kinds))
        for name in ("rotary", "window_rotary"):
            if isinstance(getattr(self, name), dict):
                object.__setattr__(self, name, Rotary(**getattr(self, name)))
        check_types(self)
        check_range("CausalConfig.num_layers", self.num_layers, 1, MOST_LAYERS)
        object.__setattr__(self, "layer_kinds", self.layer_kinds or ("full",) * self.num_layers)
        check_choice("CausalConfig.activation", self.activation, ("silu", "gelu"))
        for name in ("vocab_size", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff"):
            check_range(f"CausalConfig.{name}", getattr(self, name), 1)
        check_range("CausalConfig.norm_epsilon", self.norm_epsilon, 0.0, 1.0)
        for name in ("query_scale", "attention_cap", "logits_cap", "window", "max_positions"):
            check_range(f"CausalConfig.{name}", getattr(self, name), 0)
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"CausalConfig.num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}.")
        if self.head_dim % 2:
            raise UserError(f"CausalConfig.head_dim = {self.head_dim} is odd; rotary positions turn pairs.")
        if len(self.layer_kinds) != self.num_layers or set(self.layer_kinds) - set(LAYER_KINDS):
            found = f"{len(self.layer_kinds)} of {shown(sorted(set(self.layer_kinds)))}"
            raise UserError(f"CausalConfig.layer_kinds has {found}; it takes {self.num_layers} of {', '.join(LAYER_KINDS)}.")
        # so that equal shapes are equal
        if self.query_scale == self.head_dim**-0.5:
            object.__setattr__(self, "query_scale", 0.0)
        if "window" not in self.layer_kinds:
            object.__setattr__(self, "window", 0)
            object.__setattr__(self, "window_rotary", None)
        elif self.window < 1:
            raise UserError(f"CausalConfig.window = {self.window}; its 'window' layers need 1 or more.")

    @property
    def logit_scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        return self.query_scale or self.head_dim**-0.5

    @property
    def lookup_scale(self) -> float:
        """What transformers (from 5 on) multiplies a token's row with when it looks it up."""
        return self.d_model**0.5 if self.scaled_embedding else 1.0

    def rotary_of(self, layer: int) -> Rotary:
        """The rotary positions of a layer."""
        return self.window_rotary if self.window_rotary and self.layer_kinds[layer] == "window" else self.rotary

    def num_parameters(self) -> int:
        """Number of backbone parameters, worked out from the shapes."""
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.d_model * (2 * queries + 2 * keys)
        attention += (queries + 2 * keys) * self.query_key_value_bias + 2 * self.head_dim * self.query_key_norm
        layer = attention + 3 * self.d_model * self.d_ff + (4 if self.post_norms else 2) * self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.logits_via_embedding else 2)
        return self.num_layers * layer + embeddings + self.d_model


LLAMA_31 = Rotary(500_000.0, 8.0, 1.0, 4.0, 8192)
LLAMA_32 = Rotary(500_000.0, 32.0, 1.0, 4.0, 8192)
_GEMMA = {"activation": "gelu", "norm_epsilon": 1e-6, "norm_plus_one": True, "scaled_embedding": True}
_GEMMA_2 = _GEMMA | {"post_norms": True, "attention_cap": 50.0, "logits_cap": 30.0, "window": 4096}
_QWEN_2 = {"norm_epsilon": 1e-6, "query_key_value_bias": True, "rotary": Rotary(1_000_000.0)}
_QWEN_3 = {"norm_epsilon": 1e-6, "query_key_norm": True, "rotary": Rotary(1_000_000.0)}
_UNTIED = {"logits_via_embedding": False}


def gemma_2(layers: int) -> dict:
    """Gemma 2: layers with a window and layers without one in turn."""
    return _GEMMA_2 | {"layer_kinds": ("window", "full") * (layers // 2)}


def _gemma_3(layers: int, window: int, factor: float = 1.0) -> dict:
    """Gemma 3: every sixth layer sees everything, with another base."""
    kinds = tuple("full" if (layer + 1) % 6 == 0 else "window" for layer in range(layers))
    bases = {"rotary": Rotary(1_000_000.0, factor), "window_rotary": Rotary(10_000.0)}
    return _GEMMA | {"post_norms": True, "query_key_norm": True, "window": window, "layer_kinds": kinds, **bases}


# name, V, D, layers, heads, heads of keys and values, width of a head, F, and what differs from Llama 2 (epsilon 1e-5, base 10,000)
_ROWS = (
    ("smollm2_135m", 49152, 576, 30, 9, 3, 64, 1536, {"rotary": Rotary(100_000.0)}),
    ("smollm2_360m", 49152, 960, 32, 15, 5, 64, 2560, {"rotary": Rotary(100_000.0)}),
    ("smollm2_1_7b", 49152, 2048, 24, 32, 32, 64, 8192, {"rotary": Rotary(130_000.0)}),
    ("tinyllama_1_1b", 32000, 2048, 22, 32, 4, 64, 5632, _UNTIED),
    ("llama_2_7b", 32000, 4096, 32, 32, 32, 128, 11008, _UNTIED),
    ("llama_2_13b", 32000, 5120, 40, 40, 40, 128, 13824, _UNTIED),
    ("llama_3_8b", 128256, 4096, 32, 32, 8, 128, 14336, _UNTIED | {"rotary": Rotary(500_000.0)}),
    ("llama_3_1_8b", 128256, 4096, 32, 32, 8, 128, 14336, _UNTIED | {"rotary": LLAMA_31}),
    ("llama_3_2_1b", 128256, 2048, 16, 32, 8, 64, 8192, {"rotary": LLAMA_32}),
    ("llama_3_2_3b", 128256, 3072, 28, 24, 8, 128, 8192, {"rotary": LLAMA_32}),
    ("llama_3_1_70b", 128256, 8192, 80, 64, 8, 128, 28672, _UNTIED | {"rotary": LLAMA_31}),
    ("mistral_7b", 32768, 4096, 32, 32, 8, 128, 14336, _UNTIED | {"rotary": Rotary(1_000_000.0)}),
    ("qwen2_5_0_5b", 151936, 896, 24, 14, 2, 64, 4864, _QWEN_2),
    ("qwen2_5_1_5b", 151936, 1536, 28, 12, 2, 128, 8960, _QWEN_2),
    ("qwen2_5_7b", 152064, 3584, 28, 28, 4, 128, 18944, _QWEN_2 | _UNTIED),
    ("qwen3_0_6b", 151936, 1024, 28, 16, 8, 128, 3072, _QWEN_3),
    ("qwen3_1_7b", 151936, 2048, 28, 16, 8, 128, 6144, _QWEN_3),
    ("qwen3_4b", 151936, 2560, 36, 32, 8, 128, 9728, _QWEN_3),
    ("qwen3_8b", 151936, 4096, 36, 32, 8, 128, 12288, _QWEN_3 | _UNTIED),
    ("gemma_2b", 256000, 2048, 18, 8, 1, 256, 16384, _GEMMA),
    ("gemma_7b", 256000, 3072, 28, 16, 16, 256, 24576, _GEMMA),
    ("gemma_2_2b", 256000, 2304, 26, 8, 4, 256, 9216, gemma_2(26)),
    ("gemma_2_9b", 256000, 3584, 42, 16, 8, 256, 14336, gemma_2(42)),
    ("gemma_2_27b", 256000, 4608, 46, 32, 16, 128, 36864, gemma_2(46) | {"query_scale": 144**-0.5}),
    ("gemma_3_270m", 262144, 640, 18, 4, 1, 256, 2048, _gemma_3(18, 512)),
    ("gemma_3_1b", 262144, 1152, 26, 4, 1, 256, 6912, _gemma_3(26, 512)),
    ("gemma_3_4b", 262208, 2560, 34, 8, 4, 256, 10240, _gemma_3(34, 1024, 8.0)),
    ("gemma_3_12b", 262208, 3840, 48, 16, 8, 256, 15360, _gemma_3(48, 1024, 8.0)),
)
CAUSAL_SIZES: dict[str, CausalConfig] = {row[0]: CausalConfig(*row[:-1], **row[-1]) for row in _ROWS}
