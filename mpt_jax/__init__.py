"""Multitask prompt tuning for frozen language models in JAX."""

from pathlib import Path

__all__ = ["load"]

# installed, tasks/ and launch/ lie in this folder; in a checkout beside it, and are mpt_jax.tasks and mpt_jax.launch all the same:
# names of their own would be in the way of a user's tasks.py and launch.py
_CHECKOUT = Path(__file__).parent.parent
if (_CHECKOUT / "tasks" / "table.py").is_file() and (_CHECKOUT / "launch" / "machines.py").is_file():
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str):
    """``mpt_jax.load``, imported when it is asked for: ``import mpt_jax`` alone loads no JAX."""
    if name == "load":
        from mpt_jax.infer.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
