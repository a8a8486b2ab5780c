"""Multitask prompt tuning for frozen language models in JAX."""

from pathlib import Path

__all__ = ["Answer", "Predictor", "Query", "Search", "UserError", "load"]

# installed, tasks/ and launch/ lie in this folder; in a checkout beside it, and are mpt_jax.tasks and mpt_jax.launch all the same:
# names of their own would be in the way of a user's tasks.py and launch.py
_CHECKOUT = Path(__file__).parent.parent
if (_CHECKOUT / "tasks" / "table.py").is_file() and (_CHECKOUT / "launch" / "machines.py").is_file():
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str):
    """The public names, imported when they are asked for: ``import mpt_jax`` alone loads no JAX."""
    if name in __all__:
        from mpt_jax.infer import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
