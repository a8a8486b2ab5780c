"""Operations that the matrix products of a T5 step need (operations.py).

Nothing before the prompt's way through the network is differentiated: of the decoder's first layer neither self-attention nor the queries.
``textbook``: with keys and values of the encoder's output however few the target tokens, which is the yardstick for other implementations.
B examples, S encoder positions, T target tokens, D model width, H heads, K head width, F feed-forward width, V vocabulary.
"""

from mpt_jax.model.families.family import Network, StackSize
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.operations import Products, add, times

# up to K / 4 target positions (16 in every published size) attend to the encoder's output itself: a quarter of the operations that its
# keys and values take [ours]
FEW_POSITIONS = 4


def _projections(config: T5Config, positions: int, number: int) -> Products:
    return Products(2.0 * number * positions * config.d_model * config.num_heads * config.head_dim, 0.0)


def _attention(config: T5Config, queries: int, keys: int) -> Products:
    return Products(0.0, 2.0 * 2 * queries * keys * config.num_heads * config.head_dim)


def _mlp(config: T5Config, positions: int, matrices: int | None = None) -> Products:
    matrices = matrices or (3 if config.gated else 2)
    return Products(2.0 * matrices * positions * config.d_model * config.d_ff, 0.0)


def encoder_layer(config: T5Config, S: int) -> Products:
    """One encoder layer."""
    return add(_projections(config, S, 4), _attention(config, S, S), _mlp(config, S))


def attends_to_states(config: T5Config, T: int) -> bool:
    """Whether so few target positions attend to the encoder's output itself (model/attention.py)."""
    return T <= config.head_dim // FEW_POSITIONS


def _cross(config: T5Config, T: int, S: int, states: bool) -> Products:
    """Cross-attention of T positions without its query, and without keys and values of the encoder's output."""
    if states:
        # both kernels on the other side: T H D instead of T H K
        return add(_projections(config, T, 3), times(config.d_model / config.head_dim, _attention(config, T, S)))
    return add(_projections(config, T, 1), _attention(config, T, S))


def decoder_layer(config: T5Config, T: int, S: int, states: bool) -> Products:
    """One decoder layer over T positions, without the keys and values of the encoder's output; ``states``: it attends to that itself."""
    self_attention = add(_projections(config, T, 4), _attention(config, T, T))
    return add(self_attention, _projections(config, T, 1), _cross(config, T, S, states), _mlp(config, T))


def forward(config: T5Config, S: int, T: int, textbook: bool = False) -> Products:
    """Encoder, decoder and logits of one example."""
    states = attends_to_states(config, T) and not textbook
    encoder = times(config.num_encoder_layers, encoder_layer(config, S))
    keys_values = _projections(config, S, 0 if states else 2)
    decoder = times(config.num_decoder_layers, add(decoder_layer(config, T, S, states), keys_values))
    return add(encoder, decoder, Products(2.0 * T * config.d_model * config.vocab_size, 0.0))


def prompt_step(
    network: Network, P: int, L: int, T: int, distilled: bool, textbook: bool = False, prompts: float = 1.0
) -> dict[str, float]:
    """Operations an example of a prompt's training step needs, by part; ``recomputed`` with rematerialised layers.

    ``prompts`` makes no difference: the encoder sees prompt and input at once.
    """
    del prompts
    config, S = network.config, P + L
    states = attends_to_states(config, T) and not textbook
    whole = forward(config, S, T, textbook)
    queries = _projections(config, T, 2 if states else 1)
    not_differentiated = add(_projections(config, T, 4), _attention(config, T, T), queries)
    first_queries = _cross(config, T, S, states).attention / 2  # gradient of the first layer's queries
    recomputed = 0.0
    if network.computation.remat == "layers":
        # of each layer all but the last product, whose result nothing needs
        encoder = encoder_layer(config, S).forward - _mlp(config, S, 1).forward
        decoder = decoder_layer(config, T, S, states).forward - _mlp(config, T, 1).forward
        recomputed = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    return {
        "forward": whole.forward,
        "gradient": whole.gradient - not_differentiated.gradient - first_queries,
        "teacher": whole.forward if distilled else 0.0,
        "recomputed": recomputed,
    }


def weight_gradients(config: T5Config, P: int, L: int, T: int) -> float:
    """What gradients with respect to all weights would add."""
    return forward(config, P + L, T).weights


def stacks(config: T5Config, S: int, T: int) -> tuple[StackSize, ...]:
    """Sizes of encoder and decoder."""
    sizes = config.d_model, config.num_heads, config.head_dim, config.d_ff, config.gated, True
    return StackSize(config.num_encoder_layers, S, S, 1, *sizes), StackSize(config.num_decoder_layers, T, S + T, 2, *sizes)
