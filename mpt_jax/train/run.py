"""From settings to a trained run folder: tasks and caches, backbone, bank, teachers, step, loop."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import digests, distributed, paths, sharding
from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.config import DataSettings, DistillationSettings, MeshSettings, OptimizerSettings, PromptSettings, TrainSettings
from mpt_jax.data.batches import BatchSpec, batch_iterator
from mpt_jax.data.cache import TokenCache, cache_folder, open_cache
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.folder_lock import locked
from mpt_jax.metrics import MetricsWriter
from mpt_jax.model import formats
from mpt_jax.model.backbone import Backbone, load_backbone
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.prompt_bank import PromptBank, bank_from, count_parameters
from mpt_jax.run_folder import devices, open_run_folder, versions, writes
from mpt_jax.train import plan, teachers
from mpt_jax.train.groups import STAGE_TABLES, split
from mpt_jax.train.loop import Evaluate, Loop
from mpt_jax.train.optimizer import make_optimizer
from mpt_jax.train.step import Objective, TrainState, TrainStep


class Settings(NamedTuple):
    """Everything a run is made from."""

    train: TrainSettings
    prompt: PromptSettings
    distillation: DistillationSettings
    optimizer: OptimizerSettings
    data: DataSettings
    mesh: MeshSettings = MeshSettings()

    def describe(self) -> dict:
        """As plain JSON values."""
        return {name: dataclasses.asdict(value) for name, value in self._asdict().items()}


class Scene(NamedTuple):
    """What scoring needs of a run: made here, used by the evaluator that the command passes in."""

    settings: Settings
    runs: list[plan.Run]
    backbone: Backbone
    vocabulary: Vocabulary
    dev_caches: dict[str, TokenCache]
    group_N: np.ndarray
    frozen: dict
    mesh: Mesh | None


MakeEvaluate = Callable[[Scene], Evaluate]


def run_train(
    settings: Settings,
    tasks: tuple[str, ...],
    make_evaluate: MakeEvaluate,
    config_gin: str = "",
    preempted: Callable[[int], bool] = lambda step: False,
) -> Path:
    """Trains one stage, or continues it, and returns the run folder. Raises UserError for whatever the user can mend.

    ``preempted(step)``: asked after every step; where it is True the run is saved and Preempted raised. No other training may run in
    MODEL_DIR meanwhile.
    """
    check_together(settings)
    with locked(paths.writable_run("MODEL_DIR", settings.train.model_dir)):
        return _train(settings, tasks, make_evaluate, config_gin, preempted)


def check_together(settings: Settings) -> None:
    """Raises UserError for settings that do not go with one another."""
    if settings.train.stage == "fewshot" and not settings.data.k_shot:
        raise UserError("K_SHOT = 0 in the stage 'fewshot': give the number of training rows, or take target.gin for all of them.")


def _train(settings: Settings, tasks: tuple[str, ...], make_evaluate: MakeEvaluate, config_gin: str, preempted) -> Path:
    train = settings.train
    mesh = sharding.mesh_or_none(settings.mesh)
    backbone = load_backbone(train.backbone, train.dtype, train.vocabulary, sharding.backbone_sharding(mesh), train.attention)
    vocabulary = backbone.vocabulary()
    folder = cache_folder(settings.data.cache_dir)
    with distributed.first_before_others("token caches"):
        caches = {task: open_cache(task, "train", vocabulary, folder) for task in tasks}
        dev_caches = {task: open_cache(task, train.eval_split, vocabulary, folder) for task in tasks} if train.score_tasks else {}
    runs = plan.draw_few_shot(plan.plan_runs(train, settings.prompt, settings.optimizer, tasks), caches, settings.data)

    trainable, frozen, objective = make_parameters(settings, runs, backbone, vocabulary, caches)
    table = STAGE_TABLES[train.stage]
    num_groups = runs[-1].group + 1
    optimizer = make_optimizer(settings.optimizer, train.train_steps, num_groups, table, plan.rates(runs))
    step_fn = TrainStep(objective, optimizer, mesh)
    frozen = sharding.place_tree(mesh, frozen)

    description = describe_run(settings, runs, backbone, trainable, made_from(trainable, frozen, [*caches.values(), *dev_caches.values()]))
    with distributed.first_before_others("run folder"):
        run_folder = open_run_folder(train.model_dir, description, config_gin)
    distributed.say(accounting(description))
    checkpoints = Checkpoints(run_folder, runs=description["runs"])
    state, best, start_step = resume(checkpoints, step_fn.init(trainable), train.skip_damaged_checkpoints)
    scene = Scene(settings, runs, backbone, vocabulary, dev_caches, objective.group_N, frozen, mesh)
    eval_steps = train.eval_steps or max(train.train_steps // 10, 1)
    writer = MetricsWriter(run_folder, start_step)
    data = settings.data
    rows = sharding.whole_rows(mesh, data.micro_batch_size, "DataSettings.micro_batch_size")
    lengths, local = (data.input_length, data.target_length), sharding.local_rows(mesh, rows)
    spec = BatchSpec(*lengths, rows, tuple(data.input_buckets), tuple(data.target_buckets), local)
    streams = plan.make_streams(runs, caches, data)
    if objective.distillation and objective.distillation.teacher == "cached":
        prompts_NPD = sharding.to_host(frozen.pop("teacher/prompts"))
        told = teachers.Teachers(objective.distillation, prompts_NPD, backbone, spec, mesh, folder)
        streams = teachers.teach_streams(told, streams, train.train_steps, preempted)
    batches = batch_iterator(streams, spec, len(runs), start_step, data.prefetch)
    loop = Loop(
        train, runs, step_fn, frozen, batches, streams, checkpoints, writer,
        make_evaluate(scene) if train.score_tasks else None, eval_steps, train.checkpoint_steps or eval_steps,
        preempted,
    )  # fmt: skip
    try:
        state, best = loop.run(state, best, start_step)
    finally:
        checkpoints.settle()
        batches.close()
        writer.close()
    checkpoints.close()
    if train.stage in ("finetune", "pretrain"):
        write_backbone(run_folder, backbone, best.trainable if best else state.trainable)
    return run_folder


def make_parameters(settings: Settings, runs, backbone: Backbone, vocabulary: Vocabulary, caches) -> tuple[dict, dict, Objective]:
    """(trainable arrays by path, frozen arrays by path, objective) of a stage."""
    train, distillation = settings.train, settings.distillation
    parameters: dict = backbone.flat()
    group_N = np.array([run.group for run in runs], np.int32)
    teaching = train.encoder_teaching if train.stage == "pretrain" else 0.0
    if train.stage in ("finetune", "pretrain"):
        group_N = np.zeros(len(runs), np.int32)
        # a copy: trained arrays are donated to the step, the backbone's own must stay usable
        parameters = {path: jnp.array(array, jnp.float32, copy=True) for path, array in parameters.items()}
        if teaching:
            parameters["head/kernel"] = _teaching_head(backbone.config.d_model, caches, train)
    else:
        bank: PromptBank = plan.make_bank(runs, train, settings.prompt, backbone, vocabulary)
        parameters |= {f"bank/{name}": jnp.asarray(array) for name, array in bank.trainable().items()}
    trainable, frozen = split(parameters, STAGE_TABLES[train.stage])
    prompts_NPD = plan.teacher_prompts(runs, train, distillation, settings.prompt, backbone)
    if prompts_NPD is not None:
        frozen["teacher/prompts"] = jnp.asarray(prompts_NPD)
    seed = train.seed_list[0]
    config = train.configured(backbone.config)
    return trainable, frozen, Objective(config, group_N, None if prompts_NPD is None else distillation, teaching, seed)


def _teaching_head(width: int, caches, train: TrainSettings):
    widths = {cache.embedding.shape[1] for cache in caches.values() if cache.embedding is not None}
    if not widths:
        message = f"TrainSettings.encoder_teaching = {train.encoder_teaching} needs rows with an 'embedding', and no task has any"
        raise UserError(f"{message}; set it to 0.0 or name other tasks.")
    rng = np.random.default_rng([train.seed_list[0], 0x68656164])
    return jnp.asarray(rng.normal(0.0, width**-0.5, (width, widths.pop())), jnp.float32)


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


def made_from(trainable: dict, frozen: dict, caches: Sequence[TokenCache] = ()) -> dict:
    """Digests of what a run starts from, beside its backbone: its first prompts, its teachers' prompts, the rows of each task's splits."""
    prompts = {name.removeprefix("bank/"): np.asarray(array) for name, array in trainable.items() if name.startswith("bank/")}
    found: dict = {"prompts at the start": digests.of_json(digests.digests(prompts))[:16]} if prompts else {}
    if "teacher/prompts" in frozen:
        found["prompts of the teachers"] = digests.digests([sharding.to_host(frozen["teacher/prompts"])])["0"][:16]
    return found | {f"rows of {cache.name}, {cache.split}": cache.fingerprint for cache in caches}


def describe_run(settings: Settings, runs, backbone: Backbone, trainable: dict, made_from: dict) -> dict:
    """The content of run.json."""
    bank = {path.removeprefix("bank/"): array for path, array in trainable.items() if path.startswith("bank/")}
    if bank:
        counted, per_task = count_parameters(bank_from(bank, np.array([run.group for run in runs])))
    else:
        counted = per_task = sum(array.size for array in trainable.values())
    return {
        "stage": settings.train.stage,
        "tasks": list(dict.fromkeys(run.task for run in runs)),
        "runs": [dataclasses.asdict(run) for run in runs],
        "settings": settings.describe(),
        "made_from": made_from,
        "parameters": {
            "trainable": counted,
            "per_task": per_task,
            "backbone": backbone.num_parameters,
            "fraction_of_backbone": per_task / backbone.num_parameters,
        },
        "backbone": {"name": settings.train.backbone, "fingerprint": backbone.fingerprint, "parameters": backbone.num_parameters},
        "vocabulary": {"path": backbone.vocabulary_path},
        "devices": devices(),
        "versions": versions(),
    }


def accounting(description: dict) -> str:
    """One line: what trains, and how little of the backbone it is."""
    numbers = description["parameters"]
    share = f"{100 * numbers['fraction_of_backbone']:.3f} % of the backbone's {numbers['backbone']:,}"
    runs = len(description["runs"])
    return f"{description['stage']}: {numbers['trainable']:,} trainable parameters in {runs} runs; {numbers['per_task']:,} a task, {share}"


def write_backbone(run_folder: Path, backbone: Backbone, trainable: dict) -> None:
    """Writes the trained weights as a backbone folder ``backbone/`` of the run, for BACKBONE or conversion."""
    trained = {path.removeprefix("backbone/"): array for path, array in trainable.items() if path.startswith("backbone/")}
    trained = {path: sharding.to_host(array) for path, array in (flatten(backbone.params) | trained).items()}
    if not distributed.is_first():
        return
    folder = run_folder / "backbone"
    with writes(folder, "MODEL_DIR"):
        if folder.exists():
            shutil.rmtree(folder)
        formats.write_backbone("own", str(folder), backbone.config, trained, backbone.vocabulary_path)
