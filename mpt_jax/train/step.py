"""The train step: gradients of micro-batches are added up, then every run is updated by its own optimiser.

``accumulate`` compiles once for each bucket of padded lengths, ``update`` once. Only the trainable tree is differentiated; the
frozen tree is an argument that no gradient, copy or checkpoint touches.
B examples, L input tokens, P prompt positions, T target tokens, N tasks (runs) in the bank, G groups.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import DistillationSettings, T5Config
from mpt_jax.model.prompt_bank import PromptBank, bank_from, compose
from mpt_jax.model.prompted_t5 import forward
from mpt_jax.train import distillation, losses
from mpt_jax.train.optimizer import Optimizer


class TrainState(NamedTuple):
    """step: updates done so far; trainable: arrays by path; opt_state: the optimiser's, a run each."""

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: object


class Sums(NamedTuple):
    """What micro-batches add up: gradients by path, and for each task sums of losses and of right tokens (N,)."""

    grads: dict[str, jax.Array]
    by_task: dict[str, jax.Array]


class Objective(NamedTuple):
    """Everything about the loss that is fixed while training."""

    config: T5Config
    group_N: np.ndarray
    distillation: DistillationSettings | None = None  # None: no teachers
    encoder_teaching: float = 0.0
    dropout_seed: int = 0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the sums kept for each task."""
        names = ["loss", "correct"]
        if self.distillation:
            names += ["kl"] if self.distillation.logits else []
            names += ["hidden_encoder", "hidden_decoder"] if self.distillation.hidden != "none" else []
        return tuple(names + (["sentence"] if self.encoder_teaching else []))


def _tree(flat: Mapping[str, jax.Array]) -> dict:
    return unflatten_dict(dict(flat), sep="/")


def _prompt(bank: dict | None, group_N, task_id_B):
    return None if bank is None else compose(bank_from(bank, group_N), task_id_B)


def loss_sums(objective: Objective, trainable: dict, frozen: dict, batch: dict, dropout_rng=None) -> dict[str, jax.Array]:
    """Sums (B,) of each term for the examples of a micro-batch."""
    parameters = _tree({**frozen, **trainable})
    tokens = batch["inputs_BL"], batch["targets_BT"]
    prompt_BPD = _prompt(parameters.get("bank"), objective.group_N, batch["task_id_B"])
    student = forward(objective.config, parameters["backbone"], prompt_BPD, *tokens, dropout_rng)
    sums = dict(zip(("loss", "correct"), losses.cross_entropy(student.logits_BTV, batch["targets_BT"]), strict=True))
    if objective.distillation:
        if objective.distillation.teacher == "cached":
            teacher = distillation.from_batch(batch)
        else:
            teacher_prompt_BPD = jnp.take(parameters["teacher"]["prompts"], batch["task_id_B"], axis=0)
            outputs = forward(objective.config, parameters["backbone"], teacher_prompt_BPD, *tokens)
            teacher = jax.lax.stop_gradient(distillation.teach(objective.distillation, outputs, batch["inputs_BL"]))
        sums |= distillation.distance_sums(objective.distillation, teacher, student, batch)
    if objective.encoder_teaching:
        kernel_DE = parameters["head"]["kernel"]
        sums["sentence"] = losses.sentence_distance(student.encoder.output_BTD, student.mask_BS, kernel_DE, batch["embedding_BE"])
    return sums


def weights(objective: Objective, totals: dict, task_id_B) -> dict[str, jax.Array]:
    """Weight (B,) of each term's sums in the loss: 1 / (what the term counts over the whole batch of the example's group)."""
    group_B = jnp.take(jnp.asarray(objective.group_N), task_id_B)
    per = lambda name: 1.0 / jnp.maximum(jnp.take(totals[name], group_B), 1.0)  # noqa: E731
    tokens_B = per("target_tokens_G")
    result = {"loss": tokens_B}
    if objective.distillation:
        weight = objective.distillation.weight
        result |= {"kl": weight * tokens_B, "hidden_decoder": weight * tokens_B}
        result["hidden_encoder"] = weight * per("encoder_positions_G")
    if objective.encoder_teaching:
        result["sentence"] = objective.encoder_teaching * per("embedded_rows_G")
    return result


def weighted_loss(objective: Objective, trainable: dict, frozen: dict, batch: dict, totals: dict, dropout_rng=None):
    """(loss, sums (B,) by term) of a micro-batch; the losses of a batch's micro-batches add up to the batch's."""
    sums_B = loss_sums(objective, trainable, frozen, batch, dropout_rng)
    weight_B = weights(objective, totals, batch["task_id_B"])
    return sum(jnp.sum(weight_B[name] * sums_B[name]) for name in sums_B if name in weight_B), sums_B


class TrainStep:
    """Calls ``accumulate`` for each micro-batch and ``update`` once. ``traces`` counts compilations by shape, for tests and logs.

    With a mesh the arrays come in on its devices (sharding.place_tree), micro-batches are placed here, and results stay where their
    table of axes says. The jitted programs are attributes, to be lowered from shapes alone within ``sharding.use(mesh)``:
    ``zeros(trainable)``, ``accumulate(trainable, frozen, sums, micro, totals, step, index)``, ``update(state, sums)``.
    """

    def __init__(self, objective: Objective, optimizer: Optimizer, mesh: Mesh | None = None):
        self.objective, self.optimizer, self.mesh = objective, optimizer, mesh
        self.traces: list[str] = []
        self.accumulate = jax.jit(self._accumulate_fn, donate_argnums=2)
        self.update = jax.jit(self._update_fn, donate_argnums=0)
        self.zeros = jax.jit(self._zeros_fn, keep_unused=True)  # whose devices tell where the zeros go

    def _zeros_fn(self, trainable):
        tasks = jnp.zeros(len(self.objective.group_N), jnp.float32)
        return sharding.constrain_tree(Sums(jax.tree.map(jnp.zeros_like, trainable), {name: tasks for name in self.objective.terms}))

    def _accumulate_fn(self, trainable, frozen, sums: Sums, batch, totals, step, index) -> Sums:
        self.traces.append(f"accumulate {batch['inputs_BL'].shape} {batch['targets_BT'].shape}")
        task_id_B = batch["task_id_B"]
        rng = None
        if self.objective.config.dropout_rate:
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(self.objective.dropout_seed), step), index)

        loss_fn = functools.partial(weighted_loss, self.objective)
        grads, sums_B = jax.grad(loss_fn, has_aux=True)(trainable, frozen, batch, totals, rng)
        is_task_NB = jnp.arange(len(self.objective.group_N))[:, None] == task_id_B
        by_task = {name: jnp.sum(jnp.where(is_task_NB, value_B, 0.0), axis=1) for name, value_B in sums_B.items()}
        return sharding.constrain_tree(jax.tree.map(jnp.add, sums, Sums(grads, by_task)))

    def _update_fn(self, state: TrainState, sums: Sums):
        self.traces.append("update")
        trainable, opt_state, norm_G, finite_G = self.optimizer.update(sums.grads, state.opt_state, state.trainable, state.step)
        metrics = {**sums.by_task, "grad_norm": norm_G, "finite": finite_G}
        return sharding.constrain_tree((TrainState(state.step + 1, trainable, opt_state), metrics))

    def init(self, trainable: dict) -> TrainState:
        """State before the first update, on the mesh."""
        trainable = sharding.place_tree(self.mesh, trainable)
        start = lambda trainable: sharding.constrain_tree((jnp.zeros((), jnp.int32), self.optimizer.init(trainable)))  # noqa: E731
        with sharding.use(self.mesh):
            step, opt_state = jax.jit(start, keep_unused=True)(trainable)
        return TrainState(step, trainable, opt_state)

    def sums(self, state: TrainState, frozen: dict, batch) -> Sums:
        """Gradients and sums by task of a data.Batch."""
        totals = batch_totals(self.objective, batch, frozen, state.trainable)
        with sharding.use(self.mesh):
            sums = self.zeros(state.trainable)
            for index, micro in enumerate(batch.micro):
                micro = {name: sharding.place_rows(self.mesh, array) for name, array in micro.items()}
                sums = self.accumulate(state.trainable, frozen, sums, micro, totals, state.step, np.int32(index))
        return sums

    def __call__(self, state: TrainState, frozen: dict, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update from a data.Batch. Returns the state and, still on the device, sums by task and gradient norms by group."""
        sums = self.sums(state, frozen, batch)
        with sharding.use(self.mesh):
            return self.update(state, sums)


