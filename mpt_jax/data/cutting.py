"""Where the sorted rows of a batch are cut into micro-batches.

B examples.
"""

from collections.abc import Sequence

import numpy as np

PART_COST = 64  # what a further micro-batch costs, in padded positions of a row: the decoder's weights are read once more [ours]


def sizes_from(largest: int, smallest: int) -> tuple[int, ...]:
    """Rows of micro-batches in use, falling: the largest, its half, a quarter … down to the smallest."""
    sizes = [largest]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= smallest:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def cut_rows(padded_B2: np.ndarray, sizes: Sequence[int], part_cost: int = PART_COST) -> list[tuple[int, int]]:
    """(first row, rows) of each micro-batch, so that all of them hold the fewest positions: padding, filler rows and part_cost counted.

    padded_B2: padded lengths of inputs and targets of each row, in the order in which rows are cut. sizes: falling; of equal cuts the one
    into larger micro-batches is taken. The last micro-batch may hold fewer rows than its size.

        cut_rows(np.array([[16, 8], [16, 8], [64, 8], [256, 8]]), (4, 2, 1), part_cost=8) == [(0, 2), (2, 1), (3, 1)]
    """
    if len(sizes) == 1:
        return [(start, sizes[0]) for start in range(0, len(padded_B2), sizes[0])]
    number = len(padded_B2)
    cost = np.zeros(number + max(sizes) + 1)
    chosen = np.zeros(number, int)
    for start in range(number - 1, -1, -1):
        found = [size * padded_B2[start : start + size].max(axis=0).sum() + part_cost + cost[start + size] for size in sizes]
        best = int(np.argmin(found))
        cost[start], chosen[start] = found[best], sizes[best]
    parts, start = [], 0
    while start < number:
        parts.append((start, int(chosen[start])))
        start += parts[-1][1]
    return parts
