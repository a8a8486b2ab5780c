"""Batches: the rows of all runs at a step, sorted by length, in micro-batches padded to their own buckets.

B examples, L input tokens, T target tokens, E width of a sentence vector, N tasks (runs), each a row of the prompt bank.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mpt_jax.config import MOST_ROWS, MOST_TOKENS
from mpt_jax.data.cache import RowSource
from mpt_jax.data.cutting import PART_COST, cut_rows, sizes_from
from mpt_jax.data.sampler import Stream, draw
from mpt_jax.data.vocabulary import EOS_ID
from mpt_jax.errors import UserError

# int32: inputs_BL, targets_BT, input_length_B and target_length_B (tokens that are real, whatever their ids), task_id_B;
# embedding_BE float32 where a cache has embeddings; teacher_… (data/teacher_cache.py) where taught
MicroBatch = dict[str, np.ndarray]
LONG = tuple(2**power for power in range(11, 17))  # rows far below a long limit are not padded to it
# steps of an eighth or less of the positions that the encoder sees with 100 prompt vectors [ours]
INPUT_BUCKETS = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024, *LONG)
TARGET_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, *LONG)
ENDLESS = 2**40  # steps; Grain wants a length


def buckets(limit: int, sizes: Sequence[int] = INPUT_BUCKETS) -> tuple[int, ...]:
    """The padded lengths in use up to `limit` tokens, ascending; the limit itself is always one."""
    return (*sorted({size for size in sizes if 0 < size < limit}), limit)


@dataclass(frozen=True)
class BatchSpec:
    """How rows become arrays. Lengths in tokens, end of sequence included (TASK_FEATURE_LENGTHS).

    Rows longer than input_length or target_length are cut, keeping the tokens that end them (Frame: input_end, target_end). Each pair
    of buckets in use is one compiled program: fewer buckets compile less and pad more. () = the defaults of this file.
    local_rows: rows of a micro-batch that this process needs, of several; the others' stay zeros. None = all.
    by_task: rows of a task come together (sorted by length within it), and a micro-batch names its different tasks, filled up to one of
    task_slots (ascending), or to a power of two.
    smallest_micro_batch: long rows go in micro-batches of half, a quarter … of micro_batch_size, down to this, where less is computed then
    (cutting.py; part_cost: see there). 0 = all have micro_batch_size.
    """

    input_length: int
    target_length: int
    micro_batch_size: int
    input_buckets: tuple[int, ...] = ()
    target_buckets: tuple[int, ...] = ()
    local_rows: tuple[int, ...] | None = None
    by_task: bool = False
    task_slots: tuple[int, ...] = ()
    input_end: tuple[int, ...] = (EOS_ID,)
    target_end: tuple[int, ...] = (EOS_ID,)
    smallest_micro_batch: int = 0
    part_cost: int = PART_COST

    def __post_init__(self) -> None:
        for name, most in (("input_length", MOST_TOKENS), ("target_length", MOST_TOKENS), ("micro_batch_size", MOST_ROWS)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"{name} = {getattr(self, name)}: must be 1 .. {most:,}")
        if not 0 <= self.smallest_micro_batch <= self.micro_batch_size:
            message = f"smallest_micro_batch = {self.smallest_micro_batch}"
            raise UserError(f"{message}: must be 0 .. micro_batch_size = {self.micro_batch_size}")
        inputs, targets = self.input_buckets or INPUT_BUCKETS, self.target_buckets or TARGET_BUCKETS
        object.__setattr__(self, "input_buckets", buckets(self.input_length, inputs))
        object.__setattr__(self, "target_buckets", buckets(self.target_length, targets))


@dataclass(frozen=True)
class Batch:
    """The rows of one optimiser step. Tokens are counted after cutting; padding is a share, 0..1."""

    step: int
    micro: list[MicroBatch]
    target_tokens_N: np.ndarray  # float32
    input_tokens_N: np.ndarray  # float32
    examples_N: np.ndarray  # float32
    examples: int
    cut_inputs: int
    cut_targets: int
    input_padding: float
    target_padding: float
    embedded_N: np.ndarray  # float32: rows with a sentence vector that is not all zeros
    rows: int  # CRC-32 of which rows were drawn, in their order; the same on any mesh and number of processes


@dataclass(frozen=True)
class _Rows:
    """Chosen rows, not yet gathered: index in `caches`, row, bank row and lengths after cutting of each."""

    caches: list[RowSource]
    cache_B: np.ndarray
    row_B: np.ndarray
    task_id_B: np.ndarray
    input_length_B: np.ndarray
    target_length_B: np.ndarray
    cut_inputs: int
    cut_targets: int


def make_batch(streams: Sequence[Stream], step: int, spec: BatchSpec, num_bank_rows: int) -> Batch:
    """The batch of `step`: rows of all streams, sorted by (input length, target length), in micro-batches.

    Rows missing in the last micro-batch are all zeros with task_id 0. A pure function of its arguments.
    """
    rows = _drawn_rows(streams, step, spec)
    order = _order(rows, spec)
    micro = [_gather(rows, order[start : start + size], spec, size) for start, size in _cut(rows, order, spec)]

    def total(weight_B: np.ndarray | None) -> np.ndarray:
        return np.bincount(rows.task_id_B, weight_B, minlength=num_bank_rows).astype(np.float32)

    if len(total(None)) > num_bank_rows:
        raise UserError(f"bank_index {rows.task_id_B.max()} is beyond the prompt bank's {num_bank_rows} rows")
    return Batch(
        step=step,
        micro=micro,
        target_tokens_N=total(rows.target_length_B),
        input_tokens_N=total(rows.input_length_B),
        examples_N=total(None),
        examples=len(order),
        cut_inputs=rows.cut_inputs,
        cut_targets=rows.cut_targets,
        input_padding=1.0 - rows.input_length_B.sum() / sum(part["inputs_BL"].size for part in micro),
        target_padding=1.0 - rows.target_length_B.sum() / sum(part["targets_BT"].size for part in micro),
        embedded_N=total(_embedded(rows)),
        rows=zlib.crc32(rows.row_B.astype("<i8").tobytes(), zlib.crc32(rows.task_id_B.astype("<i4").tobytes())),
    )


def eval_batches(
    cache: RowSource, spec: BatchSpec, task_id: np.ndarray | int = 0, subset: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, MicroBatch]]:
    """Every row (of `subset`) once, as (row_index_B int64, micro-batch); row index -1 marks a filler row.

    task_id: the prompt bank's row that each row of the cache gets.

    Longest rows come first: what does not fit in memory fails at the start, estimates of time are safe.
    """
    row_B = np.arange(cache.rows, dtype=np.int64) if subset is None else np.asarray(subset, np.int64)
    rows = _of_subset(cache, spec, task_id, row_B)
    order = _order(rows, spec)[::-1]
    size = spec.micro_batch_size
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        index_B = np.full(size, -1, np.int64)
        index_B[: len(chosen)] = row_B[chosen]
        yield index_B, _gather(rows, chosen, spec, size)


def longest_inputs(cache: RowSource, spec: BatchSpec, task_id: np.ndarray | int, subset: np.ndarray) -> np.ndarray:
    """Input tokens of the longest row of each micro-batch that ``eval_batches`` makes of the same arguments."""
    rows = _of_subset(cache, spec, task_id, subset)
    falling_B = rows.input_length_B[_order(rows, spec)[::-1]]
    return np.maximum.reduceat(falling_B, range(0, len(falling_B), spec.micro_batch_size))


class BatchIterator:
    """Batches of steps start_step, start_step + 1, ... made ahead by Grain's threads; the state is JSON-able."""

    def __init__(
        self,
        streams: Sequence[Stream],
        spec: BatchSpec,
        num_bank_rows: int,
        start_step: int,
        prefetch: int,
        threads: int,
    ):
        from grain import ReadOptions  # making and measuring batches needs no Grain

        self._arguments = spec, num_bank_rows
        self._options = ReadOptions(num_threads=threads if prefetch else 0, prefetch_buffer_size=prefetch)
        self._steps = self._read(streams, {"next_index": start_step})

    def _read(self, streams: Sequence[Stream], state: dict[str, int]):
        from grain import MapDataset

        source = _StepSource(streams, *self._arguments)
        steps = iter(MapDataset.source(source).to_iter_dataset(self._options))
        steps.set_state(state)
        return steps

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        return next(self._steps)

    def get_state(self) -> dict[str, int]:
        """{"next_index": the step that `next` will return}."""
        return self._steps.get_state()

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on from a state of `get_state`."""
        self._steps.set_state(state)

    def keep(self, streams: Sequence[Stream]) -> None:
        """From the next step on, batches hold the rows of these streams alone."""
        state = self.get_state()
        self._steps.close()
        self._steps = self._read(streams, state)

    def close(self) -> None:
        """Stops reading ahead."""
        self._steps.close()


def batch_iterator(
    streams: Sequence[Stream],
    spec: BatchSpec,
    num_bank_rows: int,
    start_step: int = 0,
    prefetch: int = 4,
    threads: int = 2,
) -> BatchIterator:
    """Iterator over `make_batch` of consecutive steps; `prefetch` batches are made ahead, 0 = none."""
    return BatchIterator(streams, spec, num_bank_rows, start_step, prefetch, threads)


class _StepSource:
    """Random access from step to batch, as Grain's sources want it."""

    def __init__(self, streams: Sequence[Stream], spec: BatchSpec, num_bank_rows: int):
        self._arguments = (tuple(streams), spec, num_bank_rows)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> Batch:
        streams, spec, num_bank_rows = self._arguments
        return make_batch(streams, step, spec, num_bank_rows)