def batch_totals(objective: Objective, batch, frozen: dict, trainable: dict) -> dict[str, np.ndarray]:
    """What each group's terms count over the whole batch: target tokens, encoder positions, rows with a sentence vector."""
    num_groups = int(objective.group_N.max()) + 1
    in_group_GN = (np.arange(num_groups)[:, None] == objective.group_N).astype(np.float32)
    by_group = lambda values_N: in_group_GN @ values_N  # noqa: E731 (also of traced values)
    totals = {"target_tokens_G": by_group(batch.target_tokens_N)}
    if objective.distillation:
        totals["encoder_positions_G"] = by_group(encoder_states(objective, batch, trainable["bank/shared"].shape[1]))
    if objective.encoder_teaching:
        totals["embedded_rows_G"] = np.full(num_groups, batch.embedded, np.float32)
    return totals


def encoder_states(objective: Objective, counts, prompt_length: int):
    """Encoder states (N,) that the term `hidden_encoder` compares: of the input tokens, and of the prompts where these count as well.

    counts: input_tokens_N and examples_N of a batch, or of several.
    """
    compares_prompts = objective.distillation is not None and objective.distillation.hidden_positions == "all"
    return counts.input_tokens_N + (prompt_length * counts.examples_N if compares_prompts else 0)


def make_bank(trainable: Mapping[str, jax.Array], group_N) -> PromptBank | None:
    """The prompt bank in a trainable tree, or None if none trains."""
    bank = _tree(trainable).get("bank")
    return None if bank is None else bank_from(bank, group_N)
