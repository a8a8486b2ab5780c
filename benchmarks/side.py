"""What the processes of both sides of a comparison share: their arguments, their rows, and the line they print."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks import rows
from mpt_jax.data.sampler import Stream

PEFT_METHODS = ("prompt", "prefix", "lora", "ia3")  # that PEFT has too, by our names


def add_side_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of a process that trains."""
    parser.add_argument("--backbone", required=True, help="Hugging Face folder")
    parser.add_argument("--folder", required=True, help="where rows are kept")
    parser.add_argument("--rows", default="short", choices=sorted(rows.SETS))
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=1, help="steps before those that are timed")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--first_step", type=int, default=0, help="of the rows' order, where the steps begin")


def rows_of(arguments: argparse.Namespace) -> Stream:
    """The rows that both sides train on."""
    folder = Path(arguments.folder)
    caches = [rows.token_cache(folder, arguments.rows, f"task{n}", seed=n) for n in range(arguments.tasks)]
    return rows.stream(caches, arguments.batch)


def steps_of(arguments: argparse.Namespace) -> range:
    """The steps to run, those before the timed ones included."""
    return range(arguments.first_step, arguments.first_step + arguments.warmup + arguments.steps)


def peak_bytes() -> int:
    """Peak of this process's resident memory so far."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def finish(result: dict) -> None:
    """Prints the result as the process's last line."""
    print(json.dumps(result | {"peak_mb": round(peak_bytes() / 1e6)}))
    sys.stdout.flush()
