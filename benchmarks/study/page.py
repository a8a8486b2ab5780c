"""The tables and the picture of docs/study.md, from the lines of results alone.

    python -m benchmarks.study --page

What stands between the marks of a table (``<!-- means -->`` … ``<!-- end -->``) is replaced; the words around them stay.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from benchmarks.study import choices, plan
from benchmarks.study.data import GROUPS, TARGETS
from benchmarks.study.lines import noted
from benchmarks.table import marked
from mpt_jax.infer.figures import COLOURS, DASHES, QUIET, STYLE
from mpt_jax.infer.report import markdown

ROOT = Path(__file__).parent.parent.parent
PAGE, PICTURES = ROOT / "docs" / "study.md", {"": ROOT / "docs" / "study.svg", "topics": ROOT / "docs" / "study_topics.svg"}
SHOTS = (4, 16, 32, 0)
AGAINST = ("MPT, nearest", "MPT, mean")  # whose differences from all others are shown, the first one that has run
UNTRAINED = {"instruction, raw": ":", "instruction, prior out": "--", "most frequent label": "-."}  # and their lines in the picture
# source runs next to source_0, and what differs
ABLATED = {
    "source_1": "another seed",
    "undistilled_0": "without distillation",
    "undecomposed_0": "without decomposition: one prompt for all tasks",
    "steps_250": "250 steps instead of 1,000",
    "three_related": "three related tasks alone: SICK, MNLI, SNLI",
    "three_unrelated": "three unrelated tasks alone: AG News, tweet emotion, CLINC",
    "peft source 0.03": "PEFT's MPT, rate 0.03",
    "peft source 0.3": "PEFT's MPT, rate 0.3",
    "teachers": "a prompt of its own for each task, 300 steps",
}
Pair = tuple[str, int]  # target, draw


def counted(results: Path, split: str) -> list[dict]:
    """The lines that count: for each way those with the rates that dev rows chose. split: 'dev' or 'test'."""
    runs = noted("runs", results)
    searched = {line["way"] for line in runs if line["search"]}
    chosen = {}
    for way in {line["way"] for line in runs}:
        row = plan.WAYS.get(way)
        if (row and row.one_rate) or (row.like if row and row.like else way) in searched:
            chosen[way] = choices.best_rates(runs, way)
    found = runs if split == "dev" else noted("test", results)
    return [line for line in found if line["way"] in chosen and (line["rate"], line["factor_rate"]) == chosen[line["way"]]]


def scores(lines: list[dict], split: str) -> dict[tuple[str, int], dict[Pair, float]]:
    """(way, shots) -> score of each (target, draw)."""
    found: dict[tuple[str, int], dict[Pair, float]] = defaultdict(dict)
    for line in lines:
        found[line["way"], line["shots"]][line["target"], line["draw"]] = line[split]
    return found


def mean_and_spread(pairs: dict[Pair, float], targets: Collection[str] = TARGETS) -> tuple[float, float, int] | None:
    """(mean over targets and draws, population standard deviation over draws of the mean over targets, draws).

    Only draws that all targets have count.
    """
    draws = [draw for draw in {draw for _, draw in pairs} if all((target, draw) in pairs for target in targets)]
    if not draws:
        return None
    means = [float(np.mean([pairs[target, draw] for target in targets])) for draw in draws]
    return float(np.mean(means)), float(np.std(means)), len(draws)


def _spread(mean: float, deviation: float, number: int) -> str:
    return f"{mean:.1f} ± {deviation:.1f}" if number > 1 else f"{mean:.1f}"


def difference(one: dict[Pair, float], other: dict[Pair, float]) -> tuple[float, float, float, int] | None:
    """(mean of one - other, lowest, highest, targets) over the (target, draw) pairs of both: Student's 95 % interval over targets.

    Draws of a target are alike, so each target is one observation: the mean of its gaps. A single target has no interval.
    """
    gaps = defaultdict(list)
    for target, draw in set(one) & set(other):
        gaps[target].append(one[target, draw] - other[target, draw])
    means = [float(np.mean(found)) for found in gaps.values()]
    if not means:
        return None
    mean, half = float(np.mean(means)), float("nan")
    if len(means) > 1:
        half = float(scipy.stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5)
    return mean, mean - half, mean + half, len(means)


def _range(cell: tuple[float, float, float, int], between: str) -> str:
    """The interval of a difference; a single target has none."""
    return f"{cell[1]:+.1f}{between}{cell[2]:+.1f}" if cell[3] > 1 else "-"


def untrained(results: Path, split: str, targets: Collection[str]) -> dict[str, dict[str, float]]:
    """Ways that train nothing (reading the instruction, the most frequent label) -> target -> score."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in noted("test" if split == "test" else "instruction", results):
        if line["way"] in UNTRAINED and line["target"] in targets:
            found[line["way"]][line["target"]] = line[split]
    return found


