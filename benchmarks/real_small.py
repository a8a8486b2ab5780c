"""The whole method on small real data with the nano backbone, prompt tuning and full fine-tuning beside it: docs/real_small.md.

    python -m benchmarks.real_small split --data_dir ../shared/data/tasks  # writes real_small/NAME/{train,validation,test}.jsonl
    python -m benchmarks.real_small run [--dry_run] [--only REGEX]         # the commands one after another, finished ones passed over
    python -m benchmarks.real_small table                                  # Markdown from the runs' eval files

Test is the published validation set (MRPC: its test set); dev, which chooses steps and rates, is carved from train by content.
"""

import argparse
import hashlib
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FOLDER = Path("real_small")
SOURCES = ("sst2", "ag_news", "qnli_small", "mrpc")
TARGETS = ("subjectivity", "cola", "rte", "cb")
TEST_FILES = {"mrpc": "test"}  # the others': validation
DEV_SHARE, DEV_ROWS = 0.1, 300
SEEDS = (1, 2, 3)
SHOTS = 32
STEPS = {"few": 40, "full": 60}
SCORES = {"cola": "matthews"}  # the others': accuracy
MODULE = Path(__file__).parent.parent / "docs" / "real_small_tasks.py"


def text_of(row: dict) -> str:
    """What a row says, without its label."""
    return json.dumps([value for key, value in sorted(row.items()) if key not in ("idx", "label")])


def split_rows(data_dir: Path) -> None:
    """Writes the three files of every task; rows whose text stands in dev or test are left out of train."""
    for name in SOURCES + TARGETS:
        splits = ("train", TEST_FILES.get(name, "validation"))
        train, test = ([json.loads(line) for line in (data_dir / name / f"{split}.jsonl").open()] for split in splits)
        tested = {text_of(row) for row in test}
        train = sorted((row for row in train if text_of(row) not in tested), key=lambda row: hashlib.sha256(text_of(row).encode()).digest())
        dev = train[: min(DEV_ROWS, int(len(train) * DEV_SHARE))]
        held = {text_of(row) for row in dev}
        parts = {"train": [row for row in train if text_of(row) not in held], "validation": dev, "test": test}
        for split, rows in parts.items():
            path = FOLDER / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(name, {split: len(rows) for split, rows in parts.items()})


