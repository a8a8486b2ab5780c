"""The tiny T5s of the tests: shapes, weights, rows of tokens, banks, train steps and batches."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.config import Computation, DistillationSettings, OptimizerSettings, PromptSettings
from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.sampler import Stream
from mpt_jax.methods import prompt
from mpt_jax.methods.bank import PromptBank, stack_groups
from mpt_jax.methods.method import TEACHERS, places_for, split
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families import t5
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.network import forward
from mpt_jax.train.optimizer import make_optimizer
from mpt_jax.train.step import Sums, TrainState, TrainStep
from mpt_jax.train.terms import Objective, terms

CONFIG = T5Config("tiny", 384, 16, 2, 8, 32, 1, 1)  # over bytes
LENGTH = 3
SPEC = BatchSpec(16, 8, 4, (8,))


def tiny(**changes) -> T5Config:
    """CONFIG with some of its fields changed."""
    return dataclasses.replace(CONFIG, **changes)


@functools.cache
def weights(config: T5Config, seed: int = 0) -> dict:
    """Random weights as T5 initialises them, nested; not to be changed."""
    return jax.jit(t5.init, static_argnums=(0, 1))(config, seed)


def tiny_backbone(fingerprint: str = "f" * 16) -> Backbone:
    """CONFIG with weights, as a loaded folder."""
    return Backbone("tiny", CONFIG, weights(CONFIG), "bytes", fingerprint)


def given(config: T5Config, **computation) -> Network:
    """A network whose examples bring their prompts, ``own(prompt_BPD)``."""
    return Network(config, Computation(**computation), prompt.GIVEN)


def own(prompt_BPD) -> dict:
    """The parameters of examples with these prompts."""
    return {"prompt": prompt_BPD}


def rows_of(inputs_BL, targets_BT=None) -> Rows:
    """Rows as tests write them down, where 0 pads; the network goes by their lengths."""
    pairs = ((ids, None if ids is None else np.count_nonzero(ids, axis=1).astype(np.int32)) for ids in (inputs_BL, targets_BT))
    return Rows(*(array for pair in pairs for array in pair))


class Passed(NamedTuple):
    """What a compiled forward pass can return."""

    logits_BTV: jax.Array
    states: dict


@functools.partial(jax.jit, static_argnames="network")
def run_forward(network: Network, backbone: dict, rows: Rows, own=None) -> Passed:
    """The forward pass as one program; op by op compiles hundreds."""
    outputs = forward(network, backbone, rows, own)
    return Passed(outputs.logits_BTV, outputs.states)


def random_bank(groups=2, tasks_each=3, length=4, width=5, rank=2) -> PromptBank:
    """A bank of numpy arrays, in sizes of its own."""
    rng = np.random.default_rng(0)
    n = groups * tasks_each
    group_N = np.repeat(np.arange(groups), tasks_each).astype(np.int32)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((groups, length, width), (n, length, rank), (n, rank, width))]
    return PromptBank(*arrays, group_N)


def new_bank(groups: int, tasks_each: int, rank: int = 1) -> PromptBank:
    """Random prompts; factors that are not all ones."""
    settings = PromptSettings(length=LENGTH, rank=rank, factor_init="normal", factor_init_scale=1.0)
    banks = []
    for g in range(groups):
        shared = np.random.default_rng(g).normal(size=(1, LENGTH, CONFIG.d_model)).astype(np.float32)
        factors = prompt.init_factors(settings, tasks_each, CONFIG.d_model, g) if rank else (None, None)
        banks.append(PromptBank(shared, *factors, np.zeros(tasks_each, np.int32)))
    return stack_groups(banks)


def objective_of(bank: PromptBank, distillation: DistillationSettings | None = None) -> Objective:
    """What a bank trains for."""
    return Objective(Network(CONFIG, adaptation=prompt.METHOD.adaptation), prompt.METHOD, bank.group_N, distillation, LENGTH)


def make_step(
    bank: PromptBank, distillation: DistillationSettings | None = None, teachers_NPD=None, steps: int = 20, rate: float = 0.1, mesh=None
):
    """(train step, state, frozen arrays) for a bank alone."""
    parameters = tiny_backbone().flat() | {path: jnp.array(array, copy=True) for path, array in prompt.paths_of(bank).items()}
    if distillation and distillation.teacher_mode == "beside":
        parameters[TEACHERS] = jnp.asarray(teachers_NPD)
    parts = prompt.METHOD.parts
    trainable, frozen = split(parameters, parts)
    groups = int(bank.group_N.max()) + 1
    rates = {"prompt": np.full(groups, rate), "factors": np.full(groups, rate)}
    optimizer = make_optimizer(OptimizerSettings(schedule="constant", warmup_steps=0), steps, groups, parts, rates)
    places = places_for(mesh, prompt.METHOD, CONFIG)
    step_fn = TrainStep(objective_of(bank, distillation), optimizer, places)
    return step_fn, step_fn.init(trainable), places.put(frozen)


def sums_of(step_fn: TrainStep, metrics: dict) -> dict[str, np.ndarray]:
    """The sums of each term among a step's metrics."""
    return {term.name: np.asarray(metrics[term.name]) for term in terms(step_fn.objective)}


def sums_before_update(step_fn: TrainStep, state: TrainState, frozen: dict, batch) -> Sums:
    """What a step hands to its update: gradients, and sums by task."""
    update, kept = step_fn.update, []

    def keep(state, sums):
        kept.append(sums)
        return state, {}

    step_fn.update = keep
    try:
        step_fn(state, frozen, batch)
    finally:
        step_fn.update = update
    return kept[0]


def streams(caches, groups: int, batch_size: int = 8, mixing: str = "stochastic") -> list[Stream]:
    """A stream for each group over all caches."""
    n = len(caches)
    return [Stream(g, tuple(caches), tuple(range(g * n, g * n + n)), batch_size, mixing) for g in range(groups)]


def batch_at(stream_list, step: int, rows: int, spec: BatchSpec = SPEC):
    """The batch of a step."""
    return make_batch(stream_list, step, spec, rows)
