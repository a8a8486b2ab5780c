"""What the time of a training went to: kinds of seconds, restarts, damaged files, and a run that is killed and goes on."""

import json
import os
import signal
import time
import types

import jax
import jax.numpy as jnp
import pytest
from hostile import refused
from tiny_world import arguments, start, write_world

from mpt_jax import goodput
from mpt_jax.errors import UserError
from mpt_jax.goodput import KINDS, Clock, read_time, spent
from mpt_jax.infer.history import time_rows
from mpt_jax.main import main
from mpt_jax.metrics import read_metrics


def test_seconds_go_to_one_kind_at_a_time(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(goodput, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    clock = Clock()
    now[0] += 7
    clock.turn_to("computing")
    with clock.spent("saving"):
        now[0] += 1
        with clock.spent("scoring"):
            now[0] += 2
        now[0] += 4
    now[0] += 16
    clock.open(tmp_path, 0)
    found = spent(tmp_path)
    assert {kind: found[kind] for kind in KINDS if found[kind]} == {"starting": 7, "saving": 5, "scoring": 2, "computing": 16}


def test_compiling_is_counted_once_and_taken_from_where_it_happened():
    inner = jax.jit(lambda x: jnp.sin(x) @ x)
    clock = Clock()
    before = time.monotonic()
    clock.turn_to("computing")
    began = time.monotonic()
    jax.jit(lambda x: inner(inner(x)) + 1.2345)(jnp.ones((4, 4))).block_until_ready()
    took = time.monotonic() - began
    clock.turn_to("saving")
    whole = time.monotonic() - before
    assert 0 < clock.seconds["compiling"] <= took
    assert took - 1e-6 <= clock.seconds["compiling"] + clock.seconds["computing"] <= whole + 1e-6
    assert clock.seconds["computing"] >= -1e-3


def line(began: float, at: float, first: int, step: int, **seconds: float) -> str:
    return json.dumps({"began": began, "at": at, "from": first, "step": step, "seconds": dict.fromkeys(KINDS, 0.0) | seconds}) + "\n"


def test_steps_done_again_and_starting_again_are_lost(tmp_path):
    """Killed at step 30, gone on from 20: ten steps and the second start are lost, the pause is not running."""
    text = line(100, 102, 0, 0, starting=2.0) + line(100, 112, 0, 20, starting=2.0, computing=10.0)
    text += line(100, 119, 0, 30, starting=2.0, computing=17.0)
    text += line(200, 203, 20, 20, starting=3.0) + line(200, 212, 20, 40, starting=3.0, computing=8.0, saving=1.0)
    (tmp_path / "time.jsonl").write_text(text + '{"began": 200, "at"')  # cut by a kill
    found = spent(tmp_path)
    assert {name: value for name, value in found.items() if value} == {
        "starting": 2.0, "computing": 18.0, "saving": 1.0, "lost_to_restarts": 10.0, "not_running": 81.0, "restarts": 1,
    }  # fmt: skip
    header, row = time_rows([("run", tmp_path), ("other", tmp_path / "none")])
    assert row[:3] == ["run", "31", "58.1 %"] and row[-3:] == ["32.3 %", "1", "81"] and header[-3] == "lost to restarts"
    assert time_rows([("other", tmp_path / "none")]) == []


def test_work_that_a_later_start_went_back_over_counts_once(tmp_path):
    """The third start went on from step 10, before where the second one did: a damaged checkpoint was put aside."""
    text = line(0, 2, 0, 0, starting=2.0) + line(0, 7, 0, 10, starting=2.0, computing=5.0)
    text += line(0, 12, 0, 20, starting=2.0, computing=10.0) + line(0, 19, 0, 30, starting=2.0, computing=17.0)
    text += line(20, 23, 20, 20, starting=3.0) + line(20, 31, 20, 40, starting=3.0, computing=8.0)
    text += line(40, 41, 10, 10, starting=1.0) + line(40, 61, 10, 50, starting=1.0, computing=20.0)
    (tmp_path / "time.jsonl").write_text(text)
    assert {name: value for name, value in spent(tmp_path).items() if value} == {
        "starting": 2.0, "computing": 25.0, "lost_to_restarts": 24.0, "not_running": 10.0, "restarts": 2,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["{", "3", '{"began": 1}', line(1, 1, 0, 0, saving=10**400), line(1, 1, 0, 0, other="x")])
def test_a_damaged_line_is_named(tmp_path, text):
    (tmp_path / "time.jsonl").write_text(line(1, 1, 0, 0) + text.strip() + "\n")
    with pytest.raises(UserError, match=r"time.jsonl:2"):
        read_time(tmp_path)


def test_a_line_without_end_is_named(tmp_path):
    (tmp_path / "time.jsonl").write_text(line(1, 1, 0, 0))
    os.truncate(tmp_path / "time.jsonl", 2**34)
    refused(lambda: read_time(tmp_path), "time.jsonl:2 is damaged: it is a line of more than")


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_tells_what_it_lost(tmp_path, table):
    world = write_world(tmp_path) | {"TASKS": ["vowel"], "TrainSettings.log_steps": 1}
    run = tmp_path / "run"
    changes = {"TRAIN_STEPS": 150, "TrainSettings__checkpoint_steps": 20, "TrainSettings__eval_steps": 75}
    argv = arguments("train", "teacher.gin", world, MODEL_DIR=str(run), **changes)
    with (tmp_path / "said.txt").open("w") as log:
        process = start(argv, tmp_path, log=log)
        try:
            deadline = time.monotonic() + 200
            while not (run / "checkpoints" / "20").exists() or read_time(run)[-1]["step"] < 25:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert read_time(run)[-1]["step"] >= saved
    assert main(argv) == 0
    found = json.loads((run / "run.json").read_text())["time"]
    assert found == spent(run) and found["restarts"] == 1 and found["not_running"] > 0
    assert all(found[kind] > 0 for kind in KINDS)
    second = [line for line in read_time(run) if line["from"] == saved]
    waited_s = [line["seconds_waiting_for_data"] for line in read_metrics(run) if "rows" in line]
    assert waited_s[-1] == pytest.approx(second[-1]["seconds"]["waiting_for_data"], abs=1e-3)
    assert second and found["lost_to_restarts"] >= second[-1]["seconds"]["starting"] > 0
    assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
    assert "lost to restarts" in (tmp_path / "report" / "table.md").read_text()
    assert "What the time went to" in (tmp_path / "report" / "report.html").read_text()
