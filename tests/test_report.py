"""Reports (infer/report.py, comparison.py, columns.py, published.py, figures.py, history.py): what tables say, pictures and pages are
written, curves are averaged right."""

import html.parser
import json
import os
from pathlib import Path

import numpy as np
import pytest

from mpt_jax import tasks
from mpt_jax.errors import UserError
from mpt_jax.infer import evaluate, figures, history, published, report
from mpt_jax.infer.columns import column_of
from mpt_jax.methods.table import METHODS

SUMMARY = {
    "seconds": 250.0,
    "backbone": {"name": "nano", "parameters": 7_000_000, "fingerprint": "0"},
    "parameters": {"per_task": 212, "fraction_of_backbone": 3e-5},
    "source": {"order": {"majority": 50.0, "teacher": 80.0, "mpt": 78.25}},
    "target": {
        "rhyme": {"majority": 50.0, "prompt_tuning": {"mean": 60.0, "std": 5.0}, "mpt": {"mean": 70.5, "std": 2.0}},
        "plural": {"majority": 1.0, "prompt_tuning": {"mean": 20.0, "std": 3.0}, "mpt": {"mean": 40.0, "std": 1.0}},
    },
    "target_mean": {"majority": 25.5, "prompt_tuning": 40.0, "mpt": 55.25},
}


def test_a_table_of_several_splits_names_that_of_each_score():
    def record(name, split):
        return report.RunRecord(name, Path(name), {"tasks": ["t"]}, [], {"t": score(split)})

    def score(split):
        return report.Score("accuracy", 50.0, 0.0, 1, split)

    assert report.score_rows([record("a", "test"), record("b", "validation")])[1][2:] == ["50.0 (test)", "50.0 (validation)"]
    assert report.score_rows([record("a", "test"), record("b", "test")])[1][2:] == ["50.0", "50.0"]


