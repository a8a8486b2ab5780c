"""The nano backbone's pretraining data as rows of the task table."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.table import Task, add

GROUP = "pretrain"


def rows_of(folder: str, name: str, split: str) -> Iterator[dict]:
    """Rows of one task file; `embedding` (384 floats, zeros where the row has none) from the .npy beside it."""
    path = Path(folder) / "tasks" / name / f"{split}.jsonl"
    vectors_path = path.with_suffix(".npy")
    vectors = np.load(vectors_path, mmap_mode="r") if vectors_path.exists() else None
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            row.pop("text", None)  # whose vector the row has
            if vectors is not None:
                row["embedding"] = vectors[number].tolist()
            yield row


def register(folder: Path) -> tuple[str, ...]:
    """Adds every task of the data folder to the table; their names. Raises TaskError if the folder has no index."""
    index = folder / "index.json"
    if not index.is_file():
        raise TaskError(
            f"no pretraining data in NANO_DATA={str(folder)!r} (index.json is missing): write it with "
            f"`python -m benchmarks.nano.pretraining --output {folder}`"
        )
    described = json.loads(index.read_text(encoding="utf-8"))
    for name, facts in described["tasks"].items():
        add(
            Task(
                name=name,
                kind="generated",
                splits=tuple(facts["rows"]),
                generate=functools.partial(rows_of, str(folder), name),
                version=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16],
                packages=(),
                group=GROUP,
                description=facts["description"],
                embedding_size=facts["embedding_size"],
                tokens=facts["tokens"],
                score="accuracy",
            )
        )
    return tuple(described["tasks"])


def data_folder() -> Path:
    """Raises TaskError if NANO_DATA is not set."""
    folder = os.environ.get("NANO_DATA")
    if not folder:
        raise TaskError("NANO_DATA is not set: set it to the folder that `python -m benchmarks.nano.pretraining` wrote")
    return Path(folder)
