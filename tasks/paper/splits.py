"""Carving dev and test splits: by content, so that a split is the same on every machine whatever the order of the rows."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np

SEED = 42  # ATTEMPT's data_seed
Key = bytes  # 16 bytes that stand for what a row, or its group, says


def key_of(content: str) -> Key:
    """The key of a text."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()[:16]


def pick(keys: Sequence[Key], count: int, purpose: str) -> np.ndarray:
    """Which `count` rows are picked, bool [rows]; rows of one key go together, so some fewer where they do not fit."""
    groups: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    salt = f"{SEED}:{purpose}:".encode()
    chosen = np.zeros(len(keys), bool)
    left = count
    for key in sorted(groups, key=lambda key: hashlib.sha256(salt + key).digest()):
        if not left:
            break
        if len(groups[key]) <= left:
            chosen[groups[key]] = True
            left -= len(groups[key])
    return chosen


def without(keys: Sequence[Key], others: Collection[Key]) -> np.ndarray:
    """Which rows have a key that is none of `others`, bool [rows]."""
    return np.array([key not in others for key in keys], bool)


def torch_permutation(size: int, seed: int = SEED) -> np.ndarray:
    """torch.randperm(size) of a CPU generator seeded with `seed`, without torch: what the published splits came from.

    Torch draws 32 bits of a Mersenne twister for each index but the last and swaps it with a later one.
    """
    bits = np.random.RandomState(seed)._bit_generator  # seeded as torch seeds its own
    draws = bits.random_raw(max(size - 1, 0))
    order = np.arange(size)
    for index, draw in enumerate(draws):
        other = index + int(draw) % (size - index)
        order[index], order[other] = order[other], order[index]
    return order


def standing(order: np.ndarray, start: int, stop: int | None = None) -> np.ndarray:
    """Which rows stand at start..stop of a permutation, bool [rows]."""
    chosen = np.zeros(len(order), bool)
    chosen[order[start:stop]] = True
    return chosen
