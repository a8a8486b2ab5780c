"""Ends a process whose launcher is gone. Imports nothing heavy: the launcher takes the name from here, and needs no JAX."""

import os
import signal
import threading
import time

LAUNCHER = "MPT_LAUNCHER_PID"  # variable with the process id of the launcher
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
