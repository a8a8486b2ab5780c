"""Several processes: how they are found, what they compute together, and how they end."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_world import arguments, end_of, start_together, write_world

from mpt_jax import distributed, tasks
from mpt_jax.checkpoint import load_trainable
from mpt_jax.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, Preempted, UserError
from mpt_jax.main import main

JAX_VARIABLES = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "gpu[1-2]"}
EXPLICIT = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 2, "cluster_detection_method": "deactivate"}


@pytest.mark.parametrize(
    "given, environ, tpu, found",
    [
        ({}, {}, False, None),
        ({}, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a"}, False, None),
        ({}, JAX_VARIABLES, False, EXPLICIT),
        ({"coordinator_address": "host:1", "num_processes": 4, "process_id": 2}, {}, False, EXPLICIT),
        ({"process_id": 0}, JAX_VARIABLES, True, EXPLICIT | {"process_id": 0}),
        ({}, {**JAX_VARIABLES, **SLURM}, False, EXPLICIT),
        ({}, {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"}, False, EXPLICIT),
        ({}, {"JOB_COMPLETION_INDEX": "2"}, False, None),
        ({}, SLURM, False, {"cluster_detection_method": "slurm"}),
        ({}, {}, True, {}),
    ],
)
def test_processes_are_found_in_flags_and_environment(given, environ, tpu, found):
    assert distributed.arguments_of(given, environ, tpu) == found


@pytest.mark.parametrize(
    "given, environ, message",
    [
        ({"num_processes": 2}, {}, "missing --coordinator_address or JAX_COORDINATOR_ADDRESS, --process_id or JAX_PROCESS_ID"),
        ({}, {**JAX_VARIABLES, "JAX_PROCESS_ID": "two"}, "process_id = 'two': both are whole numbers"),
        ({}, {**JAX_VARIABLES, "JAX_PROCESS_ID": "4"}, "num_processes = 4, process_id = 4: ids are 0 .. num_processes - 1"),
        ({}, {**JAX_VARIABLES, "JAX_NUM_PROCESSES": "-1"}, "num_processes = -1, process_id = 2: ids are 0"),
    ],
)
def test_half_a_description_is_refused(given, environ, message):
    with pytest.raises(UserError, match=message):
        distributed.arguments_of(given, environ)


def test_sigterm_is_told_once_and_then_ends():
    before = signal.getsignal(signal.SIGTERM)
    with distributed.Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_before_anybody_asks_ends_at_once():
    with pytest.raises(Preempted, match="asked to end before the first step"), distributed.Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


HANGS = """
import signal, sys, threading
from mpt_jax import distributed
from mpt_jax.folder_lock import locked

distributed.LEAVE_S = 0.5
lock = threading.Lock()
with distributed.Preemption(), locked(sys.argv[1]):
    try:
        lock.acquire()
        signal.raise_signal(signal.SIGTERM)
    except BaseException:
        lock.acquire()  # nobody lets go of it
