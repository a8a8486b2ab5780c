"""The local launcher with real processes: environment, one log, the first failure, signals, restarts, its own end (launched.py)."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mpt_jax.launch.__main__ import main as launch
from mpt_jax.launch.__main__ import parse
from mpt_jax.launch.calls import LaunchError
from mpt_jax.launch.local import environment
from stand_ins import ROOT
from tiny_world import arguments, write_world

from mpt_jax.checkpoint import load_trainable
from mpt_jax.main import main

# takes the place of mpt_jax in the processes: its own folder is first on their path
PACKAGE = """
import os, sys, time, signal, pathlib
process, folder = int(os.environ["JAX_PROCESS_ID"]), pathlib.Path(sys.argv[1])
def wait(saves):
    if saves:
        signal.signal(signal.SIGTERM, lambda *_: (print("saved"), sys.exit(83)))
        signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    (folder / f"ready{process}").touch()
    print("ready")
    time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher over two processes that run the given code."""

    def start(code: str, *options: str) -> subprocess.Popen:
        (tmp_path / "mpt_jax").mkdir()
        (tmp_path / "mpt_jax" / "__init__.py").touch()
        for path in (ROOT / "mpt_jax").glob("[a-z]*.py"):
            (tmp_path / "mpt_jax" / path.name).symlink_to(path)
        (tmp_path / "mpt_jax" / "__main__.py").write_text(PACKAGE + code)
        (tmp_path / "mpt_jax" / "launch").symlink_to(ROOT / "launch")
        (tmp_path / "gin").symlink_to(ROOT / "gin")
        argv = [sys.executable, "-m", "mpt_jax.launch", "--target", "local", "--grace_s", "1", *options, "--", str(tmp_path)]
        return subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def ready(folder, processes: int = 2) -> None:
    deadline = time.monotonic() + 30
    while not all((folder / f"ready{i}").exists() for i in range(processes)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_environment_of_processes(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_some_flag")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def parsed(*more):
        return parse(["--target", "local", "--processes", "2", "--devices_per_process", "4", *more, "--", "tasks"])[0]

    first = environment(parsed(), 1, 99)
    assert first["XLA_FLAGS"] == "--xla_some_flag --xla_force_host_platform_device_count=4" and first["JAX_PLATFORMS"] == "cpu"
    assert first["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:99" and first["JAX_NUM_PROCESSES"] == "2" and first["JAX_PROCESS_ID"] == "1"
    gpus = environment(parsed("--platform", "gpu"), 1, 99)
    assert gpus["CUDA_VISIBLE_DEVICES"] == "4,5,6,7" and "JAX_PLATFORMS" not in gpus


def test_gpus_that_the_variable_names_are_shared_out(monkeypatch):
    parsed = parse(["--target", "local", "--platform", "gpu", "--processes", "2", "--", "tasks"])[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, GPU-a1")
    assert [environment(parsed, number, 99)["CUDA_VISIBLE_DEVICES"] for number in range(2)] == ["6", "GPU-a1"]
    for given in ("6", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        with pytest.raises(LaunchError, match=f"'{given}' names {len(given)} GPUs, and the processes take 2"):
            environment(parsed, 0, 99)


def test_one_log_with_a_prefix(start):
    process = start("print('one'); print('two', file=sys.stderr); print('three', end='')")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == sorted(f"[{i}] {word}" for i in (0, 1) for word in ("one", "two", "three"))


def test_the_first_failure_ends_all_with_its_code(start, tmp_path):
    process = start("wait(False) if process == 0 else (time.sleep(0.5), sys.exit(7))")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 7 and "process 1 ended with code 7; ending the others" in said


def test_a_killed_process_ends_all_even_one_that_does_not_listen(start, tmp_path):
    code = "(folder / f'pid{process}').write_text(str(os.getpid())); signal.signal(signal.SIGTERM, signal.SIG_IGN); wait(False)"
    process = start(code)
    ready(tmp_path)
    os.kill(int((tmp_path / "pid0").read_text()), signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == 137
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid1").read_text()), 0)


def test_processes_end_with_a_launcher_that_is_killed(start, tmp_path):
    """They are told as by SIGTERM, so training saves first; their output goes nowhere by then."""
    code = """
