"""The search behind quickstart's rates and steps, on the dev splits of its targets.

    python -m benchmarks.quickstart_search --model_dir mpt_quickstart [--method prompt_tuning|mpt]

Trains the targets' stage of `mpt-jax quickstart` with every pair of rates below, all in one program, over MODEL_DIR's source stage,
and prints the mean dev score (all targets and seeds) of each pair at each scored step, and where each run keeps its best step.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

import numpy as np

from mpt_jax import quickstart
from mpt_jax.infer.history import dev_curves
from mpt_jax.metrics import read_metrics
from mpt_jax.train.run import run_train

RATES = {"prompt_tuning": ((0.03, 0.1, 0.3, 1.0), (0.0,)), "mpt": ((0.1, 0.3), (0.1, 0.3))}  # of prompts, of factors


def search(method: str, model_dir: Path, steps: int, evaluations: int, tasks: tuple[str, ...]) -> str:
    """Trains all pairs of rates; a Markdown table: a line for each pair, a column for each scored step and one for best steps."""
    rates, factor_rates = RATES[method]
    stage = next(stage for stage in quickstart.NANO.stages if stage.folder == method)
    changes = {"folder": f"search_{method}", "steps": steps, "rate": rates, "factor_rate": factor_rates, "evaluations": evaluations}
    stage = dataclasses.replace(stage, tasks=tasks or stage.tasks, **changes)
    folder = run_train(quickstart.settings_of(stage, model_dir, quickstart.BACKBONE), stage.tasks)
    found = dev_curves(read_metrics(folder))  # rows of the bank: seed, rate, factor rate, task
    rows = list(itertools.product(stage.seeds, rates, factor_rates, stage.tasks))
    scored = [step for step, _ in found[stage.tasks[0], 0]]
    lines = ["| rate | factor rate | " + " | ".join(f"step {step}" for step in scored) + " | each run's best |"]
    lines.append("|---|---|" + "---:|" * (len(scored) + 1))
    for pair in itertools.product(rates, factor_rates):
        curves = np.array([[v for _, v in found[row[3], n]] for n, row in enumerate(rows) if row[1:3] == pair])
        values = [*curves.mean(axis=0), curves.max(axis=1).mean()]
        lines.append(f"| {pair[0]} | {pair[1]} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quickstart_search", description=__doc__.split("\n")[0])
    parser.add_argument("--model_dir", type=Path, default=Path("mpt_quickstart"))
    parser.add_argument("--method", choices=tuple(RATES), action="append", help="default: both")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--evaluations", type=int, default=8)
    parser.add_argument("--tasks", nargs="*", default=())
    options = parser.parse_args()
    for method in options.method or RATES:
        print(f"{method}, mean dev score\n")
        print(search(method, options.model_dir, options.steps, options.evaluations, tuple(options.tasks)))


if __name__ == "__main__":
    main()
