"""Errors that a user can cause and correct; the command prints them without a traceback. Exit codes of the command."""

EXIT_USER_ERROR = 2

# exit code of a command that was asked to end (SIGTERM) and saved: the same command continues; launchers start it again
EXIT_PREEMPTED = 83

# exit code of a process whose peer is gone; all of them started again continue
EXIT_PEER_LOST = 84
# the same where JAX's own check finds it and aborts the process (SIGABRT), as shells and Kubernetes show it
EXIT_PEER_LOST_ABORTED = 134

EXIT_INTERRUPTED = 130  # Ctrl-C, as shells show it
EXIT_PIPE_CLOSED = 141  # who reads the output has closed it (`mpt-jax tasks | head`), as shells show SIGPIPE

EXIT_CODES: dict[int, str] = {  # as `--help` lists them
    0: "done",
    EXIT_USER_ERROR: "wrong input; one line says what, what was expected and what to type",
    EXIT_PREEMPTED: "ended by SIGTERM after saving; the same command continues",
    EXIT_PEER_LOST: f"another process of the run is gone ({EXIT_PEER_LOST_ABORTED} where JAX aborts); start all again",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C; the same command continues from the last checkpoint",
    EXIT_PIPE_CLOSED: "nobody reads the output any more",
}


class Preempted(BaseException):
    """The machine is taken away; everything is saved and the command ends with EXIT_PREEMPTED.

    Not an Exception, as KeyboardInterrupt is not one: it is raised wherever the signal comes, and libraries pass over exceptions there.
    """


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the setting to change. On one line, whatever a file's texts hold.

    >>> try:
    ...     mpt_jax.load("runs/nothing")
    ... except mpt_jax.UserError as error:
    ...     print(error)
    'runs/nothing' is not a run folder: it does not exist.
    """

    def __str__(self) -> str:
        return "\\n".join(super().__str__().splitlines())
