"""Operations that the matrix products of a decoder-only model's step need (operations.py).

A prompt is computed for each different task of a micro-batch, or with ``textbook`` for each row, which is the yardstick for other
implementations. Of its last layer nothing but keys and values is of use. Nothing before the prompt's way through the network is
differentiated: of a row's first layer only what the prompt's keys and values did. P prompt positions, L input tokens, T target tokens.
"""

from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.family import Network, StackSize
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


def _keys_values(config: CausalConfig, positions: int) -> Products:
    return projections(config.d_model, positions, 2 * config.num_kv_heads * config.head_dim)


def _prompt(config: CausalConfig, P: int) -> Products:
    return add(times(config.num_layers - 1, layer(config, P, P)), _keys_values(config, P))


def forward(config: CausalConfig, P: int, L: int, T: int, prompts: float) -> Products:
    """Rows and their share of the prompts, and the logits; products with keys that are masked count, since they are computed."""
    positions = L - 1 + T
    rows = add(_stack(config, positions, P + positions), Products(2.0 * T * config.d_model * config.vocab_size, 0.0))
    return add(rows, times(prompts, _prompt(config, P)))


def prompt_step(
    network: Network, P: int, L: int, T: int, distilled: bool, textbook: bool = False, prompts: float = 1.0
) -> dict[str, float]:
    """Operations an example of a prompt's training step needs, by part; ``prompts``: different tasks for each row of a micro-batch."""
    config, prompts = network.config, 1.0 if textbook else prompts
    whole, positions, heads = forward(config, P, L, T, prompts), L - 1 + T, config.num_heads * config.head_dim
    queries = projections(config.d_model, positions, heads)
    # weights that a row's first layer gives to the prompt, and the prompt's values and keys there, are differentiated
    first = 2 * attention(config, positions, P + positions).attention - 1.5 * attention(config, positions, P).attention
    not_differentiated = add(queries, _keys_values(config, positions)).weights + first
    recomputed = 0.0
    if network.computation.remat == "layers":
        layers = add(_stack(config, positions, P + positions), times(prompts * (config.num_layers - 1), layer(config, P, P)))
        # without a norm after it, nothing needs a layer's last product
        last = 0.0 if config.post_norms else projections(config.d_model, 1, config.d_ff).forward
        recomputed = layers.forward - last * (config.num_layers * positions + prompts * (config.num_layers - 1) * P)
        recomputed += prompts * _keys_values(config, P).forward / 2 if config.query_key_norm else 0.0
    return {
        "forward": whole.forward,
        "gradient": whole.gradient - not_differentiated,
        "teacher": whole.forward if distilled else 0.0,
        "recomputed": recomputed,
    }


def weight_gradients(config: CausalConfig, P: int, L: int, T: int) -> float:
    """What gradients with respect to all weights would add."""
    return forward(config, P, L, T, 1.0).weights


def stack_size(config: CausalConfig, queries: int, keys: int, attentions: int = 1) -> StackSize:
    """A stack of these layers."""
    return StackSize(config.num_layers, queries, keys, attentions, config.d_model, config.num_heads, config.head_dim, config.d_ff)


def stacks(config: CausalConfig, S: int, T: int) -> tuple[StackSize, ...]:
    """Sizes of the one stack; the prompt counts for each row."""
    return (stack_size(config, S + T, S + T),)