def _drawn_rows(streams: Sequence[Stream], step: int, spec: BatchSpec) -> _Rows:
    """The rows of all streams at `step`, stream after stream."""
    caches: list[RowSource] = []
    cache_parts, row_parts, task_parts = [], [], []
    for stream in streams:
        index_B, row_B = draw(stream, step)
        cache_parts.append(index_B + len(caches))
        row_parts.append(row_B)
        task_parts.append(np.asarray(stream.bank_index, np.int32)[index_B])
        caches.extend(stream.caches)
    cache_B, row_B, task_id_B = map(np.concatenate, (cache_parts, row_parts, task_parts))
    return _lengths(caches, cache_B, row_B, task_id_B, spec)


def _order(rows: _Rows, spec: BatchSpec) -> np.ndarray:
    """Rows as they fill micro-batches, ascending: by length, of a task at a time where that is asked for."""
    keys = (rows.target_length_B, rows.input_length_B)
    return np.lexsort((*keys, rows.task_id_B) if spec.by_task else keys)


def _of_subset(cache: RowSource, spec: BatchSpec, task_id: np.ndarray | int, row_B: np.ndarray) -> _Rows:
    """Rows of one cache."""
    task_id_B = np.broadcast_to(task_id, cache.rows)[row_B].astype(np.int32)
    return _lengths([cache], np.zeros(len(row_B), np.int32), row_B, task_id_B, spec)


