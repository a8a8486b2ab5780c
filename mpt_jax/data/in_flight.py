"""Working ahead: results that a device still computes are read some later."""

import collections
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_flight(results: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The results in order, each once ``depth`` more are under way (or there are no more): the reader never waits for an idle device."""
    waiting: collections.deque[T] = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
