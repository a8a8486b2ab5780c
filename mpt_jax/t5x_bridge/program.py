"""What the files of gin/t5x build: the model of a training run, and that of a checkpoint that one left."""

import dataclasses
import json
from collections.abc import Sequence

import jax
import tensorflow as tf
from t5x import gin_utils

from mpt_jax import paths
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, T5Config, TrainSettings
from mpt_jax.data.vocabulary import seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import Backbone, backbone_folder, fingerprint_of
from mpt_jax.model.formats import prompts
from mpt_jax.model.prompt_bank import PromptBank
from mpt_jax.run_folder import check_same_run, parse_run
from mpt_jax.t5x_bridge.mixtures import expand
from mpt_jax.t5x_bridge.model import PromptedModel
from mpt_jax.t5x_bridge.optimizer import BankOptimizer
from mpt_jax.train import plan
from mpt_jax.train.groups import STAGE_TABLES
from mpt_jax.train.optimizer import make_optimizer
from mpt_jax.train.run import Settings, describe_run, made_from
from mpt_jax.train.step import Objective

STAGES = ("teacher", "source", "target")


def training_model(
    train: TrainSettings,
    prompt: PromptSettings,
    distillation: DistillationSettings,
    optimizer: OptimizerSettings,
    data: DataSettings,
    names: str | Sequence[str],
    module: str | None = None,
) -> PromptedModel:
    """The model of a stage. Its backbone is the T5X checkpoint ``train.backbone``, which tells its own shapes.

    Raises UserError for another stage, several seeds or learning rates, a MODEL_DIR that holds another run, and whatever else the
    settings get wrong.
    """
    if train.stage not in STAGES:
        raise UserError(f"TrainSettings.stage = {train.stage!r}: under T5X's trainer there are {', '.join(STAGES)}.")
    if distillation.teacher != "beside":
        raise UserError(f"DistillationSettings.teacher = {distillation.teacher!r}: T5X's trainer takes 'beside' alone.")
    if not paths.SCHEME.match(train.model_dir):
        paths.writable_run("MODEL_DIR", train.model_dir)
    config, backbone, arrays = _backbone(train.backbone, train.dtype, train.vocabulary)
    config = dataclasses.replace(config, dropout_rate=train.dropout_rate, remat=train.remat)
    backbone = dataclasses.replace(
        backbone, config=config, fingerprint=fingerprint_of(arrays),
        params={"token_embedder": {"embedding": arrays["token_embedder/embedding"].load()}},
    )  # fmt: skip
    members = expand(names, module)
    runs = plan.plan_runs(train, prompt, optimizer, members)
    if len(runs) != len(members):
        raise UserError(f"{len(runs)} runs for {len(members)} tasks: T5X's trainer takes one RANDOM_SEED and one rate of each kind.")
    bank = plan.make_bank(runs, train, prompt, backbone, backbone.vocabulary())
    teacher_NPD = plan.teacher_prompts(runs, train, distillation, prompt, backbone)
    objective = Objective(backbone.config, bank.group_N, None if teacher_NPD is None else distillation)
    ours = make_optimizer(optimizer, train.train_steps, len(bank.shared_GPD), STAGE_TABLES[train.stage], plan.rates(runs))
    trainable = {f"bank/{name}": array for name, array in bank.trainable().items()}
    teacher = {} if teacher_NPD is None else {"teacher/prompts": teacher_NPD}
    settings = Settings(train, prompt, distillation, optimizer, data)
    description = describe_run(settings, runs, backbone, trainable, made_from(trainable, teacher))
    place = f"{train.model_dir}/run.json"
    if tf.io.gfile.exists(place):
        with tf.io.gfile.GFile(place, "rb") as file:
            check_same_run(train.model_dir, parse_run(file.read(), place), description)
    return PromptedModel(
        objective, bank, members, seqio_vocabulary(backbone.vocabulary()), BankOptimizer(ours), teacher_NPD, data.batch_size, description
    )  # fmt: skip


def trained_model(checkpoint: str, vocabulary: str = "", dtype: str = "float32") -> PromptedModel:
    """The model of a checkpoint of a training run, for T5X's evaluator and inference; the checkpoint tells all shapes."""
    config, backbone, _ = _backbone(checkpoint, dtype, vocabulary)
    held = prompts.read(checkpoint, width=config.d_model)
    bank = PromptBank(held.shared_GPD, held.cols_NPR, held.rows_NRD, held.group_N)
    return PromptedModel(Objective(config, bank.group_N), bank, held.task_names, seqio_vocabulary(backbone.vocabulary()))


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


def _backbone(path: str, dtype: str, vocabulary: str) -> tuple[T5Config, Backbone, dict]:
    """(config, backbone without weights and fingerprint, its arrays by name, not read yet) of a T5X checkpoint."""
    config, arrays, own = formats.read_backbone(backbone_folder(path))
    if not (vocabulary or own):
        raise UserError(f"{path!r} brings no vocabulary; name its SentencePiece model: --gin.VOCABULARY=\"'…/spiece.model'\" (or 'bytes').")
    # T5X's meshes are not ours, and a kernel must be told how it is cut into parts
    config = dataclasses.replace(config, dtype=dtype, attention="einsum")
    return config, Backbone(path, config, {}, vocabulary or own, ""), arrays
