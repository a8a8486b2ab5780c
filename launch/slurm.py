"""Slurm: writes a batch script for hosts with GPUs, submits it, follows its log.

One process a node takes all its GPUs. Before the time limit and when the job is preempted Slurm signals the script, the command saves and
ends with EXIT_PREEMPTED, and the job is put back into the queue. Where one process ends, the others have a minute to end themselves, so
that their exit codes tell a preemption from a failure. Options: slurm.schedmd.com/sbatch.html, srun.html, scontrol.html.
"""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.launch.calls import EXIT_LEFT_BEHIND, LaunchError, Stopped, ask, say, show, signals_wait, variables
from mpt_jax.launch.machines import gpu_host

from mpt_jax.errors import EXIT_PREEMPTED

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
QUESTIONS = 5  # in a row that scontrol may leave unanswered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target."""
    parser.add_argument("--type", default="h100x8", help="kind of host, see launch/machines.py (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="hosts (default: %(default)s)")
    parser.add_argument("--time", default="24:00:00", help="time limit of a start (default: %(default)s)")
    parser.add_argument("--partition", default="", help="Slurm partition")
    parser.add_argument("--account", default="", help="Slurm account")
    parser.add_argument("--cpus_per_task", type=int, default=16, help="CPU cores of a process (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with mpt_jax, seen by all nodes (default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated")
    parser.add_argument("--name", default="mpt_jax", help="job name (default: %(default)s)")
    parser.add_argument("--folder", default=".", help="shared folder for script and log (default: %(default)s)")
    parser.add_argument("--max_restarts", type=int, default=20, help="starts again after preemptions (default: %(default)s)")
    parser.add_argument("--poll_s", type=float, default=5.0, help="seconds between questions about the state (default: %(default)s)")


SCRIPT = """#!/bin/bash
{directives}
set -u
export JAX_COORDINATOR_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"
{exports}
asked=0
srun --kill-on-bad-exit=0 --wait=60 bash -c 'export JAX_PROCESS_ID="$SLURM_PROCID"; exec "$@"' mpt_jax {command} &
step=$!
trap 'asked=1; kill -TERM "$step"' TERM
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
if [ "$code" -eq {preempted} ] || {{ [ "$asked" -eq 1 ] && [ "$code" -ne 0 ]; }}; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
  fi
  code={preempted}
fi
exit "$code"
"""


def batch_script(arguments: argparse.Namespace, command: Sequence[str], log: Path) -> str:
    """The text for sbatch."""
    options = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpu_host(arguments.type).gpus,
        "cpus-per-task": arguments.cpus_per_task,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "signal": "B:TERM@120",
        "output": log,
        "open-mode": "append",
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in options.items() if value] + ["#SBATCH --requeue"]
    return SCRIPT.format(
        directives="\n".join(directives),
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables(arguments.env)),
        command=show([arguments.python, "-u", "-m", "mpt_jax", *command]),
        preempted=EXIT_PREEMPTED,
        max_restarts=arguments.max_restarts,
    )


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Submits the job and follows it. Returns the command's exit code, or EXIT_PREEMPTED after the last restart."""
    folder = Path(arguments.folder).absolute()
    stem = f"{arguments.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    script, log = folder / f"{stem}.sbatch", folder / f"{stem}.log"
    text = batch_script(arguments, command, log)
    submit = ["sbatch", "--parsable", str(script)]
    if arguments.dry_run:
        print(f"# {script}\n{text}")
        for argv in (submit, _describe("JOB"), ["scancel", "JOB"]):
            print(show(argv))
        return 0
    try:
        script.write_text(text)
    except OSError as error:
        raise LaunchError(f"--folder {arguments.folder}: {script.name} cannot be written: {error.strerror}.") from error
    job = ""
    try:
        with signals_wait():
            submitted = ask(submit)
            job = submitted.stdout.strip().partition(";")[0]
        if submitted.code or not job.isdigit():
            raise LaunchError(f"{show(submit)}: {submitted.last_lines}")
        say(f"job {job}, log {log}")
        return _follow(job, log, arguments.poll_s)
    except Stopped as stopped:
        return _cancel(job, stopped)


def _cancel(job: str, stopped: Stopped) -> int:
    """Cancels the job and goes on ending; EXIT_LEFT_BEHIND where that fails."""
    with signals_wait():
        if job:
            cancelled = ask(["scancel", job])
            if cancelled.code:
                say(f"job {job} IS STILL THERE ({cancelled.last_lines}). Cancel it: scancel {job}")
                return EXIT_LEFT_BEHIND
            say(f"job {job} cancelled")
    raise stopped


def _describe(job: str) -> list[str]:
    return ["scontrol", "show", "job", "--oneliner", job]


def _follow(job: str, log: Path, poll_s: float) -> int:
    """Prints the log as it grows until the job has ended; returns its exit code."""
    position, last, unanswered = 0, "", 0
    while True:
        answer = ask(_describe(job))
        position = _print_from(log, position)
        state = re.search(r"\bJobState=(\w+)", answer.stdout)
        unanswered = 0 if state else unanswered + 1
        if unanswered == QUESTIONS:
            raise LaunchError(f"job {job}: scontrol does not tell its state ({answer.last_lines}); the job goes on, scancel {job} ends it.")
        if state and state[1] != last:
            last = state[1]
            say(f"job {job}: {last}")
        if state and last in ENDED:
            break
        time.sleep(poll_s)
    time.sleep(poll_s)  # what other nodes wrote reaches a shared folder late
    _print_from(log, position)
    code, number = map(int, re.search(r"\bExitCode=(\d+):(\d+)", answer.stdout).groups())
    if last == "COMPLETED" or code or number:
        return code or (128 + number if number else 0)
    return EXIT_PREEMPTED if last == "PREEMPTED" else 1


def _print_from(log: Path, position: int) -> int:
    if not log.exists():
        return position
    with log.open("rb") as file:
        file.seek(position)
        new = file.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return position + len(new)
