"""Several processes: how they find one another, who writes, and how they end together.

``start`` comes before anything touches devices. Files of a run (its folder, metrics, events, scores, predictions, token caches) are
written by the first process alone, checkpoints by all of them; all need the same file system. A process that ends on an error leaves
without waiting for the others, and a process whose peer is gone ends with EXIT_PEER_LOST, or by JAX's own check (SIGABRT, 134 in a
shell) where nothing but the silence of its heartbeat tells: HEARTBEAT_S seconds later.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mpt_jax.errors import EXIT_PEER_LOST, EXIT_PREEMPTED, Preempted, UserError

HEARTBEAT_S = 30  # of silence after which a process counts as lost, or MPT_HEARTBEAT_S; JAX's default is 100 [ours]
WAIT_S = 24 * 3600  # that the others wait for what the first process writes before them (token caches of large sets) [ours]
LEAVE_S = 15.0  # until a process that was told to end, and has nothing to save, ends by force [ours]
NOT_STARTED = "asked to end before the first step; the same command starts again"
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
NAMES = ("coordinator_address", "num_processes", "process_id")
# what Gloo, NCCL and the coordination service say of a peer that is gone
LOST_PEER = re.compile(r"gloo|nccl|connection|peer|coordination|heartbeat|barrier|unavailable|deadline", re.I)


def arguments_of(given: Mapping[str, object], environ: Mapping[str, str], tpu: bool = False) -> dict | None:
    """What jax.distributed.initialize takes, from the command's flags and the environment; None for a single process.

    In this order: flags, which complete JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or Kubernetes'
    JOB_COMPLETION_INDEX); a Slurm step of several tasks and the hosts of a TPU slice (``tpu``: this machine has one), both as JAX detects
    them. Raises UserError where only some of the three are given.
    """
    address = given.get("coordinator_address") or environ.get("JAX_COORDINATOR_ADDRESS")
    processes = given.get("num_processes") if given.get("num_processes") is not None else environ.get("JAX_NUM_PROCESSES")
    index = given.get("process_id")
    if index is None:
        index = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX") if address else None)
    found = dict(zip(NAMES, (address, processes, index), strict=True))
    missing = [name for name, value in found.items() if value is None or value == ""]
    if len(missing) < len(NAMES):
        if missing:
            ways = ", ".join(f"--{name} or JAX_{name.upper()}" for name in missing)
            raise UserError(f"several processes need {', '.join(NAMES)}: missing {ways}.")
        try:
            processes, index = int(processes), int(index)
        except ValueError as error:
            raise UserError(f"num_processes = {processes!r}, process_id = {index!r}: both are whole numbers.") from error
        if not 0 <= index < processes:
            raise UserError(f"num_processes = {processes}, process_id = {index}: ids are 0 .. num_processes - 1.")
        return {**found, "num_processes": processes, "process_id": index, "cluster_detection_method": "deactivate"}
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ:
        return {"cluster_detection_method": "slurm"}
    return {} if tpu else None


def start(given: Mapping[str, object], trains: bool) -> bool:
    """Joins the other processes, if there are any. Call before anything touches devices; True if there are.

    given: the command's flags by name (NAMES). trains: SIGTERM is then handed to ``Preemption``, in all processes at one step.
    """
    on_tpu = any(map(os.path.exists, TPU_DEVICES)) and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    arguments = arguments_of(given, os.environ, on_tpu)
    if arguments is None:
        return False
    jax.config.update("jax_enable_preemption_service", trains)
    given_s = os.environ.get("MPT_HEARTBEAT_S", str(HEARTBEAT_S))
    if not given_s.isdecimal() or not 1 <= int(given_s) <= 86_400:
        raise UserError(f"MPT_HEARTBEAT_S = {given_s!r} is not a whole number of seconds in 1 .. 86400.")
    heartbeat = int(given_s)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat)
    except ValueError as error:
        if arguments:
            raise UserError(f"the processes cannot be joined: {error} Given: {arguments}.") from error
        print(f"one process: no other hosts of this TPU were found ({error})", file=sys.stderr)
        return False
    sys.excepthook = _leave_on_error
    return True


def is_first() -> bool:
    """True in the process that writes."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def say(text: str) -> None:
    """One line to the terminal, from the first process. Training goes on where nobody takes it: a pipe that closed, a full disk."""
    if is_first():
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def first_before_others(name: str) -> Iterator[None]:
    """The first process goes through the block before the others enter it: they find done what it did, or fail as it did.

    ``name`` must be another one each time within a command.
    """

    def wait() -> None:
        ocp.multihost.sync_global_processes(name, timeout=WAIT_S, processes=set(range(jax.process_count())))

    together = jax.distributed.is_initialized() and jax.process_count() > 1
    if together and not is_first():
        wait()
    try:
        yield
    finally:
        if together and is_first():
            wait()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C does nothing within the block: a second one while the first is being obeyed."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)


at_leaving: list[Callable[[], None]] = []  # what ``leave_soon`` does before it ends the process; each may have been done already


def leave_soon(code: int, text: str = "") -> None:
    """Ends the process with this code and text after LEAVE_S seconds, if it is still there then. One of several waits for the others.

    An exception out of a signal's handler may come while a library takes a lock, and leave it locked for ever.
    """
    if jax.distributed.is_initialized():
        return

    def leave_now(*_) -> None:
        for clean in at_leaving:
            clean()
        if text:
            os.write(2, f"mpt-jax: {text}\n".encode())
        os._exit(code)

    signal.signal(signal.SIGALRM, leave_now)
    signal.setitimer(signal.ITIMER_REAL, LEAVE_S)


class Preemption:
    """Whether the machine is about to be taken away: within the block SIGTERM does not end the process but is told by ``reached``.

    Before anybody has asked there is nothing to save: a single process then leaves at once, by Preempted.
    """

    def __init__(self):
        self._told = False
        self._asked = 0
        self._before = None

    def __enter__(self) -> "Preemption":
        # several processes: JAX's service takes the signal and agrees on a step
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *exception) -> None:
        if self._told and not self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, *_) -> None:
        self._told = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
        if not self._asked:
            leave_soon(EXIT_PREEMPTED, NOT_STARTED)
            raise Preempted(NOT_STARTED)

    def reached(self, step: int) -> bool:
        """True at the step to save at and to end with, the same in all processes; to be asked at every step by all of them."""
        self._asked += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._asked)  # steps of several loops, one after the other
        return self._told


def leave(code: int) -> int:
    """Returns the exit code; with several processes ends at once with it, without the wait for the others that JAX would make."""
    if jax.distributed.is_initialized():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def _leave_on_error(kind, error, trace) -> None:
    """The hook of uncaught errors with several processes."""
    lost = issubclass(kind, jax.errors.JaxRuntimeError | ValueError) and LOST_PEER.search(str(error))
    with contextlib.suppress(OSError):  # nobody may be there to read it
        if lost:
            reason = str(error).strip().splitlines()[0][:200]
            message = f"mpt-jax: process {_number()}: another process of this run is gone ({reason})"
            print(f"{message}; what was saved stays, all processes started again continue", file=sys.stderr)
        else:
            traceback.print_exception(kind, error, trace)
    leave(EXIT_PEER_LOST if lost else 1)


def _number() -> str:
    return os.environ.get("JAX_PROCESS_ID", "") or str(jax.process_index())
