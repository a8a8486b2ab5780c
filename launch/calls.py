"""What all targets share: running and showing commands, signals, exit codes."""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EXIT_USAGE = 2  # refused before or by the other side: bad options, quota, a command that is not installed
EXIT_LEFT_BEHIND = 3  # something that was created could not be deleted; the message says what and how
EXIT_INTERRUPTED = 130
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LaunchError(Exception):
    """What the user can mend, printed without a traceback."""


class Stopped(KeyboardInterrupt):
    """A signal asked the launcher to end; ``signal`` says which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Answer(NamedTuple):
    """What a command gave back."""

    code: int
    stdout: str
    stderr: str

    @property
    def last_lines(self) -> str:
        """The end of what it said about a failure, on one line."""
        return " ".join((self.stderr.strip() or self.stdout.strip()).splitlines()[-3:])


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Stopped, so that ``finally`` runs whichever ends the launcher."""

    def stop(number, _frame):
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Holds back ending signals: creating and deleting are never cut short. One that came takes effect at the end."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def say(text: str) -> None:
    """A line of the launcher's own, on standard error."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def show(argv: Sequence[str]) -> str:
    """The command as one would type it."""
    return shlex.join(argv)


@contextlib.contextmanager
def running(argv: Sequence[str], grace_s: float, **options) -> Iterator[subprocess.Popen]:
    """A process that is ended with the block. Raises LaunchError when the program is not installed."""
    process = None
    try:
        with signals_wait():
            # a session of its own: Ctrl-C in the terminal reaches the launcher alone
            process = subprocess.Popen(argv, start_new_session=True, **options)
        yield process
    except FileNotFoundError as error:
        raise LaunchError(f"{argv[0]!r} is not installed or not on PATH.") from error
    finally:
        if process is not None:
            end([process], grace_s)


def ask(argv: Sequence[str], stdin: str = "") -> Answer:
    """Runs a short command to its end. Raises LaunchError when it is not installed."""
    pipe = subprocess.PIPE
    with running(argv, 2.0, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        stdout, stderr = process.communicate(stdin)
    return Answer(process.returncode, stdout, stderr)


def follow(argv: Sequence[str], grace_s: float = 10.0) -> int:
    """Runs a long command with its output passed through, and returns its exit code; ends it when the launcher is stopped."""
    with running(argv, grace_s, stdin=subprocess.DEVNULL) as process:
        return shell_code(process.wait())


def end(processes: Sequence[subprocess.Popen], grace_s: float, number: int = signal.SIGTERM) -> None:
    """Sends the signal to those that run, and SIGKILL to those that still run after ``grace_s`` seconds."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)
    deadline = time.monotonic() + grace_s
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def variables(bindings: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of each --env NAME=VALUE. Raises LaunchError for anything else."""
    for binding in bindings:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", binding, re.DOTALL):
            raise LaunchError(f"--env {binding!r}: it takes NAME=VALUE.")
    return [binding.partition("=")[::2] for binding in bindings]


def shell_code(code: int) -> int:
    """Exit code as a shell gives it: 128 + signal for a process that a signal ended."""
    return code if code >= 0 else 128 - code
