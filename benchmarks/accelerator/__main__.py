"""Training steps, a population of runs and decoding on one GPU or TPU, and Hugging Face PEFT on the same card.

    python -m benchmarks.accelerator --json FILE [--only PARTS] [--budget SECONDS] [--tiny]

Runs in the repository's root, without network and without files of weights: shapes are those of T5-Base, T5-Large (v1.0) and SmolLM2-135M,
weights are random. It needs of Python packages jax (with its GPU or TPU part), flax, optax, orbax-checkpoint, tokenizers, sentencepiece,
safetensors, and for PEFT's side torch, transformers and peft; neither TensorFlow nor SeqIO nor gin. On a host without network:

    pip download -d WHEELS PACKAGES                       # where there is a network, for that host's Python
    pip install --no-index --find-links WHEELS PACKAGES   # there; then, in this repository, the command above

One device is used. Each result is a line of JSON in FILE, written as soon as it is there; a run that is cut off keeps its lines.
--budget: seconds in all; what no longer fits is left out, in the order of worth in cases.py, and told in a line with 'skipped'.
--only: parts of cases' names, separated by commas.

What is counted. Rows are random tokens with log-normal lengths (median 150, at most 256), 100 prompt vectors, targets of 2 to 5 tokens,
bfloat16, no dropout. An update is a batch of 128 in micro-batches of 32 rows, sorted by length and padded to 176 or 256 tokens; PEFT gets
the same rows in the order drawn, each micro-batch padded to its longest row. ``operations`` are those of matrix products, 4 for each
multiply-add of a weight (forward, and the gradient of the input): 'computed' with padding, 'useful' of each row's own length. Shares are of
the data sheet's dense bfloat16 peak, and of what one 8192 x 8192 product reached in the same process. ``seconds`` take batches from the
host, as training does; ``seconds_from_device`` do not. 'cached' and 'beside' are the source stage of six tasks with distillation; the
population is 24 runs of batch 8 in one program, and ``ratio_to_one_by_one`` how many times faster that is than one run after the other.
PEFT has neither teachers nor many runs: its step is the target's, the task loss alone, with a user's loop, sdpa attention, AdamW.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.accelerator import cases

GRACE_S = 5.0  # after its deadline a process is stopped
START_S = 6.0  # of PEFT's process once it may take the card
FLAGS = ("--xla_gpu_enable_triton_gemm=false",)  # cuBLAS alone: without it each product is compiled in tens of forms to pick one


class Lines:
    """The file of results."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.found = path, []

    def add(self, line: dict) -> None:
        """Writes and prints a line."""
        line = {"benchmark": "accelerator", **line}
        self.found.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(json.dumps(line), flush=True)

    def rate(self, case: str) -> float | None:
        """Examples a second of a case."""
        return next((line["examples_per_s"] for line in self.found if line["case"] == case and "examples_per_s" in line), None)


def _environment(folder: Path) -> dict[str, str]:
    """JAX keeps compiled programs, and leaves little of the card to others; what is set already stays."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = " ".join([flags, *(flag for flag in FLAGS if flag.split("=")[0] not in flags)]).strip()
    wanted = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return {**wanted, **os.environ, "XLA_FLAGS": flags}


def _follow(process: subprocess.Popen, lines: Lines, seconds: float) -> str:
    """Takes a process's lines until it ends; '' or what went wrong. After ``seconds`` it is stopped."""
    stop = threading.Timer(max(seconds, 1.0), process.kill)
    stop.start()
    for text in process.stdout:
        if text.startswith("{"):
            lines.add(json.loads(text))
        else:
            print(text, end="", file=sys.stderr)
    process.wait()
    late = not stop.is_alive()
    stop.cancel()
    return f"stopped after {seconds:.0f} s" if late else f"ended with code {process.returncode}" if process.returncode else ""


def _start(module: str, arguments: argparse.Namespace, folder: Path, *more: object) -> subprocess.Popen:
    given = ["--folder", folder, "--only", arguments.only, *(["--tiny"] if arguments.tiny else []), *more]
    command = [sys.executable, "-u", "-m", f"benchmarks.accelerator.{module}", *map(str, given)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(folder))


def _ratios(lines: Lines) -> None:
    """What the cases say together."""
    many, one = lines.rate("t5_base population"), lines.rate("t5_base population of 1")
    if many and one:
        lines.add({"case": "t5_base population against one by one", "ratio_to_one_by_one": round(many / one, 3)})
    for size in ("t5_large", "t5_base", "smollm2"):
        ours, theirs = lines.rate(f"{size} source cached"), lines.rate(f"{size} target peft")
        if ours and theirs:
            lines.add({"case": f"{size} source cached against peft's target", "ratio": round(ours / theirs, 3)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="", help="parts of cases' names, separated by commas")
    parser.add_argument("--budget", type=float, default=450.0, help="seconds in all (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--folder", type=Path, help="rows and compiled programs are kept here (default: the temporary folder)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.gettempdir()) / "mpt_jax_accelerator"
    start, lines = time.monotonic(), Lines(arguments.json)
    waves, peft = cases.chosen(arguments.only)

    def left() -> float:
        return arguments.budget - (time.monotonic() - start)

    reserved = START_S + sum(case.seconds for case in peft) if peft else 0.0
    ours = _start("jax_side", arguments, folder, "--deadline", left() - reserved) if waves else None
    theirs = _start("peft_side", arguments, folder) if peft else None  # imports meanwhile; it takes the card when told to
    if ours:
        wrong = _follow(ours, lines, left() - reserved + GRACE_S)
        if wrong:
            lines.add({"case": "jax", "error": wrong})
    if theirs:
        with contextlib.suppress(BrokenPipeError):  # it ended before; its code tells
            theirs.stdin.write(f"{left()}\n")
            theirs.stdin.flush()
        wrong = _follow(theirs, lines, left() + GRACE_S)
        if wrong:
            lines.add({"case": "peft", "error": wrong})
    _ratios(lines)
    lines.add({"case": "all", "wall_s": round(time.monotonic() - start, 1)})
    if any("error" in line for line in lines.found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
