"""The queue: queries of any task wait a few milliseconds for one another and share a batch of a compiled size.

Everything here runs on the event loop, the model in a thread of its own; whatever changes its arrays is done by that thread, too.
"""

import asyncio
import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpt_jax.data.batches import BatchSpec
from mpt_jax.infer import queries, requests
from mpt_jax.infer.live_bank import LiveBank
from mpt_jax.infer.queries import Answer, Asked
from mpt_jax.infer.requests import SHORT
from mpt_jax.model.families import family_of
from mpt_jax.serving.measures import Measures
from mpt_jax.serving.refused import Refused
from mpt_jax.serving.settings import ServeSettings

log = logging.getLogger(__name__)
GROWTH = 4  # between compiled batch sizes: few programs, and at most so much padding [ours]


@dataclasses.dataclass(eq=False)
class Job:
    """The queries of one request that wait together. left: how many are not answered yet."""

    answers: list[Answer | None]
    future: asyncio.Future
    left: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A query that waits."""

    asked: Asked
    job: Job
    number: int
    arrived: float


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Batch sizes that are compiled, ascending: 1, 4, 16, … and the largest."""
    sizes = [1]
    while sizes[-1] * GROWTH < most:
        sizes.append(sizes[-1] * GROWTH)
    return tuple(dict.fromkeys([*sizes, most]))


def kind_of(asked: Asked) -> str:
    """'text' or 'target'."""
    return "text" if asked.target is None else "target"


