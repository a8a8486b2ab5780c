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

SOURCES = 6  # made-up source tasks of the methods that start from some [MPT, ATTEMPT]


def method_program(arguments: argparse.Namespace, names: list[str]):
    """A run of ``arguments.method`` for each of these tasks as run_train assembles it, from a Hugging Face folder."""
    from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings
    from mpt_jax.methods.method import MUST
    from mpt_jax.methods.prefix import PrefixSettings
    from mpt_jax.methods.table import method_named
    from mpt_jax.model.backbone import load_backbone
    from mpt_jax.train.program import assemble

    chosen, method = BackboneSettings(arguments.backbone, "bytes", arguments.dtype), method_named(arguments.method)
    backbone, from_source = load_backbone(chosen), method.from_source == MUST
    sources = [f"source{n}" for n in range(SOURCES)]
    folder = write_teachers(Path(arguments.folder), sources, arguments, backbone) if from_source else ""
    settings = Settings(
        TrainSettings("target" if from_source else "teacher", method=method.name, source_dir=folder, seeds=0), chosen,
        PromptSettings(length=arguments.prompt, rank=0, transfer="mean" if from_source else "none"),
        data=DataSettings(batch_size=arguments.batch, feature_lengths={"inputs": rows.SETS[arguments.rows][1], "targets": 8}),
        method=PrefixSettings(stacks=("decoder",)) if method.name == "prefix" else None,
    )  # fmt: skip
    return assemble(settings, names, backbone)


def make_program(arguments: argparse.Namespace, names: list[str], teacher: str, padded: bool = False, micro: int = 0, smallest: int = 0):
    """The source stage over these tasks as run_train assembles it, from a Hugging Face folder; made-up teachers, or 'none'."""
    from mpt_jax.config import BackboneSettings, DataSettings, DistillationSettings, PromptSettings, Settings, TrainSettings
    from mpt_jax.model.backbone import load_backbone
    from mpt_jax.train.program import assemble

    longest, given = rows.SETS[arguments.rows][1], {"feature_lengths": {"inputs": rows.SETS[arguments.rows][1], "targets": 8}}
    if padded:
        given |= {"micro_batch_size": arguments.batch, "input_buckets": (longest,), "target_buckets": (8,)}
    elif micro:
        given |= {"micro_batch_size": micro}
    given |= {"smallest_micro_batch": smallest}
    chosen = BackboneSettings(arguments.backbone, "bytes", arguments.dtype)
    backbone = load_backbone(chosen)
    distillation = DistillationSettings(weight=0.0) if teacher == "none" else DistillationSettings(teacher_mode=teacher)
    folder = "" if teacher == "none" else write_teachers(Path(arguments.folder), names, arguments, backbone)
    settings = Settings(
        TrainSettings("source", teacher_dir=folder, seeds=0), chosen, PromptSettings(length=arguments.prompt), distillation,
        data=DataSettings(batch_size=arguments.batch, **given),
    )  # fmt: skip
    return assemble(settings, names, backbone)


