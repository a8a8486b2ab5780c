"""Operations that the matrix products of a T5Gemma step need (operations.py).

Nothing before the prompt's way through the network is differentiated: of the decoder's first layer neither attention to targets nor
queries.
S encoder positions, T target tokens, P prompt positions, L input tokens.
"""

from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.causal_operations import attention, layer, projections, stack_size
from mpt_jax.model.families.family import Network, StackSize
from mpt_jax.model.families.t5gemma_config import T5GemmaConfig
from mpt_jax.model.operations import Products, add, times


def _keys_values(config: T5GemmaConfig, S: int) -> Products:
    """A decoder layer's keys and values of the encoder's output."""
    return projections(config.encoder.d_model, S, 2 * config.decoder.num_kv_heads * config.decoder.head_dim)


def _queries_out(side: CausalConfig, T: int, matrices: int = 2) -> Products:
    return projections(side.d_model, T, matrices * side.num_heads * side.head_dim)


def _cross(config: T5GemmaConfig, T: int, S: int) -> Products:
    """Attention of T positions to the encoder's output, without its keys and values; a merged one has no queries of its own."""
    products = attention(config.decoder, T, S)
    return products if config.merged_attention else add(products, _queries_out(config.decoder, T))


def _decoder_layer(config: T5GemmaConfig, T: int, S: int) -> Products:
    return add(layer(config.decoder, T, T), _cross(config, T, S), _keys_values(config, S))


def forward(config: T5GemmaConfig, S: int, T: int) -> Products:
    """Encoder, decoder and logits of one example."""
    encoder = times(config.encoder.num_layers, layer(config.encoder, S, S))
    decoder = times(config.decoder.num_layers, _decoder_layer(config, T, S))
    return add(encoder, decoder, Products(2.0 * T * config.decoder.d_model * config.vocab_size, 0.0))


def prompt_step(
    network: Network, P: int, L: int, T: int, distilled: bool, textbook: bool = False, prompts: float = 1.0
) -> dict[str, float]:
    """Operations an example of a prompt's training step needs, by part; ``recomputed`` with rematerialised layers.

    ``textbook`` and ``prompts`` make no difference: the encoder sees prompt and input at once, and all that is saved are gradients.
    """
    del textbook, prompts
    config, S = network.config, P + L
    decoder, whole = config.decoder, forward(network.config, S, T)
    first = layer(decoder, T, T)
    feed = projections(decoder.d_model, T, 3 * decoder.d_ff)
    not_differentiated = Products(first.weights - feed.weights, first.attention)
    if config.merged_attention:  # its output kernel carries the gradient to the encoder's values
        not_differentiated = Products(not_differentiated.weights - _queries_out(decoder, T, 1).weights, not_differentiated.attention)
    else:
        not_differentiated = add(not_differentiated, _queries_out(decoder, T, 1))
    first_queries = attention(decoder, T, S).attention / 2
    recomputed = 0.0
    if network.computation.remat == "layers":
        for side, products, positions in ((config.encoder, layer(config.encoder, S, S), S), (decoder, add(first, _cross(config, T, S)), T)):
            # without a norm after it, nothing needs a layer's last product
            last = 0.0 if side.post_norms else projections(side.d_model, positions, side.d_ff).forward
            recomputed += side.num_layers * (products.forward - last)
    return {
        "forward": whole.forward,
        "gradient": whole.gradient - not_differentiated.gradient - first_queries,
        "teacher": whole.forward if distilled else 0.0,
        "recomputed": recomputed,
    }


def weight_gradients(config: T5GemmaConfig, P: int, L: int, T: int) -> float:
    """What gradients with respect to all weights would add."""
    return forward(config, P + L, T).weights


def stacks(config: T5GemmaConfig, S: int, T: int) -> tuple[StackSize, ...]:
    """Sizes of encoder and decoder."""
    return stack_size(config.encoder, S, S), stack_size(config.decoder, T, S + T, 1 if config.merged_attention else 2)
