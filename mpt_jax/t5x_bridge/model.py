"""T5X's model contract over our network, prompt bank, losses and decoding.

B examples, L input tokens, T target tokens, P prompt positions, N tasks in the bank.
"""

from collections.abc import Mapping, Sequence

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax.linen.partitioning import AxisMetadata
from t5x import metrics, models, optimizers, partitioning

from mpt_jax.errors import UserError
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.likelihood import score_targets
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import flatten, unflatten
from mpt_jax.model.formats.t5x import BANK
from mpt_jax.model.prompt_bank import PromptBank, bank_from, compose
from mpt_jax.sharding import RULES, parameter_axes
from mpt_jax.t5x_bridge.features import TASK_ID, TaskIdFeatureConverter
from mpt_jax.t5x_bridge.optimizer import bank_of
from mpt_jax.train.step import Objective, batch_totals, encoder_states, loss_sums, weighted_loss


def more_axis_rules() -> list[tuple[str, None]]:
    """Rules for T5X's partitioners: what the table of mpt_jax/sharding.py names and T5X's own rules do not is on every device."""
    known = {name for name, _ in partitioning.standard_logical_axis_rules()}
    return [(name, None) for name in RULES if name not in known]


class Counts:
    """What the tasks' examples of a batch hold, as train/step.py's batch_totals asks: tokens and examples of each task (N,)."""

    def __init__(self, batch: dict, num_tasks: int):
        in_task_NB = (jnp.arange(num_tasks)[:, None] == batch["task_id_B"]).astype(jnp.float32)
        real_B = jnp.any(batch["targets_BT"] > 0, axis=1)
        self.target_tokens_N = in_task_NB @ jnp.sum(batch["targets_BT"] > 0, axis=1).astype(jnp.float32)
        self.input_tokens_N = in_task_NB @ jnp.where(real_B, jnp.sum(batch["inputs_BL"] > 0, axis=1), 0).astype(jnp.float32)
        self.examples_N = in_task_NB @ real_B.astype(jnp.float32)


