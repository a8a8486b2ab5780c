"""Whole commands that are stopped, killed or started twice: what others are told, how they end, what they leave."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_world import arguments, start, write_world

from mpt_jax import tasks
from mpt_jax.checkpoint import load_trainable
from mpt_jax.main import main


@pytest.fixture
def world(tmp_path):
    before = dict(tasks.TABLE)
    yield write_world(tmp_path) | {"TASKS": ["vowel"], "TrainSettings.score_tasks": False}
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@contextlib.contextmanager
def started(argv: list[str], folder: Path):
    """A command with its output in a file, killed with the block."""
    with (folder / "said.txt").open("w") as log:
        process = start(argv, folder, log=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen, there) -> None:
    deadline = time.monotonic() + 200
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def steps(run: Path) -> list[int]:
    names = [path.name for path in run.glob("checkpoints/*")]
    return sorted(int(name) for name in names if name.isdigit())


def test_a_second_training_is_refused_while_eval_goes_on_and_ctrl_c_ends_in_one_line(capsys, world, tmp_path):
    run = tmp_path / "run"
    argv = arguments("train", "teacher.gin", world, MODEL_DIR=str(run), TRAIN_STEPS=100_000, TrainSettings__checkpoint_steps=5)
    with started(argv, tmp_path) as process:
        wait_for(process, lambda: len(steps(run)) > 1)
        before = time.monotonic()
        assert main(argv) == 2
        assert time.monotonic() - before < 10
        assert f"is being trained in by process {process.pid} on " in capsys.readouterr().err
        given = {name: world[name] for name in ("MIXTURE_OR_TASK_MODULE", "CACHE_DIR")}
        assert main(arguments("eval", "", given, MODEL_DIR=str(run))) == 0
        assert main(["report", str(run), "--output", str(tmp_path / "report")]) == 0
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait(100) == 130
    said = (tmp_path / "said.txt").read_text()
    assert "Traceback" not in said and said.count("mpt-jax: interrupted; what was saved stays") == 1
    assert len(steps(run)) == 2 and steps(run) == sorted(int(path.name) for path in (run / "checkpoints").iterdir())
    assert not (run / "training.lock").exists() and load_trainable(run, "last")[0]


ENDS_LATE = """
import atexit, os, signal, sys, time
from mpt_jax import main
def interrupted(*_):
    raise KeyboardInterrupt
def late():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
atexit.register(late)
main.parse_arguments = interrupted
sys.exit(main.main())
"""


def test_ctrl_c_while_libraries_close_ends_the_process_without_a_traceback():
    done = subprocess.run([sys.executable, "-c", ENDS_LATE], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "mpt-jax: interrupted; what was saved stays, the same command continues\n"


LEAVES_A_THREAD = """
import sys, threading
from mpt_jax import commands, distributed, main
from mpt_jax.errors import UserError
distributed.LEAVE_S = 0.5
def wrong(arguments):
    threading.Thread(target=threading.Event().wait).start()
    raise {error}