from mpt_jax.launched import end_with_launcher
end_with_launcher()
(folder / f"pid{process}").write_text(str(os.getpid()))
signal.signal(signal.SIGTERM, lambda *_: ((folder / f"saved{process}").touch(), os._exit(83)))
(folder / f"ready{process}").touch()
time.sleep(60)
"""
    process = start(code)
    ready(tmp_path)
    process.kill()
    deadline = time.monotonic() + 20
    while not all((tmp_path / f"saved{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_command_ends_with_its_launcher():
    """Also those that use no devices."""
    environment = {**os.environ, "MPT_LAUNCHER_PID": "1"}  # not its parent
    done = subprocess.run([sys.executable, "-m", "mpt_jax", "tasks"], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGTERM and done.stdout == b""


def test_a_command_that_a_cluster_starts_too_late_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("MPT_LAST_START", "86400")
    assert main(["tasks"]) == 2
    assert "MPT_LAST_START = 86400: this job was to start before 1970-01-02 00:00 UTC" in capsys.readouterr().err


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 83)])
def test_signals_are_passed_on(start, tmp_path, number, code):
    process = start("wait(True)", "--max_restarts", "3")
    ready(tmp_path)
    process.send_signal(number)
    output, said = process.communicate(timeout=30)
    assert process.returncode == code and "passing it on" in said
    assert output.count("saved") == (2 if number == signal.SIGTERM else 0) and output.count("ready") == 2


def test_preempted_processes_are_started_again(start, tmp_path):
    code = """
if (folder / "second").exists():
    print("continued"); sys.exit(0)
if process == 0:
    while not (folder / "ready1").exists(): time.sleep(0.02)
    (folder / "second").touch(); sys.exit(83)
wait(True)
"""
    process = start(code, "--max_restarts", "1")
    output, said = process.communicate(timeout=30)
    assert process.returncode == 0 and output.count("continued") == 2 and output.count("saved") == 1
    assert "preempted in start 1 of at most 2" in said


@pytest.mark.parametrize("first", [83, 84])
def test_a_failure_is_worse_than_being_preempted_or_losing_a_peer(start, first):
    code = """
if process == 0:
    while not (folder / "ready1").exists(): time.sleep(0.02)
    sys.exit(FIRST)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
(folder / "ready1").touch(); time.sleep(60)
"""
    process = start(code.replace("FIRST", str(first)), "--max_restarts", "1")
    process.communicate(timeout=30)
    assert process.returncode == 5


def test_no_command_and_bad_numbers(capsys):
    assert launch(["--target", "local"]) == 2 and launch(["--target", "local", "--processes", "0", "--", "tasks"]) == 2
    said = capsys.readouterr().err
    assert "no command; give it after --" in said and "--processes 0" in said


def test_the_launcher_imports_no_jax():
    code = "import sys, launch.__main__; sys.exit(bool({'jax', 'numpy', 'gin'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_the_real_command_in_two_processes():
    argv = [sys.executable, "-m", "mpt_jax.launch", "--target", "local", "--devices_per_process", "2", "--", "tasks", "no_such_task"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no_such_task" in done.stdout and "mpt-jax: " in done.stdout


@pytest.mark.long
def test_training_that_is_told_to_end_continues_to_what_one_process_trains(tmp_path, table):
    """The launcher passes SIGTERM on, both processes save, the launcher ends with 83; started again it finishes: 1e-5, float32."""
    world = write_world(tmp_path) | {"TASKS": ["vowel"], "LEARNING_RATE": 0.02, "TrainSettings.score_tasks": False}
    steps = {"TRAIN_STEPS": 60, "TrainSettings__checkpoint_steps": 4}
    assert main(arguments("train", "teacher.gin", world, MODEL_DIR=str(tmp_path / "alone"), **steps)) == 0
    mesh = {"MESH_FSDP": 2, "MESH_TENSOR": 2}
    command = arguments("train", "teacher.gin", world, MODEL_DIR=str(tmp_path / "two"), **steps, **mesh)
    options = ["--target", "local", "--processes", "2", "--devices_per_process", "4", "--grace_s", "150"]
    launcher = ["-m", "mpt_jax.launch", *options, "--", *command]
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start():
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *launcher], cwd=ROOT, env={**os.environ, **compiled}, text=True, **pipes)

    process, deadline = start(), time.monotonic() + 240
    checkpoints = tmp_path / "two" / "checkpoints"
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 83 and output.count("asked to end") == 1, output
    process = start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "[0] continuing from the checkpoint of step" in output and "[1] continuing" not in output
    expected, found = (load_trainable(tmp_path / name, "last")[0] for name in ("alone", "two"))
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-5)
