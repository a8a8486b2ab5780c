"""python -m benchmarks.study prepare | run | screen | final | report: see docs/study.md."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.study import data, plan, score
from mpt_jax.infer.history import dev_curves
from mpt_jax.metrics import read_metrics
from mpt_jax.train.run import run_train

RESULTS = Path(__file__).parent.parent / "results" / "study"


def note(name: str, **line) -> None:
    """Appends a line to one of the study's files of results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def noted(name: str) -> list[dict]:
    """The lines of a file of results."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def run_sources(folder: Path) -> None:
    """Teachers, then each source stage; finished ones are passed over."""
    stages = [("teachers", plan.teacher_settings(folder))]
    stages += [(f"{name}_{seed}", plan.source_settings(folder, name, seed)) for name, seed in plan.SOURCE_STAGES]
    done = {line["run"] for line in noted("sources")}
    for name, settings in stages:
        if name in done:
            continue
        began = time.process_time()
        run_dir = run_train(settings, plan.SOURCE_NAMES)
        scores = {task: value for (_, task), value in score.run_scores(folder, run_dir, "validation").items()}
        note("sources", run=name, dev=scores, cpu_seconds=round(time.process_time() - began))
        screen(folder, name)


def screen(folder: Path, run: str) -> None:
    """How well each prompt of a source run answers every target's dev rows without any training on the target."""
    found = score.run_scores(folder, folder / run, "validation", tuple(data.TARGETS))
    tasks = [row["task"] for row in json.loads((folder / run / "run.json").read_text())["runs"]]
    for n, task in enumerate(tasks):
        note("screen", run=run, source=task, dev={target: found[n, target] for target in data.TARGETS})


def best_source(target: str) -> str:
    """The source task whose teacher answers a target's dev rows best without training on them."""
    lines = [line for line in noted("screen") if line["run"] == "teachers"]
    return max(lines, key=lambda line: line["dev"][target])["source"]


def run_groups(folder: Path) -> None:
    """Trains groups whose source stage is there; a line for each run with its dev scores."""
    done = {line["folder"] for line in noted("runs")}
    for group in plan.groups():
        source = plan.METHODS[group.method].source.format(seed=group.source_seed)
        if group.folder in done or (source and source not in {line["run"] for line in noted("sources")}):
            continue
        began = time.process_time()
        settings = plan.group_settings(folder, group, best_source(group.target) if source == "teachers" else "")
        run_dir = run_train(settings, (group.target,))
        curves = dev_curves(read_metrics(run_dir))
        seconds = round((time.process_time() - began) / len(group.draws))
        for n, draw in enumerate(group.draws):
            points = curves[group.target, n]
            step, best = max(points, key=lambda point: (point[1], -point[0]))
            note(
                "runs", folder=group.folder, method=group.method, target=group.target, shots=group.shots, draw=draw,
                source_seed=group.source_seed, start=settings.prompt.transfer_task, rate=settings.optimizer.learning_rate,
                factor_rate=settings.optimizer.factor_learning_rate, dev=best, step=step, curve=points, cpu_seconds=seconds,
            )  # fmt: skip


def final(folder: Path) -> None:
    """Test rows, once for each run: the prompts that did best on dev. Nothing is chosen after this."""
    data.register(folder / "data", ("test",))
    done = {(line["folder"], line["draw"]) for line in noted("test")}
    if ("instruction", "raw") not in done:
        for target, scores in score.instruction_scores(folder, "test").items():
            for kind, value in scores.items():
                note("test", folder="instruction", draw=kind, method=f"instruction, {kind}", target=target, shots=0, test=value)
    for name in dict.fromkeys(line["folder"] for line in noted("runs")):
        lines = [line for line in noted("runs") if line["folder"] == name]
        if (name, lines[0]["draw"]) in done or not (folder / "runs" / name).exists():
            continue
        found = score.run_scores(folder, folder / "runs" / name, "test")
        for n, line in enumerate(lines):
            kept = {key: line[key] for key in ("folder", "method", "target", "shots", "draw", "source_seed")}
            note("test", **kept, test=found[n, line["target"]])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("action", choices=("prepare", "sources", "runs", "all", "final"))
    default = Path(os.environ.get("STUDY_DIR", "study"))
    parser.add_argument("--folder", type=Path, default=default, help="where run folders go (default: %(default)s)")
    options = parser.parse_args()
    folder = options.folder.absolute()
    data.prepare(folder / "data")
    data.register(folder / "data")
    if options.action in ("sources", "all"):
        run_sources(folder)
    if options.action in ("runs", "all"):
        run_groups(folder)
    if options.action == "final":
        final(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
