"""Running the compiled train step on devices that are there: random weights and tokens of the longest micro-batch, nothing read."""

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from mpt_jax import sharding
from mpt_jax.compiling.programs import Compiled, Stage

WARM_UP = 2  # updates before the measured ones


def _filled(tree: Any, config, seed: int) -> Any:
    """Arrays for a tree of shapes: small random numbers, int8 matrices, random tokens, zeros for other whole numbers."""
    leaves, structure = jax.tree.flatten(tree)

    def fill(key, leaf):
        def make(key):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                return (0.02 * jax.random.normal(key, leaf.shape)).astype(leaf.dtype)
            if leaf.dtype == jnp.int8:  # a frozen matrix
                return jax.random.randint(key, leaf.shape, -127, 128, leaf.dtype)
            if len(leaf.shape) == 2:
                return jax.random.randint(key, leaf.shape, 2, config.vocab_size, leaf.dtype)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return jax.jit(make, out_shardings=leaf.sharding)(key)

    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    return jax.tree.unflatten(structure, [fill(key, leaf) for key, leaf in zip(keys, leaves, strict=True)])


def measure(stage: Stage, programs: list[Compiled], micro_batches: int, updates: int) -> dict[str, Any]:
    """Median, fastest and slowest seconds of an update, and the most bytes in use on the first device, where the platform counts them."""
    accumulate, update = programs
    _, frozen, sums, batch, totals, scalar, _ = _filled(accumulate.arguments, stage.program.backbone.config, 0)
    for tokens, length in (("inputs_BL", "input_length_B"), ("targets_BT", "target_length_B")):
        batch[length] = jnp.full_like(batch[length], batch[tokens].shape[1])
    totals = jax.tree.map(lambda array: jnp.full_like(array, float(stage.examples)), totals)
    state = _filled(update.arguments[0], stage.program.backbone.config, 1)
    state = state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))
    places = jax.tree.map(lambda leaf: leaf.sharding, accumulate.arguments[2])
    zeros = jax.jit(lambda: jax.tree.map(jnp.zeros_like, sums), out_shardings=places)
    taken = []
    with sharding.use(stage.mesh):
        for _ in range(WARM_UP + updates):
            start = time.perf_counter()
            sums = zeros()
            for _ in range(micro_batches):
                sums = accumulate.executable(state.trainable, frozen, sums, batch, totals, scalar, scalar)
            state, metrics = update.executable(state, sums)
            jax.block_until_ready((state, metrics))
            taken.append(time.perf_counter() - start)
    taken = taken[WARM_UP:]
    in_use = (stage.mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"updates": updates, "seconds": statistics.median(taken), "fastest": min(taken), "slowest": max(taken), "peak_bytes": in_use}
