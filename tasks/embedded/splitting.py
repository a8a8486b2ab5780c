"""Splits by content: the digest of a text alone decides its split and its order.

So neither the order in which packages list things nor PYTHONHASHSEED matters, and another release of a
package moves no text from one split to another.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

SPLITS = ("train", "validation", "test")
SOURCE_SHARES = {"train": 80, "validation": 10, "test": 10}  # percent of the content
TARGET_SHARES = {"train": 50, "validation": 20, "test": 30}
SOURCE_LIMITS = {"train": 4000, "validation": 300, "test": 400}  # rows; evaluation must stay cheap
TARGET_LIMITS = {"train": 1500, "validation": 300, "test": 400}

Item = TypeVar("Item")


def digest(*parts: object) -> int:
    """A number in [0, 2**64) that depends on the parts' texts only."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def half(key: object) -> int:
    """0 or 1: cuts material that a source and a target both draw on into two parts without overlap."""
    return digest("half", key) % 2


def shuffled(items: Iterable[Item], *salt: object) -> list[Item]:
    """The items in the order of their digests."""
    return sorted(items, key=lambda item: (digest(*salt, item), str(item)))


def within(
    items: Iterable[Item], split: str, target: bool, key: Callable[[Item], object] = str
) -> list[Item]:
    """The items whose key belongs to the split, shuffled."""
    shares = TARGET_SHARES if target else SOURCE_SHARES
    start = sum(shares[name] for name in SPLITS[: SPLITS.index(split)])
    chosen = [item for item in items if start <= digest("split", key(item)) % 100 < start + shares[split]]
    return shuffled(chosen, "order")


def limited(rows: Sequence[Item], split: str, target: bool) -> Sequence[Item]:
    """The first rows, as many as the split may have."""
    return rows[: (TARGET_LIMITS if target else SOURCE_LIMITS)[split]]


def balanced(rows: Sequence[dict], split: str, target: bool, field: str = "label") -> list[dict]:
    """Equally many rows of every class, none of them twice, in an order that says nothing about the class."""
    classes: dict[Hashable, list[dict]] = defaultdict(list)
    for row in rows:
        classes[row[field]].append(row)
    limit = (TARGET_LIMITS if target else SOURCE_LIMITS)[split] // len(classes)
    count = min(limit, *(len(members) for members in classes.values()))
    return shuffled((row for members in classes.values() for row in members[:count]), "mixed")


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """The same items, each moved on by so many: partners for pairs that do not belong together."""
    return [items[(at + by) % len(items)] for at in range(len(items))]
