"""Optimisers for one or many runs at once: clipping, moments and learning rates are a run's own.

The bank's arrays are viewed with a leading axis of runs (groups of tasks that share a P*), and an Optax transformation is mapped
over it; so any optimiser of the table leaves runs independent. G runs, M tasks of a run.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mpt_jax.config import OptimizerSettings
from mpt_jax.train.groups import group_of


def _adamw(settings: OptimizerSettings) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=settings.b1, b2=settings.b2)


def _adafactor(settings: OptimizerSettings) -> optax.GradientTransformation:
    # PT-JAX: decay 0.8, no scaling by the parameter, updates clipped to root mean square 1
    return optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))


OPTIMIZERS: dict[str, Callable[[OptimizerSettings], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
}


def schedule(settings: OptimizerSettings, train_steps: int) -> Callable:
    """Multiplier of the learning rate at a step (0 = first update): linear warm-up, then linear decay to 0, or 1."""
    warmup = min(settings.warmup_steps, train_steps // 10)
    end = 0.0 if settings.schedule == "linear" else 1.0
    decay = optax.linear_schedule(1.0, end, max(train_steps - warmup, 1))
    ramp = optax.linear_schedule(1.0 / (warmup + 1), 1.0, warmup) if warmup else optax.constant_schedule(1.0)
    return optax.join_schedules([ramp, decay], [warmup])


class Optimizer(NamedTuple):
    """``init(trainable)`` -> state; ``update(grads, state, trainable, step)`` -> (trainable, state, gradient norm (G,), finite (G,))."""

    init: Callable
    update: Callable


def by_run(flat: Mapping[str, jax.Array], num_runs: int) -> dict[str, jax.Array]:
    """Views the bank's arrays (N, ...) as (G, M, ...); tasks of a run follow one another. Other arrays belong to the only run."""
    views = {}
    for path, array in flat.items():
        is_bank = path.startswith("bank/")
        views[path] = array.reshape(num_runs, array.shape[0] // num_runs, *array.shape[1:]) if is_bank else array[None]
    return views


def from_runs(views: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Inverse of by_run."""
    flat = {}
    for path, array in views.items():
        is_bank = path.startswith("bank/")
        flat[path] = array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]) if is_bank else array[0]
    return flat


def make_optimizer(settings: OptimizerSettings, train_steps: int, num_runs: int, table, rates: Mapping[str, object]) -> Optimizer:
    """Optimizer of a flat trainable tree; ``rates`` gives each parameter group its learning rates (G,), ``table`` the groups.

    A run whose gradient or next parameters are not finite keeps what it has; the others go on.
    """
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    transform = optax.chain(clip, OPTIMIZERS[settings.name](settings))
    multiplier = schedule(settings, train_steps)

    def init(trainable):
        return jax.vmap(transform.init)(by_run(trainable, num_runs))

    def update_run(grads, state, parameters, rate_of_group, step):
        norm = optax.global_norm(grads)
        updates, new_state = transform.update(grads, state, parameters)
        new_parameters = {}
        for path, value in parameters.items():
            rate = rate_of_group[group_of(path, table)] * multiplier(step)
            new_parameters[path] = value - rate * (updates[path] + settings.weight_decay * value)
        finite = jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(new_parameters))
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        return jax.tree.map(keep, new_parameters, parameters), jax.tree.map(keep, new_state, state), norm, finite

    def update(grads, state, trainable, step):
        rate_G = {group: jnp.broadcast_to(jnp.asarray(rate, jnp.float32), (num_runs,)) for group, rate in rates.items()}
        mapped = jax.vmap(update_run, in_axes=(0, 0, 0, 0, None))
        views, state, norm_G, finite_G = mapped(by_run(grads, num_runs), state, by_run(trainable, num_runs), rate_G, step)
        return from_runs(views), state, norm_G, finite_G

    return Optimizer(init, update)
