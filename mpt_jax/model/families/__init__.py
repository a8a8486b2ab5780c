"""Model families, a row each. A family of your own: ``register(Family(...))`` in the module that MIXTURE_OR_TASK_MODULE names."""

from typing import Any

from mpt_jax.model.families import causal, t5, t5gemma
from mpt_jax.model.families.family import Family

FAMILIES: dict[type, Family] = {row.config: row for row in (t5.FAMILY, causal.FAMILY, t5gemma.FAMILY)}


def register(family: Family) -> None:
    """Adds a family, or replaces the one with the same type of config. A config.json of a family that is not here raises UserError.

    >>> register(family_named("t5"))
    >>> family_named("t5").states, family_named("causal").states
    (('encoder', 'decoder'), ('decoder',))
    """
    FAMILIES[family.config] = family


def family_of(config: Any) -> Family:
    """The family of a shape."""
    return FAMILIES[type(config)]


def family_named(name: str) -> Family | None:
    """The family of a name; None if there is none."""
    return next((family for family in FAMILIES.values() if family.name == name), None)