"""


def test_a_process_that_hangs_as_it_is_told_to_end_ends_by_force_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", HANGS, tmp_path / "run"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == EXIT_PREEMPTED and done.stderr == f"mpt-jax: {distributed.NOT_STARTED}\n" and not (tmp_path / "run").exists()


def test_a_process_that_has_ended_its_block_is_left_alone(monkeypatch):
    monkeypatch.setattr(distributed, "LEAVE_S", 0.2)
    with pytest.raises(Preempted), distributed.Preemption():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4)


@pytest.mark.parametrize("seconds", ["x", "0", "-5", "1e3"])
def test_a_heartbeat_is_a_number_of_seconds(monkeypatch, seconds):
    monkeypatch.setenv("MPT_HEARTBEAT_S", seconds)
    with pytest.raises(UserError, match=f"MPT_HEARTBEAT_S = '{seconds}' is not a whole number of seconds"):
        distributed.start({"coordinator_address": "127.0.0.1:1", "num_processes": 2, "process_id": 0}, trains=False)


def test_a_preempted_run_ends_with_its_code_and_continues_bit_for_bit(tmp_path, monkeypatch, capsys, table):
    macros = write_world(tmp_path) | {"TASKS": ["vowel"], "TRAIN_STEPS": 5, "TrainSettings.score_tasks": False}

    def command(name):
        return arguments("train", "teacher.gin", macros, MODEL_DIR=str(tmp_path / name))

    assert main(command("whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(distributed.Preemption, "reached", lambda self, step: step == 2)
        assert main(command("ended")) == EXIT_PREEMPTED
    assert "asked to end: the checkpoint of step 2 is written" in capsys.readouterr().err
    assert main(command("ended")) == 0
    assert "continuing from the checkpoint of step 2" in capsys.readouterr().err
    expected, found = (load_trainable(tmp_path / name, "last")[0] for name in ("whole", "ended"))
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_a_single_process_is_the_first_and_waits_for_nobody():
    assert distributed.is_first() and distributed.leave(3) == 3
    with pytest.raises(KeyError), distributed.first_before_others("anything"):
        raise KeyError


MESH = ["--gin.MESH_FSDP=2", "--gin.MESH_TENSOR=2"]


def start_two(argv: list[str], cwd: Path) -> list:
    """The command in 2 processes of 4 pretend devices each."""
    return start_together([*argv, *MESH], cwd, 2, 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, function that makes the command of a source run): teachers and one run in one process, the same in two processes."""
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    macros = write_world(folder) | {"TASKS": ["vowel", "long"], "LEARNING_RATE": 0.02, "FACTOR_LEARNING_RATE": 0.02}
    assert main(arguments("train", "teacher.gin", macros, MODEL_DIR=str(folder / "teachers"))) == 0
    changes = {"TEACHER_DIR": str(folder / "teachers"), "TRAIN_STEPS": 40, "TrainSettings__checkpoint_steps": 4}
    changes["TrainSettings__eval_steps"] = 20

    def command(name):
        return arguments("train", "source.gin", macros, MODEL_DIR=str(folder / name), **changes)

    assert main(command("alone")) == 0
    codes, said = end_of(start_two(command("whole"), folder), folder)
    assert codes == [0, 0], said
    yield folder, macros, command
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.mark.slow
def test_two_processes_train_and_report_what_one_does(world):
    """The bank after 40 distilled updates: 1e-5, float32. One log, one set of files."""
    folder, _, _ = world
    for which in ("last", "best"):
        found, expected = (load_trainable(folder / name, which)[0] for name in ("whole", "alone"))
        for path in expected:
            np.testing.assert_allclose(found[path], expected[path], atol=1e-5)
    lines = [[json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "alone")]
    assert len(lines[0]) == len(lines[1])
    for found, expected in zip(*lines, strict=True):
        assert found.keys() == expected.keys() and found.get("loss", 0) == pytest.approx(expected.get("loss", 0), abs=1e-4)
    assert len(list((folder / "whole").glob("events.*"))) == 1
    progress = [(folder / f"process{i}.log").read_text() for i in range(2)]
    assert "40/40 steps" in progress[0] and "steps" not in progress[1]
    described = json.loads((folder / "whole" / "run.json").read_text())
    assert described["devices"]["processes"] == 2 and described["devices"]["count"] == 8


@pytest.mark.long
def test_two_processes_answer_and_score_each_row_once(world):
    folder, macros, _ = world
    given = {name: macros[name] for name in ("MIXTURE_OR_TASK_MODULE", "CACHE_DIR")} | {"MODEL_DIR": str(folder / "whole")}
    files = ["--input", str(folder / "vowel_validation.jsonl"), "--score"]
    infer = [*arguments("infer", "", given, TASKS=["vowel"]), *files]
    score = [*arguments("eval", "", given), "--gin.EvalSettings.method='rank'"]
    assert main([*infer, "--output", str(folder / "one.jsonl")]) == 0 and main(score) == 0
    scores = {task: (folder / "whole" / "eval" / f"{task}.json").read_text() for task in ("vowel", "long")}
    codes, said = end_of(start_two([*infer, "--output", str(folder / "two.jsonl")], folder), folder)
    assert codes == [0, 0], said
    codes, said = end_of(start_two(score, folder), folder)
    assert codes == [0, 0], said
    one, two = ([json.loads(line) for line in (folder / name).read_text().splitlines()] for name in ("one.jsonl", "two.jsonl"))
    assert len(one) == len(two) == 12
    for expected, found in zip(one, two, strict=True):
        assert found["prediction"] == expected["prediction"] and found["word"] == expected["word"]
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-4)
    for task, text in scores.items():
        again = json.loads((folder / "whole" / "eval" / f"{task}.json").read_text())
        assert {**again, "time": ""} == {**json.loads(text), "time": ""} and again["rows"] == 12


