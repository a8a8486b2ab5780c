"""Prints the folder for T5X's --gin_search_paths."""

from mpt_jax.macros import GIN_FOLDER

print(GIN_FOLDER)