commands.RUN["tasks"] = wrong
sys.argv = ["mpt-jax", "tasks"]
sys.exit(main.main())
"""


@pytest.mark.parametrize("error, code, said", [("UserError('wrong')", 2, "wrong"), ("KeyboardInterrupt", 130, "interrupted; what")])
def test_a_command_ends_although_a_library_leaves_a_thread_that_waits(error, code, said):
    program = LEAVES_A_THREAD.format(error=error)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code and done.stderr.startswith(f"mpt-jax: {said}") and done.stderr.count("\n") == 1


@pytest.mark.long
def test_of_two_trainings_that_start_at_once_one_runs_and_one_is_refused(world, tmp_path):
    """Twenty times; refused within ten seconds of the start of its process."""
    refused_s = []
    for turn in range(20):
        run, logs = tmp_path / f"run{turn}", [tmp_path / f"said{turn}_{number}.txt" for number in range(2)]
        argv = arguments("train", "teacher.gin", world, MODEL_DIR=str(run), TRAIN_STEPS=100_000, TrainSettings__checkpoint_steps=5)
        began, processes = time.monotonic(), []
        try:
            for path in logs:
                with path.open("w") as log:
                    processes.append(start(argv, tmp_path, log=log))
            while None not in (codes := [process.poll() for process in processes]) or codes == [None, None]:
                assert codes == [None, None] and time.monotonic() < began + 100, [path.read_text() for path in logs]
                time.sleep(0.01)
            refused_s.append(time.monotonic() - began)
            runs = processes[codes.index(None)]
            assert sorted(codes, key=str) == [2, None]
            assert f"is being trained in by process {runs.pid} on " in logs[1 - codes.index(None)].read_text()
            wait_for(runs, lambda run=run: steps(run))
        finally:
            for process in processes:
                process.kill()
                process.wait()
    print(f"refused after {min(refused_s):.1f} .. {max(refused_s):.1f} s")
    assert max(refused_s) < 10


@pytest.mark.slow
def test_a_training_that_is_told_to_end_before_its_first_step_starts_again(world, tmp_path):
    run = tmp_path / "run"
    with started(arguments("train", "teacher.gin", world, MODEL_DIR=str(run)), tmp_path) as process:
        wait_for(process, lambda: (run / "training.lock").exists())
        process.terminate()
        assert process.wait(60) == 83
    assert (tmp_path / "said.txt").read_text() == "mpt-jax: asked to end before the first step; the same command starts again\n"
    assert not run.exists()


@pytest.mark.slow
def test_cached_teachers_that_are_told_to_end_are_left_soon_and_go_on(world, tmp_path):
    """Rows for half a minute; what was computed when SIGTERM came is not computed again, and the run is the one that never stopped."""
    lines = [f'{{"word": "{chr(97 + n % 26)}{n}", "label": {n % 2}}}' for n in range(120_000)]
    (tmp_path / "vowel_train.jsonl").write_text("\n".join(lines) + "\n")
    assert main(arguments("train", "teacher.gin", world, MODEL_DIR=str(tmp_path / "teachers"), TRAIN_STEPS=1)) == 0
    changes = {"TEACHER_DIR": str(tmp_path / "teachers"), "MODEL_DIR": str(tmp_path / "run"), "TRAIN_STEPS": 15_000}
    argv = arguments("train", "source.gin", world, **changes, DistillationSettings__teacher_mode="cached")
    with started(argv, tmp_path) as process:
        wait_for(process, lambda: "rows, " in (tmp_path / "said.txt").read_text())
        process.terminate()
        before = time.monotonic()
        assert process.wait(60) == 83
        assert time.monotonic() - before < 10
    said = (tmp_path / "said.txt").read_text()
    assert "asked to end: outputs of teachers are written for" in said and "Traceback" not in said
    parts = list((tmp_path / "cache" / "teachers").rglob("rows.npy"))
    done = sum(len(np.load(part)) for part in parts)
    assert 0 < done < 120_000
    with started(argv, tmp_path) as process:
        wait_for(process, lambda: "outputs of teachers for" in (tmp_path / "said.txt").read_text())
        assert f"outputs of teachers for {120_000 - done:,} rows" in (tmp_path / "said.txt").read_text()


@pytest.mark.slow
def test_a_run_folder_that_is_deleted_while_it_trains_is_named(world, tmp_path):
    run = tmp_path / "run"
    argv = arguments("train", "teacher.gin", world, MODEL_DIR=str(run), TRAIN_STEPS=100_000, TrainSettings__checkpoint_steps=5)
    with started(argv, tmp_path) as process:
        wait_for(process, lambda: len(steps(run)) > 1)
        run.rename(tmp_path / "moved")
        assert process.wait(200) == 2
    (last,) = [line for line in (tmp_path / "said.txt").read_text().splitlines() if line.startswith("mpt-jax: ")]
    assert "could not be written" in last and "the folder is gone" in last
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
