"""Pictures of runs: curves, bars of scores, and the quickstart's page of bars. Colours can be told apart by the colour-blind."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mpt_jax.run_folder import write_bytes

plt.switch_backend("Agg")  # files only; never asks for a display

# Okabe and Ito, "Color Universal Design" (2008), without the yellow that vanishes on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
DASHES = ("-", "--", ":")
QUIET = "#9A9A9A"  # baselines, grids
INK = "#222222"
MOST_LINES = len(COLOURS) * len(DASHES)  # more cannot be told apart: they turn grey and their mean is drawn
FEWEST_GROUPS = 6  # of bars that the width is cut for, so that one task is no wall
MOST_NUMBERS = 36  # bars with their value written above
MOST_POINTS = 60  # of a curve; more are averaged in bins, which also takes out the noise of single steps
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a task or folder may have a $ in its name
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#BBBBBB",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.bottom": False,
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 150,
    "savefig.facecolor": "white",
}


class Line(NamedTuple):
    """A curve: steps, mean over runs, and the lowest and highest run at each step."""

    label: str
    step: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bars(NamedTuple):
    """One bar for each task: values in percent (nan = none) and standard deviations (0 = one run)."""

    label: str
    values: Sequence[float]
    std: Sequence[float]
    quiet: bool = False  # a baseline, drawn in grey


def line_over_runs(label: str, runs: Sequence[Sequence[tuple[int, float]]]) -> Line:
    """One curve from the (step, value) points of several runs; steps that are too many are averaged in bins."""
    at_step: dict[int, list[float]] = {}
    for points in runs:
        for step, value in points:
            at_step.setdefault(step, []).append(value)
    steps = np.array(sorted(at_step), float)
    values = [np.array(at_step[int(step)]) for step in steps]
    rows = np.array([(v.mean(), v.min(), v.max()) for v in values]).reshape(-1, 3)
    if len(steps) > MOST_POINTS:
        size = -(-len(steps) // MOST_POINTS)
        bins = [slice(start, start + size) for start in range(0, len(steps), size)]
        steps = np.array([steps[part].mean() for part in bins])
        rows = np.array([rows[part].mean(axis=0) for part in bins])
    return Line(label, steps, *rows.T)


def draw_lines(axes: Axes, lines: Sequence[Line], title: str, unit: str, low: float | None = None) -> None:
    """Curves by step with a band from the lowest to the highest run; says so where there is nothing to draw."""
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if not lines:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color=QUIET)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    crowded = len(lines) > MOST_LINES
    for number, line in enumerate(lines):
        colour = QUIET if crowded else COLOURS[number % len(COLOURS)]
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        marker = "o" if len(line.step) <= 12 else None
        width = 0.8 if crowded else 1.8
        label = None if crowded else line.label
        axes.plot(line.step, line.mean, dash, color=colour, lw=width, marker=marker, ms=3.5, label=label)
        if np.any(line.high > line.low) and not crowded:
            axes.fill_between(line.step, line.low, line.high, color=colour, alpha=0.12, lw=0)
    if crowded:
        points = [[(int(step), float(value)) for step, value in zip(line.step, line.mean, strict=True)] for line in lines]
        mean = line_over_runs(f"mean of {len(lines)}", points)
        axes.plot(mean.step, mean.mean, color=COLOURS[0], lw=2.4, label=mean.label)
    if low is not None:
        axes.set_ylim(bottom=low)
    if crowded or len(lines) > 1:
        columns = 2 if len(lines) > 4 else 1
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), ncols=1 if len(lines) <= 14 else columns)


def draw_bars(axes: Axes, tasks: Sequence[str], groups: Sequence[Bars], title: str, unit: str = "score (%)", apart: int = 0) -> None:
    """Grouped bars with a whisker of one standard deviation; the last ``apart`` tasks (a mean) stand apart from the others."""
    axes.set_title(title)
    axes.set_ylabel(unit)
    if not tasks or not groups:
        axes.text(0.5, 0.5, "no scores yet", transform=axes.transAxes, ha="center", color=QUIET)
        axes.set_xticks([])
        return
    centre = np.arange(len(tasks), dtype=float)
    if apart:
        centre[-apart:] += 0.6
        axes.axvline(centre[-apart] - 0.8, color="#CCCCCC", lw=1)
    width = min(0.8 / len(groups), 0.34)
    written = len(tasks) * len(groups) <= MOST_NUMBERS
    coloured = iter(COLOURS[number % len(COLOURS)] for number in range(len(groups)))
    for number, bars in enumerate(groups):
        middle = centre + (number - (len(groups) - 1) / 2) * width
        values, std = np.asarray(bars.values, float), np.asarray(bars.std, float)
        colour = QUIET if bars.quiet else next(coloured)
        axes.bar(middle, values, width * 0.92, color=colour, label=bars.label, alpha=0.65 if bars.quiet else 1.0)
        several = np.nan_to_num(std) > 0
        axes.errorbar(middle[several], values[several], std[several], fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        for x, value, whisker in zip(middle, values, np.nan_to_num(std), strict=True) if written else ():
            if np.isfinite(value):
                top = max(value, 0) + whisker
                axes.annotate(f"{value:.0f}", (x, top), (0, 2), textcoords="offset points", ha="center", fontsize=7.5)
    names = [task.replace("_", "_\n") if len(task) > 9 and len(tasks) > 4 else task for task in tasks]
    axes.set_xticks(centre, names, rotation=0 if len(tasks) <= 12 else 60, ha="center" if len(tasks) <= 12 else "right")
    for label in axes.get_xticklabels()[len(tasks) - apart :] if apart else ():
        label.set_fontweight("bold")
    lowest = min(0.0, *(np.nanmin(np.append(bars.values, 0.0)) for bars in groups))
    axes.set_ylim(lowest * 1.1, 108)
    axes.set_yticks([tick for tick in range(-100, 101, 20) if tick >= lowest])
    middle, half = (centre[0] + centre[-1]) / 2, max((centre[-1] - centre[0]) / 2 + 0.6, FEWEST_GROUPS / 2)
    axes.set_xlim(middle - half, middle + half)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(len(groups), 5), borderaxespad=0.2, handlelength=1.2)


def draw_report(path: str | Path, losses: Sequence[Line], dev: Sequence[Line], tasks: Sequence[str], groups: Sequence[Bars]) -> Path:
    """Training loss and dev score by step above, bars of scores below; a PNG."""
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(13, 8.2), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.1, w_pad=0.12)
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05), hspace=0.04)
        left, right = above.subplots(1, 2)
        draw_lines(left, losses, "Training loss", "cross-entropy (nats per target token)", low=0.0)
        draw_lines(right, dev, "Score on the dev split in training", "selecting score (%)")
        if left.get_legend() and [line.label for line in losses] == [line.label for line in dev]:
            left.get_legend().remove()  # the right one serves both
        title = "Scores by task" + ("  (whisker: one standard deviation over seeds)" if _any_std(groups) else "")
        draw_bars(below.subplots(), tasks, groups, title)
        _save(figure, path)
        plt.close(figure)
    return Path(path)


def _save(figure: Figure, path: str | Path) -> None:
    content = io.BytesIO()
    figure.savefig(content)
    write_bytes(Path(path), content.getvalue())


def _any_std(groups: Sequence[Bars]) -> bool:
    return any(np.any(np.nan_to_num(np.asarray(bars.std, float)) > 0) for bars in groups)


METHODS = (("majority", "most frequent answer"), ("prompt_tuning", "prompt tuning"), ("mpt", "MPT"))
SOURCE_METHODS = (("majority", "most frequent answer"), ("teacher", "teacher (own prompt)"), ("mpt", "MPT (one shared prompt)"))


def mean_and_std(value: float | dict) -> tuple[float, float]:
    """A number of summary.json, which is plain or has mean and std."""
    return (value["mean"], value["std"]) if isinstance(value, dict) else (float(value), 0.0)


def _bars_of(rows: dict, methods, means: dict | None) -> list[Bars]:
    groups = []
    for key, label in methods:
        pairs = [mean_and_std(row[key]) for row in rows.values()]
        mean = float(np.mean([value for value, _ in pairs])) if means is None else means[key]
        values, std = [value for value, _ in pairs] + [mean], [spread for _, spread in pairs] + [0.0]
        groups.append(Bars(label, values, std, quiet=key == "majority"))
    return groups


def draw_quickstart(summary: dict, path: str | Path) -> Path:
    """Bars of the quickstart's summary.json: target tasks with whiskers over seeds, source tasks below where there are any, and means."""
    target, source = summary["target"], summary["source"]
    parameters, backbone = summary["parameters"], summary["backbone"]
    fraction = 100 * parameters["fraction_of_backbone"]
    with plt.rc_context(STYLE):
        height = 8.2 if source else 4.4
        figure = plt.figure(figsize=(max(9.0, 1.25 * (max(len(target), len(source)) + 2)), height), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.14, w_pad=0.1)
        top, *bottom = figure.subplots(2 if source else 1, 1, squeeze=False)[:, 0]
        bars = _bars_of(target, METHODS, summary["target_mean"])
        draw_bars(top, [*target, "mean"], bars, "New tasks from few examples", apart=1)
        for axes in bottom:
            draw_bars(axes, [*source, "mean"], _bars_of(source, SOURCE_METHODS, None), "Source tasks", apart=1)
        backbone_text = f"frozen backbone {backbone['name']}: {backbone['parameters'] / 1e6:.1f} M parameters"
        task_text = f"{parameters['per_task']:,} trained per task ({fraction:.3g} %)"
        figure.suptitle("Multitask prompt tuning, quickstart", x=0.012, ha="left", fontsize=14, fontweight="bold")
        note = f"{backbone_text}; {task_text}; {summary['seconds']:.0f} s in all. Whiskers: one standard deviation over seeds."
        figure.supxlabel(note, x=0.012, ha="left", fontsize=8.5, color="#555555")
        _save(figure, path)
        plt.close(figure)
    return Path(path)


def draw_similarity(path: str | Path, labels: Sequence[str], maps: Mapping[str, np.ndarray]) -> Path:
    """A map (tasks x tasks) for each title, cosines from -1 to 1; a PNG."""
    size = max(3.5, 0.32 * len(labels) + 2.2)
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = plt.subplots(1, len(maps), figsize=(size * len(maps) + 1.2, size), layout="constrained", squeeze=False)
        for place, (title, table) in zip(axes[0], maps.items(), strict=True):
            shown = place.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
            place.set_title(title)
            place.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
            place.set_yticks(range(len(labels)), labels, fontsize=8)
            for (row, column), value in np.ndenumerate(table) if len(labels) <= 12 else ():
                if np.isfinite(value):
                    ink = "white" if abs(value) > 0.6 else INK
                    place.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
        figure.colorbar(shown, ax=axes[0].tolist(), shrink=0.8)
        _save(figure, path)
        plt.close(figure)
    return Path(path)
