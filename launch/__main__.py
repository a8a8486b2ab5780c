"""``python -m mpt_jax.launch --target tpu|slurm|k8s|local [options] -- COMMAND …``: the same ``mpt-jax`` command on many hosts."""

import argparse
import sys
from collections.abc import Sequence

from mpt_jax.launch import k8s, local, slurm, tpu
from mpt_jax.launch.calls import EXIT_INTERRUPTED, EXIT_USAGE, LaunchError, Stopped, say, signals_raise

TARGETS = {"local": local, "tpu": tpu, "slurm": slurm, "k8s": k8s}


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
    if target:
        TARGETS[target].add_arguments(parser)
    arguments = parser.parse_args(own)
    if not command:
        raise LaunchError("no command; give it after --, for example: -- train source --model_dir runs/source")
    return arguments, command


def main(argv: Sequence[str] | None = None) -> int:
    """Launches; returns the command's exit code, or the launcher's own (docs/scale.md lists them)."""
    try:
        arguments, command = parse(sys.argv[1:] if argv is None else argv)
        with signals_raise():
            return TARGETS[arguments.target].launch(arguments, command)
    except LaunchError as error:
        say(str(error))
        return EXIT_USAGE
    except Stopped as stopped:
        say(f"ended by {stopped}")
        return EXIT_INTERRUPTED if str(stopped) == "SIGINT" else 128 + stopped.signal


if __name__ == "__main__":
    sys.exit(main())
