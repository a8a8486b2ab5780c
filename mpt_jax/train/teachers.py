"""Runs the teachers once over the rows that training will draw, and keeps what they say (DistillationSettings.teacher_mode = 'cached').

B examples, L input tokens, P prompt positions, T target tokens, D model width, N tasks (runs) in the bank.
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mpt_jax import distributed, sharding
from mpt_jax.config import DistillationSettings
from mpt_jax.data.batches import BatchSpec, eval_batches
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.checked_folder import key_name
from mpt_jax.data.in_flight import in_flight
from mpt_jax.data.sampler import Stream, rows_in
from mpt_jax.data.teacher_cache import FORMAT, Layout, TeacherOutputs
from mpt_jax.errors import Preempted, UserError
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.metrics import ProgressLine
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Network, Rows, rows_of
from mpt_jax.model.network import forward
from mpt_jax.run_folder import writes
from mpt_jax.train import distillation
from mpt_jax.train.program import Program

PART_BYTES = 2**26  # of a part on disk: what a kill can cost, and what is kept in memory until it is written [ours]


def layout_of(settings: DistillationSettings, config: Any, prompt_length: int) -> Layout:
    """What these settings compare, and so what is kept of a teacher whose prompt has ``prompt_length`` vectors."""
    whole = settings.cached_top == 0 or settings.cached_top >= config.vocab_size
    top = config.vocab_size if whole else settings.cached_top
    family = family_of(config)
    states = () if settings.hidden == "none" else family.states
    widths = tuple(family.state_width(config, name) for name in states)
    width = widths if len(set(widths)) > 1 else config.d_model
    prefix = prompt_length if settings.hidden_positions == "all" else 0
    return Layout(states, width, prefix, top if settings.logits else 0, whole, settings.cached_dtype)


class Teachers(NamedTuple):
    """What the teachers run on: their prompts (N, P, D), the network, and where it lives."""

    settings: DistillationSettings
    prompts_NPD: np.ndarray
    network: Network
    backbone: Backbone
    spec: BatchSpec  # lengths and buckets of training, by which rows are cut
    mesh: Mesh | None
    folder: Path  # CACHE_DIR
    steps: int  # whose rows are wanted

    @property
    def layout(self) -> Layout:
        """What is kept of a row."""
        return layout_of(self.settings, self.backbone.config, self.prompts_NPD.shape[1])

    def outputs_of(self, cache: TokenCache, number: int, opened: dict[str, TeacherOutputs]) -> TeacherOutputs:
        """What is there already of a run's teacher for a task; opened, and checked, where ``opened`` does not hold it under its key yet."""
        compared = ("temperature", "logits", "hidden", "hidden_positions")
        key = {
            "format": FORMAT,
            "task": cache.name,
            "rows": cache.fingerprint,
            "backbone": self.backbone.fingerprint,
            "dtype": self.network.computation.dtype + (" int8" if self.backbone.int8 else ""),
            "prompt": hashlib.sha256(np.ascontiguousarray(self.prompts_NPD[number], np.float32).tobytes()).hexdigest(),
            "lengths": [self.spec.input_length, self.spec.target_length],
            "settings": {name: getattr(self.settings, name) for name in compared},
            "layout": {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self.layout).items()},
        }
        name = key_name(key)
        if name not in opened:
            opened[name] = TeacherOutputs(self.folder / "teachers" / cache.name, key, self.layout, cache.rows)
        return opened[name]


class Wanted(NamedTuple):
    """Rows (ascending, int64) of a task for which a run's teacher is still to be run."""

    cache: TokenCache
    number: int  # of the run in the bank
    outputs: TeacherOutputs
    rows: np.ndarray


def of_program(program: Program, folder: Path) -> Teachers:
    """The teachers of a source stage; ``folder``: CACHE_DIR."""
    computation = dataclasses.replace(program.network.computation, remat="none", dropout_rate=0.0)
    network = Network(program.backbone.config, computation, GIVEN)
    assert program.teachers_NPD is not None
    return Teachers(
        settings=program.settings.distillation, prompts_NPD=program.teachers_NPD, network=network, backbone=program.backbone,
        spec=program.spec, mesh=program.places.devices, folder=folder, steps=program.settings.train.train_steps,
    )  # fmt: skip


