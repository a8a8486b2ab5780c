"""Pretrains the nano backbone on one accelerator for so many seconds, with all rows and sentence vectors in its memory.

    python -m benchmarks.nano.training --packed packed --vocabulary spiece.model --output OUT --seconds 150

The loss and the optimiser are those of `mpt-jax train` in stage 'pretrain'; a hundred steps are one program, which also draws the rows, so
that nothing waits for the host. The learning rate follows the clock: it reaches 0 as the seconds end. OUT/nano: the backbone, bfloat16;
OUT/metrics.jsonl; OUT/unfinished: the weights of the last half minute, until the end.

B rows of a step, R rows held, N tasks, X texts, E width of a sentence vector, L and T padded lengths.
"""

import argparse
import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from benchmarks.nano import initial, packed
from mpt_jax.config import BackboneSettings, OptimizerSettings, Settings, TrainSettings
from mpt_jax.methods.method import BACKBONE
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.train.program import Program, assemble
from mpt_jax.train.step import TrainState, batch_totals, loss_sums, weighted_loss

SHAPES = ((40, 4), (80, 24))  # padded (L, T): a row is in the first that it fits into
SCHEDULE = 10_000  # the optimiser's steps that a run's seconds are stretched over
WARMUP = 500  # of them
CHUNK = 100  # steps of a program
FIRST_GUESS = 0.02  # seconds of a step, until one is measured
SAVE_SECONDS = 30


class Rows(NamedTuple):
    """Rows of one padded shape, grouped by task; device arrays but for ``weight_N``, which is a task's rows as they count."""

    inputs_RL: Any
    input_length_R: Any
    targets_RT: Any
    target_length_R: Any
    text_R: Any
    first_N: Any
    count_N: Any
    weight_N: np.ndarray


class Counts(NamedTuple):
    """What the terms of the loss are divided by, of a whole step."""

    target_tokens_N: Any
    embedded_N: Any


class WithVectors(NamedTuple):
    """What ``assemble`` asks of rows: the width of their sentence vectors."""

    embedding: np.ndarray


def padded(flat: np.ndarray, length_R: np.ndarray, longest: int) -> np.ndarray:
    """Rows of a flat array, zeros behind them."""
    real_RL = np.arange(longest) < length_R[:, None]
    found = np.zeros(real_RL.shape, np.uint16)
    found[real_RL] = flat
    return found


def split_by_shape(names: dict, arrays: dict[str, np.ndarray], cap: int) -> list[Rows]:
    """The training rows by SHAPES."""
    input_R, target_R = (arrays[f"train_{side}_length"].astype(np.int32) for side in ("inputs", "targets"))
    longest = SHAPES[-1]
    inputs, targets = padded(arrays["train_inputs"], input_R, longest[0]), padded(arrays["train_targets"], target_R, longest[1])
    count_N = arrays["train_count"]
    task_R = np.repeat(np.arange(len(count_N)), count_N)
    shape_R = np.full(len(task_R), len(SHAPES) - 1)
    for place in reversed(range(len(SHAPES) - 1)):
        shape_R[(input_R <= SHAPES[place][0]) & (target_R <= SHAPES[place][1])] = place
    share_N = np.minimum(count_N, cap) / count_N
    found = []
    for place, (inputs_most, targets_most) in enumerate(SHAPES):
        here = shape_R == place
        here_N = np.bincount(task_R[here], minlength=len(count_N))
        held = (inputs[here, :inputs_most], input_R[here], targets[here, :targets_most], target_R[here], arrays["text_R"][here])
        first_N = np.cumsum(here_N) - here_N
        found.append(Rows(*map(jnp.asarray, (*held, first_N.astype(np.int32), here_N.astype(np.int32))), here_N * share_N))
    return found


def sizes_of(rows: list[Rows], batch: int) -> list[int]:
    """Rows of a step by shape, in proportion to what their tasks count."""
    shares = np.array([part.weight_N.sum() for part in rows])
    first = [int(round(batch * share / shares.sum() / 16)) * 16 for share in shares[1:]]
    return [batch - sum(first), *first]


def drawn(rows: Rows, size: int, vectors_XE, key) -> dict[str, jax.Array]:
    """A micro-batch: each row's task by its weight, then a row of the task."""
    of_task, of_row = jax.random.split(key)
    log_N = jnp.log(jnp.asarray(rows.weight_N, jnp.float32))
    task_B = jax.random.categorical(of_task, log_N, shape=(size,))
    at_B = jnp.floor(jax.random.uniform(of_row, (size,)) * rows.count_N[task_B]).astype(jnp.int32)
    row_B = rows.first_N[task_B] + jnp.minimum(at_B, rows.count_N[task_B] - 1)
    return {
        "inputs_BL": rows.inputs_RL[row_B].astype(jnp.int32), "input_length_B": rows.input_length_R[row_B],
        "targets_BT": rows.targets_RT[row_B].astype(jnp.int32), "target_length_B": rows.target_length_R[row_B],
        "task_id_B": task_B.astype(jnp.int32), "embedding_BE": vectors_XE[rows.text_R[row_B]].astype(jnp.float32),
    }  # fmt: skip


