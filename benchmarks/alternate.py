"""Runs the sides of a comparison in alternation, each in a process of its own, and adds one JSON line to a file.

Every repeat also measures the machine's rate of float32 matrix products, and how busy other processes kept the cores meanwhile
(``busy_elsewhere``, a share of all cores): a number measured beside other work says so.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# compiled programs are kept, so that repeats in other processes need not compile anew; no timed step compiles either way
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(Path(tempfile.gettempdir()) / "mpt_benchmarks" / "compiled"),
    "HF_HUB_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
RATE = ["benchmarks.roofline", "--side"]
VERSIONED = ("jax", "jaxlib", "torch", "transformers", "peft", "numpy")
Summarise = Callable[[dict[str, list[dict]]], dict]


def parser(description: str, preload: bool = False) -> argparse.ArgumentParser:
    """The arguments that every benchmark takes; ``preload``: and the one of those whose sides can run with another allocator as well."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", required=True, help="file that gets a JSON line")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--append", action="store_true", help="add the repeats to this machine's last line of the same case in the file")
    made.add_argument("--small", action="store_true", help="a tiny network: shows that the benchmark works, in seconds")
    made.add_argument(
        "--folder", default=str(Path(tempfile.gettempdir()) / "mpt_benchmarks"), help="keeps weights and rows for the next time"
    )
    made.add_argument("--threads", type=int, default=2)
    made.set_defaults(preload=None)
    if preload:
        told = "path of a library for LD_PRELOAD, such as libtcmalloc_minimal.so.4: runs each side with it as well"
        made.add_argument("--preload", type=_library, help=told)
    return made


def _library(path: str) -> str:
    """The path; the loader itself only warns of a library that is not there, and runs the command without it."""
    if not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"no file {path}")
    return path


def run(module: str, *arguments: object, environment: Mapping[str, str] | None = None, json_line: bool = True) -> dict:
    """Runs ``python -m module arguments``: the JSON of its last line, if it prints one, its wall and CPU seconds, what ran beside it."""
    env = {**os.environ, **ENVIRONMENT, **(environment or {})}
    before, start, used = _busy(), time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"python -m {module} {' '.join(map(str, arguments))} failed:\n{done.stderr[-4000:]}")
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - used.children_user - used.children_system
    elsewhere = max(_busy() - before - cpu, 0.0) / (wall * os.cpu_count())
    result = json.loads(done.stdout.strip().splitlines()[-1]) if json_line else {}
    return result | {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "busy_elsewhere": round(elsewhere, 3)}


def _busy() -> float:
    """Seconds that all cores were busy since the machine started."""
    with open("/proc/stat") as file:
        user, nice, system = map(int, file.readline().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def compare(
    arguments: argparse.Namespace,
    benchmark: str,
    case: str,
    sides: Mapping[str, Sequence],
    summarise: Summarise,
) -> dict:
    """Alternates the sides, each ``[module, argument, …]``, adds the line to the file, prints and returns it.

    With ``--preload`` each side runs a second time with that library, under its name with the library's added.
    """
    environments = {}
    if arguments.preload:
        preloaded = Path(arguments.preload).name.split(".")[0].removeprefix("lib")
        environments = {f"{name}_{preloaded}": {"LD_PRELOAD": arguments.preload} for name in sides}
        sides = {**sides, **{f"{name}_{preloaded}": given for name, given in sides.items()}}
    runs: dict[str, list[dict]] = {name: [] for name in (*sides, "rate")}
    for _ in range(arguments.repeats):
        for name, (module, *rest) in (*sides.items(), ("rate", RATE)):
            threads = ["--threads", arguments.threads] if name != "rate" else []
            runs[name].append(run(module, *rest, *threads, environment=environments.get(name)))
            print(f"{benchmark} {case} {name}: {runs[name][-1]}", file=sys.stderr, flush=True)
    return write(arguments, benchmark, case, runs, summarise)


def write(arguments: argparse.Namespace, benchmark: str, case: str, runs: dict[str, list[dict]], summarise: Summarise) -> dict:
    """Adds the line of these runs, or with ``--append`` these runs to this machine's last line of the case. Prints and returns it."""
    path = Path(arguments.json)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    here = machine(arguments.threads)
    same = [line for line in lines if (line["benchmark"], line["case"], line["machine"]["cpu"]) == (benchmark, case, here["cpu"])]
    mine = same if arguments.append else []
    if mine:
        lines.remove(mine[-1])
        runs = {name: mine[-1]["runs"].get(name, []) + found for name, found in runs.items()}
    line = {"benchmark": benchmark, "case": case, **summarise(runs), "machine": here, "runs": runs}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, line]))
    print(json.dumps({name: value for name, value in line.items() if name not in ("runs", "machine")}))
    return line


def machine(threads: int) -> dict:
    """What the numbers were measured on."""
    with open("/proc/cpuinfo") as file:
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in file)}
    cpu = told.get("model name", platform.processor())
    if "cpu family" in told:  # names such as 'AMD EPYC' stand for several generations
        cpu += f" (family {told['cpu family']} model {told['model']})"
    versions = {name: importlib.metadata.version(name) for name in VERSIONED}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(), **versions}


def medians(runs: Sequence[dict], key: str = "seconds") -> dict:
    """Median over the values of all repeats, and the lowest and highest median of a repeat."""
    each = [statistics.median(run[key]) if isinstance(run[key], list) else run[key] for run in runs]
    values = [value for run in runs for value in (run[key] if isinstance(run[key], list) else [run[key]])]
    return {"median": round(statistics.median(values), 4), "spread": [round(min(each), 4), round(max(each), 4)]}


def against(runs: Mapping[str, Sequence[dict]], peer: str, key: str = "seconds") -> dict:
    """Medians of every side and, for each of ours, how many times less it took than the peer."""
    found = {name: medians(many, key) for name, many in runs.items() if name != "rate"}
    ratios = {name: round(found[peer]["median"] / value["median"], 3) for name, value in found.items() if name != peer}
    return {key: found, "ratio": ratios, "busy_elsewhere": worst_company(runs)}


def worst_company(runs: Mapping[str, Sequence[dict]]) -> float:
    """The largest share of the cores that other processes took in any run."""
    return max(run["busy_elsewhere"] for many in runs.values() for run in many)


def product_rate(runs: Mapping[str, Sequence[dict]]) -> float:
    """Measured rate of float32 matrix products, the better of torch and XLA, in 10^9 operations a second."""
    return statistics.median(max(run["torch"], run["xla"]) for run in runs["rate"])
