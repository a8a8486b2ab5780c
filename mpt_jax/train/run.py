"""From settings to a trained run folder."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mpt_jax import digests, distributed, sharding
from mpt_jax.bucket_run import training_folder
from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.checks import check_folder
from mpt_jax.config import Settings
from mpt_jax.data.batches import batch_iterator
from mpt_jax.data.cache import TokenCache, open_cache
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.data.sampler import Stream
from mpt_jax.data.spelling import cut_notes, spelling
from mpt_jax.errors import UserError
from mpt_jax.goodput import Clock, keep_in_run_json
from mpt_jax.infer.evaluate import EvalRun
from mpt_jax.methods.method import BACKBONE, kept_of, own_of, places_for, sizes
from mpt_jax.methods.table import method_of
from mpt_jax.metrics import MetricsWriter
from mpt_jax.model import formats
from mpt_jax.model.backbone import Backbone, load_backbone
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.formats.prompts import peft_facts
from mpt_jax.run_folder import devices, open_run_folder, versions, writes
from mpt_jax.tasks import TABLE, TaskError, scored_by
from mpt_jax.train import teachers
from mpt_jax.train.loop import Loop
from mpt_jax.train.plan import make_streams
from mpt_jax.train.program import Program, assemble
from mpt_jax.train.selection import check_scores, dev_scores
from mpt_jax.train.step import TrainState

PLACES = ("path", "vocabulary")  # files of the backbone's settings


class Caches(NamedTuple):
    """Token caches by task: of training, and of the dev split where it is scored."""

    folder: Path
    train: dict[str, TokenCache]
    dev: dict[str, TokenCache]


def run_train(
    settings: Settings,
    tasks: tuple[str, ...],
    config_gin: str = "",
    preempted: Callable[[int], bool] = lambda step: False,
    backbone: Backbone | None = None,
) -> Path:
    """Trains one stage, or continues it, and returns the run folder. Raises UserError for whatever the user can change.

    ``preempted(step)``: asked after every step; where it is True the run is saved and Preempted raised. ``backbone``: what
    ``settings.backbone`` names, where it is loaded already. No other training may run in MODEL_DIR meanwhile.
    """
    check_together(settings)
    clock = Clock()
    with training_folder("MODEL_DIR", settings.train.model_dir) as folder:
        settings = settings._replace(train=dataclasses.replace(settings.train, model_dir=folder))
        program, caches = prepare(settings, tasks, backbone)
        run_folder = open_folder(program, caches, config_gin)

        step_fn, kept = program.step(), kept_of(program.frozen, program.method.parts)
        checkpoints = Checkpoints(run_folder, runs=program.plan.described(), kept=kept)
        state, best, start_step = resume(checkpoints, step_fn.init(program.trainable), settings.train.skip_damaged_checkpoints)
        streams = streams_of(program, caches, preempted)
        batches = batch_iterator(streams, program.spec, len(program.plan.runs), start_step, settings.data.prefetch)
        writer = MetricsWriter(run_folder, start_step)
        clock.open(run_folder, start_step)
        evaluate = dev_scores(program, caches.dev) if settings.train.score_tasks else None
        with Loop(program, batches, streams, checkpoints, writer, evaluate, preempted, start_step, best, clock) as loop:
            loop.begin(state)
            for step, batch in loop:
                state, metrics = step_fn(state, program.frozen, batch)
                loop.after(step, batch, state, metrics)
        keep_in_run_json(run_folder)
        if program.method.trains_backbone:
            write_backbone(run_folder, program.backbone, loop.best.trainable if loop.best else state.trainable)
        return run_folder


def check_together(settings: Settings) -> None:
    """Raises UserError for settings that do not go with one another."""
    check_folder("MODEL_DIR", settings.train.model_dir)
    settings.computation()
    if settings.train.stage == "fewshot" and not settings.data.k_shot:
        raise UserError("K_SHOT = 0: stage 'fewshot' trains on K_SHOT rows, 1 or more; `mpt-jax train target` trains on all.")


def open_folder(program: Program, caches: Caches, config_gin: str) -> Path:
    """The run folder, new or of the same run, with its run.json. Raises UserError where it is of another run."""
    description = describe_run(program, [*caches.train.values(), *caches.dev.values()])
    with distributed.first_before_others("run folder"):
        run_folder = open_run_folder(program.settings.train.model_dir, description, config_gin)
    distributed.say(accounting(description))
    return run_folder


def streams_of(program: Program, caches: Caches, preempted: Callable[[int], bool]) -> list[Stream]:
    """The rows of each group, with what the teachers say about them where those run once before training."""
    streams = make_streams(program.plan, caches.train, program.settings.data)
    if program.teachers_NPD is None or program.settings.distillation.teacher_mode != "cached":
        return streams
    return teachers.teach_streams(teachers.of_program(program, caches.folder), streams, preempted)


def prepare(settings: Settings, tasks: tuple[str, ...], backbone: Backbone | None = None) -> tuple[Program, Caches]:
    """A stage ready to train, and its token caches; the run folder is not touched. ``backbone``: as in ``run_train``."""
    mesh = sharding.mesh_or_none(settings.mesh)
    if backbone is None:
        backbone = load_backbone(settings.backbone, lambda config: places_for(mesh, method_of(settings.train), config).of_backbone())
    caches = open_caches(settings, tasks, backbone)
    return assemble(settings, tasks, backbone, mesh, caches.train), caches


def open_caches(settings: Settings, tasks: tuple[str, ...], backbone: Backbone) -> Caches:
    """The token caches of a run, written first where there are none; says what is cut.

    Raises UserError for labels that cannot be learned (too long, or the same to the vocabulary), TaskError for dev rows that no score is
    defined for.
    """
    train, data = settings.train, settings.data
    folder, vocabulary = cache_folder(data.cache_dir), backbone.vocabulary(data.cue)
    for task in tasks:
        spelling(task, vocabulary, data.target_length)
    with distributed.first_before_others("token caches"):
        rows = {task: open_cache(task, "train", vocabulary, folder, trust=data.trust_caches) for task in tasks}
        scored = tasks if train.score_tasks else ()
        for task in scored:
            _check_dev_split(task, train.eval_split)
        dev_rows = {task: open_cache(task, train.eval_split, vocabulary, folder, trust=data.trust_caches) for task in scored}
    for task in tasks:
        spelling(task, vocabulary, data.target_length)  # once more: a task may be known from its cache alone
    for task, cache in dev_rows.items():
        check_scores(task, EvalRun(cache, limit_rows=train.eval_rows), vocabulary)
    for note in cut_notes([*rows.values(), *dev_rows.values()], data.feature_lengths):
        distributed.say(note)
    return Caches(folder, rows, dev_rows)


def _check_dev_split(task: str, split: str) -> None:
    """Raises TaskError, with what to type, for a task of the table that has no such split. Test rows are not advised: steps are chosen."""
    known = TABLE[task].splits if task in TABLE and TABLE[task].kind != "cached" else (split,)
    if split in known:
        return
    others = [name for name in known if name not in ("train", "test")]
    advice = f"type --gin.TrainSettings.eval_split={others[0]}" if others else "type --gin.TrainSettings.score_tasks=False to train without"
    message = f"task {task!r} has no split {split!r} to score in training (it has {', '.join(known)})"
    raise TaskError(f"{message}: call it {split!r}, or {advice}")


def resume(checkpoints: Checkpoints, state: TrainState, skip_damaged: bool = False) -> tuple[TrainState, Best | None, int]:
    """State to go on from: the newest checkpoint, or the given one at step 0.

    Raises UserError naming a damaged checkpoint; with ``skip_damaged`` it is put aside and the one before it is taken.
    """
    for name in checkpoints.cleared:
        distributed.say(f"cleared: {name}, whose writing did not end")
    while (latest := checkpoints.latest_step()) is not None:
        try:
            restored, best, meta = checkpoints.restore(latest, state._asdict())
        except UserError as error:
            if not skip_damaged:
                raise
            distributed.say(f"{error} Put aside: {checkpoints.put_aside(latest)}")
            continue
        distributed.say(f"continuing from the checkpoint of step {latest}")
        return TrainState(**restored), best, int(meta["step"])
    return state, None, 0


def made_from(program: Program, caches: Sequence[TokenCache] = ()) -> dict[str, str]:
    """What a run starts from, besides its backbone: digests of its method's arrays, its teachers' prompts, its tasks' rows by split.

    And what scores its tasks, where the best step is chosen by their scores.
    """
    own = {path: sharding.to_host(array) for path, array in own_of({**program.frozen, **program.trainable}).items()}
    found = {"parameters at the start": digests.of_json(digests.digests(own))[:16]} if own else {}
    if program.teachers_NPD is not None:
        found["prompts of the teachers"] = digests.of_json(digests.digests([program.teachers_NPD]))[:16]
    found |= {f"rows of {cache.name}, {cache.split}": cache.fingerprint for cache in caches}
    scored = [row.task for row in program.plan.runs] if program.settings.train.score_tasks else []
    return found | {f"scores of {task}": scored_by(task) for task in scored}


def describe_run(program: Program, caches: Sequence[TokenCache] = ()) -> dict:
    """The content of run.json; ``caches``: rows of training and of the dev split."""
    settings, backbone, runs = program.settings, program.backbone, program.plan.runs
    given = settings.backbone
    # files of weights and words are found from any folder
    places = {name: os.path.abspath(path) if os.path.exists(path) else path for name, path in vars(given).items() if name in PLACES}
    settings = settings._replace(backbone=dataclasses.replace(given, **places))
    counted = sizes(program.trainable, program.method.parts)
    per_task = counted if program.method.trains_backbone else counted // len(runs)
    return {
        "stage": settings.train.stage,
        "method": program.method.name,
        "tasks": list(dict.fromkeys(row.task for row in runs)),
        "runs": program.plan.described(),
        "settings": settings.describe(),
        "made_from": made_from(program, caches),
        "parameters": {
            "trainable": counted,
            "per_task": per_task,
            "backbone": backbone.num_parameters,
            "fraction_of_backbone": per_task / backbone.num_parameters,
        },
        "backbone": {
            "name": given.path,
            "fingerprint": backbone.fingerprint,
            "parameters": backbone.num_parameters,
            **peft_facts(backbone.config),
        },
        "vocabulary": {"path": backbone.vocabulary_path},
        "devices": devices(),
        "versions": versions(),
    }


def accounting(description: dict) -> str:
    """One line: what trains, and how little of the backbone it is."""
    numbers = description["parameters"]
    share = f"{100 * numbers['fraction_of_backbone']:.3f} % of the backbone's {numbers['backbone']:,}"
    trained = f"{numbers['trainable']:,} trainable parameters in {len(description['runs'])} runs"
    return f"{description['stage']}: {trained}; {numbers['per_task']:,} per task, {share}"


def write_backbone(run_folder: Path, backbone: Backbone, trainable: dict) -> None:
    """Writes the trained weights as a backbone folder ``backbone/`` of the run, for BACKBONE or conversion."""
    trained = {path.removeprefix(BACKBONE): array for path, array in trainable.items() if path.startswith(BACKBONE)}
    trained = {path: sharding.to_host(array) for path, array in (flatten(backbone.params) | trained).items()}
    if not distributed.is_first():
        return
    folder = run_folder / "backbone"
    with writes(folder, "MODEL_DIR"):
        if folder.exists():
            shutil.rmtree(folder)
        formats.write_backbone("own", str(folder), backbone.config, trained, backbone.vocabulary_path)
