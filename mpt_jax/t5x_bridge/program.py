"""What the files of gin/t5x build: the model of a training run, and that of a checkpoint that one left."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import tensorflow as tf
from t5x import gin_utils

from mpt_jax import paths
from mpt_jax.config import BackboneSettings, DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.data.vocabulary import seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt as prompt_method
from mpt_jax.model import formats
from mpt_jax.model.backbone import Backbone, backbone_folder, fingerprint_of, vocabulary_path
from mpt_jax.model.families.family import Network
from mpt_jax.model.formats import prompts
from mpt_jax.run_folder import check_same_run, parse_run
from mpt_jax.t5x_bridge.mixtures import expand
from mpt_jax.t5x_bridge.model import PromptedModel
from mpt_jax.t5x_bridge.optimizer import BankOptimizer
from mpt_jax.train.program import assemble
from mpt_jax.train.run import describe_run
from mpt_jax.train.terms import Objective

STAGES = ("teacher", "source", "target")


def training_model(
    train: TrainSettings,
    backbone: BackboneSettings,
    prompt: PromptSettings,
    distillation: DistillationSettings,
    optimizer: OptimizerSettings,
    data: DataSettings,
    names: str | Sequence[str],
    module: str | None = None,
) -> PromptedModel:
    """The model of a stage. Its backbone is the T5X checkpoint ``backbone.path``, which tells its own shapes.

    Raises UserError for another stage, several seeds or learning rates, a MODEL_DIR that holds another run, and whatever else the
    settings get wrong.
    """
    if train.stage not in STAGES:
        raise UserError(f"TrainSettings.stage = {train.stage!r}: under T5X's trainer there are {', '.join(STAGES)}.")
    if distillation.teacher_mode != "beside":
        raise UserError(f"DistillationSettings.teacher_mode = {distillation.teacher_mode!r}: T5X's trainer takes 'beside' alone.")
    if not paths.SCHEME.match(train.model_dir):
        paths.writable_run("MODEL_DIR", train.model_dir)
    loaded, arrays = _backbone(backbone)
    # only the embedding is read here: T5X restores the weights
    embedding = {"token_embedder": {"embedding": arrays["token_embedder/embedding"].load()}}
    loaded = dataclasses.replace(loaded, fingerprint=fingerprint_of(arrays), params=embedding)
    if train.method != prompt_method.METHOD.name:
        raise UserError(f"METHOD = {train.method!r}: T5X's trainer takes {prompt_method.METHOD.name!r} alone; train it with mpt-jax train.")
    members = expand(names, module)
    settings = Settings(train, _without_kernels(backbone), prompt, distillation, optimizer, data)
    program = assemble(settings, members, loaded)
    if len(program.plan.runs) != len(members):
        message = f"{len(program.plan.runs)} runs for {len(members)} tasks"
        raise UserError(f"{message}: T5X's trainer takes one RANDOM_SEED and one rate of each kind.")
    description, path = describe_run(program), f"{train.model_dir}/run.json"
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            check_same_run(train.model_dir, parse_run(file.read(), path), description)
    bank = prompt_method.bank_of(program.trainable, program.plan.group_N)
    vocabulary, ours = seqio_vocabulary(loaded.vocabulary()), BankOptimizer(program.optimizer)
    return PromptedModel(program.objective, bank, members, vocabulary, ours, program.teachers_NPD, data.batch_size, description)


def trained_model(checkpoint: str, vocabulary: str = "", dtype: str = "float32") -> PromptedModel:
    """The model of a checkpoint of a training run, for T5X's evaluator and inference; the checkpoint tells all shapes."""
    settings = _without_kernels(BackboneSettings(checkpoint, vocabulary, dtype))
    loaded, _ = _backbone(settings)
    held = prompts.read(checkpoint, width=loaded.config.d_model)
    network = Network(loaded.config, settings.computation, prompt_method.METHOD.adaptation)
    objective = Objective(network, prompt_method.METHOD, held.group_N)
    return PromptedModel(objective, held.bank, held.task_names, seqio_vocabulary(loaded.vocabulary()))


def trained_ids(checkpoint: str, more: dict[str, int] | None = None) -> dict[str, int]:
    """Number from 1 of each task's prompt in a checkpoint; ``more`` (TASK_IDS) gives other tasks one of these."""
    held = prompts.read(checkpoint)
    wrong = [f"{task}: {number}" for task, number in (more or {}).items() if not 1 <= number <= len(held.task_names)]
    if wrong:
        raise UserError(f"TASK_IDS = {{{', '.join(wrong)}}}: the checkpoint holds prompts 1 .. {len(held.task_names)}.")
    return {name: number for number, name in enumerate(held.task_names, 1)} | (more or {})


def describe(model_dir: str, summary_writer, step: int, model: PromptedModel) -> None:
    """T5X's summarize_config_fn: config.gin as T5X writes it, and run.json, by which this package reads the run."""
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        with tf.io.gfile.GFile(f"{model_dir}/run.json", "w") as file:
            file.write(json.dumps(model.description, indent=2) + "\n")


def _without_kernels(settings: BackboneSettings) -> BackboneSettings:
    """T5X's meshes are not ours, and a kernel must be told how it is cut into parts."""
    return dataclasses.replace(settings, attention="einsum")


def _backbone(settings: BackboneSettings) -> tuple[Backbone, dict]:
    """(backbone without weights and fingerprint, its arrays by name, not read yet) of a T5X checkpoint."""
    config, arrays, own = formats.read_backbone(backbone_folder(settings.path))
    return Backbone(settings.path, config, {}, vocabulary_path(settings, own), ""), arrays
