"""Stand-in for Slurm: sbatch runs the script for real on this machine, srun starts a task a node, a job that asks is queued again.

It ends jobs as Slurm does (slurmd's _rpc_terminate_job): all processes, the script's too, get SIGCONT and SIGTERM, and SIGKILL after
KillWait. Until they are gone the job is COMPLETING, whatever it comes to, and a request to queue it again is taken: a cancelled one, too.
"""

import os
import re
import shlex
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


def options_of(script: Path) -> dict[str, str]:
    """The directives as sbatch reads them: quotes group, blanks separate, # starts a comment."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    words = [word for line in lines for word in shlex.split(line.removeprefix("#SBATCH "), comments=True)]
    assert all(word.startswith("--") for word in words), words
    return dict(word.removeprefix("--").partition("=")[::2] for word in words)


class Batch:
    """A job, or a job array whose elements run one after the other."""

    def __init__(self, folder: Path, script: Path, scenario: dict):
        self.folder, self.script, self.options = folder, script, options_of(script)
        self.limit_s, self.kill_wait_s = scenario.get("limit_s", 0), scenario.get("kill_wait_s", 1.0)
        array = re.fullmatch(r"0-(\d+)", self.options.get("array", ""))
        self.every: list[int | None] = list(range(int(array[1]) + 1)) if array else [None]
        self.waiting, self.restarts = list(self.every), dict.fromkeys(self.every, 0)

    def run(self) -> None:
        """Runs the script for each element, and again as often as somebody asked for it."""
        while self.waiting and not (self.folder / "cancelled").exists():
            element = self.waiting.pop(0)
            state = self.element(element)
            asked, path = [], self.folder / "requeued"
            if path.exists():
                asked = path.read_text().split()
                path.unlink()
            again = self.every if JOB in asked and element is not None else [element] if asked else []
            for one in again:
                self.restarts[one] += 1
            self.waiting = [*again, *(one for one in self.waiting if one not in again)]
            if again:
                (self.folder / "cancelled").unlink(missing_ok=True)  # the cancelled job is pending again
            write(self.folder / "state", "PENDING 0:0" if self.waiting else state)
        if (self.folder / "cancelled").exists():
            write(self.folder / "state", "CANCELLED 0:15")
        (self.folder / f"job{JOB}.resource").unlink()

    def element(self, element: int | None) -> str:
        """One run of the script: the state in which it ends."""
        slurm = {"SLURM_JOB_ID": JOB if not element else str(int(JOB) + element)}  # that of the array is an element's, too
        slurm |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": str(NODES)}
        slurm |= {"SLURM_RESTART_COUNT": str(self.restarts[element])} if self.restarts[element] else {}
        slurm |= {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(element)} if element is not None else {}
        expanded = {"%%": "%", "%a": str(element), "%j": slurm["SLURM_JOB_ID"]}
        log = re.sub("%.", lambda found: expanded[found[0]], self.options["output"])
        write(self.folder / "state", "RUNNING 0:0")
        with Path(log).open("ab") as output:
            job = subprocess.Popen(
                ["bash", str(self.script)], env={**os.environ, **slurm}, stdout=output, stderr=output, start_new_session=True
            )  # fmt: skip
        started, signalled = time.monotonic(), False
        warning = re.fullmatch(r"B:(\w+)@\d+", self.options["signal"])[1]
        while job.poll() is None and not (self.folder / "requeued").exists() and not (self.folder / "cancelled").exists():
            time.sleep(0.02)
            if self.limit_s and not signalled and time.monotonic() - started > self.limit_s:
                signalled, self.limit_s = True, 0
                job.send_signal(getattr(signal, f"SIG{warning}"))  # --signal=B: the script alone
        if job.poll() is None:
            self.end(job)
        code = job.wait()
        return f"{'FAILED' if code else 'COMPLETED'} {max(code, 0)}:{max(-code, 0)}"

    def end(self, job: subprocess.Popen) -> None:
        """Ends all its processes."""
        write(self.folder / "state", "COMPLETING 0:0")
        os.killpg(job.pid, signal.SIGCONT)
        os.killpg(job.pid, signal.SIGTERM)
        end = time.monotonic() + self.kill_wait_s
        while job.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        try:
            os.killpg(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


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
    options = options_of(Path(arguments[1]))
    assert int(options["time"]) > 0, "nothing would end it"
    write(folder / "state", "PENDING 0:0")
    (folder / f"job{JOB}.resource").write_text(options["job-name"])
    if os.fork() == 0:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        Batch(folder, Path(arguments[1]), scenario).run()
        sys.exit(0)
    print(f"{JOB};cluster")
elif program == "srun":
    sys.exit(srun(arguments))
elif program == "scancel":
    if not (folder / "cancelled").exists():
        (folder / "cancelled").touch()
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
    with (folder / "requeued").open("a") as file:
        file.write(f"{arguments[1]}\n")
elif arguments[:2] == ["show", "hostnames"]:
    os.write(1, b"node1\nnode2\n")
elif following(folder, "questions", scenario.get("silent", [False])):
    print("slurm_load_jobs error: Unable to contact slurm controller", file=sys.stderr)
    sys.exit(1)
else:
    state, code = (folder / "state").read_text().split()
    print(f"JobId={JOB} JobName=mpt_jax JobState={state} Reason=None Requeue=1 Restarts=0 ExitCode={code} RunTime=00:00:01")
