"""A tiny T5, a bank and batches for the tests of mpt_jax/train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.config import DistillationSettings, OptimizerSettings, PromptSettings, T5Config
from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.sampler import Stream
from mpt_jax.model import prompt_bank
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.prompt_bank import PromptBank
from mpt_jax.model.prompted_t5 import init_backbone
from mpt_jax.sharding import place_tree
from mpt_jax.train.groups import PROMPTS_ONLY, split
from mpt_jax.train.optimizer import make_optimizer
from mpt_jax.train.step import Objective, TrainStep

CONFIG = T5Config("tiny", 384, 16, 2, 8, 32, 1, 1)
LENGTH = 3
SPEC = BatchSpec(16, 8, 4, (8,))


@functools.cache
def backbone() -> dict:
    """Random weights by path ``backbone/…``."""
    nested = jax.jit(init_backbone, static_argnums=0)(CONFIG, 0)
    return {f"backbone/{path}": array for path, array in flatten(nested).items()}


def new_bank(groups: int, tasks_each: int, rank: int = 1) -> PromptBank:
    """Random prompts; factors that are not all ones."""
    settings = PromptSettings(length=LENGTH, rank=rank, factor_init="normal", factor_init_scale=1.0)
    banks = []
    for g in range(groups):
        shared = np.random.default_rng(g).normal(size=(1, LENGTH, CONFIG.d_model)).astype(np.float32)
        factors = prompt_bank.init_factors(settings, tasks_each, CONFIG.d_model, g) if rank else (None, None)
        banks.append(PromptBank(shared, *factors, np.zeros(tasks_each, np.int32)))
    return prompt_bank.stack_groups(banks)


def make_step(
    bank: PromptBank, distillation: DistillationSettings | None = None, teacher_NPD=None, steps: int = 20, rate: float = 0.1, mesh=None
):
    """(train step, state, frozen tree) for prompts alone."""
    parameters = backbone() | {f"bank/{name}": jnp.array(array, copy=True) for name, array in bank.trainable().items()}
    trainable, frozen = split(parameters, PROMPTS_ONLY)
    if distillation:
        frozen["teacher/prompts"] = jnp.asarray(teacher_NPD)
    groups = int(bank.group_N.max()) + 1
    settings = OptimizerSettings(schedule="constant", warmup_steps=0)
    rates = {"prompt": np.full(groups, rate), "factors": np.full(groups, rate)}
    optimizer = make_optimizer(settings, steps, groups, PROMPTS_ONLY, rates)
    step_fn = TrainStep(Objective(CONFIG, bank.group_N, distillation), optimizer, mesh)
    return step_fn, step_fn.init(trainable), place_tree(mesh, frozen)


def streams(caches, groups: int, batch_size: int = 8, mixing: str = "stochastic") -> list[Stream]:
    """A stream for each group over all caches."""
    n = len(caches)
    return [Stream(g, tuple(caches), tuple(range(g * n, g * n + n)), batch_size, mixing) for g in range(groups)]


def batch_at(stream_list, step: int, rows: int, spec: BatchSpec = SPEC):
    """The batch of a step."""
    return make_batch(stream_list, step, spec, rows)
