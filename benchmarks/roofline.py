"""The limit: how fast this machine multiplies float32 matrices, in torch and in XLA, at the shapes of T5-Base's layers.

    python -m benchmarks.roofline --json FILE

In 10^9 operations a second, the median over shapes of the best of several products. A CPU whose cores multiply bfloat16 in hardware (AMX)
gives the rate of bfloat16 inputs with float32 sums as well.
"""

import json
import os
import statistics
import sys
import time

from benchmarks import alternate

SHAPES = ((1248, 768, 768), (1248, 768, 2048), (1248, 2048, 768), (2048, 2048, 2048))  # rows, inner, columns
BEST_OF = 8


def _best(product, *arrays) -> float:
    product(*arrays)
    found = []
    for _ in range(BEST_OF):
        start = time.perf_counter()
        product(*arrays)
        found.append(time.perf_counter() - start)
    return min(found)


def side() -> dict:
    """Rates of this machine, measured now."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dot = jax.jit(lambda x, w: jnp.dot(x, w, preferred_element_type=jnp.float32))
    rates: dict[str, list[float]] = {"torch": [], "xla": [], "xla_bfloat16": []}
    for rows, inner, columns in SHAPES:
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal((rows, inner), np.float32), rng.standard_normal((inner, columns), np.float32)
        operations = 2e-9 * rows * inner * columns
        rates["torch"].append(operations / _best(torch.matmul, torch.from_numpy(x), torch.from_numpy(w)))
        for name, dtype in (("xla", jnp.float32), ("xla_bfloat16", jnp.bfloat16)):
            arrays = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
            rates[name].append(operations / _best(lambda a, b: dot(a, b).block_until_ready(), *arrays))
    return {name: round(statistics.median(found), 1) for name, found in rates.items()}


def main() -> None:
    if "--side" in sys.argv:
        print(json.dumps(side()))
        return
    arguments = alternate.parser(__doc__).parse_args()

    def summarise(runs: dict[str, list[dict]]) -> dict:
        names = ("torch", "xla", "xla_bfloat16")
        return {"gflops": {name: alternate.medians(runs["rate"], name) for name in names}, "busy_elsewhere": alternate.worst_company(runs)}

    alternate.compare(arguments, "roofline", "float32", {}, summarise)


if __name__ == "__main__":
    main()