def teach_streams(teachers: Teachers, streams: Sequence[Stream], preempted: Callable[[int], bool] = lambda batch: False) -> list[Stream]:
    """The streams with the teachers' outputs for every row of the first steps; what no cache holds is computed first.

    ``preempted(batch)`` is asked after each batch; where it is True, what was computed is written and Preempted raised.
    """
    opened: dict[str, TeacherOutputs] = {}
    wanted: dict[Path, Wanted] = {}  # by folder: runs with the same teacher share one
    for stream in streams:
        for cache, number, rows in zip(stream.caches, stream.bank_index, rows_in(stream, teachers.steps), strict=True):
            outputs = teachers.outputs_of(cache, number, opened)
            before = wanted[outputs.folder].rows if outputs.folder in wanted else np.array([], np.int64)
            wanted[outputs.folder] = Wanted(cache, number, outputs, outputs.missing(np.union1d(before, rows).astype(np.int64)))
    _check_space(teachers, list(wanted.values()))
    with ProgressLine("teachers", sum(len(part.rows) for part in wanted.values()), unit="rows") as progress:
        for part in wanted.values():
            _compute(teachers, part, progress, preempted)
    with distributed.first_before_others("teacher outputs"):
        if not distributed.is_first():
            opened.clear()  # what the first process has written meanwhile is not among them
        found = [[teachers.outputs_of(*pair, opened) for pair in zip(stream.caches, stream.bank_index, strict=True)] for stream in streams]
    taught = (tuple(map(TokenCache.with_teacher, stream.caches, outputs)) for stream, outputs in zip(streams, found, strict=True))
    return [dataclasses.replace(stream, caches=caches) for stream, caches in zip(streams, taught, strict=True)]


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
        advice = "name another CACHE_DIR, set DistillationSettings.hidden to 'none', or teacher_mode to 'beside'"
        raise UserError(f"DistillationSettings.teacher_mode = 'cached': {told}, where {free / 1e9:.2f} GB are free; {advice}.")
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
        batches = _run(teachers, wanted.cache, wanted.number, rows[start : start + pieces.step], progress)
        leave = False
        for number, batch in enumerate(batches, 1):
            computed |= batch
            leave = leave or preempted(number)
            if leave:
                break
        _write(wanted, rows, inputs, targets, computed)
        if leave:
            done = f"outputs of teachers are written for {progress.done:,} of {progress.total:,} rows"
            raise Preempted(f"asked to end: {done}, the same command continues")


def _write(wanted: Wanted, rows: np.ndarray, inputs: np.ndarray, targets: np.ndarray, computed: dict[int, dict]) -> None:
    if not distributed.is_first() or not computed:
        return
    written = np.flatnonzero(np.isin(rows, list(computed)))
    with writes(wanted.outputs.folder, "CACHE_DIR"):
        wanted.outputs.write(rows[written], inputs[written], targets[written], computed.items())


def _run(teachers: Teachers, cache: TokenCache, number: int, rows: np.ndarray, progress: ProgressLine) -> Iterator[dict[int, dict]]:
    """Arrays by file, cut to the row's own length, by row, of a batch at a time; the device works ahead of the reader."""
    size, layout = teachers.spec.micro_batch_size, teachers.layout
    top = 0 if layout.whole else layout.top
    # all rows are of one task: one prompt where it serves them all, else one for each
    prompts_UPD = np.repeat(teachers.prompts_NPD[number][None].astype(np.float32), 1 if teachers.spec.by_task else size, axis=0)
    name = "prompt_U" if teachers.spec.by_task else "prompt_B"
    prompts_UPD = sharding.put_micro_batch(teachers.mesh, {name: prompts_UPD})[name]

    def outputs():
        for index_B, micro in eval_batches(cache, teachers.spec, subset=rows):
            tokens = rows_of(sharding.put_micro_batch(teachers.mesh, micro))
            with sharding.use(teachers.mesh):
                yield index_B, _outputs(teachers.network, teachers.settings, top, teachers.backbone.params, prompts_UPD, tokens)

    for index_B, kept in in_flight(outputs()):
        kept = {file: np.asarray(array) for file, array in kept.items()}
        real_B, found = np.flatnonzero(index_B >= 0), {}
        for slot, inputs, targets in zip(real_B, *_lengths(teachers.spec, cache, index_B[real_B]), strict=True):
            # copies: the rows of a part wait in memory, their padding must not
            found[int(index_B[slot])] = {file: array[slot, : layout.tokens(file, inputs, targets)].copy() for file, array in kept.items()}
        progress.update(progress.done + len(real_B))
        yield found



def _outputs_fn(network: Network, settings: DistillationSettings, top: int, backbone: dict, prompts_UPD, rows: Rows) -> dict:
    outputs = forward(network, backbone, rows, {"prompt": prompts_UPD})
    return sharding.constrain_whole(distillation.reduced(settings, distillation.teach(settings, outputs, rows), top))


_outputs = jax.jit(_outputs_fn, static_argnums=(0, 1, 2))
