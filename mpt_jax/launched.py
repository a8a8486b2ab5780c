"""What a process knows of its launcher. Imports nothing heavy: launchers take the names from here, and need no JAX."""

import os
import signal
import threading
import time

from mpt_jax.errors import UserError

LAUNCHER = "MPT_LAUNCHER_PID"  # variable with the process id of the launcher
LAST_START = "MPT_LAST_START"  # variable: seconds since 1970 from which a job's processes start no more (launch/limits.py)
WATCH_S = 0.5  # between looks


def end_with_launcher() -> None:
    """Ends this process, as SIGTERM does, once the launcher that started it is gone, be it by kill -9 (launch/local.py)."""
    launcher = os.environ.pop(LAUNCHER, "")  # what this process starts has another parent

    def watch() -> None:
        while str(os.getppid()) == launcher:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def check_start() -> None:
    """Raises UserError in a job that its cluster starts again after the time that its launcher gave it."""
    given = os.environ.get(LAST_START, "")
    if given.isdecimal() and time.time() >= int(given):
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(int(given)))
        raise UserError(f"{LAST_START} = {given}: this job was to start before {when} (--total_hours); launch it again to continue.")
