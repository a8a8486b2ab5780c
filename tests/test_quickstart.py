"""The quickstart, cut short: every stage runs on the shipped backbone and the files hold what they promise."""

import dataclasses
import json

import pytest

from mpt_jax import quickstart, tasks


def test_the_tasks_cover_four_kinds_and_do_not_meet():
    assert len(quickstart.SOURCES) >= 6 and len(quickstart.TARGETS) >= 6 and not set(quickstart.SOURCES) & set(quickstart.TARGETS)
    groups = {name: tasks.TABLE[name].group for name in quickstart.SOURCES + quickstart.TARGETS}
    assert groups == {**dict.fromkeys(quickstart.SOURCES, "source"), **dict.fromkeys(quickstart.TARGETS, "target")}
    for names in (quickstart.SOURCES, quickstart.TARGETS):
        scores = {tasks.TABLE[name].scores for name in names}
        assert scores == {("accuracy",), ("squad",), ("exact_match",)}


@pytest.mark.slow
def test_a_short_quickstart(tmp_path, monkeypatch):
    short = {"steps": 2, "evaluations": 1, "eval_rows": 8}
    sources, targets = ("word_valence", "past_tense"), ("definition_valence", "plural")
    stages = [dataclasses.replace(s, tasks=sources if s.stage in ("teacher", "source") else targets, **short) for s in quickstart.STAGES]
    monkeypatch.setattr(quickstart, "STAGES", tuple(stages))
    monkeypatch.setattr(quickstart, "SOURCES", sources)
    monkeypatch.setattr(quickstart, "TARGETS", targets)
    text = quickstart.quickstart(str(tmp_path / "quick"))
    summary = json.loads((tmp_path / "quick" / "summary.json").read_text())
    assert set(summary) == {"seconds", "backbone", "parameters", "source", "target", "target_mean"}
    assert set(summary["source"]) == set(sources) and set(summary["source"]["past_tense"]) == {"majority", "teacher", "mpt"}
    assert set(summary["target"]["plural"]) == {"majority", "prompt_tuning", "mpt"}
    assert summary["backbone"]["name"] == "nano" and summary["seconds"] > 0
    assert summary["parameters"]["per_task"] == quickstart.LENGTH * 192 + quickstart.LENGTH + 192
    assert (tmp_path / "quick" / "table.md").read_text() in text and (tmp_path / "quick" / "report.png").stat().st_size > 10_000
