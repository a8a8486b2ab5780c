"""Whole runs of every method: trained, ended in the middle and continued to the bit, scored and asked. Two of them on 8 pretend devices."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_methods import T5, settings_of, source_dir
from tiny_world import write_world

import mpt_jax
from mpt_jax import tasks
from mpt_jax.checkpoint import load
from mpt_jax.config import BackboneSettings, DataSettings, EvalSettings, MeshSettings
from mpt_jax.errors import Preempted
from mpt_jax.infer.commands import run_eval
from mpt_jax.methods.method import MUST
from mpt_jax.methods.table import METHODS, method_named
from mpt_jax.model.backbone import fingerprint_of, load_backbone
from mpt_jax.model.formats import read_backbone
from mpt_jax.train.run import run_train

NAMES = [name for name in METHODS if name not in ("prompt", "weights")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tasks over bytes and a backbone, with whose fingerprint the sources are marked."""
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    write_world(folder)
    tasks.import_module(str(folder / "my_tasks.py"))
    source, mark = Path(source_dir(T5)) / "run.json", fingerprint_of(read_backbone(str(folder / "backbone"))[1])
    source.write_text(source.read_text().replace("f" * 16, mark))
    yield folder
    source.write_text(source.read_text().replace(mark, "f" * 16))
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


def settings_in(world: Path, name: str, model_dir: str, stage: str = ""):
    settings = settings_of(name, stage, model_dir=str(world / model_dir), train_steps=4, eval_steps=2, eval_rows=4, seeds=[1, 2])
    data = dataclasses.replace(settings.data, cache_dir=str(world / "cache"), batch_size=8, k_shot=4 if stage == "fewshot" else 0)
    return settings._replace(backbone=BackboneSettings(str(world / "backbone")), data=data)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "lora" else pytest.mark.long) for name in NAMES])
def test_a_run_that_is_ended_and_continued_is_the_same_to_the_bit_and_answers(name, world):
    """Trained arrays, moments of the optimiser by way of the next steps, best weights; then eval and predictions."""
    backbone = load_backbone(BackboneSettings(str(world / "backbone")))
    whole = run_train(settings_in(world, name, f"{name}_whole"), ("vowel", "long"), backbone=backbone)
    cut = settings_in(world, name, f"{name}_cut")
    with pytest.raises(Preempted):
        run_train(cut, ("vowel", "long"), preempted=lambda step: step == 2, backbone=backbone)
    run_train(cut, ("vowel", "long"), backbone=backbone)
    for which in ("last", "best"):
        expected, found = (load(folder, which).trainable for folder in (whole, cut.train.model_dir))
        assert found.keys() == expected.keys()
        for path, array in expected.items():
            np.testing.assert_array_equal(found[path], array, err_msg=path)
    described = json.loads((whole / "run.json").read_text())
    assert described["method"] == name and described["parameters"]["trainable"] > 0
    assert ("method" in described["settings"]) == (method_named(name).settings is not None)
    table = run_eval(EvalSettings(str(whole), max_rows=4), DataSettings(cache_dir=str(world / "cache")), MeshSettings(), ())
    assert "vowel" in table and "long" in table
    answers = mpt_jax.load(whole).predict(["word: abc", "word: deee"], task="vowel")
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lora", "attempt"])
def test_few_shot_runs_of_a_method(name, world):
    folder = run_train(settings_in(world, name, f"{name}_few", "fewshot"), ("digit",))
    rows = json.loads((folder / "run.json").read_text())["runs"]
    assert [len(row["few_shot"]) for row in rows] == [4, 4] and rows[0]["few_shot"] != rows[1]["few_shot"]


def test_methods_that_start_from_prompts_are_these():
    assert {name for name in NAMES if method_named(name).from_source == MUST} == {"spot", "attempt", "vectors"}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["lora", "prefix"], marks=pytest.mark.slow),  # a module's product and a stack's keys; the bank is in test_sharding.py
        pytest.param(["ia3", "bitfit", "adapter", "dept", "attempt", "vectors"], marks=pytest.mark.long),
    ],
)
def test_eight_devices_train_what_one_does(names, tmp_path):
    """Parameters after two updates on a mesh of 2 x 2 x 2: 1e-5, float32."""
    here = Path(__file__).parent
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    command = [sys.executable, str(here / "methods_mesh.py"), str(tmp_path), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found.pop("devices") == 8 and set(found) == set(names)
    assert max(found.values()) <= 1e-5, found
