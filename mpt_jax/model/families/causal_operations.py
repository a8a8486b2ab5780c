"""Operations that the matrix products of a decoder-only model's step need (operations.py).

A prompt is computed for each different task of a micro-batch, or with ``textbook`` for each row, which is the yardstick for other
implementations. P prompt positions, L input tokens, T target tokens.
"""

from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.family import Network
from mpt_jax.model.operations import Products, add, times


def projections(width: int, positions: int, columns: int) -> Products:
    """Products of so many positions of this width with kernels of so many columns in all."""
    return Products(2.0 * positions * width * columns, 0.0)


def attention(config: CausalConfig, queries: int, keys: float) -> Products:
    """Products of queries and keys, and of weights and values; each query sees ``keys`` on average."""
    return Products(0.0, 2.0 * 2 * queries * keys * config.num_heads * config.head_dim)


def layer(config: CausalConfig, queries: int, keys: float) -> Products:
    """One layer over so many positions."""
    heads, shared = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return add(projections(config.d_model, queries, 2 * heads + 2 * shared + 3 * config.d_ff), attention(config, queries, keys))


def _stack(config: CausalConfig, queries: int, keys: float) -> Products:
    return times(config.num_layers, layer(config, queries, keys))


def forward(config: CausalConfig, P: int, L: int, T: int, prompts: float) -> Products:  # noqa: N803
    """Rows and their share of the prompts, and the logits; products with keys that are masked count, since they are computed."""
    positions = L - 1 + T
    rows = add(_stack(config, positions, P + positions), Products(2.0 * T * config.d_model * config.vocab_size, 0.0))
    return add(rows, times(prompts, _stack(config, P, P)))


def prompt_step(
    network: Network,
    P: int,  # noqa: N803
    L: int,  # noqa: N803
    T: int,  # noqa: N803
    distilled: bool,
    textbook: bool = False,
    prompts: float = 1.0,
) -> dict[str, float]:
    """Operations an example of a prompt's training step needs, by part; ``prompts``: different tasks for each row of a micro-batch."""
    whole = forward(network.config, P, L, T, 1.0 if textbook else prompts)
    recomputed = whole.forward if network.computation.remat == "layers" else 0.0
    return {
        "forward": whole.forward,
        "gradient": whole.gradient,
        "teacher": whole.forward if distilled else 0.0,
        "recomputed": recomputed,
    }


def weight_gradients(config: CausalConfig, P: int, L: int, T: int) -> float:  # noqa: N803
    """What gradients with respect to all weights would add."""
    return forward(config, P, L, T, 1.0).weights
