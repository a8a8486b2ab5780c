"""Several processes on this machine, with pretend CPU devices or the GPUs that it has.

They end with the launcher, also where it is killed (kill -9): they look whether it is still their parent.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from mpt_jax.launch.calls import LaunchError, Stopped, end, say, shell_code, show, signals_wait

from mpt_jax.errors import EXIT_PEER_LOST, EXIT_PEER_LOST_ABORTED, EXIT_PREEMPTED
from mpt_jax.launched import LAUNCHER

POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target."""
    parser.add_argument("--processes", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--devices_per_process", type=int, default=1, help="devices of each (default: %(default)s)")
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu", help="pretend CPU devices, or GPUs split by number")
    parser.add_argument("--grace_s", type=float, default=30.0, help="seconds between SIGTERM and SIGKILL (default: %(default)s)")
    parser.add_argument("--max_restarts", type=int, default=0, help="starts again after a preemption (default: %(default)s)")


def environment(arguments: argparse.Namespace, process_id: int, port: int) -> dict[str, str]:
    """The variables that one process gets beside the launcher's own."""
    devices = arguments.devices_per_process
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(arguments.processes),
        "JAX_PROCESS_ID": str(process_id),
        "PYTHONUNBUFFERED": "1",
    }
    if arguments.platform == "gpu":
        first = process_id * devices
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(_gpus(arguments.processes * devices)[first : first + devices])
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        variables["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        variables["JAX_PLATFORMS"] = "cpu"
    return variables


def _gpus(wanted: int) -> list[str]:
    """The GPUs to share out: those that CUDA_VISIBLE_DEVICES names, else the first ones. Raises LaunchError where there are too few."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(wanted)]
    names = [name.strip() for name in given.split(",") if name.strip()]
    if len(names) < wanted:
        message = f"CUDA_VISIBLE_DEVICES = {given!r} names {len(names)} GPUs, and the processes take {wanted}"
        raise LaunchError(f"{message}: type smaller --processes or --devices_per_process, or name more.")
    return names


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command in all processes. Returns 0, EXIT_PREEMPTED, or the code of the first that failed."""
    if arguments.processes < 1 or arguments.devices_per_process < 1:
        numbers = f"--processes {arguments.processes} --devices_per_process {arguments.devices_per_process}"
        raise LaunchError(f"{numbers}: both must be 1 or more.")
    argv = [sys.executable, "-m", "mpt_jax", *command]
    if arguments.dry_run:
        port = _free_port()
        for process_id in range(arguments.processes):
            variables = environment(arguments, process_id, port)
            print(show(["env", *(f"{name}={value}" for name, value in variables.items()), *argv]))
        return 0
    for start in range(1, arguments.max_restarts + 2):
        code, told_to_end = _run(arguments, argv)
        if code != EXIT_PREEMPTED or told_to_end:
            break
        say(f"preempted in start {start} of at most {arguments.max_restarts + 1}")
    return code


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _run(arguments: argparse.Namespace, argv: Sequence[str]) -> tuple[int, bool]:
    """One start of all processes: (exit code, whether the launcher was asked to end). The first failure ends all."""
    port = _free_port()
    processes: list[subprocess.Popen] = []
    printers = []
    try:
        for process_id in range(arguments.processes):
            variables = {**os.environ, **environment(arguments, process_id, port), LAUNCHER: str(os.getpid())}
            with signals_wait():
                process = subprocess.Popen(
                    argv, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace", start_new_session=True,
                )  # fmt: skip
                processes.append(process)
            printers.append(threading.Thread(target=_print_lines, args=(process, f"[{process_id}] "), daemon=True))
            printers[-1].start()
        return _wait(processes, arguments.grace_s), False
    except Stopped as stopped:
        say(f"{stopped}: passing it on")
        with signals_wait():
            end(processes, arguments.grace_s, stopped.signal)
        codes = [shell_code(process.returncode) for process in processes]
        if codes and all(code in (0, EXIT_PREEMPTED) for code in codes):
            return max(codes), True  # all saved what they had
        raise
    finally:
        end(processes, arguments.grace_s)
        for printer in printers:
            printer.join(5.0)


def _wait(processes: Sequence[subprocess.Popen], grace_s: float) -> int:
    """Waits until all have ended well or one has not; ends the others then. Returns the worst code."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code not in (None, 0)]
        if failed or None not in codes:
            break
        time.sleep(POLL_S)
    if not failed:
        return 0
    first = codes.index(failed[0])
    if None in codes:
        say(f"process {first} ended with code {shell_code(failed[0])}; ending the others")
        end(processes, grace_s)
        # preempted together: a process that failed while it saved is worse than being preempted
        failed += [code for code in (process.returncode for process in processes) if code > 0]
    worse = [shell_code(code) for code in failed if code != EXIT_PREEMPTED]
    # a process that lost its peer ended because of another one
    return min(worse, key=lambda code: code in (EXIT_PEER_LOST, EXIT_PEER_LOST_ABORTED)) if worse else EXIT_PREEMPTED


def _print_lines(process: subprocess.Popen, prefix: str) -> None:
    for line in process.stdout or ():
        sys.stdout.write(prefix + line.removesuffix("\n") + "\n")
        sys.stdout.flush()