class PromptedModel(models.BaseModel):
    """A frozen T5 with a prompt bank. Parameters: T5X's minimal T5, and ``bank/{shared,cols,rows}``.

    objective: config, groups of the tasks and distillation. bank: where prompts start. task_names: N labels of metrics. teacher_NPD:
    prompts of the teachers (source stage). batch_size: examples of a step, for training: gradients of Trainer.num_microbatches would
    be added without the weights that make them the batch's.
    """

    FEATURE_CONVERTER_CLS = TaskIdFeatureConverter

    def __init__(
        self,
        objective: Objective,
        bank: PromptBank,
        task_names: Sequence[str],
        vocabulary: seqio.Vocabulary,
        optimizer_def: optimizers.OptimizerDef | None = None,
        teacher_NPD: np.ndarray | None = None,
        batch_size: int = 0,
        description: Mapping | None = None,
    ):
        super().__init__(optimizer_def)
        self.objective, self.bank, self.task_names = objective, bank, tuple(task_names)
        self.input_vocabulary = self.output_vocabulary = vocabulary
        self.teacher_NPD, self.batch_size, self.description = teacher_NPD, batch_size, description

    def get_initial_variables(self, rng, input_shapes, input_types=None) -> dict:
        """`params` and `params_axes`. Weights of the backbone are NaN: only a checkpoint can fill them, and its lack must show."""
        del rng, input_shapes, input_types
        params = {BANK + name: jnp.asarray(array) for name, array in self.bank.trainable().items()}
        params |= {entry.ours: jnp.full(entry.shape, jnp.nan, jnp.float32) for entry in names.entries(self.objective.config)}
        axes = {f"{path}_axes": AxisMetadata(parameter_axes(path)) for path in params}
        return {"params": unflatten(params.items()), "params_axes": unflatten(axes.items())}

    def loss_fn(self, params, batch, dropout_rng):
        """(loss, metrics) of a training batch."""
        micro = _micro_batch(batch)
        if len(micro["task_id_B"]) != self.batch_size:
            parts = f"a step's {self.batch_size} examples came in parts of {len(micro['task_id_B'])}"
            raise UserError(f"{parts}, whose gradients T5X would add without weights; set trainer.Trainer.num_microbatches = None.")
        trainable, frozen = self._split(params)
        totals = batch_totals(self.objective, Counts(micro, len(self.task_names)), frozen, trainable)
        loss, sums_B = weighted_loss(self.objective, trainable, frozen, micro, totals, dropout_rng)
        return loss, self._metrics(micro, sums_B) | {"loss": metrics.AveragePerStep.from_model_output(loss)}

    def eval_fn(self, params, batch):
        """(mean loss of a target token, metrics) of held-out rows, without teachers."""
        micro = _micro_batch(batch)
        sums_B = loss_sums(self.objective._replace(distillation=None), *self._split(params), micro)
        loss = jnp.sum(sums_B["loss"]) / jnp.maximum(jnp.sum(micro["targets_BT"] > 0), 1)
        return loss, self._metrics(micro, sums_B, each_task=False)  # T5X evaluates a task at a time

    def predict_batch_with_aux(self, params, batch, rng=None):
        """(greedy answers (B, T) int32, {'scores': their log-probabilities (B,)})."""
        del rng
        arguments = self.objective.config, *self._network(params, batch)
        answers_BT = greedy_decode(*arguments, batch["decoder_input_tokens"].shape[1])
        return answers_BT, {"scores": score_targets(*arguments, answers_BT)}

    def predict_batch(self, params, batch, rng=None):
        """Greedy answers (B, T) int32."""
        del rng
        return greedy_decode(self.objective.config, *self._network(params, batch), batch["decoder_input_tokens"].shape[1])

    def score_batch(self, params, batch, return_intermediates: bool = False):
        """Log-probability of each target (B,) float32. Raises UserError if intermediate activations are asked for."""
        if return_intermediates:
            raise UserError("score_batch(return_intermediates=True): intermediate activations are not kept; leave it False.")
        return score_targets(self.objective.config, *self._network(params, batch), batch["decoder_target_tokens"])

    def _network(self, params, batch) -> tuple:
        """(backbone, prompts (B, P, D), inputs (B, L)) of a batch."""
        micro = _micro_batch(batch)
        bank = bank_from(dict(params["bank"]), self.objective.group_N)
        backbone = {name: tree for name, tree in params.items() if name != "bank"}
        return backbone, compose(bank, micro["task_id_B"]), micro["inputs_BL"]

    def _split(self, params) -> tuple[dict, dict]:
        """(trainable, frozen) by path, as the train step takes them; nothing is differentiated through the frozen ones."""
        backbone = {f"backbone/{path}": array for path, array in flatten(params).items() if not path.startswith(BANK)}
        frozen = jax.lax.stop_gradient(backbone)
        if self.teacher_NPD is not None:
            frozen["teacher/prompts"] = jnp.asarray(self.teacher_NPD)
        return bank_of(params), frozen

    def _metrics(self, micro: dict, sums_B: Mapping[str, jax.Array], each_task: bool = True) -> dict:
        """Means over a target token (or state compared, for the encoder's) of all tasks and of each, which is NaN without rows."""
        counts = Counts(micro, len(self.task_names))
        states_N = encoder_states(self.objective, counts, self.bank.shared_GPD.shape[1])
        found = {"timing/steps_per_second": metrics.StepsPerTime.from_model_output()}
        for name, value_B in sums_B.items():
            weight_N = states_N if name == "hidden_encoder" else counts.target_tokens_N
            label = "accuracy" if name == "correct" else name
            found[f"mean/{label}"] = clu.metrics.Average(total=jnp.sum(value_B), count=jnp.sum(weight_N))
            for n, task in enumerate(self.task_names if each_task else ()):
                total = jnp.sum(jnp.where(micro["task_id_B"] == n, value_B, 0.0))
                found[f"{task}/{label}"] = clu.metrics.Average(total=total, count=weight_N[n])
        return found


def _micro_batch(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """T5X's features under our names; rows of padding (id 0) take the first prompt and count nowhere."""
    return {
        "inputs_BL": batch["encoder_input_tokens"],
        "targets_BT": batch["decoder_target_tokens"],
        "task_id_B": jnp.maximum(batch[TASK_ID][:, 0] - 1, 0),
    }
