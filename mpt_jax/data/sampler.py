"""Which rows make up a batch: pure functions of (seed, step).

Every task of a stream walks a seeded permutation of its rows, a new one each epoch. How many rows a task
gives at each step is drawn cheaply, 256 steps at a time, so its position is the sum of those counts.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mpt_jax.config import MIXINGS
from mpt_jax.data.cache import TokenCache
from mpt_jax.errors import UserError

CHUNK = 256  # steps whose counts are drawn together: 100,000 steps are 391 draws
_COUNTS, _ORDER, _FEW_SHOT = 1, 2, 3  # purposes of random numbers, so that no two draws share a key


@dataclass(frozen=True, eq=False)
class Stream:
    """What one run trains on: its tasks, how they are mixed, and its own seed.

    caches: one per task. bank_index: row of the prompt bank for each cache. batch_size: rows per step.
    mixing: 'proportional' draws each row's task by min(size, cap), T5's examples-proportional mixing with its
    limit 2^18; 'stochastic' is MPT's stochastic task sampling (arXiv 2303.02861) over the same shares;
    'equal' draws all tasks alike. cap: size limit, rows. subset: rows in use of each cache, None = all.
    """

    seed: int
    caches: tuple[TokenCache, ...]
    bank_index: tuple[int, ...]
    batch_size: int
    mixing: str = "proportional"
    cap: int = 2**18
    subset: tuple[np.ndarray | None, ...] = ()
    _memo: "_Memo" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        count = len(self.caches)
        if not self.subset:
            object.__setattr__(self, "subset", (None,) * count)
        if not count:
            raise UserError("a stream needs at least one task")
        if len(self.bank_index) != count or len(self.subset) != count:
            raise UserError(
                f"{count} tasks, {len(self.bank_index)} bank_index, {len(self.subset)} subset: must agree"
            )
        for setting, least in (("seed", 0), ("batch_size", 1), ("cap", 1)):
            if getattr(self, setting) < least:
                raise UserError(f"{setting} = {getattr(self, setting)}: must be {least} or more")
        if self.mixing not in MIXINGS:
            raise UserError(f"mixing = {self.mixing!r}: choose one of {', '.join(MIXINGS)}")
        for cache, rows in zip(self.caches, self.subset, strict=True):
            if rows is not None and (not len(rows) or np.min(rows) < 0 or np.max(rows) >= cache.rows):
                raise UserError(
                    f"subset of task {cache.name!r}: needs one row or more, of 0..{cache.rows - 1}"
                )
        object.__setattr__(self, "_memo", _Memo())

    @property
    def sizes(self) -> np.ndarray:
        """Rows in use, int64 [tasks]."""
        chosen = zip(self.caches, self.subset, strict=True)
        return np.array([cache.rows if rows is None else len(rows) for cache, rows in chosen], np.int64)

    @property
    def probabilities(self) -> np.ndarray:
        """Share of each task in the mixture, float64 [tasks], sums to 1."""
        weight = np.ones(len(self.caches)) if self.mixing == "equal" else np.minimum(self.sizes, self.cap)
        return weight / weight.sum()


class _Memo:
    """What `draw` has computed for one stream; results never depend on it. Safe for several threads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.chunk_starts: list[np.ndarray] = []  # rows of each task drawn before chunk i, int64 [tasks]
        self.recent: OrderedDict[tuple, np.ndarray] = OrderedDict()

    def get(self, key: tuple, limit: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The remembered array of `key`, computed at most once while among the `limit` latest."""
        with self.lock:
            if key in self.recent:
                self.recent.move_to_end(key)
                return self.recent[key]
            self.recent[key] = value = compute()
            while len(self.recent) > limit:
                self.recent.popitem(last=False)
            return value


def draw(stream: Stream, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The batch of `step` (0, 1, ...): (index of the cache int32 [B], row in that cache int64 [B]).

    Rows come grouped by task; all rows of a task are seen before one is seen again. UserError if step < 0.
    """
    if step < 0:
        raise UserError(f"step = {step}: must be 0 or more")
    first_N, count_N = _position(stream, step)
    rows = [
        _rows(stream, task, int(first_N[task]), int(count)) for task, count in enumerate(count_N) if count
    ]
    return np.repeat(np.arange(len(count_N), dtype=np.int32), count_N), np.concatenate(rows)


def rows_in(stream: Stream, steps: int) -> list[np.ndarray]:
    """The rows of each task that the first ``steps`` steps draw, each once, ascending; int64."""
    first_N, _ = _position(stream, steps)
    count_N = np.minimum(first_N, stream.sizes)
    empty = np.zeros(0, np.int64)
    return [np.sort(_rows(stream, task, 0, int(count))) if count else empty for task, count in enumerate(count_N)]


def few_shot_rows(cache: TokenCache, k: int, seed: int, per_class: bool = False) -> np.ndarray:
    """Sorted row numbers int64 of a class-balanced few-shot sample; rows with equal targets are a class.

    k: rows in total, shared evenly (to one row) by the classes while they last; DePT's sampler also counts k
    in total. `per_class`: k rows of every class. Raises UserError where there are not enough rows.
    """
    if k < 1 or k > cache.rows:
        raise UserError(f"few-shot k = {k}: task {cache.name!r} has {cache.rows} rows; type --k_shot with 1 to {cache.rows}")
    random = _random(seed, _FEW_SHOT)
    classes: dict[bytes, list[int]] = {}
    for row in range(cache.rows):
        classes.setdefault(cache.targets(row).tobytes(), []).append(row)
    shuffled = [random.permutation(np.array(rows, np.int64)) for rows in classes.values()]
    if per_class:
        smallest = min(map(len, shuffled))
        if smallest < k:
            raise UserError(f"few-shot k = {k} per class: task {cache.name!r} has a class of {smallest} rows; take no more")
        return np.sort(np.concatenate([rows[:k] for rows in shuffled]))
    # The j-th row of every class before the (j+1)-th of any; classes in random order.
    rank = np.concatenate([np.arange(len(rows)) for rows in shuffled])
    order = np.concatenate(
        [
            np.full(len(rows), number)
            for rows, number in zip(shuffled, random.permutation(len(shuffled)), strict=True)
        ]
    )
    return np.sort(np.concatenate(shuffled)[np.lexsort((order, rank))[:k]])


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *key))))