def _shots(number: int) -> str:
    return f"{number} shots" if number else "all rows"


def _shots_of(found: dict) -> list[int]:
    """The numbers of shots that any way has."""
    return [shots for shots in SHOTS if any(number == shots for _, number in found)]


def means_table(found: dict, told: dict[str, dict[str, float]], ways: list[str], targets: Collection[str]) -> str:
    """Mean over the targets, by way and shots."""
    rows, shots = [], _shots_of(found)
    for way in ways:
        cells = [mean_and_spread(found.get((way, number), {}), targets) for number in shots]
        rows.append([way, *(f"{_spread(*cell)} ({cell[2]})" if cell else "" for cell in cells)])
    for way, by_target in told.items():
        rows.append([f"{way}, not trained", f"{np.mean(list(by_target.values())):.1f}", *[""] * (len(shots) - 1)])
    return markdown([["start", *map(_shots, shots)], *rows], 1)


def targets_table(found: dict, told: dict[str, dict[str, float]], ways: list[str], targets: Collection[str], shots: int = 16) -> str:
    """Mean over the draws, by way and target."""
    rows = []
    for way in ways:
        pairs = found.get((way, shots), {})
        by_target = [[value for (name, _), value in pairs.items() if name == target] for target in targets]
        if any(by_target):
            cells = [(float(np.mean(values)), float(np.std(values)), len(values)) if values else None for values in by_target]
            rows.append([way, *(_spread(*cell) if cell else "" for cell in cells)])
    rows += [[f"{way}, not trained", *(f"{by_target[target]:.1f}" for target in targets)] for way, by_target in told.items()]
    return markdown([[_shots(shots), *targets], *rows], 1)


def differences_table(found: dict, told: dict[str, dict[str, float]], ways: list[str]) -> str:
    """How much better MPT is than each other way, over the same targets and draws."""
    rows, columns = [], _shots_of(found)
    for ours in AGAINST:
        for way in [way for way in ways if way != ours] + list(told):
            cells = []
            for shots in columns:
                mine = found.get((ours, shots), {})
                theirs = {pair: told[way][pair[0]] for pair in mine} if way in told else found.get((way, shots), {})
                cell = difference(mine, theirs)
                cells.append(f"{cell[0]:+.1f} [{_range(cell, ', ')}] ({cell[3]})" if cell else "")
            if any(cells):
                rows.append([f"{ours} − {way}", *cells])
    return markdown([["difference", *map(_shots, columns)], *rows], 1)


def starts_table(lines: list[dict], ways: list[str], targets: Collection[str] = TARGETS) -> str:
    """Dev score before the first step, at the last and at the best one, with 16 shots: over the (target, draw) pairs of all ways."""
    found: dict[str, dict[Pair, tuple[float, float, float]]] = defaultdict(dict)
    for line in lines:
        (step, first), *_, (_, last) = line["curve"]
        if line["shots"] == 16 and step == 0:
            found[line["way"]][line["target"], line["draw"]] = first, last, line["dev"]
    found = {way: found[way] for way in ways if {target for target, _ in found[way]} == set(targets)}
    common = set.intersection(*map(set, found.values())) if found else set()
    rows = []
    for way, pairs in found.items():
        first, last, best = np.mean([pairs[pair] for pair in common], axis=0)
        rows.append([way, f"{first:.1f}", f"{last:.1f}", f"{best:.1f}"])
    head = ["start", f"before the first step ({len(common)} pairs)", "at the last step", "at the best step of each run"]
    return markdown([head, *rows], 1)


def answers_table(results: Path) -> str:
    """What is answered to dev rows before training and after it, with 4 shots: over the (target, draw) pairs of all ways."""
    found: dict[str, dict[Pair, dict[str, dict]]] = defaultdict(lambda: defaultdict(dict))
    for line in noted("answers", results):
        if line["shots"] == 4:
            found[line["way"]][line["target"], line["draw"]][line["when"]] = line
    common = set.intersection(*map(set, found.values())) if found else set()
    rows = []
    for way, pairs in found.items():
        row = [way]
        for name in ("accuracy", "recall", "most_frequent"):
            row += [f"{np.mean([pairs[pair][when][name] for pair in common]):.1f}" for when in ("start", "last")]
        rows.append(row)
    what = ("accuracy", "mean recall of the labels", "share of the answer given most")
    head = [f"{name}, {when}" for name in what for when in ("start", "end")]
    return markdown([[f"4 shots, {len(common)} pairs", *head], *rows], 1)


