"""A step of target training beside PEFT's multitask prompt tuning: T5-Base, 100 prompt vectors, batch 32, float32, same rows and weights.

    python -m benchmarks.train_target --json FILE [--rows short|long --batch N] [--preload LIBRARY] [--repeats N --append]

A step draws rows, pads, runs forward and backward and updates the prompt, on both sides. ``useful_share``: operations that the
mathematics needs for real tokens (mpt_jax/model/families/*_operations.py), a second, as a share of the machine's rate of float32 products.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import alternate, rows
from benchmarks.backbones import backbone_folder, config_of
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import T5Config

STEPS = 2  # timed in a process


def step_arguments(arguments: argparse.Namespace, tasks: int = 1) -> list:
    """The arguments of a training process of either side; writes weights and rows where there are none."""
    size, rows_name, batch, prompt = ("tiny", "tiny", 8, 10) if arguments.small else (arguments.size, arguments.rows, arguments.batch, 100)
    folder = Path(arguments.folder)
    for n in range(tasks):
        rows.token_cache(folder, rows_name, f"task{n}", seed=n)
    given = {"--backbone": backbone_folder(folder, size, arguments.layers), "--folder": folder, "--rows": rows_name}
    given |= {"--first_step": arguments.first_step, "--tasks": tasks, "--batch": batch, "--prompt": prompt, "--steps": STEPS}
    return [part for pair in given.items() for part in pair]


def useful_gflops(arguments: argparse.Namespace, steps: list[int]) -> float:
    """Useful operations of a step, in 10^9, the median over the given steps."""
    size, rows_name, batch, prompt = ("tiny", "tiny", 8, 10) if arguments.small else (arguments.size, arguments.rows, arguments.batch, 100)
    stream = rows.stream([rows.token_cache(Path(arguments.folder), rows_name, "task0")], batch)
    config = config_of(size, arguments.layers)

    def counted(step: int) -> float:
        lengths = [(len(tokens), len(targets)) for _, tokens, targets in rows.drawn(stream, step)]
        parts = (family_of(config).prompt_step(Network(config), prompt, *length, distilled=False, textbook=True) for length in lengths)
        return sum(sum(part.values()) for part in parts)

    return statistics.median(map(counted, steps)) / 1e9


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments of the benchmarks that train."""
    made = alternate.parser(description, preload=True)
    made.add_argument("--rows", default="short", choices=sorted(rows.SETS))
    made.add_argument("--size", default="t5_1_1_base", help="row of the size table (default: %(default)s)")
    made.add_argument("--first_step", type=int, default=0, help="takes other rows: each process does one untimed step and 2 timed ones")
    made.add_argument("--batch", type=int, default=32, help="PEFT needs more than 24 GB for 32 of the long rows")
    made.add_argument("--layers", type=int, default=0, help="depth of both stacks; 0 = the size's own")
    return made


def case_of(arguments: argparse.Namespace) -> str:
    """What was measured: size, rows, and what is not the usual."""
    depth = f"_{arguments.layers}" if arguments.layers else ""
    return f"{arguments.size}{depth} {arguments.rows}" + (f" batch {arguments.batch}" if arguments.batch != 32 else "")


def main() -> None:
    arguments = parser(__doc__).parse_args()
    given = step_arguments(arguments)

    def summarise(runs: dict[str, list[dict]]) -> dict:
        found = alternate.against(runs, "peft")
        rate = alternate.product_rate(runs)
        gflops = useful_gflops(arguments, [step for run in runs["ours"] for step in run["steps"]])
        pairs = [zip(peer["seconds"], own["seconds"], strict=True) for peer, own in zip(runs["peft"], runs["ours"], strict=True)]
        by_step = [round(peer / own, 3) for pair in pairs for peer, own in pair]
        share = {name: round(gflops / value["median"] / rate, 3) for name, value in found["seconds"].items()}
        last = runs["ours"][-1]
        told = {"input_padding": round(last["input_padding"], 3), "waiting_share": round(last["waiting_share"], 5)}
        memory = {name: alternate.medians(runs[name], "peak_mb") for name in found["seconds"]}
        return found | {
            "ratio_by_step": by_step,
            "peak_mb": memory,
            "useful_gflops": round(gflops, 1),
            "product_rate": rate,
            "useful_share": share,
            **told,
        }

    case = "small" if arguments.small else case_of(arguments)
    sides = {"peft": ["benchmarks.peer_peft", *given], "ours": ["benchmarks.ours", *given]}
    if not arguments.small and not isinstance(config_of(arguments.size), T5Config):  # what a prompt computed once for each task brings
        sides["ours_own_prompts"] = [*sides["ours"], "--own_prompts"]
    elif not arguments.small:  # what smaller micro-batches for long rows bring
        sides["ours_smallest_2"] = [*sides["ours"], "--smallest", "2"]
    alternate.compare(arguments, "train_target", case, sides, summarise)


if __name__ == "__main__":
    main()