def _position(stream: Stream, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each task drawn before `step`, and at `step`; int64 [tasks] both."""
    if len(stream.caches) == 1:
        return np.array([step * stream.batch_size]), np.array([stream.batch_size])
    chunk, offset = divmod(step, CHUNK)
    memo = stream._memo
    with memo.lock:
        starts = memo.chunk_starts
        if not starts:
            starts.append(np.zeros(len(stream.caches), np.int64))
        while len(starts) <= chunk:
            starts.append(starts[-1] + _chunk_counts(stream, len(starts) - 1).sum(axis=0))
        before = starts[chunk]
    counts_MN = memo.get(("counts", chunk), _memo_limit(stream), lambda: _chunk_counts(stream, chunk))
    return before + counts_MN[:offset].sum(axis=0), counts_MN[offset]


def _chunk_counts(stream: Stream, chunk: int) -> np.ndarray:
    """Rows that each task gives at each step of a chunk, int64 [256, tasks]; steps sum to the batch size."""
    random = _random(stream.seed, _COUNTS, chunk)
    share_N, batch = stream.probabilities, stream.batch_size
    tasks = len(share_N)
    if stream.mixing != "stochastic" or tasks == 1:
        return random.multinomial(batch, share_N, size=CHUNK)
    # MPT: some tasks drawn with replacement, their equal share of rows each (rounded down), the remainder to one of them.
    drawn_M = np.minimum(random.integers(2, tasks + 1, size=CHUNK), batch)
    task_MN = random.choice(tasks, size=(CHUNK, tasks), p=share_N)
    each_M, rest_M = batch // drawn_M, batch % drawn_M
    lucky_M = random.integers(0, drawn_M)
    step_M = np.arange(CHUNK)
    counts_MN = np.zeros((CHUNK, tasks), np.int64)
    for number in range(tasks):
        counts_MN[step_M, task_MN[:, number]] += np.where(number < drawn_M, each_M, 0)
    counts_MN[step_M, task_MN[step_M, lucky_M]] += rest_M
    return counts_MN


def _rows(stream: Stream, task: int, first: int, count: int) -> np.ndarray:
    """Rows number `first` .. `first + count - 1` of a task's endless walk, int64 [count]."""
    subset = stream.subset[task]
    size = stream.caches[task].rows if subset is None else len(subset)
    pieces = []
    while count:
        epoch, start = divmod(first, size)
        taken = min(count, size - start)
        pieces.append(_epoch_order(stream, task, epoch, size)[start : start + taken])
        first, count = first + taken, count - taken
    rows = np.concatenate(pieces).astype(np.int64)
    return rows if subset is None else np.asarray(subset, np.int64)[rows]


def _epoch_order(stream: Stream, task: int, epoch: int, size: int) -> np.ndarray:
    """The seeded permutation of 0..size-1 for one epoch of one task, int32."""

    def compute() -> np.ndarray:
        return _random(stream.seed, _ORDER, task, epoch).permutation(size).astype(np.int32)

    return stream._memo.get(("order", task, epoch), _memo_limit(stream), compute)


def _memo_limit(stream: Stream) -> int:
    """Arrays to remember: two epochs of every task (reading ahead crosses borders) and chunks of counts."""
    return 2 * len(stream.caches) + 4
