"""Optimisers for one or many groups of tasks at once: clipping, moments and learning rates are a group's own.

A method's arrays are viewed with a leading axis of groups, and an Optax transformation is mapped over it; so any optimiser of the table
leaves groups independent. G groups of as many tasks each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mpt_jax.config import OptimizerSettings
from mpt_jax.methods.method import Part, part_of


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


def by_group(flat: Mapping[str, jax.Array], parts: Sequence[Part], num_groups: int) -> dict[str, jax.Array]:
    """Views arrays of tasks or groups as (G, tasks or 1, ...); tasks of a group follow one another. Others belong to the only group."""
    views = {}
    for path, array in flat.items():
        counted = part_of(path, parts).first_axis
        views[path] = array.reshape(num_groups, array.shape[0] // num_groups, *array.shape[1:]) if counted else array[None]
    return views


def from_groups(views: Mapping[str, jax.Array], parts: Sequence[Part]) -> dict[str, jax.Array]:
    """Inverse of by_group."""
    flat = {}
    for path, array in views.items():
        counted = part_of(path, parts).first_axis
        flat[path] = array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]) if counted else array[0]
    return flat


def make_optimizer(
    settings: OptimizerSettings, train_steps: int, num_groups: int, parts: Sequence[Part], rates: Mapping[str, object]
) -> Optimizer:
    """Optimizer of a flat trainable tree; ``rates`` gives each parameter group of ``parts`` its learning rates (G,).

    A group whose gradient or next parameters are not finite keeps what it has; the others go on.
    """
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    transform = optax.chain(clip, OPTIMIZERS[settings.name](settings))
    multiplier = schedule(settings, train_steps)

    def init(trainable):
        return jax.vmap(transform.init)(by_group(trainable, parts, num_groups))

    def update_group(grads, state, parameters, rates, step):
        norm = optax.global_norm(grads)
        updates, new_state = transform.update(grads, state, parameters)
        new_parameters = {}
        for path, value in parameters.items():
            rate = rates[part_of(path, parts).param_group] * multiplier(step)
            new_parameters[path] = value - rate * (updates[path] + settings.weight_decay * value)
        finite = jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(new_parameters))

        def hold(new, old):
            return jnp.where(finite, new, old)

        return jax.tree.map(hold, new_parameters, parameters), jax.tree.map(hold, new_state, state), norm, finite

    def update(grads, state, trainable, step):
        rates_G = {name: jnp.broadcast_to(jnp.asarray(rate, jnp.float32), (num_groups,)) for name, rate in rates.items()}
        mapped = jax.vmap(update_group, in_axes=(0, 0, 0, 0, None))
        grads, views = (by_group(tree, parts, num_groups) for tree in (grads, trainable))
        views, state, norm_G, finite_G = mapped(grads, state, views, rates_G, step)
        return from_groups(views, parts), state, norm_G, finite_G

    return Optimizer(init, update)
