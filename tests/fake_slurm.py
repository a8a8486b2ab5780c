"""Stand-in for Slurm: sbatch runs the script for real on this machine, srun starts a task a node, a job that asks is queued again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from stand_ins import following, opened

JOB, NODES = "7", 2


def write(path: Path, text: str) -> None:
    """So that a reader sees the old text or the new one."""
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


def batch(folder: Path, script: Path, limit_s: float) -> None:
    """Runs the script, signals it before its time is over, and runs it again as often as it asked for."""
    text = script.read_text()
    log = Path(re.search(r"--output=(.*)", text)[1])
    state, restarts, code = folder / "state", 0, 0
    array = re.search(r"--array=0-(\d+)", text)
    waiting = list(range(1, int(array[1]) + 1)) if array else []  # one after the other
    index = 0
    while True:
        write(state, "RUNNING 0:0")
        slurm = {"SLURM_ARRAY_TASK_ID": str(index)} if array else {}
        slurm |= {"SLURM_JOB_ID": JOB, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": str(NODES), "SLURM_RESTART_COUNT": str(restarts)}
        with Path(str(log).replace("%a", str(index))).open("ab") as output:
            job = subprocess.Popen(
                ["bash", str(script)], env={**os.environ, **slurm}, stdout=output, stderr=output, start_new_session=True
            )  # fmt: skip
        (folder / "job.pid").write_text(str(job.pid))
        started, signalled = time.monotonic(), False
        while job.poll() is None and not (folder / "requeued").exists() and not (folder / "cancelled").exists():
            time.sleep(0.02)
            if limit_s and not signalled and time.monotonic() - started > limit_s:
                signalled = True
                job.send_signal(signal.SIGTERM)  # --signal=B:TERM: the script alone
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
        code = job.wait()
        if (folder / "cancelled").exists():
            write(state, "CANCELLED 0:15")
            break
        if not (folder / "requeued").exists() and waiting:
            index = waiting.pop(0)
            continue
        if not (folder / "requeued").exists():
            write(state, f"{'FAILED' if code else 'COMPLETED'} {code}:0")
            break
        (folder / "requeued").unlink()
        write(state, "PENDING 0:0")
        restarts, limit_s = restarts + 1, 0
    (folder / f"job{JOB}.resource").unlink()


def srun(arguments: list[str]) -> int:
    """A task for each node; SIGTERM goes on to them; once one has ended the others have --wait; the highest code."""
    command = arguments[next(i for i, argument in enumerate(arguments) if not argument.startswith("--")) :]
    tasks = [subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(i)}) for i in range(NODES)]
    signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
    wait_s = 0.01 * int(re.search(r"--wait=(\d+)", " ".join(arguments))[1])  # a hundredth of the real time
    while all(task.poll() is None for task in tasks):
        time.sleep(0.02)
    end = time.monotonic() + wait_s
    while time.monotonic() < end and any(task.poll() is None for task in tasks):
        time.sleep(0.02)
    for task in tasks:
        if task.poll() is None:
            task.kill()
            task.wait()
    return max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks)


folder, scenario, program, arguments = opened()
if program == "sbatch":
    if "refused" in scenario:
        print(f"sbatch: error: {scenario['refused']}", file=sys.stderr)
        sys.exit(1)
    text = Path(arguments[1]).read_text()
    assert re.search(r"#SBATCH --time=[1-9]\d*\n", text), "nothing would end it"
    write(folder / "state", "PENDING 0:0")
    (folder / f"job{JOB}.resource").write_text(re.search(r"--job-name=(.*)", text)[1])
    if os.fork() == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        batch(folder, Path(arguments[1]), scenario.get("limit_s", 0))
        sys.exit(0)
    print(f"{JOB};cluster")
elif program == "srun":
    sys.exit(srun(arguments))
elif program == "scancel":
    if not (folder / "cancelled").exists():
        (folder / "cancelled").touch()
    while (folder / f"job{JOB}.resource").exists():
        time.sleep(0.02)
elif program == "squeue":
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    resource = folder / f"job{JOB}.resource"
    cancelled = folder / "cancelled"
    lingers = cancelled.exists() and time.time() - cancelled.stat().st_mtime < scenario.get("lingers_s", 0)
    if lingers or (resource.exists() and resource.read_text() == flags["name"]):
        print(JOB, "RUNNING" if lingers else (folder / "state").read_text().split()[0])
elif program == "sacct":
    state, code = (folder / "state").read_text().split()
    print(f"{JOB}|{state}|{code}")
elif arguments[0] == "requeue":
    (folder / "requeued").touch()
elif arguments[:2] == ["show", "hostnames"]:
    os.write(1, b"node1\nnode2\n")
elif following(folder, "questions", scenario.get("silent", [False])):
    print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
    sys.exit(1)
else:
    state, code = (folder / "state").read_text().split()
    print(f"JobId={JOB} JobName=mpt_jax JobState={state} Reason=None Requeue=1 Restarts=0 ExitCode={code} RunTime=00:00:01")
