"""``mpt-jax``: reads the command line, prepares JAX, runs the command, and turns errors into a line and an exit code."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from mpt_jax.command_line import COMMANDS, parse_arguments
from mpt_jax.errors import EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_PREEMPTED, EXIT_USER_ERROR, Preempted, UserError
from mpt_jax.launched import check_start, end_with_launcher

SEQIO = {  # what a slim install leaves out (requirements-slim.txt): module and distribution
    "seqio": "seqio", "tensorflow": "tensorflow", "tensorflow_text": "tensorflow-text", "tensorflow_datasets": "tensorflow-datasets",
}  # fmt: skip


def _say(text: str) -> None:
    """A last line."""
    with contextlib.suppress(OSError):
        print(f"mpt-jax: {text}", file=sys.stderr, flush=True)


def _prepare() -> None:
    """Process-wide settings, before JAX starts: compiled programs are kept on disk; TensorFlow stays quiet where tasks need it.

    Raises UserError in a folder that is gone: every relative path would fail, each in its own words.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder is gone ({error.strerror}): cd into one that exists, then type the command again.") from error
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    from mpt_jax.data.checked_folder import cache_folder

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX keeps none that compiled within a second
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones make up a second of a start [ours]


class _Ending:
    """How this process ends, and whether it speaks: several processes end together."""

    leave: Callable[[int], int] = int
    leave_soon: Callable[[int], object] = int  # does nothing
    first = True


def _ready(arguments: argparse.Namespace, ending: _Ending) -> Callable[[argparse.Namespace], None]:
    """The function of the command, after JAX, the other processes and the settings are ready for it."""
    check_start()
    end_with_launcher()
    _prepare()
    from mpt_jax import distributed
    from mpt_jax.commands import RUN, import_module
    from mpt_jax.gin_settings import parse_gin

    command = COMMANDS[arguments.command]
    ending.leave_soon = distributed.leave_soon
    if command.joins:
        distributed.start(vars(arguments), trains=arguments.command == "train")
        ending.leave, ending.first = distributed.leave, distributed.is_first()
    if command.gin is not None:
        folders = [part for part in arguments.gin_search_paths.split(",") if part]
        with _errors_of_tasks():
            parse_gin(arguments.gin_file, arguments.gin_bindings, folders, import_module)
    return RUN[arguments.command]


@contextlib.contextmanager
def _errors_of_tasks() -> Iterator[None]:
    """What tasks raise in the block becomes a UserError."""
    from mpt_jax.tasks.errors import TaskError

    try:
        yield
    except TaskError as error:
        raise UserError(str(error)) from error
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in SEQIO:
            raise
        message = f"{error.name} is not installed, and tasks of SeqIO and TFDS need it: type pip install {' '.join(SEQIO.values())}"
        raise UserError(f"{message}; or train from a token cache that another host wrote, with --cache_dir.") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; prints a UserError as one line."""
    ending = _Ending()
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        command = _ready(arguments, ending)
        with _errors_of_tasks():
            command(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        if argv is None:  # a folder that is gone leaves threads of Orbax that wait for it
            ending.leave_soon(EXIT_USER_ERROR)
        _say(" ".join(str(error).split()))
        return ending.leave(EXIT_USER_ERROR)
    except Preempted as preempted:
        if ending.first:
            _say(str(preempted))
        if argv is None:  # nothing is left to do: nobody shall wait for threads that libraries left behind
            ending.leave_soon(EXIT_PREEMPTED)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        if argv is None:  # one more would be a traceback out of what libraries do as they close; nobody shall wait for them either
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            ending.leave_soon(EXIT_INTERRUPTED)
        _say("interrupted; what was saved stays, the same command continues")
        return ending.leave(EXIT_INTERRUPTED)
    except OSError as error:
        if error.filename is not None:  # not the output, then
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again as it ends
        if isinstance(error, BrokenPipeError):
            return ending.leave(EXIT_PIPE_CLOSED)
        _say(f"the output cannot be written: {error.strerror}.")
        return ending.leave(EXIT_USER_ERROR)


if __name__ == "__main__":
    sys.exit(main())
