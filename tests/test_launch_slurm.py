"""The Slurm launcher against a stand-in that runs the batch script for real."""

import argparse
import os
import re
import signal
import subprocess
import time

import pytest
from mpt_jax.launch import limits
from mpt_jax.launch.__main__ import main
from stand_ins import StandIn

# what takes the place of the interpreter: tells what it got, then does as the file "plan" says at its start
PROGRAM = """#!/bin/bash
restart=${{SLURM_RESTART_COUNT:-0}}
echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS, $NAME, restart $restart: $*"
{body}
"""
SAVES = """trap 'sleep 0.3; echo saved; exit 83' TERM; echo '["ready"]' >>"$(dirname "$0")/calls.jsonl"; sleep 20 & wait"""


def slurm(folder, body: str, **scenario) -> tuple[StandIn, list[str]]:
    stand_in = StandIn(folder, "fake_slurm.py", ("sbatch", "srun", "scontrol", "scancel", "squeue", "sacct"), scenario)
    program = folder / "python"
    program.write_text(PROGRAM.format(body=body))
    program.chmod(0o755)
    options = ["--target", "slurm", "--nodes", "2", "--poll_s", "0.05", "--folder", str(folder), "--python", str(program)]
    return stand_in, [*options, "--env", "NAME=a b", "--partition", "gpu", "--", "train", "--gin_file=source.gin"]


def given(arguments: list[str], *more: str) -> list[str]:
    """The arguments with options more."""
    place = arguments.index("--")
    return [*arguments[:place], *more, *arguments[place:]]


def wait_until_gone(stand_in: StandIn) -> None:
    deadline = time.monotonic() + 20
    while stand_in.left():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def names(stand_in: StandIn) -> list[str]:
    calls = [call for call in stand_in.calls if call[1:2] != ["show"] and call != ["ready"]]
    return [call[0] if call[0] != "scontrol" else call[1] for call in calls]


