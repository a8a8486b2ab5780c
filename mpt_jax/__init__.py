"""Multitask prompt tuning for frozen T5 models in JAX."""

__all__ = ["load"]


def __getattr__(name: str):
    """``mpt_jax.load``, imported when it is asked for: ``import mpt_jax`` alone loads no JAX."""
    if name == "load":
        from mpt_jax.infer.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