@pytest.mark.long
def test_weights_spread_over_processes_are_checked_however_they_are_read(world):
    """Fine-tuned in two processes, continued in one: sums made where the parts are hold for whole arrays, and a changed number is named."""
    folder, macros, _ = world
    changes = {"TRAIN_STEPS": 4, "TrainSettings__checkpoint_steps": 2, "TrainSettings__score_tasks": False}
    command = arguments("train", "finetune.gin", macros, MODEL_DIR=str(folder / "tuned"), **changes)
    codes, said = end_of(start_two(command, folder), folder)
    assert codes == [0, 0], said
    meta = json.loads((folder / "tuned" / "checkpoints" / "4" / "meta" / "metadata").read_text())
    kinds = {digest.partition(":")[0] for digest in meta["digests"]["state"].values() if ":" in digest}
    assert kinds == {"sum64"} and len(meta["digests"]["state"]) > 30
    expected = load_trainable(folder / "tuned", "last")[0]
    shutil.rmtree(folder / "tuned" / "checkpoints" / "4")
    assert main(command) == 0  # from step 2, in one process
    for path, array in load_trainable(folder / "tuned", "last")[0].items():
        np.testing.assert_allclose(array, expected[path], atol=1e-5)
    files = [path for path in (folder / "tuned" / "checkpoints" / "4" / "state").rglob("*") if path.parent.name == "d"]
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_trainable(folder / "tuned", "last")


@pytest.mark.slow
def test_two_processes_end_together_and_continue_to_the_same_bank(world):
    """SIGTERM to one: both save and end with EXIT_PREEMPTED. kill -9 of one: both end within 60 s. Then the same bank, bit for bit."""
    folder, _, command = world

    def start_and_wait_for(step: int):
        processes = start_two(command("ended"), folder)
        checkpoints = folder / "ended" / "checkpoints"
        while not any(path.name.isdigit() and int(path.name) >= step for path in checkpoints.glob("*")):
            assert [process.poll() for process in processes] == [None, None], end_of(processes, folder)[1]
            time.sleep(0.02)
        return processes

    processes = start_and_wait_for(4)
    processes[1].terminate()
    codes, said = end_of(processes, folder)
    assert codes == [EXIT_PREEMPTED, EXIT_PREEMPTED], said
    assert said.count("asked to end: the checkpoint of step") == 1

    saved = max(int(path.name) for path in (folder / "ended" / "checkpoints").iterdir() if path.name.isdigit())
    assert saved < 32, "the run came too far before it was ended: lengthen it"
    processes = start_and_wait_for(saved + 1)
    processes[1].kill()
    killed = time.monotonic()
    codes, said = end_of(processes, folder)
    assert time.monotonic() - killed < 60
    assert codes[1] == -signal.SIGKILL and codes[0] in (EXIT_PEER_LOST, -signal.SIGABRT), said
    assert "another process of this run is gone" in said or "another task died" in said

    codes, said = end_of(start_two(command("ended"), folder), folder)
    assert codes == [0, 0] and "continuing from the checkpoint of step" in said, said
    expected, found = (load_trainable(folder / name, "last")[0] for name in ("whole", "ended"))
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_the_hook_of_errors_names_a_lost_peer(capsys, monkeypatch):
    codes = []
    monkeypatch.setattr(distributed, "leave", codes.append)
    distributed._leave_on_error(ValueError, ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), None)
    assert codes == [EXIT_PEER_LOST] and "another process of this run is gone (UNKNOWN: Gloo" in capsys.readouterr().err
    distributed._leave_on_error(KeyError, KeyError("peer"), None)
    assert codes == [EXIT_PEER_LOST, 1] and "KeyError" in capsys.readouterr().err


def test_being_told_to_end_is_not_passed_over_where_exceptions_are():
    """JAX looks for plugins under `except Exception`, and a signal may come right there."""
    with pytest.raises(Preempted), distributed.Preemption():
        with contextlib.suppress(Exception):
            signal.raise_signal(signal.SIGTERM)
