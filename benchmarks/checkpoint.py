"""A training checkpoint of a T5-Base bank of 6 tasks: bytes on disk, and how long saving stops the step.

    python -m benchmarks.checkpoint --json FILE

P* and factors with their optimiser state, and the best weights so far, as Loop saves them. ``blocking_ms``: until `save` returns, for each
save but the first, which also starts Orbax's threads.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import alternate

TASKS, PROMPT, WIDTH, SAVES = 6, 100, 768, 6


def side() -> dict:
    """Saves several times, a pause between."""
    import jax.numpy as jnp
    import numpy as np
    from mpt_jax.train.groups import PROMPTS_ONLY

    from mpt_jax.checkpoint import Best, Checkpoints
    from mpt_jax.config import OptimizerSettings, PromptSettings
    from mpt_jax.model import prompt_bank
    from mpt_jax.train.optimizer import make_optimizer
    from mpt_jax.train.step import TrainState

    rng = np.random.default_rng(0)
    factors = prompt_bank.init_factors(PromptSettings(length=PROMPT), TASKS, WIDTH, 0)
    shared_GPD = rng.standard_normal((1, PROMPT, WIDTH)).astype(np.float32)
    bank = prompt_bank.PromptBank(shared_GPD, *factors, np.zeros(TASKS, np.int32))
    trainable = {f"bank/{name}": jnp.asarray(array) for name, array in bank.trainable().items()}
    rates = {"prompt": np.array([0.3]), "factors": np.array([0.3])}
    optimizer = make_optimizer(OptimizerSettings(), 100, 1, PROMPTS_ONLY, rates)
    state = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))
    best = Best({path: np.asarray(array) for path, array in trainable.items()}, np.zeros(1), np.zeros(1, np.int64))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, blocking = Checkpoints(folder), []
        for step in range(1, SAVES + 1):
            start = time.perf_counter()
            checkpoints.save(step, state._asdict(), best, {"step": step, "data": {"next_index": step}, "has_best": True})
            blocking.append(1e3 * (time.perf_counter() - start))
            time.sleep(1.0)
        checkpoints.close()
        newest = Path(folder) / "checkpoints" / str(SAVES)
        files = [path for path in newest.rglob("*") if path.is_file()]
        size = sum(os.stat(path).st_size for path in files)
    return {"blocking_ms": blocking[1:], "first_ms": blocking[0], "bytes": size, "files": len(files)}


def main() -> None:
    if "--side" in sys.argv:
        print(json.dumps(side()))
        return
    arguments: argparse.Namespace = alternate.parser(__doc__).parse_args()

    def summarise(runs: dict[str, list[dict]]) -> dict:
        sizes = {name: statistics.median(run[name] for run in runs["ours"]) for name in ("bytes", "files")}
        return sizes | {"blocking_ms": alternate.medians(runs["ours"], "blocking_ms"), "busy_elsewhere": alternate.worst_company(runs)}

    alternate.compare(arguments, "checkpoint", "t5_base 6 tasks", {"ours": ["benchmarks.checkpoint", "--side"]}, summarise)


if __name__ == "__main__":
    main()
