"""A whole source run with every folder in a bucket: killed with kill -9, on fresh hosts, the server stopped and started; the same bank."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from object_server import BUCKET, Server
from tiny_world import arguments, start, write_world

from mpt_jax import bucket_run, buckets
from mpt_jax.checkpoint import load_trainable
from mpt_jax.main import main


def committed_steps(run: str) -> list[int]:
    names = [name.split("/") for name in buckets.listed(run) if name.endswith(buckets.MARKER)]
    return sorted(int(parts[1]) for parts in names if parts[0] == "checkpoints")


@pytest.fixture
def world(tmp_path, monkeypatch, table):
    """(server, macros that point into the bucket): backbone, tasks, module; teachers are trained there."""
    server = Server("gs", tmp_path / "objects")
    server.start()
    for name, value in (server.environment | {"MPT_CACHE_DIR": str(tmp_path / "host0"), "MPT_BUCKET_WAIT_S": "20"}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "up").mkdir()
    macros = write_world(tmp_path / "up")
    for path in sorted(path for path in (tmp_path / "up").rglob("*") if path.is_file()):
        buckets.put_file(path, f"gs://{BUCKET}/w/{path.relative_to(tmp_path / 'up').as_posix()}")
    macros |= {"MIXTURE_OR_TASK_MODULE": f"gs://{BUCKET}/w/my_tasks.py", "BACKBONE": f"gs://{BUCKET}/w/backbone"}
    macros["TASKS"] = ["vowel", "long"]
    macros |= {"CACHE_DIR": f"gs://{BUCKET}/caches", "LEARNING_RATE": 0.02, "FACTOR_LEARNING_RATE": 0.02}
    yield server, macros
    server.stop()


def source(macros: dict, steps: int, run: str) -> list[str]:
    changes = {"TEACHER_DIR": f"gs://{BUCKET}/teachers", "TRAIN_STEPS": steps, "MODEL_DIR": run}
    return arguments("train", "source.gin", macros, **changes, TrainSettings__checkpoint_steps=5, TrainSettings__eval_steps=30)


@pytest.mark.parametrize(
    "kills, steps", [pytest.param(2, 100, marks=pytest.mark.long, id="2"), pytest.param(10, 400, marks=pytest.mark.long, id="10")]
)
def test_a_run_in_a_bucket_that_is_killed_again_and_again_is_the_one_that_was_not(world, tmp_path, monkeypatch, capsys, kills, steps):
    server, macros = world
    assert main(arguments("train", "teacher.gin", macros, MODEL_DIR=f"gs://{BUCKET}/teachers")) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"gs://{BUCKET}/teachers"
    assert main(source(macros, steps, str(tmp_path / "whole"))) == 0
    run, rng, reached = f"gs://{BUCKET}/run", random.Random(0), 0
    for kill in range(kills):
        monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / f"host{rng.randrange(3)}"))  # one of three, maybe not for the first time
        with (tmp_path / "said.txt").open("w") as log:
            process = start(source(macros, steps, run), tmp_path, log=log)
        local, deadline, wanted = buckets.place_of(run, buckets.TRAINED), time.monotonic() + 200, reached + rng.randrange(1, 15)
        if kill % 3 == 1:  # the server goes away while this one trains
            while process.poll() is None and not (local / "training.lock").exists():
                time.sleep(0.02)
            server.stop()
            time.sleep(2)
            server.start()
        while process.poll() is None and not any(int(p.name) >= wanted for p in (local / "checkpoints").glob("[0-9]*") if p.name.isdigit()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
        assert process.poll() is None, "it ended before it was killed: " + (tmp_path / "said.txt").read_text()
        process.kill()
        process.wait()
        there = committed_steps(run)
        assert max(there, default=0) >= reached, "a checkpoint that was there is gone"
        reached = max(there, default=0)
        print(f"kill {kill + 1}: {reached} of {steps} steps are in the bucket")
        if there:
            monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / f"reader{kill}"))
            assert load_trainable(buckets.here("MODEL_DIR", run), "last")[0]  # digests are checked
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "fresh"))
    given = {name: macros[name] for name in ("MIXTURE_OR_TASK_MODULE", "CACHE_DIR")}
    for argv in (source(macros, steps, run), arguments("eval", "", given, MODEL_DIR=run)):
        with (tmp_path / "said.txt").open("w") as log:
            assert start(argv, tmp_path, log=log).wait(300) == 0, (tmp_path / "said.txt").read_text()
    expected = load_trainable(tmp_path / "whole", "last")[0]
    found = load_trainable(buckets.here("MODEL_DIR", run), "last")[0]
    assert expected.keys() == found.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])
    assert json.loads(buckets.read(f"{run}/eval/vowel.json"))["rows"] == 12
    assert main(["report", run, f"gs://{BUCKET}/teachers", "--output", f"gs://{BUCKET}/report"]) == 0
    assert b"| run |" in buckets.read(f"gs://{BUCKET}/report/table.md")
    assert main(["convert", "--from", run, "--to", "npz", "--output", str(tmp_path / "prompts.npz")]) == 0
    assert not list(Path().glob("gs:*"))


def test_a_checkpoint_that_ends_while_files_go_up_goes_up_the_next_time(tmp_path, monkeypatch):
    """With the metrics before it, which that time takes along."""
    run, put = bucket_run._Run("gs://bucket/run", tmp_path), []
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr(run, "_put_step", put.append)
    monkeypatch.setattr(run, "_put_changed", lambda *_: (tmp_path / "checkpoints" / "5").mkdir(parents=True, exist_ok=True))
    run.put_up()
    assert put == []
    run.put_up()
    assert put == ["5"]


@pytest.mark.long
def test_a_bucket_that_cannot_be_used_is_refused_before_the_first_step(world, tmp_path, capsys, monkeypatch):
    server, macros = world
    macros["MIXTURE_OR_TASK_MODULE"] = str(tmp_path / "up" / "my_tasks.py")
    assert main(arguments("train", "teacher.gin", macros, MODEL_DIR="gs://elsewhere/run")) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("mpt-jax: 'gs://elsewhere/run' cannot be used: there is no bucket 'elsewhere'")
    server.stop()
    assert main(arguments("train", "teacher.gin", macros, MODEL_DIR="gs://b/r")) == 2
    assert "does not answer" in capsys.readouterr().err
    server.start()
