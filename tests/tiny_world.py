"""A small world for whole commands: a tiny random backbone over bytes, two source and one target task in files, and a task module."""

import json
import os
import random
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


def start(argv: list[str], cwd: Path, variables: dict[str, str] | None = None, log=subprocess.PIPE) -> subprocess.Popen:
    """The command as a process of its own; compiled programs are shared by way of the folder. ``log``: where its errors go."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **(variables or {})}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cwd / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return subprocess.Popen([sys.executable, "-m", "mpt_jax", *argv], cwd=cwd, env=environment, stderr=log, text=True)
