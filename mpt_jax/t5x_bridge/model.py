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
from mpt_jax.infer.likelihood import score_rows
from mpt_jax.methods.bank import BANK, PromptBank
from mpt_jax.methods.method import BACKBONE, TEACHERS, places_for, take
from mpt_jax.methods.prompt import paths_of
from mpt_jax.model.families.family import Rows
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import flatten, unflatten
from mpt_jax.sharding import RULES, TASK_AXES
from mpt_jax.t5x_bridge.features import TASK_ID, TaskIdFeatureConverter
from mpt_jax.t5x_bridge.optimizer import bank_of
from mpt_jax.train.step import batch_totals, loss_sums, weighted_loss
from mpt_jax.train.terms import Objective, terms

SEQIO_PAD = 0


def more_axis_rules() -> list[tuple[str, None]]:
    """Rules for T5X's partitioners: what the table of mpt_jax/sharding.py names and T5X's own rules do not is on every device."""
    known = {name for name, _ in partitioning.standard_logical_axis_rules()}
    return [(name, None) for name in RULES if name not in known]


class Counts:
    """What the tasks' examples of a batch hold, as the terms of the loss count (train/terms.py): tokens and examples of each task (N,)."""

    def __init__(self, batch: dict, num_tasks: int):
        in_task_NB = (jnp.arange(num_tasks)[:, None] == batch["task_id_B"]).astype(jnp.float32)
        real_B = batch["target_length_B"] > 0
        self.target_tokens_N = in_task_NB @ batch["target_length_B"].astype(jnp.float32)
        self.input_tokens_N = in_task_NB @ jnp.where(real_B, batch["input_length_B"], 0).astype(jnp.float32)
        self.examples_N = in_task_NB @ real_B.astype(jnp.float32)


