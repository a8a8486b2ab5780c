"""How long a job may live, enforced by the other side, so that a launcher that dies leaves nothing for ever; and how it is paid for."""

import argparse
import time

from mpt_jax.launch.calls import LaunchError

MOST_HOURS = 24 * 365
TOTAL_HOURS = 24 * 7.0  # [ours]
FLEX_START_HOURS = 24 * 7  # cloud.google.com/tpu/docs/request-using-flex-start


def add_limit(parser: argparse.ArgumentParser) -> None:
    """The option --max_hours."""
    parser.add_argument("--max_hours", type=float, default=24.0, help="hours after which a start is ended (default: %(default)s)")


def add_total(parser: argparse.ArgumentParser) -> None:
    """The option --total_hours, of targets that start a job again without a launcher."""
    told = "hours after its creation from which a job is not started again (default: %(default)s)"
    parser.add_argument("--total_hours", type=float, default=TOTAL_HOURS, help=told)


def last_start(arguments: argparse.Namespace) -> int:
    """When a job is too old to start again, in whole seconds since 1970, rounded down: a clock that drops fractions never reads less later.

    Raises LaunchError for --total_hours that are not a limit.
    """
    if not 0 <= arguments.total_hours <= MOST_HOURS:
        raise LaunchError(f"--total_hours {arguments.total_hours:g}: it takes 0 .. {MOST_HOURS:,} hours.")
    return int(time.time() + 3600 * arguments.total_hours)


def add_price(parser: argparse.ArgumentParser) -> None:
    """The options --spot and --flex_start."""
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--flex_start", action="store_true", help="waits for capacity and keeps it, at most a week (v5e, v6e, GPUs in GKE)")


def seconds(arguments: argparse.Namespace) -> int:
    """--max_hours in seconds. Raises LaunchError for what is not a limit, or more than is given."""
    hours, most = arguments.max_hours, MOST_HOURS
    if getattr(arguments, "flex_start", False):
        most = FLEX_START_HOURS
        if arguments.spot:
            raise LaunchError("--spot and --flex_start: give one of them.")
    if not 1 / 60 <= hours <= most:
        raise LaunchError(f"--max_hours {hours:g}: it takes 1/60 .. {most:,} hours.")
    return round(3600 * hours)
