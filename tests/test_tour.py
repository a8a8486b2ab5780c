"""docs/tour.ipynb: its outputs are those of a run from top to bottom, and it runs."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"
CODE = [cell for cell in json.loads(TOUR.read_text())["cells"] if cell["cell_type"] == "code"]


def said(cells) -> str:
    """The texts of the outputs."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    return "".join("".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs)


def test_every_cell_was_run_in_order_and_none_failed():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert all(cell["outputs"] for cell in CODE) and not any(output["output_type"] == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_the_outputs_name_no_place_of_the_machine_and_are_small():
    assert not re.search(r"/(root|home|tmp|work|usr)/", said(CODE))
    assert TOUR.stat().st_size < 400_000  # bytes


@pytest.mark.slow
def test_the_tour_runs(tmp_path, monkeypatch):
    """Through Jupyter's own executor, with fewer steps and rows; a command of the shell that fails ends it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    command = tmp_path / "bin" / "mpt-jax"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mpt_jax "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "cache"))
    notebook = nbformat.read(TOUR, 4)
    for cell in notebook.cells:
        cell.source = re.sub(r"(train_steps|eval_rows|max_rows)([ =])\d+", r"\1\g<2>2", cell.source)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "tour" / "report" / "report.png").is_file()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for name in ("definition_valence", "word_valence", "past_tense", "(20, 192)", "negative", "positive"):
        assert name in said(cells) and name in said(CODE), name
