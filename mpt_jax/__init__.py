"""Multitask prompt tuning for frozen T5 models in JAX."""