def _source_scores(results: Path) -> dict[str, dict[str, float]]:
    """Source run -> its task -> dev score at the last step (of PEFT's runs there is no other)."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in noted("sources", results):
        found[line["run"]][line["task"]] = line["curve"][-1][1] if "curve" in line else line["dev"]
    return found


def ablations_table(results: Path) -> str:
    """What other source runs lose or gain against source_0: dev rows of the source tasks, last step."""
    found = _source_scores(results)
    whole = {(task, 0): score for task, score in found["source_0"].items()}
    rows = []
    for run, words in ABLATED.items():
        cell = difference({(task, 0): score for task, score in found[run].items()}, whole)
        if cell:
            rows.append([words, f"{cell[0]:+.1f}", _range(cell, " to "), str(cell[3])])
    return markdown([["source run", "points against nine tasks, 1,000 steps", "95 % interval", "tasks"], *rows], 1)


def sources_table(results: Path) -> str:
    """Dev scores of the source runs on their own tasks, at the last step."""
    found = _source_scores(results)
    names = list(dict.fromkeys(task for by_task in found.values() for task in by_task))
    rows = [
        [run, *(f"{by_task[name]:.1f}" if name in by_task else "" for name in names), f"{np.mean(list(by_task.values())):.1f}"]
        for run, by_task in found.items()
    ]
    return markdown([["source run", *names, "mean"], *rows], 1)


class Tables(NamedTuple):
    """What the tables of a group of targets are made of: its lines that count, on test rows once its final evaluation has run."""

    targets: Collection[str]
    split: str
    found: dict[tuple[str, int], dict[Pair, float]]
    told: dict[str, dict[str, float]]
    ways: list[str]
    on_dev: list[dict]


def draw(path: Path, tables: Tables) -> None:
    """Score against shots, and dev score against steps at 16 shots; an SVG."""
    found, targets = tables.found, tables.targets
    columns = _shots_of(found)
    with plt.rc_context(STYLE | {"svg.hashsalt": "study", "svg.fonttype": "none"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
        left.set_title(f"Mean over {len(targets)} targets ({tables.split} rows)")
        right.set_title("Dev score in training, 16 shots of each label")
        for number, way in enumerate(tables.ways):
            style = {"color": COLOURS[number % len(COLOURS)], "ls": DASHES[number // len(COLOURS) % len(DASHES)], "marker": "o", "ms": 3.5}
            cells = [(place, mean_and_spread(found.get((way, shots), {}), targets)) for place, shots in enumerate(columns)]
            points = [(place, *cell[:2]) for place, cell in cells if cell]
            if points:
                place, mean, spread = np.array(points).T
                left.errorbar(place + 0.03 * number, mean, spread, capsize=2.5, label=way, **style)
            curves = [dict(line["curve"]) for line in tables.on_dev if line["way"] == way and line["shots"] == 16]
            if curves:
                at = sorted(set.intersection(*map(set, curves)))
                right.plot(at, [np.mean([curve[step] for curve in curves]) for step in at], label=way, **style)
        for way, by_target in tables.told.items():
            left.axhline(np.mean(list(by_target.values())), color=QUIET, ls=UNTRAINED[way], lw=1.2, label=way)
        left.set_xticks(range(len(columns)), [str(shots) if shots else "all rows" for shots in columns])
        left.set_xlabel("training rows of each label")
        right.set_xlabel("step")
        left.set_ylabel("accuracy (%)")
        right.legend(*left.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.0, 1.02))
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def tables_of(results: Path, targets: Collection[str]) -> Tables:
    """Reads the lines of a group of targets."""
    on_dev, tested = ([line for line in counted(results, split) if line["target"] in targets] for split in ("dev", "test"))
    split = "test" if tested else "dev"
    found = scores(tested or on_dev, split)
    ways = [way for way in (*plan.WAYS, plan.PEFT) if any(key[0] == way for key in found)]
    return Tables(targets, split, found, untrained(results, split, targets), ways, on_dev)


def of_group(results: Path, group: str) -> tuple[Tables, dict[str, str]]:
    """The tables of a group of targets, by the name of their marks."""
    tables = tables_of(results, GROUPS[group])
    _, _, found, told, ways, on_dev = tables
    at_last = scores([line | {"dev": line["curve"][-1][1]} for line in on_dev], "dev")
    made = {
        "means": means_table(found, told, ways, tables.targets),
        "last": means_table(at_last, untrained(results, "dev", tables.targets), ways, tables.targets),
        "starts": starts_table(on_dev, [way for way in ways if way not in plan.MORE], tables.targets),
        "targets": targets_table(found, told, ways, tables.targets),
        "differences": differences_table(found, told, ways),
    }
    return tables, {f"{group}_{name}".lstrip("_"): table for name, table in made.items()}


def write(results: Path, page: Path = PAGE, pictures: Mapping[str, Path] = PICTURES) -> None:
    """Rewrites what stands between the marks of the page, and the pictures."""
    made = {"answers": answers_table(results), "ablations": ablations_table(results), "sources": sources_table(results)}
    for group, picture in pictures.items():
        tables, by_name = of_group(results, group)
        made |= by_name
        draw(picture, tables)
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        text = marked(text, name, table)
    page.write_text(text, encoding="utf-8")
