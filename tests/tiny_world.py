"""A small world for whole commands: a tiny random backbone over bytes, two source and one target task in files, and a task module."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from tiny_model import CONFIG, weights

from mpt_jax.model import formats

LABELS = ("no", "yes")
MODULE = """
import tasks
from pathlib import Path

HERE = Path(__file__).parent
for name in ("vowel", "long", "digit"):
    files = {split: HERE / f"{name}_{split}.jsonl" for split in ("train", "validation")}
    tasks.jsonl(name, files=files, template="word: {word}", labels=("no", "yes"), score="accuracy")
"""
RULES = {
    "vowel": lambda word: word[0] in "aeiou",
    "long": lambda word: len(word) > 4,
    "digit": lambda word: word[-1].isdigit(),
}


def write_world(folder: Path) -> dict[str, str]:
    """Writes everything into a folder; returns the gin macros that point there."""
    rng = random.Random(0)
    for name, rule in RULES.items():
        for split, count in (("train", 40), ("validation", 12)):
            words = ["".join(rng.choices("abcdeiou123", k=rng.randint(3, 6))) for _ in range(count)]
            lines = [json.dumps({"word": word, "label": int(rule(word))}) for word in words]
            (folder / f"{name}_{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "my_tasks.py").write_text(MODULE)
    formats.write_backbone("own", str(folder / "backbone"), CONFIG, weights(CONFIG), "bytes")
    return {
        "MIXTURE_OR_TASK_MODULE": str(folder / "my_tasks.py"),
        "BACKBONE": str(folder / "backbone"),
        "CACHE_DIR": str(folder / "cache"),
        "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 8},
        "PROMPT_LENGTH": 3,
        "TRAIN_STEPS": 4,
        "BATCH_SIZE": 8,
        "DataSettings.input_buckets": [],
        "OptimizerSettings.warmup_steps": 0,
    }


def arguments(command: str, gin_file: str, world: dict, **changes) -> list[str]:
    """The command line; ``changes`` are further macros (``__`` stands for a dot)."""
    macros = {**world, **{name.replace("__", "."): value for name, value in changes.items()}}
    return [command, *([f"--gin_file={gin_file}"] if gin_file else []), *(f"--gin.{name}={value!r}" for name, value in macros.items())]


def start(
    argv: list[str], cwd: Path, variables: dict[str, str] | None = None, log=subprocess.PIPE, program: tuple[str, ...] = ("-m", "mpt_jax")
) -> subprocess.Popen:
    """The command as a process of its own; compiled programs are shared by way of the folder. ``log``: where its errors go."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(variables or {})}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cwd / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen([sys.executable, *program, *argv], cwd=cwd, env=environment, stderr=log, text=True)


def start_together(
    argv: list[str], cwd: Path, processes: int, devices: int, program: tuple[str, ...] = ("-m", "mpt_jax")
) -> list[subprocess.Popen]:
    """The command in so many processes of so many pretend devices each; what they say is in process0.log, process1.log, …"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    variables = {"XLA_FLAGS": flags, "MPT_HEARTBEAT_S": "10"}
    if processes > 1:
        variables |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
    logs = [(cwd / f"process{i}.log").open("w") for i in range(processes)]
    numbers = [{"JAX_PROCESS_ID": str(i)} if processes > 1 else {} for i in range(processes)]
    return [start(argv, cwd, {**variables, **number}, log, program) for number, log in zip(numbers, logs, strict=True)]


def end_of(processes: list[subprocess.Popen], cwd: Path, seconds: float = 200.0) -> tuple[list[int], str]:
    """(exit codes, what the processes said)."""
    codes = [process.wait(seconds) for process in processes]
    return codes, "\n".join((cwd / f"process{i}.log").read_text() for i in range(len(processes)))