class Batcher:
    """Queries in, answers out. after: called with each query that has left, answered or given up."""

    def __init__(self, settings: ServeSettings, spec: BatchSpec, measures: Measures, after: Callable[[Asked], None]):
        self.settings, self.spec, self.measures, self._after = settings, spec, measures, after
        self.sizes = sizes_up_to(settings.batch_size)
        self.executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="model")
        self._groups: dict[tuple, collections.deque[Row]] = {}
        self._waiting = 0
        self._arrived, self._full = asyncio.Event(), asyncio.Event()
        self.stopping = False  # ends warming up

    def check_room(self, count: int) -> None:
        """Raises Refused where so many queries more are too many."""
        if self._waiting + count > self.settings.max_queue:
            message = f"{self._waiting} queries wait, and --max_queue is {self.settings.max_queue}: try again"
            raise Refused(503, message, {"Retry-After": "1"})

    async def answer(self, given: Sequence[Asked]) -> list[Answer]:
        """Answers in the order given. Raises Refused where the time is over."""
        job = Job([None] * len(given), asyncio.get_running_loop().create_future(), len(given))
        now = time.monotonic()
        for number, one in enumerate(given):
            key = id(one.source.model), kind_of(one), one.limit <= SHORT, self._bucket(one)
            self._groups.setdefault(key, collections.deque()).append(Row(one, job, number, now))
        self._count(len(given))
        try:
            async with asyncio.timeout(self.settings.answer_s):
                return await job.future
        except TimeoutError as error:
            raise Refused(504, f"the answer took longer than --answer_s {self.settings.answer_s:g}: ask for less, or try again") from error

    def _bucket(self, asked: Asked) -> int:
        return bisect.bisect_left(self.spec.input_buckets, len(asked.tokens))

    def _count(self, change: int) -> None:
        self._waiting += change
        self.measures.waiting.set(self._waiting)
        for event, holds in ((self._arrived, self._waiting > 0), (self._full, self._waiting >= self.settings.batch_size)):
            event.set() if holds else event.clear()

    async def run(self) -> None:
        """Answers batch after batch, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            pause = min(rows[0].arrived for rows in self._groups.values()) + self.settings.wait_ms / 1000 - time.monotonic()
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), pause)
            rows = self._pick()
            if not rows:
                continue
            start = time.monotonic()
            future = loop.run_in_executor(self.executor, self.compute, [row.asked for row in rows])
            await asyncio.wait([future])
            self.measures.batch_rows.observe(len(rows))
            self.measures.batch_seconds.observe(time.monotonic() - start)
            self._deliver(rows, future)

    def _pick(self) -> list[Row]:
        """The rows of the next batch: those like the oldest first, then shorter ones of its kind. Whose request has given up goes."""
        oldest = min(self._groups, key=lambda key: self._groups[key][0].arrived)
        like = [key for key in self._groups if key[:-1] == oldest[:-1] and key[-1] <= oldest[-1]]
        rows: list[Row] = []
        for key in sorted(like, key=lambda key: -key[-1]):
            waiting = self._groups[key]
            while waiting and len(rows) < self.settings.batch_size:
                row = waiting.popleft()
                self._count(-1)
                if row.job.future.done():
                    self._after(row.asked)
                else:
                    rows.append(row)
            if not waiting:
                del self._groups[key]
        return rows

    def compute(self, given: Sequence[Asked]) -> list[Answer]:
        """Answers of rows of one model and kind, in the thread of the model; the batch has a compiled size."""
        size = next(size for size in self.sizes if size >= len(given))
        spec = dataclasses.replace(self.spec, micro_batch_size=size, task_slots=(1, size))
        return queries.answers_of(kind_of(given[0]), None, given, spec, None, queries.GREEDY)

    def _deliver(self, rows: Sequence[Row], future: asyncio.Future) -> None:
        error = future.exception()
        if error is not None:
            log.error("a batch of %d queries failed: %s", len(rows), error, exc_info=error)
        answers = [None] * len(rows) if error is not None else future.result()
        for row, answer in zip(rows, answers, strict=True):
            self._after(row.asked)
            job = row.job
            job.answers[row.number], job.left = answer, job.left - 1
            if job.future.done():
                continue
            if answer is None:
                job.future.set_exception(Refused(500, "the model failed; the server's log says why"))
            elif not job.left:
                job.future.set_result(job.answers)
                self.measures.queries.labels(kind_of(row.asked)).inc(len(job.answers))  # a request's queries are of one kind

    def take_rows(self, bank: LiveBank, prompts_NPD: np.ndarray) -> tuple[int, ...]:
        """Rows of a bank for these prompts, in the thread of the model. Where it has grown, what takes rows of it is compiled at once."""
        before, rows = bank.rows, bank.add(prompts_NPD)
        if bank.rows > before:
            for size in self.sizes:
                bank.model.own_of(np.zeros(size, np.int32))
        return rows

    async def do(self, function: Callable, *arguments: Any) -> Any:
        """Runs a function in the thread of the model, between batches."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)

    def warm(self, asked: Asked) -> int:
        """Compiles what answers queries like this one, in every batch size and for every length; how many programs that are."""
        count, by_task = 0, family_of(asked.source.model.network.config).decoder_only
        target = np.array(self.spec.target_length * [asked.source.vocabulary.ends[0]], np.int32)
        for length in self.spec.input_buckets:
            tokens = np.full(length, asked.source.vocabulary.ends[0], np.int32)
            for size in self.sizes:
                for one in (asked._replace(tokens=tokens, limit=1), asked._replace(tokens=tokens, limit=0, target=target)):
                    if self.stopping:
                        return count
                    self.compute([one] * size)
                    count += 1
                    if by_task and size > 1:  # what is computed once for each task has another shape for several
                        self.compute([one._replace(row=number % 2) for number in range(size)])
                        count += 1
        return count


def spec_of(settings: ServeSettings, sources) -> BatchSpec:
    """Batches for these sources: one program for each length of an input, and one length of targets, whatever a query asks for."""
    most_input = settings.input_tokens or max(source.input_length for source in sources)
    most_output = settings.output_tokens or max(source.target_length for source in sources)
    spec = requests.inference_spec(most_input, most_output, settings.batch_size)
    return dataclasses.replace(spec, target_buckets=(most_output,))
