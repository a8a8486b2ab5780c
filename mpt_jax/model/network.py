"""Where method and network meet: the functions of whichever family a network's shape belongs to (families/family.py)."""

from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Decoded, Network, Outputs, Rows


def forward(network: Network, backbone: dict, rows: Rows, own=None, dropout_rng=None) -> Outputs:
    """Teacher-forced pass over rows with targets; ``own``: the method's parameters of each example."""
    return family_of(network.config).forward(network, backbone, rows, own, dropout_rng)


def prefill(network: Network, backbone: dict, rows: Rows, own=None, positions: int | None = None):
    """What decoding needs of the inputs. ``positions``: how many target positions will follow, None = unknown."""
    return family_of(network.config).prefill(network, backbone, rows, own, positions)


def empty_cache(network: Network, batch: int, length: int):
    """The cache of ``length`` target positions."""
    return family_of(network.config).empty_cache(network, batch, length)


def decode_step(network: Network, backbone: dict, prefilled, cache, token_B, position):
    """The token before ``position`` -> logits (B, V) of the one there, and the cache."""
    return family_of(network.config).decode_step(network, backbone, prefilled, cache, token_B, position)


def decode_targets(network: Network, backbone: dict, prefilled, targets_BT) -> Decoded:
    """Given targets after the prefilled inputs."""
    return family_of(network.config).decode_targets(network, backbone, prefilled, targets_BT)
