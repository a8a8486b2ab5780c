"""Errors that a user can cause and mend; the command prints them without a traceback."""

# exit code of a command that was asked to end (SIGTERM) and saved: the same command continues; launchers start it again
EXIT_PREEMPTED = 83

# exit code of a process whose peer is gone; all of them started again continue
EXIT_PEER_LOST = 84
# the same where JAX's own check finds it and aborts the process (SIGABRT), as shells and Kubernetes show it
EXIT_PEER_LOST_ABORTED = 134

EXIT_INTERRUPTED = 130  # Ctrl-C, as shells show it
EXIT_PIPE_CLOSED = 141  # who reads the output has closed it (`mpt-jax tasks | head`), as shells show SIGPIPE


class Preempted(BaseException):
    """The machine is taken away; everything is saved and the command ends with EXIT_PREEMPTED.

    Not an Exception, as KeyboardInterrupt is not one: it is raised wherever the signal comes, and libraries pass over exceptions there.
    """


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the setting to change."""
