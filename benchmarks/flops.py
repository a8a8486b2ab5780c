"""Floating-point operations that the mathematics of a step needs: real tokens only, a multiplication and an addition for each.

What is counted: matrix products of the network, forwards, and backwards towards activations (weights are frozen). What is not: padding,
element-wise work, recomputation. D model width, F feed-forward width, V vocabulary, S encoder positions, T target tokens.
"""

from collections.abc import Iterable

from mpt_jax.config import T5Config


def _attention(config: T5Config) -> int:
    return config.d_model * config.num_heads * config.head_dim


def encoder(config: T5Config, positions: int) -> int:
    """Encoder of one example of so many positions, and the decoder's keys and values of its output."""
    mlp = (3 if config.gated else 2) * config.d_model * config.d_ff
    width = config.num_heads * config.head_dim
    layer = 2 * positions * (4 * _attention(config) + mlp) + 4 * positions * positions * width
    return config.num_encoder_layers * layer + config.num_decoder_layers * 2 * positions * 2 * _attention(config)


def decoder(config: T5Config, positions: int, targets: int, decoding: bool = False) -> int:
    """Decoder and output of one example; ``decoding``: a token at a time over kept keys and values, which costs the same."""
    mlp = (3 if config.gated else 2) * config.d_model * config.d_ff
    width = config.num_heads * config.head_dim
    layer = 2 * targets * (6 * _attention(config) + mlp) + 4 * targets * (targets + positions) * width
    return config.num_decoder_layers * layer + 2 * targets * config.d_model * config.vocab_size


def forward(config: T5Config, prompt: int, lengths: Iterable[tuple[int, int]]) -> int:
    """Teacher-forced pass over examples given by (input tokens, target tokens)."""
    return sum(encoder(config, prompt + inputs) + decoder(config, prompt + inputs, targets) for inputs, targets in lengths)


def prompt_step(config: T5Config, prompt: int, lengths: Iterable[tuple[int, int]]) -> int:
    """Forward and backward of a training step whose gradient is taken of the prompt alone.

    Backwards, a product with a frozen matrix is one product again; the two products of attention, both of whose sides carry gradient,
    are four.
    """
    total = 0
    width = config.num_heads * config.head_dim
    for inputs, targets in lengths:
        positions = prompt + inputs
        both = config.num_encoder_layers * 4 * positions**2 + config.num_decoder_layers * 4 * targets * (targets + positions)
        total += 2 * (encoder(config, positions) + decoder(config, positions, targets)) + width * both
    return total
