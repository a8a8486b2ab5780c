"""A host without TensorFlow, SeqIO and TFDS trains, scores and answers; a task that needs them says what to install."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_cached_task import MODULE
from tiny_world import arguments, write_world

from mpt_jax.main import SEQIO

ROOT = Path(__file__).parent.parent
# nothing of these can be imported, as where they are not installed
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name.partition(".")[0] in {tuple(SEQIO)} else find(name, *where)
from mpt_jax.main import main
sys.exit(main(sys.argv[1:]))
"""


def names(requirements: list[str]) -> dict[str, str]:
    return {re.match(r"[\w-]+", line)[0]: line for line in requirements if line and not line.startswith("#")}


def test_the_slim_list_is_the_whole_one_without_seqio_and_tensorflow():
    project = names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    slim = names((ROOT / "requirements-slim.txt").read_text().splitlines())
    assert slim == {name: line for name, line in project.items() if name not in {*SEQIO.values(), "importlib_resources"}}
    assert set(project) - set(slim) == {*SEQIO.values(), "importlib_resources"}  # TFDS alone asks for the last


def run(folder: Path, argv: list[str], blocked: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    code = BLOCKED if blocked else "import sys\nfrom mpt_jax.main import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *argv], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_embedded_own_and_cached_tasks_train_are_scored_and_answer_without_tensorflow(tmp_path):
    world = write_world(tmp_path)
    (tmp_path / "seqio_tasks.py").write_text(MODULE)
    seqio_module = {**world, "MIXTURE_OR_TASK_MODULE": str(tmp_path / "seqio_tasks.py")}
    cached = run(tmp_path, arguments("cache", "", seqio_module, TASKS=["parity"]), blocked=False)
    assert cached.returncode == 0, cached.stderr

    chosen = world | {"TASKS": ["word_valence", "vowel", "parity"], "MODEL_DIR": str(tmp_path / "run")}
    chosen["TASK_FEATURE_LENGTHS"] = {"inputs": 16, "targets": 12}  # bytes
    read = {name: chosen[name] for name in ("MODEL_DIR", "CACHE_DIR", "MIXTURE_OR_TASK_MODULE")}
    (tmp_path / "rows.jsonl").write_text('{"word": "abc1"}\n')
    for argv in (
        arguments("train", "teacher.gin", chosen, TrainSettings__eval_rows=8),
        [*arguments("eval", "", read), "--gin.EvalSettings.max_rows=8"],
        [*arguments("infer", "", read, TASKS=["vowel"]), "--input=rows.jsonl", "--output=answers.jsonl"],
    ):
        done = run(tmp_path, argv)
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "answers.jsonl").read_text())["word"] == "abc1"

    refused = run(tmp_path, arguments("train", "teacher.gin", {**seqio_module, "MODEL_DIR": str(tmp_path / "never")}, TASKS=["parity"]))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    said = "mpt-jax: seqio is not installed, and tasks of SeqIO and TFDS need it: type pip install seqio tensorflow"
    assert refused.stderr.strip().splitlines()[-1].startswith(said)