def counts_of(batches: list[dict], num_tasks: int) -> Counts:
    """Target tokens and rows with a vector, by task."""

    def total(of_batch):
        return sum(jnp.zeros(num_tasks).at[batch["task_id_B"]].add(of_batch(batch)) for batch in batches)

    return Counts(
        total(lambda batch: batch["target_length_B"].astype(jnp.float32)),
        total(lambda batch: jnp.any(batch["embedding_BE"] != 0, axis=1).astype(jnp.float32)),
    )


def make_chunk(program: Program, rows: list[Rows], sizes: list[int], vectors_XE, steps: int, dropout: float):
    """(state, key, schedule's positions (2,)) -> (state, sums over the chunk by task): ``steps`` steps as one program."""
    network = program.objective.network
    computation = dataclasses.replace(network.computation, dropout_rate=dropout)
    objective = program.objective._replace(network=dataclasses.replace(network, computation=computation))
    num_tasks = len(program.plan.runs)

    def one_step(held, state: TrainState, key, position):
        rows, vectors_XE = held
        *keys, bits = jax.random.split(key, len(rows) + 1)
        batches = [drawn(part, size, vectors_XE, key) for part, size, key in zip(rows, sizes, keys, strict=True)]
        counts = counts_of(batches, num_tasks)
        totals = batch_totals(objective, counts)

        def loss(trainable):
            found = [
                weighted_loss(objective, trainable, {}, batch, totals, jax.random.fold_in(bits, place) if dropout else None)
                for place, batch in enumerate(batches)
            ]
            return sum(value for value, _ in found), [sums_B for _, sums_B in found]

        grads, sums = jax.grad(loss, has_aux=True)(state.trainable)
        trainable, opt_state, norm_G, finite_G = program.optimizer.update(grads, state.opt_state, state.trainable, position)
        by_task = {
            name: sum(jnp.zeros(num_tasks).at[batch["task_id_B"]].add(sums_B[name]) for batch, sums_B in zip(batches, sums, strict=True))
            for name in sums[0]
        }
        by_task |= {"tokens": counts.target_tokens_N, "embedded": counts.embedded_N, "norm": norm_G, "finite": finite_G.astype(jnp.float32)}
        return TrainState(state.step + 1, trainable, opt_state), by_task

    def chunk(held, state: TrainState, key, positions):
        def body(state, x):
            return one_step(held, state, *x)

        position_S = jnp.linspace(positions[0], positions[1], steps, endpoint=False)
        state, by_task = jax.lax.scan(body, state, (jax.random.split(key, steps), position_S))
        return state, jax.tree.map(lambda values: jnp.sum(values, axis=0), by_task)

    jitted = jax.jit(chunk, donate_argnums=1)
    held = [part._replace(weight_N=jnp.asarray(part.weight_N, jnp.float32)) for part in rows], jnp.asarray(vectors_XE)
    return functools.partial(jitted, held)


def make_scores(program: Program, names: dict, arrays: dict[str, np.ndarray]):
    """trainable -> share of dev rows answered right as a whole, by task: every token is the likeliest after those before it."""
    lengths = [arrays[f"dev_{side}_length"].astype(np.int32) for side in ("inputs", "targets")]
    inputs, targets = (
        padded(arrays[f"dev_{side}"], length, most) for side, length, most in zip(("inputs", "targets"), lengths, SHAPES[-1], strict=True)
    )
    task_R = np.repeat(np.arange(len(names["dev"])), arrays["dev_count"])
    size, rows = 512, len(task_R)
    room = -rows % size

    def part(array):
        return jnp.asarray(np.pad(array.astype(np.int32), [(0, room)] + [(0, 0)] * (array.ndim - 1)).reshape(-1, size, *array.shape[1:]))

    held = {"inputs_BL": part(inputs), "input_length_B": part(lengths[0]), "targets_BT": part(targets), "target_length_B": part(lengths[1])}
    held["task_id_B"] = jnp.zeros((len(held["inputs_BL"]), size), jnp.int32)
    objective = program.objective._replace(encoder_teaching=0.0)

    @jax.jit
    def right(held, trainable):
        def one(_, batch):
            return None, loss_sums(objective, trainable, {}, batch)["correct"] == batch["target_length_B"]

        return jax.lax.scan(one, None, held)[1].reshape(-1)[:rows]

    def scores(trainable) -> dict[str, float]:
        right_R = np.asarray(right(held, trainable))
        return {name: round(100 * float(right_R[task_R == place].mean()), 1) for place, name in enumerate(names["dev"])}

    return scores


