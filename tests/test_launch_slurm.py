"""The Slurm launcher against a stand-in that runs the batch script for real."""

import signal

import pytest
from stand_ins import StandIn

# what takes the place of the interpreter: tells what it got, then does as the file "plan" says at its start
PROGRAM = """#!/bin/bash
echo "process $JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS, $NAME, restart $SLURM_RESTART_COUNT: $*"
{body}
"""


def slurm(folder, body: str, **scenario) -> tuple[StandIn, list[str]]:
    stand_in = StandIn(folder, "fake_slurm.py", ("sbatch", "srun", "scontrol", "scancel", "squeue", "sacct"), scenario)
    program = folder / "python"
    program.write_text(PROGRAM.format(body=body))
    program.chmod(0o755)
    options = ["--target", "slurm", "--nodes", "2", "--poll_s", "0.05", "--folder", str(folder), "--python", str(program)]
    return stand_in, [*options, "--env", "NAME=a b", "--partition", "gpu", "--", "train", "--gin_file=source.gin"]


def names(stand_in: StandIn) -> list[str]:
    return [call[0] if call[0] != "scontrol" else call[1] for call in stand_in.calls if call[1:2] != ["show"]]


def test_success(tmp_path):
    stand_in, arguments = slurm(tmp_path, "sleep 0.3; echo done")
    code, output, said = stand_in.run(*arguments)
    assert code == 0 and names(stand_in) == ["sbatch", "srun"] and stand_in.left() == []
    for process in (0, 1):
        assert f"process {process} of 2 at node1:20007, a b, restart 0: -u -m mpt_jax train --gin_file=source.gin" in output
    assert output.count("done") == 2 and "job 7: RUNNING" in said and "job 7: COMPLETED" in said
    script = next(tmp_path.glob("*.sbatch")).read_text()
    wanted = ["nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "signal=B:TERM@120", "partition=gpu", "requeue", "open-mode=append"]
    assert all(f"#SBATCH --{line}\n" in script for line in wanted) and "--account" not in script


def test_a_failure_gives_its_code_and_is_not_started_again(tmp_path):
    stand_in, arguments = slurm(tmp_path, "[ $JAX_PROCESS_ID = 1 ] && exit 2; sleep 20")
    assert stand_in.run(*arguments)[0] in (2, 137)  # srun gives the highest: that of the task it ended
    assert names(stand_in) == ["sbatch", "srun"] and stand_in.left() == []


def test_told_to_end_it_saves_and_is_queued_again(tmp_path):
    body = "[ $SLURM_RESTART_COUNT = 1 ] && { echo continued; exit 0; }; trap 'echo saved; exit 83' TERM; sleep 20 & wait"
    stand_in, arguments = slurm(tmp_path, body, limit_s=2.0)
    code, output, _ = stand_in.run(*arguments)
    assert code == 0 and names(stand_in) == ["sbatch", "srun", "requeue", "srun"] and stand_in.left() == []
    assert output.count("saved") == 2 and output.count("continued") == 2


def test_restarts_have_an_end(tmp_path):
    stand_in, arguments = slurm(tmp_path, "exit 83")
    place = arguments.index("--")
    assert stand_in.run(*arguments[:place], "--max_restarts", "1", *arguments[place:])[0] == 83
    assert names(stand_in) == ["sbatch", "srun", "requeue", "srun"] and stand_in.left() == []


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_cancels(tmp_path, number, code):
    stand_in, arguments = slurm(tmp_path, "sleep 30")
    ended, _, said = stand_in.interrupt("srun", *arguments, number=number)
    assert ended == code and names(stand_in) == ["sbatch", "srun", "scancel"] and stand_in.left() == []
    assert "job 7 cancelled" in said and "Traceback" not in said


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
