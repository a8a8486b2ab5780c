"""The train step: gradients of micro-batches are added up, then every group of tasks is updated by its own optimiser.

``accumulate`` compiles once for each bucket of padded lengths, ``update`` once. Only the trainable tree is differentiated; the
frozen tree is an argument that no gradient, copy or checkpoint touches.
B examples, L input tokens, P prompt positions, T target tokens, N tasks (runs) in the program, G groups.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import sharding
from mpt_jax.methods.method import HEAD, TEACHERS, backbone_of, own_of, take
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.model.families.family import rows_of, tasks_of
from mpt_jax.model.network import forward
from mpt_jax.train import distillation
from mpt_jax.train.optimizer import Optimizer
from mpt_jax.train.terms import Objective, Pass, terms


class TrainState(NamedTuple):
    """step: updates done so far; trainable: arrays by path; opt_state: the optimiser's, a group each."""

    step: jax.Array
    trainable: dict[str, jax.Array]
    opt_state: object


class Sums(NamedTuple):
    """What micro-batches add up: gradients by path, and for each task sums of losses and of right tokens (N,)."""

    grads: dict[str, jax.Array]
    by_task: dict[str, jax.Array]


def loss_sums(objective: Objective, trainable: dict, frozen: dict, batch: dict, dropout_rng=None) -> dict[str, jax.Array]:
    """Sums (B,) of each term for the examples of a micro-batch."""
    parameters, rows, network = {**frozen, **trainable}, rows_of(batch), objective.network
    backbone = backbone_of(parameters)
    own = take(own_of(parameters), objective.method.parts, objective.group_N, tasks_of(batch))
    student = forward(network, backbone, rows, own, dropout_rng)
    teacher, settings = None, objective.distillation
    if settings and settings.teacher_mode == "cached":
        teacher = distillation.from_batch(batch, tuple(student.states))
    elif settings:
        computation = dataclasses.replace(network.computation, dropout_rate=0.0)
        given = {"prompt": jnp.take(parameters[TEACHERS], tasks_of(batch), axis=0)}
        outputs = forward(dataclasses.replace(network, computation=computation, adaptation=GIVEN), backbone, rows, given)
        teacher = distillation.teach(settings, outputs, rows)
    passed = Pass(objective, rows, student, teacher, batch, parameters.get(HEAD))
    return {term.name: term.sums(passed) for term in terms(objective)}


def weighted_loss(objective: Objective, trainable: dict, frozen: dict, batch: dict, totals: dict, dropout_rng=None):
    """(loss, sums (B,) by term) of a micro-batch; the losses of a batch's micro-batches add up to the batch's.

    totals: of each term what it counts over the whole batch, by group (G,).
    """
    sums_B = loss_sums(objective, trainable, frozen, batch, dropout_rng)
    group_B = jnp.take(jnp.asarray(objective.group_N), batch["task_id_B"])
    loss: Any = 0
    for term in terms(objective):
        if term.weight:
            weight_B = term.weight * (1.0 / jnp.maximum(jnp.take(totals[term.name], group_B), 1.0))
            loss += jnp.sum(weight_B * sums_B[term.name])
    return loss, sums_B


def batch_totals(objective: Objective, batch) -> dict[str, np.ndarray]:
    """What each term of the loss counts over the whole batch, by group (G,); ``batch``: a data.Batch, or the like with traced values."""
    in_group_GN = (np.arange(objective.num_groups)[:, None] == objective.group_N).astype(np.float32)
    return {term.name: in_group_GN @ term.counts(batch) for term in terms(objective) if term.weight}


class TrainStep:
    """Calls ``accumulate`` for each micro-batch and ``update`` once. ``traces`` counts compilations by shape, for tests and logs.

    With a mesh the arrays come in on its devices (Places.put), micro-batches are put there here, and results stay where the table of
    axes says. The jitted programs are attributes, to be lowered from shapes alone within ``sharding.use(mesh)``:
    ``zeros(trainable)``, ``accumulate(trainable, frozen, sums, micro, totals, step, index)``, ``update(state, sums)``.
    """

    def __init__(self, objective: Objective, optimizer: Optimizer, places: sharding.Places):
        self.objective, self.optimizer, self.places = objective, optimizer, places
        self.traces: list[str] = []
        self.accumulate = jax.jit(self._accumulate_fn, donate_argnums=2)
        self.update = jax.jit(self._update_fn, donate_argnums=0)
        self.zeros = jax.jit(self._zeros_fn, keep_unused=True)  # whose devices tell where the zeros go

    def _zeros_fn(self, trainable):
        tasks = jnp.zeros(len(self.objective.group_N), jnp.float32)
        by_task = {term.name: tasks for term in terms(self.objective)}
        return self.places.constrain(Sums(jax.tree.map(jnp.zeros_like, trainable), by_task))

    def _accumulate_fn(self, trainable, frozen, sums: Sums, batch, totals, step, index) -> Sums:
        self.traces.append(f"accumulate {batch['inputs_BL'].shape} {batch['targets_BT'].shape}")
        task_id_B = batch["task_id_B"]
        rng = None
        if self.objective.network.computation.dropout_rate:
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(self.objective.dropout_seed), step), index)

        loss_fn = functools.partial(weighted_loss, self.objective)
        grads, sums_B = jax.grad(loss_fn, has_aux=True)(trainable, frozen, batch, totals, rng)
        is_task_NB = jnp.arange(len(self.objective.group_N))[:, None] == task_id_B
        by_task = {name: jnp.sum(jnp.where(is_task_NB, value_B, 0.0), axis=1) for name, value_B in sums_B.items()}
        return self.places.constrain(jax.tree.map(jnp.add, sums, Sums(grads, by_task)))

    def _update_fn(self, state: TrainState, sums: Sums):
        self.traces.append("update")
        trainable, opt_state, norm_G, finite_G = self.optimizer.update(sums.grads, state.opt_state, state.trainable, state.step)
        metrics = {**sums.by_task, "grad_norm": norm_G, "finite": finite_G}
        return self.places.constrain((TrainState(state.step + 1, trainable, opt_state), metrics))

    def init(self, trainable: dict) -> TrainState:
        """State before the first update, on the mesh."""
        trainable = self.places.put(trainable)

        def start(trainable):
            return self.places.constrain((jnp.zeros((), jnp.int32), self.optimizer.init(trainable)))

        with sharding.use(self.places.mesh):
            step, opt_state = jax.jit(start, keep_unused=True)(trainable)
        return TrainState(step, trainable, opt_state)

    def __call__(self, state: TrainState, frozen: dict, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update from a data.Batch. Returns the state and, still on the device, sums by task and gradient norms by group."""
        totals, mesh = batch_totals(self.objective, batch), self.places.devices
        with sharding.use(mesh):
            sums = self.zeros(state.trainable)
            for index, micro in enumerate(batch.micro):
                micro = sharding.put_micro_batch(mesh, micro)
                sums = self.accumulate(state.trainable, frozen, sums, micro, totals, state.step, np.int32(index))
            return self.update(state, sums)
