"""Shapes of T5Gemma: an encoder and a decoder of Gemma's kind, and the table of published sizes."""

import dataclasses

from mpt_jax.checks import check_types
from mpt_jax.errors import UserError
from mpt_jax.model.families.causal_config import CausalConfig, gemma_2


@dataclasses.dataclass(frozen=True)
class T5GemmaConfig:
    """Shape of a T5Gemma. Sources: transformers models/t5gemma, t5gemma2; google-deepmind/gemma research/t5gemma.

    encoder, decoder: shapes of the stacks, which may differ in all but the vocabulary. logits_via_embedding of the decoder: the output is
    its own embedding.
    """

    name: str
    encoder: CausalConfig
    decoder: CausalConfig
    # T5Gemma 2: one attention of the decoder sees its own positions and the encoder's, by the same kernels
    merged_attention: bool = False
    one_embedding: bool = False  # T5Gemma 2: encoder and decoder share it
    halved_windows: bool = False  # T5Gemma 2: an encoder's window is that wide in all, not on either side
    decoder_start_id: int = 2  # the decoder's first input token

    def __post_init__(self):
        for side in ("encoder", "decoder"):
            if isinstance(getattr(self, side), dict):
                object.__setattr__(self, side, CausalConfig(**getattr(self, side)))
        check_types(self)
        encoder, decoder = self.encoder, self.decoder
        if encoder.vocab_size < decoder.vocab_size or (self.one_embedding and encoder.vocab_size != decoder.vocab_size):
            sizes = f"{encoder.vocab_size:,} tokens, the decoder {decoder.vocab_size:,}"
            raise UserError(f"T5GemmaConfig: the encoder has {sizes}; they share a vocabulary.")
        if (self.merged_attention or self.one_embedding) and encoder.d_model != decoder.d_model:
            what = "a merged attention" if self.merged_attention else "one embedding"
            raise UserError(f"T5GemmaConfig: widths {encoder.d_model} and {decoder.d_model} of the stacks differ; {what} needs one.")
        if not 0 <= self.decoder_start_id < decoder.vocab_size:
            size = decoder.vocab_size
            raise UserError(f"T5GemmaConfig.decoder_start_id = {self.decoder_start_id} is not one of the vocabulary's {size:,} ids.")

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary."""
        return self.decoder.vocab_size

    @property
    def d_model(self) -> int:
        """Width of the encoder, and so of prompts."""
        return self.encoder.d_model

    @property
    def lookup_scale(self) -> float:
        """What transformers multiplies a token's row with when it looks it up; T5Gemma 1 multiplies whatever enters the stack instead."""
        return self.encoder.lookup_scale if self.one_embedding else 1.0

    @property
    def num_layers(self) -> int:
        """Layers of both stacks."""
        return self.encoder.num_layers + self.decoder.num_layers

    def num_parameters(self) -> int:
        """Number of backbone parameters, worked out from the shapes."""
        decoder, heads = self.decoder, self.decoder.num_heads * self.decoder.head_dim
        cross = 2 * decoder.d_model * heads + 2 * self.encoder.d_model * decoder.num_kv_heads * decoder.head_dim
        cross += (2 if decoder.post_norms else 1) * decoder.d_model
        own = dataclasses.replace(self.encoder, logits_via_embedding=True).num_parameters() + decoder.num_parameters()
        own -= decoder.vocab_size * decoder.d_model if self.one_embedding else 0
        return own + (0 if self.merged_attention else decoder.num_layers * cross)


# google-deepmind/gemma research/t5gemma/config.py: D, layers, heads, heads of keys and values, width of a head, F
_SIDES = {
    "s": (512, 8, 8, 8, 64, 1024),
    "b": (768, 12, 12, 12, 64, 2048),
    "l": (1024, 24, 16, 16, 64, 2816),
    "ml": (1152, 26, 4, 4, 256, 6912),
    "xl": (2048, 24, 32, 32, 64, 5120),
    "2b": (2304, 26, 8, 4, 256, 9216),
    "9b": (3584, 42, 16, 8, 256, 14336),
}
_PAIRS = (("s", "s"), ("b", "b"), ("l", "l"), ("ml", "ml"), ("xl", "xl"), ("2b", "2b"), ("9b", "2b"), ("9b", "9b"))


def _size(encoder: str, decoder: str) -> T5GemmaConfig:
    return T5GemmaConfig(f"t5gemma_{encoder}_{decoder}", encoder=_side("encoder", encoder), decoder=_side("decoder", decoder))


def _side(name: str, size: str) -> CausalConfig:
    return CausalConfig(name, 256000, *_SIDES[size], **gemma_2(_SIDES[size][1]))


T5GEMMA_SIZES: dict[str, T5GemmaConfig] = {config.name: config for config in (_size(*pair) for pair in _PAIRS)}
