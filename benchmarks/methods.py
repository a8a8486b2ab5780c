"""A train step of each method beside PEFT's same method, where PEFT has it: T5-Base, batch 8, float32, same rows and weights.

    python -m benchmarks.methods --json benchmarks/results/methods.jsonl [--repeats N] [--only lora,ia3]

A line for each method. Methods that have a line of this machine in the file are left out, so that an interrupted command goes on;
``--append`` measures them again and joins the repeats. Prompts have 100 vectors, other settings are the methods' own (docs/methods.md);
prefixes stand in front of the decoder alone, as PEFT has them. Seconds are those of a step, memory is the process's peak.
"""

import argparse
import json
from pathlib import Path

from benchmarks import alternate
from benchmarks.side import PEFT_METHODS
from benchmarks.train_target import case_of, parser, step_arguments

METHODS = ("prompt", "dept", "attempt", "vectors", "prefix", "lora", "ia3", "bitfit", "adapter")


def measured_here(arguments: argparse.Namespace) -> set[str]:
    """Cases of which the file has a line of this machine."""
    path, here = Path(arguments.json), alternate.machine(arguments.threads)["cpu"]
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {line["case"] for line in lines if line["benchmark"] == "methods" and line["machine"]["cpu"] == here}


def summarise(runs: dict[str, list[dict]]) -> dict:
    """Seconds, memory and trained parameters of each side; how many times less than PEFT ours took, where there is PEFT's."""
    sides = [name for name in runs if name != "rate" and runs[name]]
    found = {key: {name: alternate.medians(runs[name], key) for name in sides} for key in ("seconds", "peak_mb")}
    if "peft" in sides:
        found["ratio"] = alternate.against(runs, "peft")["ratio"]
    trained = {name: runs[name][-1]["trained"] for name in sides}
    return found | {"trained": trained, "busy_elsewhere": alternate.worst_company(runs), "product_rate": alternate.product_rate(runs)}


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(size="t5_base", batch=8, repeats=1)
    made.add_argument("--only", default="", help="methods, separated by commas (default: all)")
    arguments = made.parse_args()
    given, done = step_arguments(arguments), measured_here(arguments)
    chosen = arguments.only.split(",") if arguments.only else METHODS
    for method in chosen:
        if method not in METHODS:
            made.error(f"--only {method} is not one of {', '.join(METHODS)}")
        case = f"{method}, {'small' if arguments.small else case_of(arguments)}"
        if case in done and not arguments.append:
            print(f"{case}: measured before")
            continue
        sides = {"peft": ["benchmarks.peer_peft", *given, "--method", method]} if method in PEFT_METHODS else {}
        sides |= {"ours": ["benchmarks.ours", *given, "--method", method]}
        alternate.compare(arguments, "methods", case, sides, summarise)


if __name__ == "__main__":
    main()
