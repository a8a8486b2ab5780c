"""Cutting sorted rows into micro-batches (cutting.py): the cheapest cut, and that of one size as before."""

import itertools

import numpy as np
import pytest

from mpt_jax.data.cutting import cut_rows, sizes_from


def cost(padded_B2, parts, part_cost):
    return sum(size * padded_B2[start : start + size].max(axis=0).sum() + part_cost for start, size in parts)


def every_cut(number, sizes):
    """All ways to cut rows, as (first row, rows)."""
    for count in range(1, number + 1):
        for chosen in itertools.product(sizes, repeat=count):
            starts = np.cumsum((0, *chosen))
            if starts[-2] < number <= starts[-1]:
                yield list(zip(starts[:-1].tolist(), chosen, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_is_cheaper(seed):
    rng = np.random.default_rng(seed)
    number, part_cost = int(rng.integers(1, 9)), int(rng.integers(0, 100))
    padded_B2 = np.sort(rng.choice([16, 32, 64, 128, 256], (number, 2)), axis=0)
    sizes = sizes_from(4, 1)
    found = cut_rows(padded_B2, sizes, part_cost)
    assert cost(padded_B2, found, part_cost) == min(cost(padded_B2, parts, part_cost) for parts in every_cut(number, sizes))
    assert [start for start, _ in found] == np.cumsum([0, *(size for _, size in found)])[:-1].tolist()


def test_the_example_of_the_docstring():
    assert cut_rows(np.array([[16, 8], [16, 8], [64, 8], [256, 8]]), (4, 2, 1), part_cost=8) == [(0, 2), (2, 1), (3, 1)]


def test_one_size_cuts_every_so_many_rows_and_equal_rows_stay_together():
    assert cut_rows(np.full((10, 2), 16), (4,)) == [(0, 4), (4, 4), (8, 4)]
    assert cut_rows(np.full((8, 2), 16), (4, 2, 1)) == [(0, 4), (4, 4)]


def test_sizes_are_halves_down_to_the_smallest():
    assert sizes_from(8, 8) == (8,) and sizes_from(8, 2) == (8, 4, 2) and sizes_from(24, 2) == (24, 12, 6, 3) and sizes_from(8, 3) == (8, 4)