def write_teachers(folder: Path, names: list[str], arguments: argparse.Namespace, backbone) -> str:
    """A run folder of made-up teachers of these tasks."""
    from mpt_jax.checkpoint import Checkpoints
    from mpt_jax.methods.bank import PromptBank
    from mpt_jax.methods.prompt import paths_of
    from mpt_jax.run_folder import write_json

    run = folder / f"made_up_teachers_{backbone.fingerprint}_{len(names)}_{arguments.prompt}"
    if run.exists():
        return str(run)
    shape = (len(names), arguments.prompt, backbone.config.d_model)
    prompts_GPD = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    state = {"step": np.asarray(1), "trainable": paths_of(PromptBank(prompts_GPD, None, None, np.arange(len(names)))), "opt_state": ()}
    run.mkdir(parents=True)
    described = [{"task": name, "seed": 0, "group": n} for n, name in enumerate(names)]
    told = {"runs": described, "settings": {"prompt": {"length": arguments.prompt, "rank": 0, "init": "uniform", "transfer": "none"}}}
    write_json(run / "run.json", told | {"backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint}})
    checkpoints = Checkpoints(run)
    checkpoints.save(1, state, None, {"step": 1})
    checkpoints.close()
    return str(run)


def teach(program, source, last_step: int):
    """(rows with their teachers' outputs, seconds that computing them took, rows computed); computed anew each time."""
    from mpt_jax.data.sampler import rows_in
    from mpt_jax.train import teachers

    with tempfile.TemporaryDirectory() as folder:
        made = teachers.of_program(program, Path(folder))._replace(steps=last_step)
        start = time.perf_counter()
        (taught,) = teachers.teach_streams(made, [source])
        return taught, time.perf_counter() - start, sum(map(len, rows_in(source, last_step)))


def without_slots(batch):
    """The batch with a prompt of its own for each row."""
    rest = [{name: array for name, array in part.items() if name not in ("task_U", "slot_B")} for part in batch.micro]
    return dataclasses.replace(batch, micro=rest)


def compile_buckets(step_fn, state, frozen, batches):
    """Runs a micro-batch of each pair of padded lengths once."""
    shapes = {(part["inputs_BL"].shape, part["targets_BT"].shape): part for batch in batches for part in batch.micro}
    return step_fn(state, frozen, dataclasses.replace(batches[0], micro=list(shapes.values())))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_side_arguments(parser)
    parser.add_argument("--teacher", default="none", choices=("none", "beside", "cached"))
    parser.add_argument("--micro", type=int, default=0, help="rows of a micro-batch; 0 = the package's default")
    parser.add_argument("--smallest", type=int, default=0, help="rows of the smallest micro-batch; 0 = all have --micro")
    parser.add_argument("--padded", action="store_true", help="the whole batch at once, every row as long as the longest allowed")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--own_prompts", action="store_true", help="compute the prompt for each row, not for each task of a micro-batch")
    parser.add_argument("--method", default="", help="a row of mpt_jax/methods/table.py, each task a run; empty: MPT's source stage")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    import jax

    from mpt_jax.data.batches import batch_iterator, make_batch
    from mpt_jax.methods.method import sizes

    source, steps, told = rows_of(arguments), steps_of(arguments), {}
    names = [cache.name for cache in source.caches]
    if arguments.method:
        program = method_program(arguments, names)
    else:
        program = make_program(arguments, names, arguments.teacher, arguments.padded, arguments.micro, arguments.smallest)
    step_fn, frozen, spec = program.step(), program.frozen, program.spec
    if arguments.teacher == "cached":
        source, taught_s, taught_rows = teach(program, source, steps[-1] + 1)
        told = {"teachers_s": taught_s, "teachers_rows": taught_rows}
    changed = without_slots if arguments.own_prompts else lambda batch: batch
    state, seen = step_fn.init(program.trainable), [changed(make_batch([source], step, spec, len(names))) for step in steps]
    state = compile_buckets(step_fn, state, frozen, seen)
    batches = batch_iterator([source], spec, len(names), steps[0], program.settings.data.prefetch)
    seconds, padding, waited = [], [], 0.0
    for _ in steps:
        start = time.perf_counter()
        drawn = next(batches)
        waited += time.perf_counter() - start
        batch = changed(drawn)
        state, metrics = step_fn(state, frozen, batch)
        loss = float(jax.device_get(metrics["loss"]).sum() / batch.target_tokens_N.sum())
        seconds.append(time.perf_counter() - start)
        padding.append(batch.input_padding)
    batches.close()
    told |= {"loss": loss, "waiting_share": waited / sum(seconds), "input_padding": float(np.mean(padding))}
    told |= {"trained": sizes(program.trainable, program.method.parts)}
    finish({"seconds": seconds[arguments.warmup :], "steps": list(steps)[arguments.warmup :], **told})


if __name__ == "__main__":
    main()
