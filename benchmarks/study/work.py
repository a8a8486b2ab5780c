"""One cell of the study, done in the process that calls: what it trained or scored as lines of results."""

import functools
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.study import choices, data, peft_cells, plan, score
from benchmarks.study.lines import noted
from mpt_jax.checkpoint import read_run_json
from mpt_jax.config import BackboneSettings, Settings
from mpt_jax.infer.history import dev_curves
from mpt_jax.metrics import read_metrics
from mpt_jax.model.backbone import Backbone, load_backbone
from mpt_jax.run_folder import checkpoint_steps
from mpt_jax.train.run import prepare, run_train

Lines = dict[str, list[dict]]  # by file of results
UNTRAINED = ("instruction", "majority")


@functools.cache
def backbone() -> Backbone:
    """The frozen model, loaded once for all cells of a process."""
    return load_backbone(BackboneSettings(plan.BACKBONE, dtype=plan.DTYPE))


def work(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    """Does a cell. Its lines name the cell, the device and the seconds that it took."""
    began = time.monotonic()
    data.register(folder / "data", ("test",) if reads_test(cell) else ("train", "validation"))
    found = KINDS[cell.kind](folder, cell, results)
    end = {"cell": cell.name, "kind": cell.kind, "seconds": round(time.monotonic() - began, 1), "device": jax.devices()[0].device_kind}
    return found | {"cells": [end | {"dtype": plan.DTYPE, "jax": jax.__version__}]}


def reads_test(cell: plan.Cell) -> bool:
    """Whether a cell is of the final evaluation."""
    return cell.kind == "test" or (cell.kind in UNTRAINED and _split_of(cell) == "test")


def _train(settings, names: tuple[str, ...]) -> Path:
    return run_train(settings, names, backbone=backbone())


def _teachers(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    return {"sources": _source_lines(cell.name, _train(plan.teacher_settings(folder, cell.name), plan.SOURCE_NAMES))}


def _source(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    settings, names = plan.source_settings(folder, cell.name)
    return {"sources": _source_lines(cell.name, _train(settings, names))}


def _source_lines(name: str, run_dir: Path) -> list[dict]:
    curves = dev_curves(read_metrics(run_dir))
    return [{"run": name, "task": task, "dev": max(value for _, value in curve), "curve": curve} for (task, _), curve in curves.items()]


def _screen(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    run = cell.needs[0]
    found = score.screened(folder, folder / run, data.GROUPS[cell.part], backbone())
    return {"screen": [{"run": run, "source": source, "dev": dev} for source, dev in found.items()]}


def _instruction(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    split = _split_of(cell)
    found = score.instruction_scores(folder, split, data.GROUPS[cell.part], backbone())
    return _untrained(cell, {f"instruction, {kind}": {target: found[target][kind] for target in found} for kind in ("raw", "prior out")})


def _majority(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    return _untrained(cell, {"most frequent label": score.majorities(folder, _split_of(cell), data.GROUPS[cell.part], backbone())})


def _split_of(cell: plan.Cell) -> str:
    return "test" if "test" in cell.name.split() else "validation"


def _untrained(cell: plan.Cell, found: dict[str, dict[str, float]]) -> Lines:
    """Lines of scores by way and target that no run was trained for."""
    split = _split_of(cell)
    lines = [
        {"cell": cell.name, "way": way, "target": target, "shots": 0, "draw": 0, "search": False, name_of(split): value}
        for way, by_target in found.items()
        for target, value in by_target.items()
    ]
    return {"test" if split == "test" else "instruction": lines}


def name_of(split: str) -> str:
    """How lines name the score of a split."""
    return "test" if split == "test" else "dev"


def _chosen(folder: Path, cell: plan.Cell, results: Path) -> tuple[Settings, dict[str, str]]:
    """(settings of a cell of targets, the nearest source of each target), by what dev lines say."""
    way = plan.WAYS[cell.way]
    if cell.search:
        rates, factor_rates = way.rates, way.factor_rates
    else:
        rate, factor_rate = choices.best_rates(noted("runs", results), cell.way)
        rates, factor_rates = (rate,), (factor_rate,)
    nearest = choices.nearest_source(noted("screen", results), way.source)
    return plan.target_settings(folder, cell, rates, factor_rates, nearest), nearest


def _targets(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    way = plan.WAYS[cell.way]
    settings, nearest = _chosen(folder, cell, results)
    run_dir = _train(settings, plan.PARTS[cell.part])
    curves, rows = dev_curves(read_metrics(run_dir)), read_run_json(run_dir)["runs"]
    lines = []
    for n, row in enumerate(rows):
        curve = curves[row["task"], n]
        step, best = max(curve, key=lambda point: (point[1], -point[0]))
        lines.append(
            _described(cell) | {
                "folder": run_dir.name, "row": n, "target": row["task"], "draw": row["seed"], "rate": row["learning_rate"],
                "factor_rate": row["factor_learning_rate"], "start": nearest.get(row["task"], "") if way.nearest else "",
                "dev": best, "step": step, "curve": curve,
            }
        )  # fmt: skip
    return {"runs": lines}


def _answers(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    """What the runs of a cell answer to dev rows before the first step and after the last one."""
    trained_cell = cell.needs[0]
    settings, _ = _chosen(folder, cell._replace(name=trained_cell), results)
    program, _ = prepare(settings, plan.PARTS[cell.part], backbone())
    runs, last = score.trained_of(Path(settings.train.model_dir), "last")
    pairs = [(n, row["task"]) for n, row in enumerate(runs)]
    start = score.Trained(program.method, program.trainable, program.plan.group_N)
    return {
        "answers": [
            {"cell": trained_cell, "way": cell.way, "shots": cell.shots, "target": row["task"], "draw": row["seed"], "when": when} | found
            for when, trained in (("start", start), ("last", last))
            for row, found in zip(runs, score.answers(folder, trained, pairs, backbone()), strict=True)
        ]
    }


def _described(cell: plan.Cell) -> dict:
    return {"cell": cell.name, "way": cell.way, "shots": cell.shots, "search": cell.search}


def _test(folder: Path, cell: plan.Cell, results: Path) -> Lines:
    """Test rows of the runs of a cell that count: those with the rates that dev rows chose."""
    chosen = choices.best_rates(noted("runs", results), cell.way)
    lines = [line for line in noted("runs", results) if f"test {line['cell']}" == cell.name]
    if not _is_here(folder, cell, lines[0]["folder"]):
        lines = _again(folder, cell, results)
    lines = [line for line in lines if (line["rate"], line["factor_rate"]) == chosen]
    rows = [line["row"] for line in lines]
    if cell.way == plan.PEFT:
        prompts_NPD = np.load(peft_cells.prompts_file(folder, lines[0]["folder"]))[rows]
        values = score.accuracies(folder, prompts_NPD, [(n, line["target"]) for n, line in enumerate(lines)], "test", backbone())
        found = {(line["row"], line["target"]): value for line, value in zip(lines, values, strict=True)}
    else:
        found = score.run_scores(folder, folder / "runs" / lines[0]["folder"], "test", backbone(), rows)
    kept = ("cell", "way", "target", "shots", "draw", "rate", "factor_rate", "dev", "step")
    return {"test": [{key: line[key] for key in kept} | {"test": found[line["row"], line["target"]]} for line in lines]}


def _is_here(folder: Path, cell: plan.Cell, name: str) -> bool:
    """Whether what a cell trained is in the study's folder, and not in that of another machine, which noted its lines."""
    if cell.way == plan.PEFT:
        return peft_cells.prompts_file(folder, name).exists()
    return plan.steps(plan.WAYS[cell.way].longer * plan.STEPS[cell.shots]) in checkpoint_steps(folder / "runs" / name)


def _again(folder: Path, cell: plan.Cell, results: Path) -> list[dict]:
    """The lines of a cell that is trained once more for its final evaluation, by train and dev rows alone."""
    kind = "peft" if cell.way == plan.PEFT else "targets"
    data.register(folder / "data")
    lines = KINDS[kind](folder, cell._replace(kind=kind, name=cell.name.removeprefix("test ")), results)["runs"]
    data.register(folder / "data", ("test",))
    return lines


KINDS = {
    "teachers": _teachers,
    "source": _source,
    "screen": _screen,
    "instruction": _instruction,
    "majority": _majority,
    "targets": _targets,
    "answers": _answers,
    "test": _test,
    "peft_source": peft_cells.source_cell,
    "peft": peft_cells.target_cell,
}
