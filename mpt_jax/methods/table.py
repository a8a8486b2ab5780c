"""The table of methods. One of your own: ``register(Method(...))`` in the module that MIXTURE_OR_TASK_MODULE names, then METHOD."""

from mpt_jax.config import TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt, weights
from mpt_jax.methods.method import Method

METHODS: dict[str, Method] = {row.name: row for row in (prompt.METHOD, weights.METHOD)}


def register(method: Method) -> None:
    """Adds a method, or replaces the one of the same name."""
    METHODS[method.name] = method


def method_named(name: str) -> Method:
    """A row of the table. Raises UserError for a name that it does not have."""
    if name not in METHODS:
        raise UserError(f"METHOD = {name!r} is not one of {', '.join(METHODS)}.")
    return METHODS[name]


def method_of(train: TrainSettings) -> Method:
    """The method of a stage: stages that train the backbone have their own."""
    return weights.METHOD if train.trains_backbone else method_named(train.method)
