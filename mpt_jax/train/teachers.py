"""Runs the teachers once over the rows that training will draw, and keeps what they say (DistillationSettings.teacher = 'cached').

B examples, L input tokens, P prompt positions, T target tokens, D model width, N tasks (runs) in the bank.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mpt_jax import distributed, sharding
from mpt_jax.config import DistillationSettings, T5Config
from mpt_jax.data.batches import BatchSpec, eval_batches
from mpt_jax.data.cache import TokenCache, key_name
from mpt_jax.data.sampler import Stream, rows_in
from mpt_jax.data.teacher_cache import FORMAT, Layout, TeacherOutputs, with_teacher
from mpt_jax.errors import Preempted, UserError
from mpt_jax.metrics import ProgressLine
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.prompted_t5 import forward
from mpt_jax.run_folder import writes
from mpt_jax.train import distillation

PART_BYTES = 2**26  # of a part on disk: what a kill can cost, and what is kept in memory until it is written [ours]
IN_FLIGHT = 2  # batches handed to the device ahead of the one being written


def layout_of(settings: DistillationSettings, config: T5Config, prompt_length: int) -> Layout:
    """What these settings compare, and so what is kept of a teacher whose prompt has ``prompt_length`` vectors."""
    whole = settings.cached_top == 0 or settings.cached_top >= config.vocab_size
    top = config.vocab_size if whole else settings.cached_top
    width = 0 if settings.hidden == "none" else config.d_model
    prefix = prompt_length if settings.hidden_positions == "all" else 0
    return Layout(width, prefix, top if settings.logits else 0, whole, settings.cached_dtype)


class Teachers(NamedTuple):
    """What the teachers run on: their prompts (N, P, D), the network, and where it lives."""

    settings: DistillationSettings
    prompts_NPD: np.ndarray
    backbone: Backbone
    spec: BatchSpec  # lengths and buckets of training, by which rows are cut
    mesh: Mesh | None
    folder: Path  # CACHE_DIR

    @property
    def layout(self) -> Layout:
        """What is kept of a row."""
        return layout_of(self.settings, self.backbone.config, self.prompts_NPD.shape[1])

    def outputs_of(self, cache: TokenCache, run: int, opened: dict[str, TeacherOutputs]) -> TeacherOutputs:
        """What is there already of a run's teacher for a task; opened, and checked, where ``opened`` does not hold it under its key yet."""
        compared = ("temperature", "logits", "hidden", "hidden_positions")
        key = {
            "format": FORMAT,
            "task": cache.name,
            "rows": cache.fingerprint,
            "backbone": self.backbone.fingerprint,
            "dtype": self.backbone.config.dtype,
            "prompt": hashlib.sha256(np.ascontiguousarray(self.prompts_NPD[run], np.float32).tobytes()).hexdigest(),
            "lengths": [self.spec.input_length, self.spec.target_length],
            "settings": {name: getattr(self.settings, name) for name in compared},
            "layout": dataclasses.asdict(self.layout),
        }
        name = key_name(key)
        if name not in opened:
            opened[name] = TeacherOutputs(self.folder / "teachers" / cache.name, key, self.layout, cache.rows)
        return opened[name]


class Wanted(NamedTuple):
    """Rows (ascending, int64) of a task for which a run's teacher is still to be run."""

    cache: TokenCache
    run: int
    outputs: TeacherOutputs
    rows: np.ndarray


def teach_streams(
    teachers: Teachers, streams: Sequence[Stream], steps: int, preempted: Callable[[int], bool] = lambda batch: False
) -> list[Stream]:
    """The streams with the teachers' outputs for every row of the first ``steps`` steps; what no cache holds is computed first.

    ``preempted(batch)`` is asked after each batch; where it is True, what was computed is written and Preempted raised.
    """
    opened: dict[str, TeacherOutputs] = {}
    wanted: dict[Path, Wanted] = {}  # by folder: runs with the same teacher share one
    for stream in streams:
        for cache, run, rows in zip(stream.caches, stream.bank_index, rows_in(stream, steps), strict=True):
            outputs = teachers.outputs_of(cache, run, opened)
            before = wanted[outputs.folder].rows if outputs.folder in wanted else []
            wanted[outputs.folder] = Wanted(cache, run, outputs, outputs.missing(np.union1d(before, rows).astype(np.int64)))
    _check_space(teachers, list(wanted.values()))
    with ProgressLine("teachers", sum(len(part.rows) for part in wanted.values()), unit="rows") as progress:
        for part in wanted.values():
            _compute(teachers, part, progress, preempted)
    with distributed.first_before_others("teacher outputs"):
        if not distributed.is_first():
            opened.clear()  # what the first process has written meanwhile is not among them
        told = [[teachers.outputs_of(*pair, opened) for pair in zip(stream.caches, stream.bank_index, strict=True)] for stream in streams]
    join = lambda stream, outs: tuple(map(with_teacher, stream.caches, outs))  # noqa: E731
    return [dataclasses.replace(stream, caches=join(stream, outs)) for stream, outs in zip(streams, told, strict=True)]


