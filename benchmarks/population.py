"""Many few-shot targets and seeds in one command beside a command for each: 8 targets x 3 seeds, T5-Small, 16 shots, 100 steps.

    python -m benchmarks.population --json FILE [--targets 8 --seeds 3 --steps 100 --singles N]

Start-up included, dev splits not scored, batch 16 a run, 100 prompt vectors, float32, compiled programs kept from before. ``--singles``: so
many of the single commands are run and their mean is multiplied by the number of commands; 0 = all are run.
"""

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks import alternate
from benchmarks.backbones import backbone_folder
from benchmarks.commands import train_arguments


def main() -> None:
    parser = alternate.parser(__doc__)
    parser.add_argument("--size", default="t5_small", help="row of the size table (default: %(default)s)")
    for name, default in (("targets", 8), ("seeds", 3), ("steps", 100), ("singles", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    if arguments.small:
        arguments.size, arguments.targets, arguments.seeds, arguments.steps, arguments.singles = "tiny", 2, 2, 3, 1
    many: dict[str, list[dict]] = {"together": [], "single": []}
    for _ in range(arguments.repeats):
        for name, found in measure(arguments).items():
            many[name] += found
    count = arguments.targets * arguments.seeds

    def summarise(runs: dict[str, list[dict]]) -> dict:
        one, single = (alternate.medians(runs[name], "wall_s") for name in ("together", "single"))
        ratio = round(count * single["median"] / one["median"], 3)
        found = {"together": one, "single": single, "commands": count, "singles_run": len(runs["single"])}
        return {"seconds": found, "ratio": {"ours": ratio}, "busy_elsewhere": alternate.worst_company(runs)}

    case = "small" if arguments.small else f"{arguments.size} {arguments.targets}x{arguments.seeds} {arguments.steps} steps"
    alternate.write(arguments, "population", case, many, summarise)


def measure(arguments: argparse.Namespace) -> dict[str, list[dict]]:
    """One command for all runs, and commands for one run each, after one untimed command of either kind compiled their programs."""
    lengths, prompt = ("tiny", 10) if arguments.small else ("short", 100)
    folder = Path(arguments.folder)
    backbone, run = backbone_folder(folder, arguments.size), folder / "run_population"
    names = [f"made_up_{n}" for n in range(arguments.targets)]
    macros = {"PROMPT_LENGTH": prompt, "K_SHOT": 16, "PromptSettings__transfer": "none", "OptimizerSettings__warmup_steps": 0}

    def command(tasks: list[str], seeds: list[int], steps: int) -> dict:
        shutil.rmtree(run, ignore_errors=True)
        given = train_arguments(folder, backbone, run, tasks, lengths, "fewshot.gin", SEED=seeds, TRAIN_STEPS=steps, **macros)
        found = alternate.run("mpt_jax", *given, json_line=False)
        print(f"population {len(tasks)} tasks, {len(seeds)} seeds, {steps} steps: {found}", file=sys.stderr, flush=True)
        return found

    seeds = list(range(arguments.seeds))
    pairs = [(name, seed) for name in names for seed in seeds][: arguments.singles or None]
    command(names, seeds, 2)
    command(names[:1], seeds[:1], 2)
    single = [command([name], [seed], arguments.steps) for name, seed in pairs]
    return {"together": [command(names, seeds, arguments.steps)], "single": single}


if __name__ == "__main__":
    main()