def _lengths(
    caches: list[RowSource], cache_B: np.ndarray, row_B: np.ndarray, task_id_B: np.ndarray, spec: BatchSpec
) -> _Rows:
    """Looks up the lengths of chosen rows and counts those that will be cut."""
    input_B, target_B = np.empty((2, len(row_B)), np.int32)
    for index in np.unique(cache_B):
        here = cache_B == index
        input_B[here] = caches[index].input_lengths[row_B[here]]
        target_B[here] = caches[index].target_lengths[row_B[here]]
    return _Rows(
        caches, cache_B, row_B, task_id_B,
        np.minimum(input_B, spec.input_length), np.minimum(target_B, spec.target_length),
        int((input_B > spec.input_length).sum()), int((target_B > spec.target_length).sum()),
    )  # fmt: skip


def _cut(rows: _Rows, order: np.ndarray, spec: BatchSpec) -> list[tuple[int, int]]:
    """(first row, rows) of each micro-batch of the rows in their order."""
    lengths = ((rows.input_length_B, spec.input_buckets), (rows.target_length_B, spec.target_buckets))
    padded_B2 = np.stack([np.take(sizes, np.searchsorted(sizes, length_B[order])) for length_B, sizes in lengths], axis=1)
    return cut_rows(padded_B2, sizes_from(spec.micro_batch_size, spec.smallest_micro_batch or spec.micro_batch_size), spec.part_cost)


