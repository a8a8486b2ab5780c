"""Our side of the training comparisons: the package's own train step, batches and optimiser. Run by the benchmarks.

Prints a JSON line: seconds of each timed step, batches included, the share of them spent waiting for batches, and the peak of resident
memory. Steps before the timed ones compile every bucket that the timed ones use.
"""

import argparse
import dataclasses
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import rows
from benchmarks.side import add_side_arguments, finish, rows_of, steps_of


def make_training(arguments: argparse.Namespace, source):
    """(train step, state, frozen tree, backbone) as run_train makes them, from a Hugging Face folder."""
    import jax.numpy as jnp
    from mpt_jax.train.groups import PROMPTS_ONLY, split

    from mpt_jax.config import DistillationSettings, OptimizerSettings, PromptSettings
    from mpt_jax.model import prompt_bank
    from mpt_jax.model.backbone import load_backbone
    from mpt_jax.train.optimizer import make_optimizer
    from mpt_jax.train.step import Objective, TrainStep

    backbone = load_backbone(arguments.backbone, arguments.dtype, "bytes")
    settings, tasks = PromptSettings(length=arguments.prompt), len(source.caches)
    embedding = backbone.params["token_embedder"]["embedding"][: settings.init_vocabulary_rows]
    shared_GPD = prompt_bank.init_prompt(settings, np.asarray(embedding, np.float32), 0)[None]
    factors = prompt_bank.init_factors(settings, tasks, backbone.config.d_model, 0)
    bank = prompt_bank.PromptBank(shared_GPD, *factors, np.zeros(tasks, np.int32))
    parameters = backbone.flat() | {f"bank/{name}": jnp.asarray(array) for name, array in bank.trainable().items()}
    trainable, frozen = split(parameters, PROMPTS_ONLY)
    distillation = DistillationSettings(teacher=arguments.teacher) if arguments.teacher != "none" else None
    if arguments.teacher == "beside":
        frozen["teacher/prompts"] = jnp.asarray(teacher_prompts(tasks, arguments.prompt, backbone.config.d_model))
    rates = {"prompt": np.array([0.3]), "factors": np.array([0.3])}
    optimizer = make_optimizer(OptimizerSettings(), 1000, 1, PROMPTS_ONLY, rates)
    step_fn = TrainStep(Objective(backbone.config, bank.group_N, distillation), optimizer)
    return step_fn, step_fn.init(trainable), frozen, backbone


def teacher_prompts(tasks: int, length: int, width: int) -> np.ndarray:
    """Made-up teachers (N, P, D) float32."""
    return np.random.default_rng(1).standard_normal((tasks, length, width)).astype(np.float32)


def teach(arguments: argparse.Namespace, backbone, source, spec, distillation, last_step: int):
    """(rows with their teachers' outputs, seconds that computing them took, rows computed); computed anew each time."""
    from mpt_jax.data.sampler import rows_in
    from mpt_jax.train.teachers import Teachers, teach_streams

    prompts_NPD = teacher_prompts(len(source.caches), arguments.prompt, backbone.config.d_model)
    with tempfile.TemporaryDirectory() as folder:
        teachers = Teachers(distillation, prompts_NPD, backbone, spec, None, Path(folder))
        start = time.perf_counter()
        (taught,) = teach_streams(teachers, [source], last_step)
        return taught, time.perf_counter() - start, sum(map(len, rows_in(source, last_step)))


def compile_buckets(step_fn, state, frozen, batches):
    """Runs a micro-batch of each pair of padded lengths once."""
    shapes = {(part["inputs_BL"].shape, part["targets_BT"].shape): part for batch in batches for part in batch.micro}
    return step_fn(state, frozen, dataclasses.replace(batches[0], micro=list(shapes.values())))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_side_arguments(parser)
    parser.add_argument("--teacher", default="none", choices=("none", "beside", "cached"))
    parser.add_argument("--micro", type=int, default=0, help="rows of a micro-batch; 0 = the package's default")
    parser.add_argument("--padded", action="store_true", help="the whole batch at once, every row as long as the longest allowed")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    import jax

    from mpt_jax.config import DataSettings
    from mpt_jax.data.batches import BatchSpec, batch_iterator, make_batch

    source = rows_of(arguments)
    step_fn, state, frozen, backbone = make_training(arguments, source)
    longest = rows.SETS[arguments.rows][1]
    spec = BatchSpec(longest, 8, arguments.micro or DataSettings().micro_batch_size)
    if arguments.padded:
        spec = BatchSpec(longest, 8, arguments.batch, (longest,), (8,))
    steps = steps_of(arguments)
    told = {}
    if arguments.teacher == "cached":
        source, taught_s, taught_rows = teach(arguments, backbone, source, spec, step_fn.objective.distillation, steps[-1] + 1)
        told = {"teachers_s": taught_s, "teachers_rows": taught_rows}
    state = compile_buckets(step_fn, state, frozen, [make_batch([source], step, spec, len(source.caches)) for step in steps])
    batches = batch_iterator([source], spec, len(source.caches), steps[0], DataSettings().prefetch)
    seconds, padding = [], []
    for _ in steps:
        start = time.perf_counter()
        batch = next(batches)
        state, metrics = step_fn(state, frozen, batch)
        loss = float(jax.device_get(metrics["loss"]).sum() / batch.target_tokens_N.sum())
        seconds.append(time.perf_counter() - start)
        padding.append(batch.input_padding)
    waiting = batches.waited_s / sum(seconds)
    batches.close()
    told |= {"loss": loss, "waiting_share": waiting, "input_padding": float(np.mean(padding))}
    finish({"seconds": seconds[arguments.warmup :], "steps": list(steps)[arguments.warmup :], **told})


if __name__ == "__main__":
    main()
