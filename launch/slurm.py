"""Slurm: writes a batch script for hosts with GPUs, submits it, follows its log.

One process a node takes all its GPUs. Before the time limit Slurm sends the script USR1; where it preempts a job with a grace time it sends
the processes TERM. The command saves and ends with EXIT_PREEMPTED, and the script puts the job back into the queue. It never does so once
Slurm is ending the job: a cancelled one would come back, and one that is preempted without a grace time Slurm itself queues again.
Where one process ends, the others have a minute to end themselves, so that their exit codes tell a preemption from a failure.
A sweep is one job array. Options: slurm.schedmd.com/sbatch.html, srun.html, scontrol.html, preempt.html.
"""

import argparse
import re
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.launch.calls import EXIT_LEFT_BEHIND, LaunchError, Stopped, ask, say, show, signals_wait, variables
from mpt_jax.launch.limits import add_limit, add_total, last_start, seconds
from mpt_jax.launch.machines import gpu_host
from mpt_jax.launch.sweeps import Job

from mpt_jax.errors import EXIT_PREEMPTED

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}
QUESTIONS = 5  # in a row that scontrol may leave unanswered
STOP_QUESTIONS = 60  # until a cancelled job is gone: it may save for as long as Slurm's KillWait lets it [ours]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PLAIN = re.compile(r"[A-Za-z0-9_./:,@%+=-]+")  # what sbatch takes without quotation marks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target."""
    parser.add_argument("--type", default="h100x8", help="kind of host, see launch/machines.py (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="hosts (default: %(default)s)")
    add_limit(parser)
    add_total(parser)
    parser.add_argument("--partition", default="", help="Slurm partition")
    parser.add_argument("--account", default="", help="Slurm account")
    parser.add_argument("--cpus_per_task", type=int, default=16, help="CPU cores of a process (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with mpt_jax, seen by all nodes (default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated")
    parser.add_argument("--name", default="", help="job name (default: made up, unique)")
    parser.add_argument("--max_restarts", type=int, default=20, help="starts again after preemptions (default: %(default)s)")
    parser.add_argument("--poll_s", type=float, default=5.0, help="seconds between questions about the state (default: %(default)s)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options that say where a job is, for launching and for status, logs and stop."""
    parser.add_argument("--folder", default=".", help="shared folder for script and log (default: %(default)s)")


SCRIPT = """#!/bin/bash
{directives}
set -u
asked=0
step=0
end() {{ [ "$step" -eq 0 ] || kill -TERM "$step" 2>/dev/null; }}
trap 'asked=1; end' USR1
trap end TERM
export JAX_COORDINATOR_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"
{exports}
{commands}
# of an element: its SLURM_JOB_ID may be the number of the whole array
job="${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}"
restarts="${{SLURM_RESTART_COUNT:-0}}"
may_start() {{  # so many restarts
  [ "$1" -le {max_restarts} ] && [ "$(date +%s)" -lt {last_start} ] && return
  echo "launch: not started again: --max_restarts {max_restarts} or --total_hours {total_hours} are used up"
  return 1
}}
if [ "$restarts" -gt 0 ]; then  # Slurm itself may have queued it again
  may_start "$restarts" || exit {preempted}
fi
srun {cores}--kill-on-bad-exit=0 --wait=60 bash -c 'export JAX_PROCESS_ID="$SLURM_PROCID"; exec "$@"' mpt_jax "${{command[@]}}" &
step=$!
[ "$asked" -eq 0 ] || end
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done
if [ "$code" -eq {preempted} ] || {{ [ "$asked" -eq 1 ] && [ "$code" -ne 0 ]; }}; then
  code={preempted}
  state="$(scontrol show job --oneliner "$job" | grep -o 'JobState=[A-Z_]*')"
  case "$state" in
  JobState=RUNNING | JobState=SIGNALING)
    may_start "$((restarts + 1))" && scontrol requeue "$job" && sleep 60 ;;
  *) echo "launch: not queued again: Slurm is ending this job (${{state:-no answer from scontrol}})" ;;
  esac
fi
exit "$code"
"""


def _directive(option: str, value: object, flag: str) -> str:
    """A line that sbatch reads: it splits at blanks, takes # for a comment and obeys quotes. Raises LaunchError for what it cannot say."""
    text = str(value)
    if not text.isprintable() or set(text) & set('\\"'):
        raise LaunchError(f"--{flag} {text!r}: sbatch takes no backslash, quotation mark or line break in it; give another one.")
    return f"#SBATCH --{option}={text}" if PLAIN.fullmatch(text) else f'#SBATCH --{option}="{text}"'


def batch_script(arguments: argparse.Namespace, name: str, commands: Sequence[Sequence[str]], log: Path) -> str:
    """The text for sbatch: a job, or a job array of several commands. log: the path of its log, without `.log` or `-NUMBER.log`."""
    minutes = -(-seconds(arguments) // 60)
    options = {
        "job-name": name,
        "nodes": arguments.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpu_host(arguments.type).gpus,
        "cpus-per-task": arguments.cpus_per_task,
        "time": minutes,
        "partition": arguments.partition,
        "account": arguments.account,
        "signal": "B:USR1@120",
        "array": f"0-{len(commands) - 1}" if len(commands) > 1 else "",
        "output": str(log).replace("%", "%%") + ("-%a.log" if len(commands) > 1 else ".log"),
        "open-mode": "append",
    }
    flags = {"output": "folder"}
    directives = [_directive(option, value, flags.get(option, option)) for option, value in options.items() if value]
    lines = [show([arguments.python, "-u", "-m", "mpt_jax", *command]) for command in commands]
    cases = "\n".join(f"{number}) command=({line}) ;;" for number, line in enumerate(lines))
    return SCRIPT.format(
        directives="\n".join([*directives, "#SBATCH --requeue"]),
        exports="\n".join(f"export {variable}={shlex.quote(value)}" for variable, value in variables(arguments.env)),
        commands=f'case "$SLURM_ARRAY_TASK_ID" in\n{cases}\nesac' if len(lines) > 1 else f"command=({lines[0]})",
        cores=f"--cpus-per-task={arguments.cpus_per_task} " if arguments.cpus_per_task else "",  # srun does not take the job's [its manual]
        preempted=EXIT_PREEMPTED,
        max_restarts=arguments.max_restarts,
        last_start=last_start(arguments),
        total_hours=f"{arguments.total_hours:g}",
    )


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Submits the job and follows it. Returns the command's exit code, or EXIT_PREEMPTED after the last restart."""
    return _submit(arguments, [command])


def launch_sweep(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Submits the jobs of a sweep as one array."""
    return _submit(arguments, [job.command for job in jobs])


def _submit(arguments: argparse.Namespace, commands: Sequence[Sequence[str]]) -> int:
    folder = Path(arguments.folder).absolute()
    name = arguments.name or f"mpt-{secrets.token_hex(3)}"
    if not NAME.fullmatch(name):
        raise LaunchError(f"--name {name!r}: it takes letters, digits, '.', '_' and '-', a letter or digit first.")
    stem = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    script, log = Path(f"{stem}.sbatch"), Path(f"{stem}-*.log" if len(commands) > 1 else f"{stem}.log")
    text = batch_script(arguments, name, commands, stem)
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
        if not arguments.detach:
            return _follow(job, log, arguments.poll_s)
    except Stopped as stopped:
        return _cancel(job, stopped)
    say(f"python -m mpt_jax.launch status|logs|stop {name} --target slurm --folder {shlex.quote(str(folder))}")
    return 0


def _jobs_called(name: str) -> list[list[str]]:
    """[id, state] of the user's jobs of a name that are not over. Raises LaunchError where Slurm does not answer."""
    found = ask(["squeue", "--me", "--noheader", f"--name={name}", "--format=%i %T"])
    if found.code:
        raise LaunchError(f"squeue: {found.last_lines}")
    return [line.split() for line in found.stdout.splitlines() if line.strip()]


def status(arguments: argparse.Namespace) -> int:
    """Prints the state of each job of that name; of those that are over as far as Slurm's accounting tells."""
    lines = [f"{arguments.name}: job {job} {state}" for job, state in _jobs_called(arguments.name)]
    if not lines:
        over = ask(["sacct", "--noheader", "--parsable2", "--allocations", f"--name={arguments.name}", "--format=JobID,State,ExitCode"])
        rows = [line.split("|") for line in over.stdout.splitlines() if line.count("|") == 2] if over.code == 0 else []
        lines = [f"{arguments.name}: job {job} {state}; exit code {code}" for job, state, code in rows]
    print("\n".join(lines) or f"{arguments.name}: not there")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Prints the newest logs of that name in --folder: one, or those of an array."""
    named = re.compile(rf"{re.escape(arguments.name)}-(\d{{8}}-\d{{6}})(-\d+)?\.log")
    folder = Path(arguments.folder)
    found = [(match[1], path) for path in (folder.iterdir() if folder.is_dir() else ()) if (match := named.fullmatch(path.name))]
    if not found:
        raise LaunchError(f"no log of {arguments.name} in --folder {arguments.folder}: it has not started, or its folder is another one.")
    newest = max(moment for moment, _ in found)
    for _, path in sorted(each for each in found if each[0] == newest):
        _print_from(path, 0)
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Cancels all jobs of that name, and asks until none is left, those included that are still ending."""
    found: list[list[str]] = []
    for attempt in range(STOP_QUESTIONS):
        if attempt > 1:
            time.sleep(arguments.poll_s)  # Slurm lists a job for a while after it was cancelled
        found = _jobs_called(arguments.name)
        if not found:
            say(f"{arguments.name}: nothing is left")
            return 0
        jobs = [job for job, state in found if state != "COMPLETING"]
        cancelled = ask(["scancel", *jobs]) if jobs else None
        if cancelled and cancelled.code:
            say(cancelled.last_lines)
    states = ", ".join(f"job {job} {state}" for job, state in found)
    say(f"{arguments.name} IS STILL THERE ({states}). Cancel it: {show(['scancel', *(job for job, _ in found)])}")
    return EXIT_LEFT_BEHIND


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
    found = re.search(r"\bExitCode=(\d+):(\d+)", answer.stdout)
    code, number = (int(found[1]), int(found[2])) if found else (0, 0)
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