def write_run(folder, tasks=("sst2", "mrpc"), seeds=(1, 2), rates=(0.3,), offset=0.0):
    """A run folder as training leaves it, with dev score 50 + task + 10 * seed + offset at its best."""
    folder.mkdir(parents=True)
    rows = [
        {"task": task, "seed": seed, "group": 0, "learning_rate": rate, "factor_learning_rate": rate}
        for rate in rates
        for seed in seeds
        for task in tasks
    ]
    run = {
        "stage": "teacher",
        "tasks": list(tasks),
        "runs": rows,
        "settings": {"train": {"train_steps": 20}},
        "parameters": {"per_task": 1920, "fraction_of_backbone": 2.9e-4},
        "backbone": {"name": "nano", "parameters": 6_700_000, "fingerprint": "0"},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.gin").write_text("TRAIN_STEPS = 20  # <b>")
    lines = []
    for step in (10, 20):
        for n, row in enumerate(rows):
            place = {"step": step, "task": row["task"], "run": n}
            lines.append({**place, "split": "train", "loss": 5.0 - step / 10 + n, "finite": True})
            score = 50.0 + tasks.index(row["task"]) + 10 * row["seed"] + offset - row["learning_rate"] - (20 - step)
            lines.append({**place, "split": "dev", "accuracy": score, "invalid": 3.0})
        lines.append({"step": step, "split": "train", "task": None, "run": None, "examples": 64})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 30, "spl')  # cut by a kill
    return folder


def write_eval(folder, task, mean, std):
    (folder / evaluate.FOLDER).mkdir(exist_ok=True)
    found = {"task": task, "split": "test", "main_score": "f1", "scores": {"f1": mean, "invalid": 0.0}}
    (folder / evaluate.FOLDER / f"{task}.json").write_text(json.dumps({**found, "std": {"f1": std}, "runs": [{}, {}]}))


class Page(html.parser.HTMLParser):
    """Counts tags and checks that they close."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_evaluations_replace_scores_of_training(tmp_path):
    folder = write_run(tmp_path / "a")
    write_eval(folder, "mrpc", 81.25, 1.5)
    (record,) = report.read_runs([folder])
    assert record.scores["mrpc"] == report.Score("f1", 81.25, 1.5, 2, "test")
    in_training = record.scores["sst2"]
    assert (in_training.name, in_training.runs, in_training.split) == ("accuracy", 2, report.IN_TRAINING)
    assert in_training.mean == pytest.approx(np.mean([59.7, 69.7])) and in_training.std == pytest.approx(5.0)
    rows = report.score_rows([record])
    assert rows[1] == ["sst2", "accuracy", "64.7 ± 5.0 †"]
    assert rows[2] == ["mrpc", "f1", "81.2 ± 1.5"]
    assert rows[3] == ["mean of 2", "", f"{(64.7 + 81.25) / 2:.1f}"]


def test_an_evaluation_that_training_has_gone_on_from_is_marked(tmp_path):
    folder = write_run(tmp_path / "a")
    write_eval(folder, "mrpc", 81.25, 1.5)
    path = folder / "eval" / "mrpc.json"
    for step, marked in ((None, False), (20, True), (30, False)):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"step": step}))
        (folder / "checkpoints" / "30").mkdir(parents=True, exist_ok=True)
        (record,) = report.read_runs([folder])
        assert report.score_rows([record])[2][2] == "81.2 ± 1.5" + " ‡" * marked
        assert ("‡ evaluated before training went on" in report.notes([record])) == marked
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": "30"}))
    with pytest.raises(UserError, match="step is '30'"):
        report.read_runs([folder])


def test_learning_rates_are_chosen_on_the_dev_split(tmp_path):
    folder = write_run(tmp_path / "a", tasks=("sst2",), rates=(5.0, 0.3, 9.0))
    (record,) = report.read_runs([folder])
    assert record.scores["sst2"].mean == pytest.approx(np.mean([59.7, 69.7]))
    assert history.chosen_settings(record.run["runs"], [0, 2], history.best_dev(folder)) == [2]


def test_files_of_many_runs(tmp_path):
    folders = [write_run(tmp_path / side / "rte", offset=offset) for side, offset in (("one", 0.0), ("two", 9.0))]
    folders.append(write_run(tmp_path / "other", tasks=("cola",), seeds=(7,)))
    table, picture, page = report.report(folders, tmp_path / "out")
    text = table.read_text()
    assert "| task | score | one/rte | two/rte |" in text and "| cola | accuracy | – | – |" in text
    assert "mean of" not in text  # no task is in all three
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 10_000
    parser = Page()
    parser.feed(page.read_text())
    assert not parser.open and parser.tags.count("table") == 3 and parser.tags.count("details") == 3
    assert all(source.startswith("data:") for source in parser.sources)  # opens without a network
    assert "&lt;b&gt;" in page.read_text()


def test_a_run_without_any_metrics(tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    table, picture, _ = report.report([folder], folder)
    assert "| sst2 |  | – |" in table.read_text() and picture.is_file()


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder"):
        report.report([tmp_path], tmp_path)
    folder = write_run(tmp_path / "a")
    (folder / "eval").mkdir()
    (folder / "eval" / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json' is not JSON"):
        report.report([folder], folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": []}, r"scores is \[\]"),
        ({"scores": {"f1": "80"}}, "scores is {'f1': '80'}"),
        ({"scores": {"other": 80.0}}, "scores is {'other': 80.0}"),
        ({"std": {}}, "std is {}"),
        ({"runs": 3}, "runs is 3"),
        ({"task": None}, "task is None"),
        ({"scores": {"f1": 10**400}}, "scores is {'f1': 1000"),
    ],
)
def test_a_damaged_evaluation_is_named(tmp_path, change, message):
    folder = write_run(tmp_path / "a")
    write_eval(folder, "mrpc", 80.0, 1.0)
    path = folder / "eval" / "mrpc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"eval/mrpc.json' is damaged .*write it again with `mpt-jax eval`") as raised:
        report.read_runs([folder])
    assert message.replace("\\", "") in str(raised.value)


def test_entries_that_run_json_lacks_are_named(tmp_path):
    folder = write_run(tmp_path / "a")
    run = json.loads((folder / "run.json").read_text())
    del run["parameters"]["per_task"], run["settings"]
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="run.json' lacks parameters.per_task, settings.train.train_steps"):
        report.read_runs([folder])


def test_names_numbers_and_bytes_that_no_picture_expects(tmp_path):
    """Tasks like formulas, infinite losses, a config.gin that is not UTF-8: shown as they are."""
    folder = write_run(tmp_path / "$x_{", tasks=("$\\frac", "a|b<c>", "_"))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, loss in ((1, float("nan")), (2, float("inf")), (3, 1e308), (4, 2.0)):
            file.write(json.dumps({"step": step, "split": "train", "task": "_", "run": 0, "loss": loss}) + "\n")
    (folder / "config.gin").write_bytes(b"A = '\xff'")
    table, picture, page = report.report([folder], tmp_path / "out")
    assert "a/b<c>" in table.read_text() and picture.stat().st_size > 10_000 and "A = &#x27;\ufffd" in page.read_text()


@pytest.mark.parametrize("name", ["table.md", "report.png", "report.html"])
def test_a_pipe_or_a_device_where_the_report_goes_is_named(tmp_path, name):
    """It would be waited for, or replaced."""
    folder, output = write_run(tmp_path / "a"), tmp_path / "out"
    output.mkdir()
    (os.mkfifo if name != "report.html" else lambda path: path.symlink_to("/dev/full"))(output / name)
    with pytest.raises(UserError, match=f"{name}' is a device or pipe, and would be replaced"):
        report.report([folder], output)


@pytest.mark.parametrize("place", ["/dev/null", "/dev/null/x", "/proc/x", "file"])
def test_places_that_take_no_report_are_named(tmp_path, place):
    folder, output = write_run(tmp_path / "a"), tmp_path / place
    if place == "file":
        output.write_text("")
    with pytest.raises(UserError, match=f"--output = '{output}' cannot be written"):
        report.report([folder], output)


def test_a_line_over_runs():
    line = figures.line_over_runs("x", [[(10, 1.0), (20, 2.0)], [(10, 3.0)]])
    np.testing.assert_allclose(line.step, [10, 20])
    np.testing.assert_allclose(line.mean, [2.0, 2.0])
    np.testing.assert_allclose(line.low, [1.0, 2.0])
    np.testing.assert_allclose(line.high, [3.0, 2.0])
    long = figures.line_over_runs("x", [[(step, float(step)) for step in range(1000)]])
    assert figures.MOST_POINTS // 2 < len(long.step) <= figures.MOST_POINTS
    np.testing.assert_allclose(long.mean, long.step)


def test_more_tasks_than_colours(tmp_path):
    names = [f"task_{number}" for number in range(30)]
    lines = [figures.line_over_runs(name, [[(1, 1.0), (2, 2.0)]]) for name in names]
    groups = [figures.Bars("run", [50.0] * 29 + [float("nan")], [0.0] * 30), figures.Bars("other", [-5.0] * 30, [1.0] * 30)]
    assert figures.draw_report(tmp_path / "x.png", lines, lines, names, groups).stat().st_size > 10_000


def test_the_quickstart_page(tmp_path):
    text = report.quickstart_table(SUMMARY)
    assert "| rhyme | 50.0 | 60.0 ± 5.0 | 70.5 ± 2.0 |" in text
    assert "| **mean** | **25.5** | **40.0** | **55.2** |" in text and "| order | 50.0 | 80.0 | 78.2 |" in text
    assert "212 trained parameters per task" in text and "250 s" in text
    assert figures.draw_quickstart(SUMMARY, tmp_path / "q.png").stat().st_size > 10_000


def test_published_numbers_stand_beside_ours(tmp_path):
    folder = write_run(tmp_path / "glue", tasks=("mrpc", "rte:index", "own"))
    (folder / "eval").mkdir()
    for task, names in (("mrpc", {"average": 80.0, "accuracy": 79.0, "f1": 81.0}), ("rte:index", {"accuracy": 71.0})):
        std = dict.fromkeys(names, 0.5)
        found = {"task": task, "split": "test", "main_score": next(iter(names)), "scores": names, "std": std, "runs": [{}, {}, {}]}
        (folder / "eval" / f"{task.replace(':', '_')}.json").write_text(json.dumps(found))
    (found,) = report.comparisons(report.read_runs([folder]))
    header, ours = found.rows[:2]
    assert header == ["method", "trained params / task", "mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola", "average", "from"]
    empty, mrpc, rte = "–", "79.0 ± 0.5 (3)", "71.0 ± 0.5 (3)"
    assert ours[2:] == [empty] * 5 + [mrpc, rte, empty, empty, "teacher, nano (6.7 M)"]
    lines = {row[0]: row[2:] for row in found.rows[2:]}
    assert lines["MPT"] == ["85.9", "90.3", "93.1", "93.8", "90.4", "89.1", "79.4", "62.4", "85.6", "ACCEPT, ULPT"]
    assert {"fine-tuning", "PT", "PT trained long", "SPoT", "ATTEMPT", "DePT", "ACCEPT"} <= set(lines)
    assert "glue has no score of mnli, qqp, qnli, sst2, stsb, cola" in found.note
    table = report.report([folder], tmp_path / "out")[0].read_text()
    assert "GLUE next to published numbers" in table and "| MPT | 77.6K | 85.9 |" in table


FROM = {"source_dir": "x"}


def of_method(folder, method, task, seed, score, **more):
    """A run of one task and seed under a method, evaluated on test rows."""
    write_run(folder, tasks=(task,), seeds=(seed,))
    run = json.loads((folder / "run.json").read_text())
    train = {"train_steps": 20, "model_dir": str(folder), "seeds": seed, **more}
    (folder / "run.json").write_text(json.dumps(run | {"method": method, "settings": {"train": train}}))
    (folder / "eval").mkdir()
    found = {"task": task, "split": "test", "main_score": "accuracy", "scores": {"accuracy": score}, "std": {"accuracy": 0.0}}
    (folder / "eval" / "x.json").write_text(json.dumps(found | {"runs": [{}]}))
    return folder


def test_runs_of_one_method_fill_its_line_together(tmp_path):
    """Tasks and seeds that were trained one by one; another method, another source run and a second run of a seed stay apart."""
    rows = [("weights", "rte", 1, 70.0), ("weights", "rte", 2, 74.0), ("weights", "sst2", 1, 90.0), ("lora", "rte", 1, 60.0)]
    folders = [of_method(tmp_path / f"run{n}", *row) for n, row in enumerate(rows)]
    folders.append(of_method(tmp_path / "again", "weights", "rte", 2, 50.0))
    folders.append(of_method(tmp_path / "other", "weights", "mrpc", 1, 50.0, source_dir="elsewhere"))
    (found,) = report.comparisons(report.read_runs(folders))
    lines = {row[0]: dict(zip(found.rows[0], row, strict=True)) for row in found.rows if row[0].startswith("ours")}
    assert list(lines) == [
        "ours: run0, run1, run2 (fine-tuning)", "ours: run3 (LoRA)", "ours: again (fine-tuning)", "ours: other (fine-tuning)",
    ]  # fmt: skip
    assert lines["ours: run0, run1, run2 (fine-tuning)"]["rte"] == "72.0 ± 2.0 (2)"
    assert lines["ours: run0, run1, run2 (fine-tuning)"]["sst2"] == "90.0 ± 0.0 (1)"


@pytest.mark.parametrize(
    "method, stage, settings, tasks, expected",
    [
        ("prompt", "teacher", {"prompt": {"rank": 0}}, ["rte"], "PT"),
        ("prompt", "target", {"prompt": {"rank": 1}, "train": FROM}, ["rte"], "MPT"),
        ("prompt", "target", {"prompt": {"rank": 1, "shared_over_targets": True}, "train": FROM}, ["a", "b"], "MPT, multi-target"),
        ("attempt", "target", {"prompt": {"shared_over_targets": True}}, ["a", "b"], "ATTEMPT, multi-target"),
        ("weights", "finetune", {}, ["a", "b"], "fine-tuning, multi-target"),
        ("adapter", "teacher", {"method": {"drop_layers": 5}}, ["a", "b"], "AdapterDrop"),
        ("mine", "teacher", {}, ["a"], "mine"),
        (None, "teacher", {}, ["a"], ""),
    ],
)
def test_a_run_belongs_to_a_published_line(method, stage, settings, tasks, expected):
    assert column_of({"method": method, "stage": stage, "settings": settings, "tasks": tasks}) == expected


def test_every_methods_line_is_published_or_its_own():
    published_lines = {line.method for line in published.ROWS} | {row[0] for row in published.AVERAGES}
    assert set(published.COLUMNS.values()) - published_lines == {"prefix tuning", "(IA)3"}
    assert set(published.COLUMNS) == set(METHODS) - {"prompt"}


def scored(folder, task, scores, k_shot=0):
    """A run of one task with scores of its test split."""
    write_run(folder, tasks=(task,))
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["data"] = {"k_shot": k_shot}
    (folder / "run.json").write_text(json.dumps(run | {"stage": "fewshot" if k_shot else "target"}))
    (folder / "eval").mkdir()
    found = {"task": task, "split": "test", "main_score": next(iter(scores)), "scores": scores, "std": dict.fromkeys(scores, 0.5)}
    (folder / "eval" / "x.json").write_text(json.dumps(found | {"runs": [{}, {}]}))
    return folder


def test_numbers_that_are_only_recalled_are_marked(tmp_path):
    accuracy = {"accuracy": 80.0}
    folders = [scored(tmp_path / f"cb_{k}", "superglue_cb", accuracy, k) for k in (16, 4, 7)]
    folders.append(scored(tmp_path / "nlg", "web_nlg", {"bleu": 40.0}))
    folders.append(scored(tmp_path / "cb", "superglue_cb", accuracy))
    found = {table.title.partition(" next to")[0]: table for table in report.comparisons(report.read_runs(folders))}
    assert list(found) == ["SuperGLUE", "NLG", "Few-shot, 4 rows,", "Few-shot, 7 rows,", "Few-shot, 16 rows,"]
    lines = {title: {row[0]: row[1:] for row in table.rows} for title, table in found.items()}
    assert lines["Few-shot, 4 rows,"]["MPT"] == ["77.6K", "62.2†", "73.6†", "80.2†", "72.0†", "MPT, recalled"]
    assert lines["Few-shot, 16 rows,"]["PT"][1:4] == ["61.9†", "63.5†", "60.8†"]
    assert [row[0] for row in found["Few-shot, 7 rows,"].rows] == ["method", "ours: cb_7"]
    assert "ours: cb" in lines["SuperGLUE"] and "ours: cb_4" not in lines["SuperGLUE"]  # few rows stand apart
    assert lines["NLG"]["MPT, T5-Large"] == ["103.5K", "32.1†", "52.3†", "42.2†", "MPT, recalled"]
    assert lines["NLG"]["ours: nlg"][1:3] == ["–", "40.0 ± 0.5 (2)"]
    for title, table in found.items():
        marked = [cell for row in table.rows for cell in row if "†" in cell]
        assert bool(marked) == ("recalled, not verified" in table.note) == (title not in ("SuperGLUE", "Few-shot, 7 rows,"))
    text = report.report(folders, tmp_path / "out")[0].read_text()
    assert "Few-shot, 4 rows, next to published numbers" in text and "| MPT, T5-Large | 103.5K | 32.1† |" in text


def test_published_tables_name_tasks_that_there_are():
    for names in (*published.BENCHMARKS.values(), published.FEW_SHOT):
        assert set(names) <= set(tasks.TABLE)
    for task, score in published.REPORTED.items():
        assert score in {key for name in tasks.TABLE[task].scores for key in tasks.scores.SCORES[name].keys}
    means = {line.method: np.mean([line.scores[name] for name in published.GLUE]) for line in published.ROWS if "mnli" in line.scores}
    printed = {"fine-tuning": 84.9, "Adapters": 84.4, "BitFit": 83.3, "PT": 72.2, "SPoT": 82.3, "ATTEMPT": 83.4, "MPT": 85.6}
    for method, value in printed.items():
        assert means[method] == pytest.approx(value, abs=0.11)