def test_success(tmp_path):
    stand_in, arguments = slurm(tmp_path, "sleep 0.3; echo done")
    code, output, said = stand_in.run(*arguments)
    assert code == 0 and names(stand_in) == ["sbatch", "srun"] and stand_in.left() == []
    for process in (0, 1):
        assert f"process {process} of 2 at node1:20007, a b, restart 0: -u -m mpt_jax train --gin_file=source.gin" in output
    assert output.count("done") == 2 and "job 7: RUNNING" in said and "job 7: COMPLETED" in said
    script = next(tmp_path.glob("*.sbatch")).read_text()
    wanted = ["nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "signal=B:USR1@120", "partition=gpu", "requeue", "open-mode=append"]
    assert all(f"#SBATCH --{line}\n" in script for line in wanted) and "--account" not in script


def test_a_failure_gives_its_code_and_is_not_started_again(tmp_path):
    stand_in, arguments = slurm(tmp_path, "[ $JAX_PROCESS_ID = 1 ] && exit 2; sleep 20")
    assert stand_in.run(*arguments)[0] in (2, 137)  # srun gives the highest: that of the task it ended
    assert names(stand_in) == ["sbatch", "srun"] and stand_in.left() == []


def test_told_to_end_it_saves_and_is_queued_again(tmp_path):
    stand_in, arguments = slurm(tmp_path, f"[ $restart = 1 ] && {{ echo continued; exit 0; }}; {SAVES}", limit_s=2.0)
    code, output, _ = stand_in.run(*arguments)
    assert code == 0 and names(stand_in) == ["sbatch", "srun", "requeue", "srun"] and stand_in.left() == []
    assert output.count("saved") == 2 and output.count("continued") == 2


def test_restarts_have_an_end(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 83")
    assert stand_in.run(*given(arguments, "--max_restarts", "1"))[0] == 83
    assert names(stand_in) == ["sbatch", "srun", "requeue", "srun"] and stand_in.left() == []


def test_after_its_total_hours_a_job_is_not_started_again(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 83")
    code, output, _ = stand_in.run(*given(arguments, "--total_hours", "0"))
    assert code == 83 and names(stand_in) == ["sbatch", "srun"] and "--total_hours 0 are used up" in output


def test_total_hours_of_0_end_before_any_clock_reads_more(monkeypatch):
    """A script asks for whole seconds: a limit rounded up would leave half a second for another start."""
    monkeypatch.setattr(limits.time, "time", lambda: 1000.9)
    assert limits.last_start(argparse.Namespace(total_hours=0.0)) == 1000
    assert limits.last_start(argparse.Namespace(total_hours=1.0)) == 4600


@pytest.mark.parametrize("options, restarts, starts", [(["--total_hours", "0"], 1, 0), (["--max_restarts", "2"], 3, 0), ([], 3, 1)])
def test_a_job_that_slurm_queued_again_itself_has_the_same_limits(tmp_path, options, restarts, starts):
    stand_in, arguments = slurm(tmp_path, "exit 0")
    _, script, _ = stand_in.run("--dry_run", *given(arguments, *options))
    told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": str(restarts)}
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    script = script.partition("\nsbatch ")[0]
    done = subprocess.run(["bash", "-c", script], env={**os.environ, **told, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if starts else 83) and names(stand_in).count("srun") == starts
    assert ("are used up" in done.stdout) != bool(starts)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_cancels_and_the_job_does_not_come_back(tmp_path, number, code):
    """Slurm takes a request to queue a cancelled job again while its processes save."""
    stand_in, arguments = slurm(tmp_path, SAVES)
    ended, _, said = stand_in.interrupt("ready", *arguments, number=number)
    assert ended == code and "job 7 cancelled" in said and "Traceback" not in said
    wait_until_gone(stand_in)
    assert names(stand_in) == ["sbatch", "srun", "scancel"]
    log = next(tmp_path.glob("*.log")).read_text()
    assert "saved" in log and "not queued again: Slurm is ending this job (JobState=COMPLETING)" in log


def test_stop_waits_for_what_a_cancelled_job_saves(tmp_path):
    stand_in, arguments = slurm(tmp_path, SAVES.replace("0.3", "0.7"))
    assert stand_in.run(*given(arguments, "--detach", "--name", "run"))[0] == 0
    deadline = time.monotonic() + 20
    while stand_in.calls.count(["ready"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    code, _, said = stand_in.run("stop", "run", "--target", "slurm", "--poll_s", "0.05")
    assert code == 0 and "nothing is left" in said and stand_in.left() == []
    assert names(stand_in).count("scancel") == 1 and names(stand_in).count("squeue") > 2 and "requeue" not in names(stand_in)


def test_an_element_that_is_preempted_starts_again_alone(tmp_path):
    """The first one, whose number is that of the whole array."""
    stand_in, arguments = slurm(tmp_path, "[ $restart$SLURM_ARRAY_TASK_ID = 00 ] && exit 83; exit 0")
    sweep = ["--detach", "--name", "run", "--sweep", "SEED=1,2,3"]
    code, _, said = stand_in.run(*given(arguments, *sweep), "--model_dir=runs/a")
    assert code == 0, said
    wait_until_gone(stand_in)
    assert names(stand_in) == ["sbatch", "srun", "requeue", "srun", "srun", "srun"]
    assert ["scontrol", "requeue", "7_0"] in stand_in.calls
    counts = [path.read_text().count("process ") for path in sorted(tmp_path.glob("run-*.log"))]
    assert counts == [4, 2, 2]  # two processes each


def test_a_folder_of_any_name_holds_script_and_log(tmp_path):
    folder = tmp_path / "my runs #1, 50%a"
    folder.mkdir()
    stand_in, arguments = slurm(tmp_path, "echo done")
    arguments[arguments.index("--folder") + 1] = str(folder)
    code, output, _ = stand_in.run(*arguments)
    assert code == 0 and output.count("done") == 2 and len(list(folder.glob("mpt-*.log"))) == 1


@pytest.mark.parametrize(
    "more, message",
    [
        (["--name", "my run"], "--name 'my run': it takes letters, digits"),
        (["--name", "a,b"], "--name 'a,b': it takes letters, digits"),
        (["--partition", 'g"pu'], "sbatch takes no backslash, quotation mark"),
        (["--folder", "a\\b"], "--folder .*: sbatch takes no backslash"),
        (["--total_hours", "nan"], "--total_hours nan: it takes 0"),
    ],
)
def test_what_sbatch_cannot_be_told_is_refused(capsys, more, message):
    assert main(["--target", "slurm", "--dry_run", *more, "--", "train"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_refusals(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 0", refused="Batch job submission failed: Invalid partition name specified")
    code, _, said = stand_in.run(*arguments)
    assert code == 2 and "Invalid partition" in said and stand_in.left() == []
    code, _, said = stand_in.run("--target", "slurm", "--type", "tpu", "--", "train")
    assert code == 2 and "known: a100x8" in said


def test_a_silent_controller_is_asked_again(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 0", silent=[True, True, False])
    assert stand_in.run(*arguments)[0] == 0


def test_dry_run(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 0")
    code, output, _ = stand_in.run("--dry_run", *arguments)
    assert code == 0 and stand_in.calls == [] and list(tmp_path.glob("*.sbatch")) == []
    assert "#SBATCH --nodes=2" in output and "export NAME='a b'" in output
    assert "#SBATCH --cpus-per-task=16" in output and "srun --cpus-per-task=16 " in output  # srun does not take the job's
