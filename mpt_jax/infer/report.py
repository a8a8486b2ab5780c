"""One or many run folders in; a table, a picture and one HTML page out."""

import base64
import dataclasses
import html
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.infer import evaluate, figures, similarity
from mpt_jax.infer.comparison import Comparison, comparisons
from mpt_jax.infer.figures import Bars, Line, line_over_runs, mean_and_std
from mpt_jax.infer.history import best_dev, chosen_settings, curves, dev_curves, selecting_score, time_rows
from mpt_jax.metrics import read_metrics
from mpt_jax.regular_files import MOST_JSON_BYTES, parse_json, read_regular, shown
from mpt_jax.run_folder import checkpoint_steps, folder_names, is_number, read_run_json, require, write_text, writes

IN_TRAINING = "dev, best in training"


@dataclasses.dataclass(frozen=True)
class Score:
    """A task's selecting score under one run folder: mean and standard deviation over its seeds, in percent."""

    name: str
    mean: float
    std: float
    runs: int
    split: str  # of the evaluation, or IN_TRAINING where there was none
    all: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict, compare=False)  # every score: (mean, std)
    step: int | None = None  # that training had come to when it was evaluated, where that is known
    outdated: bool = False  # training has gone on since


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run folder says of itself."""

    name: str
    folder: Path
    run: dict
    lines: list[dict]
    scores: dict[str, Score]

    @property
    def tasks(self) -> list[str]:
        """Tasks of the run, in its order."""
        return list(self.run["tasks"])


NEEDED = (
    "stage", "tasks", "runs", "parameters.per_task", "parameters.fraction_of_backbone", "backbone.name", "backbone.parameters",
    "settings.train.train_steps",
)  # fmt: skip


def read_run(folder: str | Path, name: str = "") -> RunRecord:
    """Reads run.json, metrics.jsonl and eval/*.json. Raises UserError for a folder without run.json or a damaged file."""
    folder = Path(folder)
    run, lines = read_run_json(folder), read_metrics(folder)
    require(run, folder, *NEEDED, *(["settings.data.k_shot"] if run.get("stage") == "fewshot" else []))
    scores, steps = _scores_in_training(folder, run, lines), checkpoint_steps(folder)
    for path in sorted((folder / evaluate.FOLDER).glob("*.json")):
        task, score = read_score(path)
        scores[task] = dataclasses.replace(score, outdated=score.step is not None and score.step < max(steps, default=0))
    return RunRecord(name or folder.resolve().name, folder, run, lines, scores)


def read_score(path: Path) -> tuple[str, Score]:
    """(task, its score) of a file of eval/. Raises UserError naming a damaged one."""
    found = parse_json(read_regular(path, MOST_JSON_BYTES), repr(str(path)))
    wrong = _wrong_scores(found)
    if wrong:
        raise UserError(f"{str(path)!r} is damaged ({wrong}); write it again with `mpt-jax eval`.")
    key, every = found["main_score"], {name: (mean, found["std"][name]) for name, mean in found["scores"].items() if name in found["std"]}
    return found["task"], Score(key, found["scores"][key], found["std"][key], len(found["runs"]), found["split"], every, found.get("step"))


def _wrong_scores(found: object) -> str:
    """What the content of a file of eval/ lacks; empty if nothing."""
    if not isinstance(found, dict):
        return "it is not an object"
    for name, kind in {"task": str, "split": str, "main_score": str, "scores": dict, "std": dict, "runs": list}.items():
        if not isinstance(found.get(name), kind):
            return f"{name} is {shown(found.get(name))}"
    if found.get("step") is not None and type(found["step"]) is not int:
        return f"step is {shown(found['step'])}"
    for name in ("scores", "std"):
        wrong = [key for key, value in found[name].items() if not is_number(value)]
        if wrong or found["main_score"] not in found[name]:
            return f"{name} is {shown(found[name])}"
    return ""


def _scores_in_training(folder: Path, run: dict, lines: Sequence[dict]) -> dict[str, Score]:
    """Best dev scores of each task's seeds, under the learning rates that did best."""
    best, rows, scores = best_dev(folder), run["runs"], {}
    for task in run["tasks"]:
        numbers = [n for n, row in enumerate(rows) if row["task"] == task and n in best]
        if not numbers:
            continue
        values = [best[n] for n in chosen_settings(rows, numbers, best)]
        names = dict.fromkeys(key for line in lines if line["split"] == "dev" and line["task"] == task for key in line)
        name = selecting_score(task, [key for key in names if key not in ("step", "split", "task", "run")])
        scores[task] = Score(name, float(np.mean(values)), float(np.std(values)), len(values), IN_TRAINING)
    return scores


def read_runs(folders: Sequence[str | Path]) -> list[RunRecord]:
    """Records named by ``folder_names``."""
    if not folders:
        raise UserError("report needs at least one run folder.")
    return [read_run(folder, name) for folder, name in zip(folders, folder_names(folders), strict=True)]


def all_tasks(records: Sequence[RunRecord]) -> list[str]:
    """Tasks that have a score or were trained, in the order met."""
    return list(dict.fromkeys(task for record in records for task in (*record.tasks, *record.scores)))


def score_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """Cells of the table tasks x run folders, header first; the last line is the mean over tasks that every folder has."""
    rows = [["task", "score", *(record.name for record in records)]]
    several = len({score.split for record in records for score in record.scores.values()} - {IN_TRAINING}) > 1
    for task in all_tasks(records):
        scores = [record.scores.get(task) for record in records]
        names = dict.fromkeys(score.name for score in scores if score)
        rows.append([task, " / ".join(names), *(_cell(score, several) for score in scores)])
    shared = [task for task in all_tasks(records) if all(task in record.scores for record in records)]
    if len(shared) > 1:
        means = [f"{np.mean([record.scores[task].mean for task in shared]):.1f}" for record in records]
        rows.append([f"mean of {len(shared)}", "", *means])
    return rows


def _cell(score: Score | None, several: bool) -> str:
    """A score; with its split where a table has several."""
    if score is None:
        return "–"
    spread = f" ± {score.std:.1f}" if score.runs > 1 else ""
    split = f" ({score.split})" if several and score.split != IN_TRAINING else ""
    return f"{score.mean:.1f}{spread}{split}" + (" †" if score.split == IN_TRAINING else "") + (" ‡" if score.outdated else "")


def notes(records: Sequence[RunRecord]) -> str:
    """What the cells mean."""
    splits = sorted({score.split for record in records for score in record.scores.values() if score.split != IN_TRAINING})
    text = "Scores in percent, those of SeqIO tasks as their functions give them; ± one standard deviation over seeds."
    if splits:
        text += f" Split: {', '.join(splits)}."
    if any(score.split == IN_TRAINING for record in records for score in record.scores.values()):
        text += " † best score on the dev split in training, by which the checkpoint was chosen: `mpt-jax eval` gives the others."
    if any(score.outdated for record in records for score in record.scores.values()):
        text += " ‡ evaluated before training went on: `mpt-jax eval` again gives the scores of now."
    return text


def run_rows(records: Sequence[RunRecord]) -> list[list[str]]:
    """Cells of the table of run folders, header first."""
    rows = [["run", "stage", "tasks", "seeds", "steps", "trained params / task", "of the backbone", "backbone"]]
    for record in records:
        run = record.run
        numbers, train = run["parameters"], run["settings"]["train"]
        seeds = dict.fromkeys(str(row["seed"]) for row in run["runs"])
        last = max((line["step"] for line in record.lines), default=0)
        steps = f"{last:,}" if last >= train["train_steps"] else f"{last:,} of {train['train_steps']:,}"
        share = f"{100 * numbers['fraction_of_backbone']:.3g} %"
        backbone = f"{run['backbone']['name']} ({run['backbone']['parameters'] / 1e6:.1f} M)"
        counts = [str(len(run["tasks"])), ", ".join(seeds), steps, f"{numbers['per_task']:,}", share]
        rows.append([record.name, run["stage"], *counts, backbone])
    return rows


def markdown(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """A Markdown table; the columns after the first ``text_columns`` are set right."""
    align = ["---" if column < text_columns else "---:" for column in range(len(rows[0]))]
    cells = [rows[0], align, *rows[1:]]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in cells)


def loss_lines(records: Sequence[RunRecord]) -> list[Line]:
    """Training loss by step: a line for each task of one run folder, or for each of several folders."""
    found = {record.name: _points(curves(record.lines, "train"), "loss") for record in records}
    return _lines(records, found)


def dev_lines(records: Sequence[RunRecord]) -> list[Line]:
    """Selecting score on the dev split by step, as loss_lines."""
    return _lines(records, {record.name: dev_curves(record.lines) for record in records})


def _points(by_name: dict, wanted: str) -> dict[tuple, list]:
    return {(task, number): points for (task, number, name), points in by_name.items() if name == wanted and task is not None}


def _lines(records: Sequence[RunRecord], found: dict[str, dict[tuple, list]]) -> list[Line]:
    if len(records) > 1:
        return [_mean_of_tasks(record.name, found[record.name]) for record in records if found[record.name]]
    (by_task,) = found.values()
    tasks = dict.fromkeys(task for task, _ in by_task)
    return [line_over_runs(task, [points for (other, _), points in by_task.items() if other == task]) for task in tasks]


def _mean_of_tasks(label: str, by_task: dict[tuple, list]) -> Line:
    """The mean over tasks and seeds, without a band: tasks differ by what they are."""
    line = line_over_runs(label, list(by_task.values()))
    return Line(label, line.step, line.mean, line.mean, line.mean)


def bars(records: Sequence[RunRecord]) -> tuple[list[str], list[Bars]]:
    """(tasks, a group of bars for each run folder); tasks without any score are left out."""
    tasks = [task for task in all_tasks(records) if any(task in record.scores for record in records)]
    none = Score("", float("nan"), 0.0, 0, "")
    groups = []
    for record in records:
        scores = [record.scores.get(task, none) for task in tasks]
        groups.append(Bars(record.name, [score.mean for score in scores], [score.std for score in scores]))
    return tasks, groups


def report(run_dirs: Sequence[str | Path], output_dir: str | Path) -> list[Path]:
    """Writes table.md, report.png, report.html (self-contained) and, for prompts of several tasks, similarity.png. Returns their paths.

    Raises UserError for a folder that is not a run folder, and where the output cannot be written.
    """
    records = read_runs(run_dirs)
    output_dir = Path(output_dir)
    scores, runs = score_rows(records), run_rows(records)
    times = time_rows([(record.name, record.folder) for record in records])
    table, picture, page = (output_dir / name for name in ("table.md", "report.png", "report.html"))
    beside = comparisons(records)
    alike, no_map = _alike(records)
    published_text = "".join(f"\n{found.title}\n\n{markdown(found.rows, 2)}\n{found.note}\n" for found in beside)
    spent_text = f"\n{markdown(times, 1)}" if times else ""
    with writes(output_dir, "--output"):
        output_dir.mkdir(parents=True, exist_ok=True)
        write_text(table, f"{markdown(scores, 2)}\n{notes(records)}\n\n{markdown(runs, 2)}{spent_text}{published_text}{no_map}")
        figures.draw_report(picture, loss_lines(records), dev_lines(records), *bars(records))
        pictures = [figures.draw_similarity(output_dir / "similarity.png", *alike)] if alike else []
        write_text(page, _page(records, scores, runs, times, picture, beside, pictures))
    return [table, picture, page, *pictures]


def _alike(records: Sequence[RunRecord]) -> tuple[tuple[list[str], dict[str, np.ndarray]] | None, str]:
    """((labels, maps) of the tasks whose prompts the runs hold, or None where there are not several; why there is no map)."""
    held = [record for record in records if similarity.has_prompts(record.folder)]
    if not 2 <= sum(len(record.tasks) for record in held) <= similarity.MOST_TASKS:
        return None, ""
    try:
        found = similarity.tasks_of_runs([record.folder for record in held], [record.name for record in held])
    except UserError as error:  # a run that goes on, or runs of several backbones: the rest of the report stands
        return None, f"\nNo map of tasks: {error}\n"
    return ([task.label for task in found], similarity.maps(found)), ""


def quickstart_table(summary: dict) -> str:
    """Markdown tables of the quickstart's summary.json: target tasks with their mean, then source tasks where it trained them."""
    methods = [key for key, _ in figures.METHODS]
    rows = [["new task", *(label for _, label in figures.METHODS)]]
    for task, found in summary["target"].items():
        rows.append([task, *(_mean_cell(found[key]) for key in methods)])
    rows.append(["**mean**", *(f"**{summary['target_mean'][key]:.1f}**" for key in methods)])
    sources = [["source task", *(label for _, label in figures.SOURCE_METHODS)]]
    for task, found in summary["source"].items():
        sources.append([task, *(_mean_cell(found[key]) for key, _ in figures.SOURCE_METHODS)])
    numbers, backbone = summary["parameters"], summary["backbone"]
    share = f"{100 * numbers['fraction_of_backbone']:.3g} %"
    about = f"{numbers['per_task']:,} trained parameters per task, {share} of the backbone {backbone['name']} "
    about += f"({backbone['parameters']:,}); {summary['seconds']:.0f} s in all."
    below = f"\n\n{markdown(sources, 1)}" if summary["source"] else "\n"
    return f"{markdown(rows, 1)}\nScores in percent, ± one standard deviation over seeds. {about}{below}"


def _mean_cell(value: float | dict) -> str:
    mean, std = mean_and_std(value)
    return f"{mean:.1f} ± {std:.1f}" if isinstance(value, dict) else f"{mean:.1f}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: 0; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
.quiet {{ color: #666; font-size: .9rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .8rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap; }}
th {{ border-bottom: 2px solid #bbb; font-weight: 600; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
tr.mean td {{ font-weight: 600; border-top: 2px solid #bbb; }}
img {{ max-width: 100%; height: auto; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; }}
summary {{ cursor: pointer; font-weight: 600; margin: .6rem 0; }}
</style></head><body>
<h1>{title}</h1><p class="quiet">{subtitle}</p>
<h2>Scores</h2><div class="wide">{scores}</div><p class="quiet">{notes}</p>
<h2>Curves and bars</h2><img alt="Training loss, dev scores and scores by task" src="data:image/png;base64,{picture}">
{published}<h2>Runs</h2><div class="wide">{runs}</div>
{times}<h2>How they were made</h2>{details}
</body></html>
"""


def _page(
    records: Sequence[RunRecord], scores, runs, times, picture: Path, beside: Sequence[Comparison], pictures: Sequence[Path]
) -> str:
    names = ", ".join(record.name for record in records)
    return PAGE.format(
        title=html.escape(f"Report: {names}"),
        subtitle=html.escape(f"{len(records)} run folder{'s' if len(records) > 1 else ''}, {len(all_tasks(records))} tasks"),
        scores=_html_table(scores),
        notes=html.escape(notes(records)),
        picture=base64.b64encode(picture.read_bytes()).decode(),
        published="".join([*map(_section, beside), *map(_map, pictures)]),
        runs=_html_table(runs),
        times=f'<h2>What the time went to</h2><div class="wide">{_html_table(times)}</div>\n' if times else "",
        details="".join(_details(records)),
    )


def _map(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return f'<h2>Which tasks are alike</h2><img alt="Cosines between tasks" src="data:image/png;base64,{data}">\n'


def _section(found: Comparison) -> str:
    note = f'<p class="quiet">{html.escape(found.note)}</p>'
    return f'<h2>{html.escape(found.title)}</h2><div class="wide">{_html_table(found.rows)}</div>{note}\n'


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(row: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(f"<tr{_class(row)}>{line(row, 'td')}</tr>" for row in rows[1:])
    return f"<table><thead><tr>{line(rows[0], 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _class(row: Sequence[str]) -> str:
    return ' class="mean"' if row[0].startswith("mean of ") else ""


def _details(records: Sequence[RunRecord]) -> Iterable[str]:
    """For each run folder its gin configuration and the versions that computed it, folded away."""
    for record in records:
        config = record.folder / "config.gin"
        gin = read_regular(config, MOST_JSON_BYTES).decode(errors="replace") if os.path.lexists(config) else "config.gin is missing"
        about = {key: record.run[key] for key in ("devices", "versions", "backbone", "parameters") if key in record.run}
        text = html.escape(f"{json.dumps(about, indent=2)}\n\n{gin}")
        yield f"<details><summary>{html.escape(record.name)}</summary><pre>{text}</pre></details>"