def write(folder: Path, program: Program, trainable: dict) -> None:
    """The weights as a backbone folder, bfloat16; replaces one that is there."""
    arrays = {
        path.removeprefix(BACKBONE): np.asarray(array).astype(ml_dtypes.bfloat16)
        for path, array in trainable.items()
        if path.startswith(BACKBONE)
    }
    partial = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    formats.write_backbone("own", str(partial), program.backbone.config, arrays, program.backbone.vocabulary_path)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def program_of(options: argparse.Namespace, names: dict, arrays: dict[str, np.ndarray]) -> Program:
    """The package's pretraining program over the backbone before training."""
    train = TrainSettings("pretrain", str(options.output), seeds=options.seed, train_steps=SCHEDULE, encoder_teaching=options.teaching)
    optimizer = OptimizerSettings(learning_rate=options.rate, weight_decay=0.0, warmup_steps=WARMUP)
    settings = Settings(train, BackboneSettings(dtype=options.dtype), optimizer=optimizer)
    with tempfile.TemporaryDirectory() as folder:
        embedding_VD = arrays["embedding_VD"].astype(np.float32) * packed.EMBEDDING_STEP
        initial.write(Path(folder), options.vocabulary, options.seed, embedding_VD)
        backbone = load_backbone(BackboneSettings(folder))
    backbone = dataclasses.replace(backbone, vocabulary_path=str(options.vocabulary))
    return assemble(settings, names["train"], backbone, None, {"": WithVectors(arrays["vectors_XE"])})


def train(options: argparse.Namespace) -> None:
    """The whole run."""
    began = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    log = (options.output / "metrics.jsonl").open("a", encoding="utf-8")

    def say(**values) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - began, 1), **values})
        print(line, flush=True)
        log.write(line + "\n")
        log.flush()

    names, arrays = packed.read(options.packed, options.vocabulary)
    program = program_of(options, names, arrays)
    rows = split_by_shape(names, arrays, options.cap)
    sizes = sizes_of(rows, options.batch)
    say(
        rows=int(arrays["train_count"].sum()),
        sizes=sizes,
        devices=list(map(str, jax.devices())),
        options={key: str(value) for key, value in vars(options).items()},
    )
    chunk = make_chunk(program, rows, sizes, arrays["vectors_XE"], options.chunk, options.dropout)
    scores = make_scores(program, names, arrays)
    state, key = program.step().init(program.trainable), jax.random.key(options.seed)
    end = began + options.seconds - options.reserve
    saved, position, pace, step = began, 0.0, options.chunk * FIRST_GUESS, 0
    while position < SCHEDULE:
        chunk_began = time.monotonic()
        chunks = (end - chunk_began) / pace  # that there is time for
        reach = position + (SCHEDULE - position) / chunks if chunks > 1.5 else SCHEDULE
        if not step:  # the first compiles, too: nothing is known of the pace
            reach = WARMUP / 10
        state, sums = chunk(state, jax.random.fold_in(key, step), np.array([position, reach], np.float32))
        sums = jax.device_get(sums)
        took = time.monotonic() - chunk_began
        pace = took if step else pace
        step, position = step + options.chunk, reach
        report(say, names, sums, step, took, options.chunk, position)
        if time.monotonic() - saved > SAVE_SECONDS and position < SCHEDULE:
            saved = time.monotonic()
            write(options.output / "unfinished", program, jax.device_get(state.trainable))
            say(step=step, dev=scores(state.trainable))
    write(options.output / "nano", program, jax.device_get(state.trainable))
    say(step=step, rows_seen=step * options.batch, dev=scores(state.trainable), done=True)
    shutil.rmtree(options.output / "unfinished", ignore_errors=True)
    log.close()


def report(say: Callable, names: dict, sums: dict, step: int, took: float, chunk: int, position: float) -> None:
    """One line of metrics: means over the chunk."""
    tokens_N = np.maximum(sums["tokens"], 1.0)
    say(
        step=step, steps_per_second=round(chunk / took, 2), done=round(position / SCHEDULE, 4),
        loss=round(float(sums["loss"].sum() / tokens_N.sum()), 4),
        sentence=round(float(sums["sentence"].sum() / max(sums["embedded"].sum(), 1.0)), 4),
        norm=round(float(np.mean(sums["norm"]) / chunk), 3), finite=float(np.min(sums["finite"]) / chunk),
        by_task={n.removeprefix("nano_"): [round(float(v), 3) for v in pair]
                 for n, *pair in zip(names["train"], sums["loss"] / tokens_N, sums["correct"] / tokens_N, strict=True)},
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano.training", description=__doc__.split("\n")[0])
    parser.add_argument("--packed", type=Path, required=True, help="what `python -m benchmarks.nano.packed` wrote")
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of the whole run, from reading to writing")
    parser.add_argument("--reserve", type=float, default=5.0, help="seconds of them kept for writing and the last scores")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--teaching", type=float, default=5.0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--cap", type=int, default=8000, help="rows of a task that count in the mixture")
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seed", type=int, default=42)
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
