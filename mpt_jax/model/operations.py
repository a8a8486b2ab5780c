"""Floating-point operations of matrix products: 2 for each multiplication and addition.

A step of a frozen backbone needs its forward pass and the gradients with respect to activations, none with respect to weights. A product
with a weight is needed once more for the gradient of its input; a product of two activations (attention) twice more.
"""

from typing import NamedTuple


class Products(NamedTuple):
    """Operations of one pass for one example: with a weight on one side, with activations on both."""

    weights: float
    attention: float

    @property
    def forward(self) -> float:
        """The pass itself."""
        return self.weights + self.attention

    @property
    def gradient(self) -> float:
        """Gradients with respect to activations."""
        return self.weights + 2 * self.attention


def add(*parts: Products) -> Products:
    """All of them."""
    return Products(*(sum(values) for values in zip(*parts, strict=True)))


def times(number: float, part: Products) -> Products:
    """So many of it."""
    return Products(number * part.weights, number * part.attention)
