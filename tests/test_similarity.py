"""Which tasks are alike (infer/similarity.py), in numbers, in a map, and on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_bank
from tiny_run import row, write_run

from mpt_jax.errors import UserError
from mpt_jax.infer import similarity
from mpt_jax.main import main
from mpt_jax.run_folder import folder_names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A source run of four tasks with factors, of which the last is like the first; and a target's own prompt, like the second's."""
    folder = tmp_path_factory.mktemp("runs")
    described = tiny_bank.write_backbone(folder / "backbone")
    rng = np.random.default_rng(0)
    shared_GPD = rng.normal(size=(1, 4, 16)).astype(np.float32)
    cols_NPR, rows_NRD = (1 + rng.normal(size=shape).astype(np.float32) for shape in ((4, 4, 1), (4, 1, 16)))
    cols_NPR[3], rows_NRD[3] = cols_NPR[0] + 0.01, rows_NRD[0]
    names = ("sst2", "mrpc", "rte", "trec")
    bank = {"bank/shared": shared_GPD, "bank/cols": cols_NPR, "bank/rows": rows_NRD}
    source = write_run(folder / "source", [row(name) for name in names], bank, stage="source", **described)
    own = shared_GPD * (cols_NPR[1] @ rows_NRD[1]) + 0.01
    return source, write_run(folder / "target", [row("mine")], {"bank/shared": own}, **described)


def test_the_nearest_task_is_the_one_that_is_like_it(runs, capsys):
    assert main(["tasks", "--nearest", runs[1], "--nearest", runs[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| target/mine | source/mrpc | 1.0") and lines[2].endswith("| – |") and len(lines) == 6
    assert main(["tasks", "sst2", "--nearest", runs[0]]) == 0
    first = [cell.strip() for cell in capsys.readouterr().out.splitlines()[2].split("|")]
    assert first[1:3] == ["sst2", "trec"] and float(first[3]) > 0.99 and float(first[4]) > 0.99
    wrong = (["cola", "--nearest", runs[0]], "has no task 'cola': it has sst2, mrpc"), (["--nearest", runs[1]], "nothing to compare")
    for argv, message in wrong:
        assert main(["tasks", *argv]) == 2
        assert message in capsys.readouterr().err


def test_runs_of_one_folder_name_are_apart(runs, tmp_path, capsys):
    """Their factors are of different P*; a run that is named in two ways is one run."""
    copies = [tmp_path / name / "source" for name in "xy"]
    for copy in copies:
        shutil.copytree(runs[0], copy)
    found = similarity.tasks_of_runs(copies, folder_names(copies))
    assert [task.label for task in found[::4]] == ["x/source/sst2", "y/source/sst2"]
    _, factors = similarity.maps(found).values()
    assert np.isfinite(factors[:4, :4]).all() and np.isnan(factors[:4, 4:]).all()
    assert main(["tasks", "sst2", "--nearest", str(copies[0]), "--nearest", f"{copies[0]}/"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    assert main(["tasks", "sst2", "--nearest", str(copies[0]), "--nearest", str(copies[1])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 7 and lines[2].startswith("| x/source/sst2 | y/source/sst2 | 1.000 | – |")


def test_which_runs_hold_prompts_is_decided_by_what_their_method_trains(runs, tmp_path):
    for method, held in (("prompt", True), ("spot", True), ("dept", False), ("lora", False), ("gone", False)):
        copy = tmp_path / method
        shutil.copytree(runs[1], copy)
        path = copy / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"method": method}))
        assert similarity.has_prompts(copy) == held


def test_cosines():
    found = similarity.cosines([np.array([1.0, 0]), np.array([2.0, 0]), np.array([0, 1.0]), None, np.zeros(2)])
    np.testing.assert_allclose(found[:3, :3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert np.isnan(found[3:]).all()


def test_a_report_has_the_map(runs, tmp_path, capsys):
    """And says why it has none: of a run whose checkpoint is not there yet."""
    for folder in runs:
        path = Path(folder) / "run.json"
        numbers = {"parameters": {"per_task": 64, "fraction_of_backbone": 0.1}}
        path.write_text(json.dumps(json.loads(path.read_text()) | numbers))
    assert main(["report", *runs, "--output", str(tmp_path / "out")]) == 0
    assert "similarity.png" in capsys.readouterr().out
    assert (tmp_path / "out" / "similarity.png").stat().st_size > 10_000
    assert "Which tasks are alike" in (tmp_path / "out" / "report.html").read_text()
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    shutil.rmtree(next((copy / "checkpoints").iterdir()))
    assert main(["report", str(copy), "--output", str(tmp_path / "none")]) == 0
    assert "No map of tasks: " in (tmp_path / "none" / "table.md").read_text()
    with pytest.raises(UserError):
        similarity.tasks_of_runs([copy], ["copy"])
