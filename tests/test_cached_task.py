"""A SeqIO task that was cached trains, is scored and answers where nobody registers it, without TensorFlow."""

import json
import sys

import pytest
from tiny_world import arguments, write_world

from mpt_jax import tasks
from mpt_jax.main import main

MODULE = """
import seqio
import tensorflow as tf

ROWS = {"inputs": [f"word {n}" for n in range(24)], "targets": ["odd" if n % 2 else "even" for n in range(24)]}
feature = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
seqio.TaskRegistry.add(
    "parity",
    source=seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(ROWS), splits=["train", "validation"]),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={"inputs": feature, "targets": feature},
    metric_fns=[lambda targets, predictions: {"right": 100.0}],
)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A cached SeqIO task whose module is gone, and a process that cannot import SeqIO any more."""
    seqio = pytest.importorskip("seqio")
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    macros = write_world(folder) | {"TASKS": ["parity"]}
    (folder / "seqio_tasks.py").write_text(MODULE)
    assert main(arguments("cache", "", macros, MIXTURE_OR_TASK_MODULE=str(folder / "seqio_tasks.py"))) == 0
    seqio.TaskRegistry.remove("parity")
    del macros["MIXTURE_OR_TASK_MODULE"]
    patch = pytest.MonkeyPatch()
    for name in ("seqio", "tensorflow"):
        patch.setitem(sys.modules, name, None)
    yield folder, macros | {"MODEL_DIR": str(folder / "run")}
    patch.undo()
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.fixture(scope="module")
def run(world):
    folder, macros = world
    assert main(arguments("train", "teacher.gin", macros)) == 0
    return folder / "run"


def test_it_trains_and_its_dev_split_is_scored_by_exact_match(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["exact_match"] for line in lines if line["split"] == "dev"]


def test_it_is_scored(world, run, capsys):
    assert main(arguments("eval", "eval.gin", {name: world[1][name] for name in ("MODEL_DIR", "CACHE_DIR")})) == 0
    assert "| parity | validation | 24 | 1 | **exact_match** |" in capsys.readouterr().out
    assert json.loads((run / "eval" / "parity.json").read_text())["rows"] == 24


def test_it_answers_rows_of_its_cache_and_rows_of_a_file(world, run, tmp_path):
    macros = {name: world[1][name] for name in ("MODEL_DIR", "CACHE_DIR")}
    (tmp_path / "in.jsonl").write_text('{"inputs": "word 3", "n": 1}\n')
    for source, rows in (("parity:validation", 24), (str(tmp_path / "in.jsonl"), 1)):
        output = tmp_path / "out.jsonl"
        assert main([*arguments("infer", "", macros), "--input", source, "--output", str(output)]) == 0
        answered = [json.loads(line) for line in output.read_text().splitlines()]
        assert len(answered) == rows and all(isinstance(row["prediction"], str) for row in answered)
        assert answered[0]["inputs"].startswith("word ")


def test_a_task_that_has_no_cache_either_is_unknown(world, capsys):
    assert main(arguments("train", "teacher.gin", world[1] | {"TASKS": ["parities"]})) == 2
    assert "unknown task 'parities': the nearest names are parity" in capsys.readouterr().err
