"""Runs of the real command on made-up tasks: a module that registers them, their rows, and the arguments."""

import json
import string
from pathlib import Path

import numpy as np

from benchmarks import rows

LABELS = ("yes", "no")
ROWS = {"train": 64, "validation": 16}


def task_module(folder: Path, names: list[str], lengths: str) -> Path:
    """A module of tasks with two labels, whose rows are random letters: with the vocabulary 'bytes', a token each."""
    path = folder / f"tasks_{len(names)}_{lengths}.py"
    lines = ["import tasks"]
    for place, name in enumerate(names):
        files = {}
        for split, count in ROWS.items():
            files[split] = str(folder / f"{name}_{lengths}_{split}.jsonl")
            rng = np.random.default_rng([place, count])
            sizes = rows.lengths(lengths, count, seed=place) - 1
            texts = ["".join(rng.choice(list(string.ascii_lowercase), size)) for size in sizes]
            written = [json.dumps({"text": text, "label": row % 2}) for row, text in enumerate(texts)]
            Path(files[split]).write_text("\n".join(written) + "\n")
        lines.append(f"tasks.jsonl({name!r}, files={files!r}, template='{{text}}', labels={LABELS!r}, score='accuracy')")
    path.write_text("\n".join(lines) + "\n")
    return path


def train_arguments(folder: Path, backbone: Path, run: Path, names: list[str], lengths: str, gin_file: str, **macros) -> list[str]:
    """The arguments of `mpt-jax train` for made-up tasks; in ``macros`` two underscores stand for a dot."""
    given = {
        "TASKS": names,
        "MIXTURE_OR_TASK_MODULE": str(task_module(folder, names, lengths)),
        "BACKBONE": str(backbone),
        "VOCABULARY": "bytes",
        "CACHE_DIR": str(folder / "caches"),
        "MODEL_DIR": str(run),
        "TASK_FEATURE_LENGTHS": {"inputs": rows.SETS[lengths][1], "targets": 8},
        "TrainSettings.score_tasks": False,
        **{name.replace("__", "."): value for name, value in macros.items()},
    }
    return ["train", f"--gin_file={gin_file}", *(f"--gin.{name}={value!r}" for name, value in given.items())]
