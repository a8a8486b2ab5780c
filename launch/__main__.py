"""``python -m mpt_jax.launch --target tpu|slurm|k8s|local [options] -- COMMAND …``: the same ``mpt-jax`` command on many hosts.

``python -m mpt_jax.launch status|logs|stop NAME --target tpu|slurm|k8s [options]``: of a job that runs, from any machine.
"""

import argparse
import sys
from collections.abc import Sequence

from mpt_jax.launch import k8s, local, slurm, tpu
from mpt_jax.launch.calls import EXIT_INTERRUPTED, EXIT_USAGE, LaunchError, Stopped, follow, say, show, signals_raise
from mpt_jax.launch.sweeps import Job, jobs_of, report_of

TARGETS = {"local": local, "tpu": tpu, "slurm": slurm, "k8s": k8s}
ELSEWHERE = ("tpu", "slurm", "k8s")  # targets whose jobs live without the launcher
ACTIONS = {"status": "tell the state of a job", "logs": "print its output so far", "stop": "end it, and wait until nothing of it is left"}


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(options of the launcher, the mpt-jax command after ``--``). Raises LaunchError for a missing command."""
    own, command = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    first = argparse.ArgumentParser(prog="python -m mpt_jax.launch", add_help=False, allow_abbrev=False)
    first.add_argument("--target", choices=TARGETS)
    target = first.parse_known_args(own)[0].target
    description = f"{__doc__} {TARGETS[target].__doc__}" if target else f"{__doc__} Options of a target: --target T --help."
    parser = argparse.ArgumentParser(prog="python -m mpt_jax.launch", description=description, allow_abbrev=False)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--dry_run", action="store_true", help="print the commands and files, and run nothing")
    parser.add_argument("--sweep", default="", metavar="TEXT", help="a job for each combination: 'LEARNING_RATE=0.1,0.3 SEED=1,2'")
    if target:
        TARGETS[target].add_arguments(parser)
    if target in ELSEWHERE:
        TARGETS[target].add_place(parser)
        parser.add_argument("--detach", action="store_true", help="return once the job is there; status, logs and stop find it by its name")
    arguments = parser.parse_args(own)
    if not command:
        raise LaunchError("no command; give it after --, for example: -- train source --model_dir runs/source")
    return arguments, command


def act(action: str, argv: Sequence[str]) -> int:
    """status, logs or stop of a job that another launcher made."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--target", choices=ELSEWHERE)
    target = first.parse_known_args(argv)[0].target
    parser = argparse.ArgumentParser(prog=f"python -m mpt_jax.launch {action}", description=ACTIONS[action], allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="of the job, as the launcher printed it")
    parser.add_argument("--target", choices=ELSEWHERE, required=True)
    parser.add_argument("--poll_s", type=float, default=5.0, help="seconds between tries (default: %(default)s)")
    if target:
        TARGETS[target].add_place(parser)
    if target == "tpu":
        parser.add_argument("--model_dir", default="", help="MODEL_DIR of a detached job, to find its log once its slice is gone")
    arguments = parser.parse_args(argv)
    return getattr(TARGETS[target], action)(arguments)


def launch(arguments: argparse.Namespace, command: list[str]) -> int:
    """One job, or those of a sweep."""
    target = TARGETS[arguments.target]
    if not arguments.sweep:
        return target.launch(arguments, command)
    jobs = jobs_of(arguments.sweep, command)
    if arguments.target in ELSEWHERE and not (arguments.detach or arguments.dry_run):
        raise LaunchError("--sweep needs --detach here: its jobs run side by side, without this launcher.")
    code = target.launch_sweep(arguments, jobs) if hasattr(target, "launch_sweep") else _one_by_one(arguments, jobs)
    if arguments.dry_run or code:
        return code
    if arguments.target == "local":
        return follow([sys.executable, "-m", "mpt_jax", *report_of(jobs, command)])
    say(f"one report, once they have ended: {show(['mpt-jax', *report_of(jobs, command)])}")
    return 0


def _one_by_one(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    """Each job by itself: locally one after the other, elsewhere detached. Goes on after a failure; returns the last one's code."""
    worst, name = 0, getattr(arguments, "name", "")
    for number, job in enumerate(jobs):
        say(f"job {number + 1} of {len(jobs)}: {job.label}")
        own = argparse.Namespace(**{**vars(arguments), "name": f"{name}-{number}" if name else ""})
        worst = TARGETS[arguments.target].launch(own, job.command) or worst
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Launches; returns the command's exit code, or the launcher's own (docs/scale.md lists them)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with signals_raise():
            return act(argv[0], argv[1:]) if argv and argv[0] in ACTIONS else launch(*parse(argv))
    except LaunchError as error:
        say(str(error))
        return EXIT_USAGE
    except Stopped as stopped:
        say(f"ended by {stopped}")
        return EXIT_INTERRUPTED if str(stopped) == "SIGINT" else 128 + stopped.signal


if __name__ == "__main__":
    sys.exit(main())
