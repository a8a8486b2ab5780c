"""Run as a program with 8 pretend devices: how far each method's training on a mesh is from training on one, as JSON. Used by
test_method_runs.py."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from tiny_data import sized_cache
from tiny_methods import program_of
from tiny_model import batch_at

from mpt_jax.config import MeshSettings
from mpt_jax.data.sampler import Stream
from mpt_jax.sharding import make_mesh


def trained(name: str, mesh, streams) -> dict[str, np.ndarray]:
    """Parameters after two updates of two runs."""
    program = program_of(name, ("a", "b"), mesh=mesh)
    step_fn = program.step()
    state = step_fn.init(program.trainable)
    for step in range(2):
        state, _ = step_fn(state, program.frozen, batch_at(streams, step, 2, program.spec))
    return {path: np.asarray(array) for path, array in jax.device_get(state.trainable).items()}


def main(folder: Path, names: list[str]) -> dict[str, float]:
    """The largest difference by method; a bias of keys has no gradient, only the rounding of one."""
    caches = [sized_cache(folder, 40 + n, name=f"task{n}", longest=14) for n in range(2)]
    streams = [Stream(n, (cache,), (n,), 8) for n, cache in enumerate(caches)]
    mesh, found = make_mesh(MeshSettings(2, 2, 2)), {"devices": jax.device_count()}
    for name in names:
        alone, together = trained(name, None, streams), trained(name, mesh, streams)
        paths = [path for path in alone if not path.endswith("key/bias")]
        found[name] = max(float(np.abs(alone[path] - together[path]).max()) for path in paths)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2:])))