def _gather(rows: _Rows, chosen: np.ndarray, spec: BatchSpec, size: int) -> MicroBatch:
    """One micro-batch of the rows numbered `chosen` and filler up to `size`, zero-padded to the smallest buckets that fit."""
    inputs_BL = np.zeros((size, _bucket(rows.input_length_B[chosen], spec.input_buckets)), np.int32)
    targets_BT = np.zeros((size, _bucket(rows.target_length_B[chosen], spec.target_buckets)), np.int32)
    task_id_B = np.zeros(size, np.int32)
    task_id_B[: len(chosen)] = rows.task_id_B[chosen]
    input_length_B, target_length_B = np.zeros((2, size), np.int32)
    input_length_B[: len(chosen)], target_length_B[: len(chosen)] = rows.input_length_B[chosen], rows.target_length_B[chosen]
    micro = {"inputs_BL": inputs_BL, "input_length_B": input_length_B, "targets_BT": targets_BT, "target_length_B": target_length_B}
    micro["task_id_B"] = task_id_B
    if spec.by_task:
        micro |= _different_tasks(task_id_B, len(chosen), spec.task_slots)
    widths = {cache.embedding.shape[1] for cache in rows.caches if cache.embedding is not None}
    if len(widths) > 1:
        raise UserError(f"tasks trained together have embeddings of widths {sorted(widths)}: use one encoder")
    if widths:
        micro["embedding_BE"] = np.zeros((size, *widths), np.float32)
    taught = next((cache.teacher for cache in rows.caches if cache.teacher is not None), None)
    if taught is not None:
        shapes = taught.layout.shapes(size, inputs_BL.shape[1], targets_BT.shape[1])
        micro |= {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    here = range(size) if spec.local_rows is None else spec.local_rows
    for slot in here[: np.searchsorted(here, len(chosen))]:
        example = chosen[slot]
        cache, row = rows.caches[rows.cache_B[example]], rows.row_B[example]
        _fill(inputs_BL[slot], cache.inputs(row), spec.input_length, spec.input_end)
        _fill(targets_BT[slot], cache.targets(row), spec.target_length, spec.target_end)
        if cache.embedding is not None:
            micro["embedding_BE"][slot] = cache.embedding[row]
        if cache.teacher is not None:
            cache.teacher.fill(micro, slot, int(row))
    return micro


def _different_tasks(task_id_B: np.ndarray, count: int, slots: tuple[int, ...]) -> MicroBatch:
    """The different tasks of the first ``count`` rows, ascending, and each row's slot among them: task_U, slot_B (filler rows: 0).

    The last one is repeated as ``slots_for`` says: so few programs serve any number.
    """
    task_U, slot_B = np.unique(task_id_B[:count], return_inverse=True)
    room = slots_for(len(task_U), slots) - len(task_U)
    slot_B = np.pad(slot_B, (0, len(task_id_B) - count)).astype(np.int32)
    return {"task_U": np.pad(task_U, (0, room), mode="edge").astype(np.int32), "slot_B": slot_B}


def slots_for(number: int, slots: tuple[int, ...] = ()) -> int:
    """Slots (U) that so many different tasks are filled up to: the first of ``slots`` that has room for them, or a power of two."""
    return next((size for size in slots if size >= number), 1 << (number - 1).bit_length())


def most_slots(group_N: np.ndarray, batch_size: int, spec: BatchSpec) -> int:
    """The most slots for different tasks (U) that a micro-batch of a spec with ``by_task`` has.

    group_N: the group of each task, in groups that follow one another, as in the order of rows; each gives ``batch_size`` rows to a batch.
    """
    tasks_G, size = np.bincount(group_N), spec.micro_batch_size
    rows = batch_size * len(tasks_G)
    starts = np.union1d(np.arange(0, rows, size), np.arange(0, rows, batch_size))  # of rows of one group in one micro-batch
    tasks = np.minimum(np.diff(starts, append=rows), tasks_G[starts // batch_size])
    return slots_for(int(np.bincount(starts // size, tasks).max()), spec.task_slots)


def _embedded(rows: _Rows) -> np.ndarray:
    """Which rows' caches hold a sentence vector for them (B,); counted from the caches, as a process may gather a part of the rows."""
    if all(cache.embedding is None for cache in rows.caches):
        return np.zeros(len(rows.row_B), np.float32)
    given = ((rows.caches[cache].embedding, row) for cache, row in zip(rows.cache_B, rows.row_B, strict=True))
    return np.array([embedding is not None and bool(np.any(embedding[row])) for embedding, row in given], np.float32)


def _bucket(length_B: np.ndarray, sizes: tuple[int, ...]) -> int:
    return sizes[int(np.searchsorted(sizes, length_B.max()))]


def cut(tokens: np.ndarray, limit: int, end: tuple[int, ...]) -> np.ndarray:
    """At most `limit` tokens of a row; a cut row that ended with the tokens `end` still does."""
    kept = tokens[:limit]
    if end and len(tokens) > limit >= len(end) and tuple(tokens[-len(end) :]) == end:
        kept = np.append(tokens[: limit - len(end)], np.array(end, tokens.dtype))
    return kept


def _fill(line: np.ndarray, tokens: np.ndarray, limit: int, end: tuple[int, ...]) -> None:
    """Writes a row's tokens, cut to `limit`."""
    kept = cut(tokens, limit, end)
    line[: len(kept)] = kept