def train(stage: str, run: str, names: tuple[str, ...], steps: int, **macros) -> list[str]:
    """Arguments of one `mpt-jax train` command."""
    data = {
        "MIXTURE_OR_TASK_MODULE": str(MODULE), "TASK_FEATURE_LENGTHS": {"inputs": 128, "targets": 8}, "PROMPT_LENGTH": 20,
        "TASKS": [f"small_{name}" for name in names], "TRAIN_STEPS": steps, "MODEL_DIR": str(FOLDER / run), "BATCH_SIZE": 16,
        "DataSettings.micro_batch_size": 32, "DataSettings.input_buckets": [32, 64], "TrainSettings.eval_steps": max(steps // 4, 1),
        "TrainSettings.eval_rows": 128,
    } | macros  # fmt: skip
    return ["train", f"--gin_file={stage}.gin", *(f"--gin.{name}={value!r}" for name, value in data.items())]


def commands() -> Iterator[tuple[str, list[str]]]:
    """(run folder, arguments) of every training and evaluation, in order."""
    source = {"SOURCE_DIR": str(FOLDER / "source")}
    plain = {"PROMPT_RANK": 0, "PromptSettings.transfer": "none"}
    yield "teachers", train("teacher", "teachers", SOURCES, 150, SEED=1)
    yield "source", train("source", "source", SOURCES, 200, SEED=1, BATCH_SIZE=32, TEACHER_DIR=str(FOLDER / "teachers"))
    for size, steps in STEPS.items():
        shots = {"K_SHOT": SHOTS if size == "few" else 0, "SEED": list(SEEDS)}
        yield f"mpt_{size}", train("fewshot", f"mpt_{size}", TARGETS, steps, **source, **shots)
        yield f"plain_{size}", train("fewshot", f"plain_{size}", TARGETS, steps, **plain, **shots)
        for name, seed in itertools.product(TARGETS, SEEDS):
            run = f"finetune_{size}_{name}_{seed}"
            yield run, train("finetune", run, (name,), steps, **(shots | {"SEED": seed}))


def evaluations(run: str) -> list[str]:
    """Arguments of the command that scores a run on the test split."""
    macros = {"MODEL_DIR": str(FOLDER / run), "SPLIT": "test", "MIXTURE_OR_TASK_MODULE": str(MODULE)}
    return ["eval", *(f"--gin.{name}={value!r}" for name, value in macros.items())]


def run_all(dry_run: bool, only: str) -> None:
    """Runs what is not done yet; a command that fails ends it."""
    for run, arguments in commands():
        if not re.search(only, run) or (list((FOLDER / run / "eval").glob("*.json")) and not dry_run):
            continue
        for command in (arguments, evaluations(run)):
            print("mpt-jax", shlex.join(command), flush=True)
            if not dry_run:
                subprocess.run([sys.executable, "-m", "mpt_jax", *command], check=True)


def test_scores(run: str, name: str) -> list[float]:
    """The task's score on test for each seed, at the rate that did best on dev."""
    from mpt_jax.infer.history import best_dev, chosen_settings

    found = json.loads((FOLDER / run / "eval" / f"small_{name}.json").read_text())
    rows = json.loads((FOLDER / run / "run.json").read_text())["runs"]
    by_row = {row["run"]: row["scores"][SCORES.get(name, "accuracy")] for row in found["runs"]}
    return [by_row[n] for n in chosen_settings(rows, sorted(by_row), best_dev(FOLDER / run))]


def most_frequent(name: str) -> float:
    """Score of the training set's most frequent label on test; Matthews' is 0."""
    if name in SCORES:
        return 0.0
    labels = {split: [json.loads(line)["label"] for line in (FOLDER / name / f"{split}.jsonl").open()] for split in ("train", "test")}
    top = max(set(labels["train"]), key=labels["train"].count)
    return 100 * labels["test"].count(top) / len(labels["test"])


def table() -> str:
    """Sources and targets as Markdown: mean ± population standard deviation over seeds."""

    def cell(values):
        return f"{np.mean(values):.1f} ± {np.std(values):.1f}"

    lines = ["| source task | most frequent label | teacher | source stage (MPT) |", "|---|---:|---:|---:|"]
    for name in SOURCES:
        teacher, source = (test_scores(run, name)[0] for run in ("teachers", "source"))
        lines.append(f"| {name} | {most_frequent(name):.1f} | {teacher:.1f} | {source:.1f} |")
    kinds = {"plain": "prompt tuning", "mpt": "MPT", "finetune": "fine-tuning"}
    sizes = (f"{SHOTS} shots", "all rows")
    head = ["most frequent label", *(f"{kind}, {size}" for size in sizes for kind in kinds.values())]
    lines += ["", f"| target task | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    means: list[list[float]] = []
    for name in TARGETS:
        cells = []
        for size, kind in itertools.product(STEPS, kinds):
            runs = [f"finetune_{size}_{name}_{seed}" for seed in SEEDS] if kind == "finetune" else [f"{kind}_{size}"]
            cells.append([score for run in runs for score in test_scores(run, name)])
        means.append([most_frequent(name), *(float(np.mean(values)) for values in cells)])
        lines.append(f"| {name} | {most_frequent(name):.1f} | {' | '.join(map(cell, cells))} |")
    lines.append("| **mean** | " + " | ".join(f"**{value:.1f}**" for value in np.mean(means, axis=0)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_small", description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("split", "run", "table"))
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data/tasks"))
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    parser.add_argument("--only", default="", help="runs whose name matches")
    options = parser.parse_args()
    if options.action == "split":
        split_rows(options.data_dir)
    elif options.action == "run":
        run_all(options.dry_run, options.only)
    else:
        print(table(), end="")


if __name__ == "__main__":
    main()
