"""A case's program with random weights on the device, its batches, and its compiled parts.

B examples, L input tokens, P prompt positions, T target tokens, S encoder positions, D model width, N tasks (runs) in the bank.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.accelerator.cases import NEW_TOKENS, TASKS, Case, Scale
from mpt_jax.compiling.programs import make_stage, memory_of
from mpt_jax.config import BackboneSettings, DataSettings, DistillationSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.data.batches import Batch, make_batch
from mpt_jax.data.cache import TokenCache
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.method import BACKBONE, backbone_of, own_of, take
from mpt_jax.model.families.family import Rows, rows_of, tasks_of
from mpt_jax.train.plan import make_streams
from mpt_jax.train.program import Program
from mpt_jax.train.step import batch_totals
from mpt_jax.train.teachers import layout_of

BATCHES = 3  # different batches, taken in turn


class Executable(NamedTuple):
    """A compiled program, the bytes that it takes by kind, and the seconds that tracing and compiling took."""

    run: Callable
    memory: dict[str, float]
    seconds: float


def compiled(function: Any, *arguments: Any, **more: Any) -> Executable:
    """Traces and compiles a jitted function for these arguments."""
    start = time.perf_counter()
    found = function.lower(*arguments, **more).compile()
    return Executable(found, memory_of(found), time.perf_counter() - start)


class Weights:
    """Random weights by path, about as spread as training starts with: pieces of one pool of random numbers, so nothing is compiled."""

    POOL = 2**24

    def __init__(self) -> None:
        self._pool = np.random.default_rng(0).standard_normal(self.POOL, np.float32)
        self._scaled: dict[tuple, np.ndarray] = {}
        self._made: dict[tuple, jax.Array] = {}

    def of(self, size: str, config: Any, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays for a program's shapes; the backbone's are made once for each size."""
        found = {}
        for number, (path, leaf) in enumerate(shapes.items()):
            key = size, path, leaf.shape
            made = self._made[key] if key in self._made else jax.device_put(self._filled(config, path, leaf, number))
            if path.startswith(BACKBONE):
                self._made[key] = made
            found[path] = made
        return found

    def clear(self) -> None:
        """Lets the arrays go."""
        self._made.clear()

    def _filled(self, config: Any, path: str, leaf: Any, number: int) -> np.ndarray:
        if path.endswith(("scale", "cols", "rows")):
            return np.ones(leaf.shape, leaf.dtype)
        key = _spread(config, path, leaf.shape), leaf.dtype
        if key not in self._scaled:
            self._scaled[key] = (self._pool * np.float32(key[0])).astype(leaf.dtype)
        piece, count = self._scaled[key][7919 * number % (self.POOL // 2) :], math.prod(leaf.shape)
        if count > len(piece):  # copied as whole numbers, which numpy does at once
            piece = np.resize(piece.view(f"u{piece.itemsize}"), count).view(leaf.dtype)
        return piece[:count].reshape(leaf.shape)


def _spread(config: Any, path: str, shape: tuple[int, ...]) -> float:
    encoder_decoder = hasattr(config, "num_decoder_layers")
    if path.endswith("kernel"):
        # T5 keeps the scale of attention's logits in the query's weights
        return shape[0] ** -0.5 * (config.head_dim**-0.5 if "query" in path and encoder_decoder else 1.0)
    if path.endswith("embedding"):
        return 1.0 if encoder_decoder else config.d_model**-0.5
    return 0.5  # prompts


def settings_of(case: Case, scale: Scale) -> Settings:
    """The settings of a case, as a user would give them."""
    population = case.runs > 0
    micro = scale.batch if case.kind == "decode" else min(scale.run_micro, case.runs * scale.run_batch) if population else scale.micro
    lengths = {"inputs": scale.buckets[-1], "targets": scale.target_length}
    buckets = scale.buckets[-1:] if population or case.kind == "decode" else scale.buckets
    rows = scale.run_batch if population else scale.batch
    return Settings(
        TrainSettings("target" if population else "source", seeds=0),
        BackboneSettings(vocabulary="bytes", dtype="bfloat16", attention=case.attention),
        PromptSettings(length=scale.prompt, transfer="none"),
        DistillationSettings(
            weight=0.0 if case.teacher == "none" else 0.9, teacher_mode="cached" if case.teacher == "cached" else "beside"
        ),
        data=DataSettings(
            rows, micro, feature_lengths=lengths, input_buckets=buckets, target_buckets=(lengths["targets"],), mixing="equal"
        ),
    )


def program_of(case: Case, scale: Scale, config: Any) -> Program:
    """The program of a case, of shapes alone."""
    tasks = [f"task{n}" for n in range(case.runs or TASKS)]
    return make_stage(settings_of(case, scale), config, tasks, None, 0).program


def batches_of(program: Program, caches: Sequence[TokenCache]) -> list[Batch]:
    """Batches as the training loop takes them from the host; with cached teachers random outputs of theirs."""
    by_task = {run.task: caches[n % len(caches)] for n, run in enumerate(program.plan.runs)}
    streams = make_streams(program.plan, by_task, program.settings.data)
    batches = [make_batch(streams, step, program.spec, len(program.plan.runs)) for step in range(BATCHES)]
    distillation = program.objective.distillation
    if distillation and distillation.teacher_mode == "cached":
        layout = layout_of(distillation, program.backbone.config, program.settings.prompt.length)
        for batch in batches:
            for micro in batch.micro:
                shapes = layout.shapes(*micro["inputs_BL"].shape, micro["targets_BT"].shape[1])
                micro.update({name: _made_up(name, *shape, program.backbone.config.vocab_size) for name, shape in shapes.items()})
    return batches


@functools.cache  # micro-batches of a shape share theirs, which are copied to the device for each
def _made_up(name: str, shape: tuple[int, ...], dtype: str, vocab_size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if "ids" in name:  # different tokens at a position
        return (rng.integers(0, vocab_size, (*shape[:2], 1)) + np.arange(shape[2])).astype(dtype) % vocab_size
    if "logp" in name:
        return np.log(rng.dirichlet(np.ones(shape[2] + 1), shape[:2])[..., :-1]).astype(dtype)
    if "tail" in name:
        return np.full(shape, -4.0, dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)


class Training:
    """A case's train step: ``jobs`` compile, side by side; then ``update`` runs a whole update."""

    def __init__(self, case: Case, scale: Scale, config: Any, caches: Sequence[TokenCache], weights: Weights):
        self.program = program_of(case, scale, config)
        self.batches = batches_of(self.program, caches)
        self.step = self.program.step()
        self.frozen = weights.of(case.size, config, self.program.frozen)
        self.state = self.step.init(weights.of(case.size, config, self.program.trainable))
        self.totals = [batch_totals(self.program.objective, batch) for batch in self.batches]
        self.executables: dict[Any, Executable] = {}
        self.done = 0

    def jobs(self) -> list[Callable]:
        """Compilations: ``accumulate`` of each pair of padded lengths, ``update``."""
        shapes = {_shape(micro): micro for batch in self.batches for micro in batch.micro}

        def accumulate(shape, micro):
            arguments = self.state.trainable, self.frozen, self._zeros(), micro, self.totals[0], self.state.step, np.int32(0)
            self.executables[shape] = compiled(self.step.accumulate, *arguments)

        def update():
            self.executables["update"] = compiled(self.step.update, self.state, self._zeros())

        return [*(functools.partial(accumulate, *item) for item in shapes.items()), update]

    def _zeros(self):
        return self.step.zeros(self.state.trainable)

    def to_device(self) -> None:
        """From here on the batches lie on the device."""
        for batch in self.batches:
            batch.micro[:] = jax.device_put(batch.micro)

    def update(self) -> dict:
        """One update from the next batch; returns its metrics, maybe still being computed."""
        number = self.done % len(self.batches)
        sums = self._zeros()
        for index, micro in enumerate(self.batches[number].micro):
            arguments = self.state.trainable, self.frozen, sums, micro, self.totals[number], self.state.step, np.int32(index)
            sums = self.executables[_shape(micro)].run(*arguments)
        self.state, metrics = self.executables["update"].run(self.state, sums)
        self.done += 1
        return metrics


def _shape(micro: dict[str, Any]) -> tuple:
    return tuple((name, array.shape) for name, array in sorted(micro.items()))


class Decoding:
    """Greedy decoding of a batch of rows of mixed tasks; no row ends before NEW_TOKENS."""

    def __init__(self, case: Case, scale: Scale, config: Any, caches: Sequence[TokenCache], weights: Weights):
        self.program = program_of(case, scale, config)
        self.batches = batches_of(self.program, caches)[:1]
        program, micro = self.program, self.batches[0].micro[0]
        parameters = weights.of(case.size, config, program.trainable | program.frozen)
        own = take(own_of(parameters), program.method.parts, program.plan.group_N, tasks_of(micro))
        rows = rows_of(micro)
        self.arguments = backbone_of(parameters), own, Rows(rows.inputs_BL, rows.input_length_B, slot_B=rows.slot_B)
        self.executables: dict[Any, Executable] = {}

    def jobs(self) -> list[Callable]:
        """The compilation of the whole decoding."""

        def decode():
            more = {"max_length": NEW_TOKENS, "ends": (self.program.backbone.config.vocab_size,)}
            self.executables["decode"] = compiled(greedy_decode, self.program.network, *self.arguments, **more)

        return [decode]

    def update(self) -> jax.Array:
        """Decodes the batch."""
        return self.executables["decode"].run(*self.arguments)