class PromptedModel(models.BaseModel):
    """A frozen T5 with a prompt bank. Parameters: T5X's minimal T5, and the bank's (methods/bank.py: BANK).

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
        config = self.objective.network.config
        params = {path: jnp.asarray(array) for path, array in paths_of(self.bank).items()}
        params |= {entry.ours: jnp.full(entry.shape, jnp.nan, jnp.float32) for entry in names.entries(config)}
        places = places_for(None, self.objective.method, config)
        axes = {f"{path}_axes": AxisMetadata(_axes(places.axes_of(path), array.ndim)) for path, array in params.items()}
        return {"params": unflatten(params.items()), "params_axes": unflatten(axes.items())}

    def loss_fn(self, params, batch, dropout_rng):
        """(loss, metrics) of a training batch."""
        micro = _micro_batch(batch)
        if len(micro["task_id_B"]) != self.batch_size:
            parts = f"a step's {self.batch_size} examples came in parts of {len(micro['task_id_B'])}"
            raise UserError(f"{parts}, whose gradients T5X would add without weights; set trainer.Trainer.num_microbatches = None.")
        trainable, frozen = self._split(params)
        totals = batch_totals(self.objective, Counts(micro, len(self.task_names)))
        loss, sums_B = weighted_loss(self.objective, trainable, frozen, micro, totals, dropout_rng)
        return loss, self._metrics(micro, sums_B) | {"loss": metrics.AveragePerStep.from_model_output(loss)}

    def eval_fn(self, params, batch):
        """(mean loss of a target token, metrics) of held-out rows, without teachers."""
        micro = _micro_batch(batch)
        sums_B = loss_sums(self.objective._replace(distillation=None), *self._split(params), micro)
        loss = jnp.sum(sums_B["loss"]) / jnp.maximum(jnp.sum(micro["target_length_B"]), 1)
        return loss, self._metrics(micro, sums_B, each_task=False)  # T5X evaluates a task at a time

    def predict_batch_with_aux(self, params, batch, rng=None):
        """(greedy answers (B, T) int32, {'scores': their log-probabilities (B,)})."""
        del rng
        answers_BT = self.predict_batch(params, batch)
        end_BT = answers_BT == self.output_vocabulary.eos_id
        ended_BT = jnp.cumsum(end_BT, axis=1) - end_BT
        length_B = jnp.sum((ended_BT == 0) & (answers_BT != self.output_vocabulary.pad_id), axis=1)
        return answers_BT, {"scores": self._score(params, batch, answers_BT, length_B)}

    def predict_batch(self, params, batch, rng=None):
        """Greedy answers (B, T) int32."""
        del rng
        backbone, own, rows = self._network(params, batch)
        length, ends = batch["decoder_input_tokens"].shape[1], (self.output_vocabulary.eos_id,)
        return greedy_decode(self.objective.network, backbone, own, rows, length, ends, pad=self.output_vocabulary.pad_id)

    def score_batch(self, params, batch, return_intermediates: bool = False):
        """Log-probability of each target (B,) float32. Raises UserError if intermediate activations are asked for."""
        if return_intermediates:
            raise UserError("score_batch(return_intermediates=True): intermediate activations are not kept; leave it False.")
        micro = _micro_batch(batch)
        return self._score(params, batch, micro["targets_BT"], micro["target_length_B"])

    def _score(self, params, batch, targets_BT, length_B):
        backbone, own, rows = self._network(params, batch)
        rows = rows._replace(targets_BT=targets_BT, target_length_B=length_B)
        return score_rows(self.objective.network, backbone, own, rows)

    def _network(self, params, batch) -> tuple:
        """(backbone, the bank's arrays of each example, inputs) of a batch."""
        micro, objective = _micro_batch(batch), self.objective
        own = take(bank_of(params), objective.method.parts, objective.group_N, micro["task_id_B"])
        backbone = {name: tree for name, tree in params.items() if name != BANK.rstrip("/")}
        return backbone, own, Rows(micro["inputs_BL"], micro["input_length_B"])

    def _split(self, params) -> tuple[dict, dict]:
        """(trainable, frozen) by path, as the train step takes them; nothing is differentiated through the frozen ones."""
        backbone = {BACKBONE + path: array for path, array in flatten(params).items() if not path.startswith(BANK)}
        frozen = jax.lax.stop_gradient(backbone)
        if self.teacher_NPD is not None:
            frozen[TEACHERS] = jnp.asarray(self.teacher_NPD)
        return bank_of(params), frozen

    def _metrics(self, micro: dict, sums_B: Mapping[str, jax.Array], each_task: bool = True) -> dict:
        """Means of each term over what it counts, of all tasks and of each, which is NaN without rows."""
        counts = Counts(micro, len(self.task_names))
        found = {"timing/steps_per_second": metrics.StepsPerTime.from_model_output()}
        for term in terms(self.objective):
            if term.name not in sums_B:
                continue
            value_B, weight_N = sums_B[term.name], term.counts(counts)
            label = "accuracy" if term.name == "correct" else term.name
            found[f"mean/{label}"] = clu.metrics.Average(total=jnp.sum(value_B), count=jnp.sum(weight_N))
            for n, task in enumerate(self.task_names if each_task else ()):
                total = jnp.sum(jnp.where(micro["task_id_B"] == n, value_B, 0.0))
                found[f"{task}/{label}"] = clu.metrics.Average(total=total, count=weight_N[n])
        return found


def _axes(axes: tuple, ndim: int) -> tuple:
    """Logical axes of a whole array, of those of its last dimensions or, of a method's, its first."""
    return (*axes, "prompt", "activation_embed")[:ndim] if axes == TASK_AXES else axes


def _micro_batch(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """T5X's features under our names; rows of padding (id 0) take the first prompt and count nowhere.

    T5X's features have no lengths: SeqIO pads with 0, which is no token of a row.
    """
    inputs_BL, targets_BT = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    return {
        "inputs_BL": inputs_BL,
        "input_length_B": jnp.sum(inputs_BL != SEQIO_PAD, axis=1),
        "targets_BT": targets_BT,
        "target_length_B": jnp.sum(targets_BT != SEQIO_PAD, axis=1),
        "task_id_B": jnp.maximum(batch[TASK_ID][:, 0] - 1, 0),
    }