def _lengths(spec: BatchSpec, cache: TokenCache, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input and target tokens of rows as training cuts them."""
    inputs, targets = cache.input_lengths[rows], cache.target_lengths[rows]
    return np.minimum(inputs, spec.input_length).astype(np.int64), np.minimum(targets, spec.target_length).astype(np.int64)


def _check_space(teachers: Teachers, wanted: Sequence[Wanted]) -> None:
    """Tells what will be written. Raises UserError where the disk has no room for it."""
    count = sum(len(part.rows) for part in wanted)
    if not count:
        return
    size = sum(teachers.layout.row_bytes(*_lengths(teachers.spec, part.cache, part.rows)) for part in wanted)
    with writes(teachers.folder, "CACHE_DIR"):
        teachers.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(teachers.folder).free
    told = f"outputs of teachers for {count:,} rows take {size / 1e9:.2f} GB in {str(teachers.folder)!r}"
    if size > free:
        advice = "name another CACHE_DIR, set DistillationSettings.hidden to 'none', or teacher to 'beside'"
        raise UserError(f"DistillationSettings.teacher = 'cached': {told}, where {free / 1e9:.2f} GB are free; {advice}.")
    distributed.say(told)


def _compute(teachers: Teachers, wanted: Wanted, progress: ProgressLine, preempted: Callable[[int], bool]) -> None:
    """Writes parts for rows that are not there. With several processes all compute and the first one writes.

    Raises Preempted once the rows that are computed are on disk, where the machine is taken away.
    """
    rows = wanted.rows
    if not len(rows):
        return
    inputs, targets = _lengths(teachers.spec, wanted.cache, rows)
    each = max(teachers.layout.row_bytes(inputs, targets) // len(rows), 1)
    pieces = range(0, len(rows), max(PART_BYTES // each, 1))
    for start in pieces:
        computed: dict[int, dict] = {}
        batches = _run(teachers, wanted.cache, wanted.run, rows[start : start + pieces.step], progress)
        leave = False
        for number, batch in enumerate(batches, 1):
            computed |= batch
            leave = leave or preempted(number)
            if leave:
                break
        _write(wanted, rows, inputs, targets, computed)
        if leave:
            done = f"outputs of teachers are written for {progress.done:,} of {progress.total:,} rows"
            raise Preempted(f"told to end: {done}, the same command continues")


def _write(wanted: Wanted, rows: np.ndarray, inputs: np.ndarray, targets: np.ndarray, computed: dict[int, dict]) -> None:
    if not distributed.is_first() or not computed:
        return
    written = np.flatnonzero(np.isin(rows, list(computed)))
    with writes(wanted.outputs.folder, "CACHE_DIR"):
        wanted.outputs.write(rows[written], inputs[written], targets[written], computed.items())


def _run(teachers: Teachers, cache: TokenCache, run: int, rows: np.ndarray, progress: ProgressLine) -> Iterator[dict[int, dict]]:
    """Arrays by file, cut to the row's own length, by row, of a batch at a time; the device works ahead of the reader."""
    waiting: list = []
    size = teachers.spec.micro_batch_size
    prompt_BPD = np.broadcast_to(teachers.prompts_NPD[run], (size, *teachers.prompts_NPD.shape[1:]))
    prompt_BPD = sharding.place_rows(teachers.mesh, np.ascontiguousarray(prompt_BPD, np.float32))
    layout = teachers.layout
    top = 0 if layout.whole else layout.top

    def read() -> dict[int, dict]:
        index_B, kept = waiting.pop(0)
        kept = {file: np.asarray(array) for file, array in kept.items()}
        real_B, found = np.flatnonzero(index_B >= 0), {}
        for place, inputs, targets in zip(real_B, *_lengths(teachers.spec, cache, index_B[real_B]), strict=True):
            # copies: the rows of a part wait in memory, their padding must not
            cut = {file: array[place, : layout.tokens(file, inputs, targets)].copy() for file, array in kept.items()}
            found[int(index_B[place])] = cut
        progress.update(progress.done + len(real_B))
        return found

    for index_B, micro in eval_batches(cache, teachers.spec, subset=rows):
        tokens = (sharding.place_rows(teachers.mesh, micro[name]) for name in ("inputs_BL", "targets_BT"))
        with sharding.use(teachers.mesh):
            kept = _outputs(teachers.backbone.config, teachers.settings, top, teachers.backbone.params, prompt_BPD, *tokens)
        waiting.append((index_B, kept))
        if len(waiting) > IN_FLIGHT:
            yield read()
    while waiting:
        yield read()


def _outputs_fn(config: T5Config, settings: DistillationSettings, top: int, backbone: dict, prompt_BPD, inputs_BL, targets_BT) -> dict:
    outputs = forward(config, backbone, prompt_BPD, inputs_BL, targets_BT)
    return sharding.constrain_whole(distillation.keep(distillation.teach(settings, outputs, inputs_BL), top, settings.cached_dtype))


_outputs = jax.jit(_outputs_fn, static_argnums=(0, 1, 2))
