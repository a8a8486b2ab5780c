"""TPU VM: a slice is created as a queued resource, code and environment are copied to all workers, the command runs, the slice is deleted.

Deleting is the last thing whatever the ending. A preempted spot slice cannot be started again: it is deleted and created anew, and
the command continues from its MODEL_DIR, which must be in a bucket; buckets are mounted on the workers (launch/buckets.py).
Arguments of gcloud: cloud.google.com/sdk/gcloud/reference/compute/tpus.
"""

import argparse
import getpass
import json
import re
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.launch import tpu_detached
from mpt_jax.launch.buckets import model_dir
from mpt_jax.launch.calls import EXIT_LEFT_BEHIND, Answer, LaunchError, ask, follow, say, show, signals_wait
from mpt_jax.launch.limits import add_limit, add_price, seconds
from mpt_jax.launch.machines import Slice, tpu_slice
from mpt_jax.launch.tpu_files import FOLDER, build_wheel, scripts, write_folder

from mpt_jax.errors import EXIT_PREEMPTED

SSH_FAILED = 255  # ssh's own exit code
RECONNECTS = 5
DELETIONS = 5
QUESTIONS = 3  # about a state, when gcloud itself fails
GONE = {"SUSPENDING", "SUSPENDED", "FAILED", "DELETING", ""}


class Preempted(Exception):
    """The slice was taken away."""


class LeftBehind(Exception):
    """The slice could not be deleted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target."""
    parser.add_argument("--type", default="v5e:2x2", help="slice GENERATION:TOPOLOGY, v4|v5e|v5p|v6e (default: %(default)s)")
    parser.add_argument("--name", default="", help="of queued resource and node (default: made up, unique)")
    parser.add_argument("--runtime", default="", help="software of the TPU VM (default: that of the type)")
    add_price(parser)
    add_limit(parser)
    parser.add_argument("--max_restarts", type=int, default=20, help="new slices after preemptions (default: %(default)s)")
    parser.add_argument("--wait_hours", type=float, default=24.0, help="hours to wait for a slice (default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated")
    parser.add_argument("--ship", action="append", default=[], metavar="PATH", help="file or folder copied next to the command")
    parser.add_argument("--wheel", default="", help="wheel of mpt_jax to install (default: built from this checkout)")
    parser.add_argument("--poll_s", type=float, default=20.0, help="seconds between questions about the state (default: %(default)s)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options that say where a job is, for launching and for status, logs and stop."""
    parser.add_argument("--zone", required=True, help="zone, for example us-west4-a")
    parser.add_argument("--project", required=True, help="project that pays")


class Queued:
    """One queued resource with one node of the same name: the gcloud commands about it."""

    def __init__(self, arguments: argparse.Namespace, name: str, machine: Slice | None = None):
        self.arguments, self.name, self.machine = arguments, name, machine
        self.where = [f"--zone={arguments.zone}", f"--project={arguments.project}"]

    def _resource(self, verb: str, *more: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.name, *self.where, *more]

    def create(self) -> list[str]:
        """Asks for the slice. The service itself ends the request after --wait_hours, and what it gave after --max_hours."""
        assert self.machine  # given to whoever creates one
        runtime = self.arguments.runtime or self.machine.runtime
        price = ["--spot"] if self.arguments.spot else ["--provisioning-model=flex-start"] if self.arguments.flex_start else []
        types = [f"--accelerator-type={self.machine.accelerator_type}", f"--runtime-version={runtime}"]
        limits = [f"--max-run-duration={seconds(self.arguments)}s", f"--valid-until-duration={round(3600 * self.arguments.wait_hours)}s"]
        verb = self._resource("create", f"--node-id={self.name}", *types, *price, *limits)
        return [verb[0], "alpha", *verb[1:]]  # where --max-run-duration is

    def refused(self, message: str) -> LaunchError:
        """The error of a slice that is not given."""
        hint = " Ask for quota, or choose another --type, --zone, or --spot." if "quota" in message.lower() else ""
        kind = self.machine.accelerator_type if self.machine else self.name
        return LaunchError(f"no {kind} in {self.arguments.zone}: {message}{hint}")

    def describe(self) -> list[str]:
        """Asks for its state."""
        return self._resource("describe", "--format=json")

    def delete(self) -> list[str]:
        """Deletes it with its node."""
        return self._resource("delete", "--force", "--quiet")

    def copy(self, folder: Path) -> list[str]:
        """Copies a folder into the home folder of all workers."""
        return ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse", str(folder), f"{self.name}:", *self.where, "--worker=all"]

    def on_workers(self, script: str) -> list[str]:
        """Runs a script of the folder on all workers at once."""
        run = f"--command=bash {FOLDER}/{script}"
        return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self.where, "--worker=all", run]


def check_model_dir(command: Sequence[str]) -> None:
    """Raises LaunchError if the run would be deleted with the slice."""
    folder = model_dir(command)
    if folder is not None and not folder.startswith("gs://"):
        advice = "name a folder in a bucket, gs://BUCKET/FOLDER"
        raise LaunchError(f"MODEL_DIR = {folder!r}: the slice and its disks are deleted at the end; {advice}.")


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command on a slice. Returns its exit code, EXIT_PREEMPTED after the last restart, or EXIT_LEFT_BEHIND."""
    machine = tpu_slice(arguments.type)
    check_model_dir(command)
    seconds(arguments)
    user = re.sub(r"[^a-z0-9]", "", getpass.getuser().lower()) or "user"
    queued = Queued(arguments, arguments.name or f"mpt-{user}-{secrets.token_hex(3)}", machine)
    if arguments.dry_run:
        return _show_all(queued, command)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / FOLDER
        folder.mkdir()
        wheel = Path(arguments.wheel) if arguments.wheel else build_wheel(Path(temporary))
        if not wheel.is_file():
            raise LaunchError(f"--wheel {wheel}: no such file.")
        write_folder(folder, arguments, command, wheel)
        try:
            return _detach(queued, folder, command) if arguments.detach else _with_restarts(queued, folder)
        except LeftBehind as error:
            say(str(error))
            return EXIT_LEFT_BEHIND


def _detach(queued: Queued, folder: Path, command: Sequence[str]) -> int:
    """Asks for a slice that runs the command and deletes itself. Returns at once."""
    run = model_dir(command)
    if run is None:
        raise LaunchError("--detach needs MODEL_DIR in the command: the slice finds its files there, and leaves its log.")
    place = f"{queued.name} --target tpu {show([*queued.where, f'--model_dir={run}'])}"
    state = state_of(ask(queued.describe()))[0]
    if state:  # its files are where this job's would go
        raise LaunchError(f"{queued.name} is there already ({state}). Give another --name, or type: python -m mpt_jax.launch stop {place}")
    with signals_wait():
        created = tpu_detached.create(queued, tpu_detached.place_of(run, queued.name), folder)
        if created.code and _made_after_all(queued, created):
            _delete(queued)
    if created.code:
        raise queued.refused(created.last_lines)
    say(f"{queued.name} is asked for; python -m mpt_jax.launch status|logs|stop {place}")
    return 0


def _place(arguments: argparse.Namespace, described: Answer) -> str:
    """Where a detached job's files are: as its slice says, else below --model_dir; empty where neither does."""
    found = tpu_detached.place_in(described.stdout) if described.code == 0 else ""
    return found or (tpu_detached.place_of(arguments.model_dir, arguments.name) if arguments.model_dir else "")


def status(arguments: argparse.Namespace) -> int:
    """Prints the state of a slice, and the exit codes of what ran on it as far as they are known."""
    answer = ask(Queued(arguments, arguments.name).describe())
    state, message = state_of(answer)
    place = _place(arguments, answer)
    code = tpu_detached.cat(place, "code-0") if place else None
    ended = "" if code is None else f"; the command ended with code {code.strip()}"
    print(f"{arguments.name}: {state or 'not there'}{f' ({message})' if message else ''}{ended}")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Prints what the first worker of a detached job has said so far. Raises LaunchError where nothing is known of it."""
    place = _place(arguments, ask(Queued(arguments, arguments.name).describe()))
    if not place:
        raise LaunchError(f"{arguments.name} is not there, or was not detached; with --model_dir its log is looked for in the run folder.")
    print(tpu_detached.cat(place, "log-0") or "", end="")
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Deletes a slice, detached or left behind by a launcher that died."""
    try:
        with signals_wait():
            _delete(Queued(arguments, arguments.name))
    except LeftBehind as error:
        say(str(error))
        return EXIT_LEFT_BEHIND
    return 0


def _show_all(queued: Queued, command: Sequence[str]) -> int:
    for name, text in scripts(queued.arguments, command, Path(queued.arguments.wheel or "mpt_jax-VERSION-py3-none-any.whl").name).items():
        print(f"# {FOLDER}/{name}\n{text}")
    scripted = [queued.on_workers("install.sh"), queued.on_workers("run.sh")]
    for argv in (queued.create(), queued.describe(), queued.copy(Path(FOLDER)), *scripted, queued.delete(), queued.describe()):
        print(show(argv))
    return 0


def _with_restarts(queued: Queued, folder: Path) -> int:
    starts = queued.arguments.max_restarts + 1
    for start in range(1, starts + 1):
        try:
            return _one_slice(queued, folder)
        except Preempted as error:
            say(f"{error} in start {start} of at most {starts}")
    return EXIT_PREEMPTED


def _one_slice(queued: Queued, folder: Path) -> int:
    """Creates a slice, runs the command on it, deletes it. Raises Preempted."""
    ours = True
    try:
        with signals_wait():
            say(show(queued.create()))
            created = ask(queued.create())
            if created.code:
                ours = _made_after_all(queued, created)
        if created.code:
            raise queued.refused(created.last_lines)
        _wait_until_active(queued)
        _ship(queued, folder)
        return _run(queued)
    finally:
        if ours:
            with signals_wait():
                _delete(queued)


def _made_after_all(queued: Queued, created: Answer) -> bool:
    """Whether a refused request left something to delete. A slice of this name that somebody else made stays."""
    if re.search(r"already.?exists", created.stderr, re.IGNORECASE):
        return False
    try:
        return state_of(ask(queued.describe()))[0] != ""
    except LaunchError:
        say(f"gcloud refused the slice and does not say whether it is there; look with: {show(queued.describe())}")
        return False


def state_of(answer: Answer) -> tuple[str, str]:
    """(state, error message) of a description; ('', '') when there is no such resource. Raises LaunchError when gcloud fails otherwise."""
    if answer.code:
        if re.search(r"not.?found", answer.stderr, re.IGNORECASE):
            return "", ""
        raise LaunchError(f"gcloud cannot describe the slice: {answer.last_lines}")
    state = json.loads(answer.stdout).get("state", {})
    return state.get("state", "STATE_UNSPECIFIED"), state.get("failedData", {}).get("error", {}).get("message", "")


def _state(queued: Queued) -> tuple[str, str]:
    """As state_of; asks again before it gives up."""
    for _ in range(QUESTIONS - 1):
        try:
            return state_of(ask(queued.describe()))
        except LaunchError as error:
            say(str(error))
            time.sleep(queued.arguments.poll_s)
    return state_of(ask(queued.describe()))


def _wait_until_active(queued: Queued) -> None:
    deadline = time.monotonic() + 3600 * queued.arguments.wait_hours
    last = None
    while True:
        state, message = _state(queued)
        if state != last:
            say(f"{queued.name}: {state or 'not there'}")
            last = state
        if state == "ACTIVE":
            return
        if state == "FAILED":
            raise queued.refused(message)
        if state in GONE:
            raise Preempted("the slice was taken away before it was ready")
        if time.monotonic() > deadline:
            raise LaunchError(f"no slice within --wait_hours {queued.arguments.wait_hours:g}; raise it or choose another --type or --zone.")
        time.sleep(queued.arguments.poll_s)


def _raise_if_gone(queued: Queued) -> None:
    state, _ = _state(queued)
    if state in GONE:
        raise Preempted(f"the slice was taken away ({state or 'not there'})")


def _ship(queued: Queued, folder: Path) -> None:
    for what, argv in (("copying", queued.copy(folder)), ("installing", queued.on_workers("install.sh"))):
        say(what)
        done = ask(argv)
        if done.code:
            _raise_if_gone(queued)
            raise LaunchError(f"{what} on the workers failed with code {done.code}: {done.last_lines}")


def _run(queued: Queued) -> int:
    """Follows the command to its end; connects again when only the connection broke."""
    for connection in range(1, RECONNECTS + 2):
        code = follow(queued.on_workers("run.sh"))
        if code == 0:
            return 0
        if code == EXIT_PREEMPTED:
            raise Preempted("the command was asked to end and saved")
        _raise_if_gone(queued)
        if code != SSH_FAILED:
            say(f"the command ended with code {code}")
            return code
        say(f"connection {connection} broke; the slice is still there")
        time.sleep(queued.arguments.poll_s)
        _raise_if_gone(queued)
    return SSH_FAILED


def _delete(queued: Queued) -> None:
    """Deletes the slice until it is gone. Raises LeftBehind with the command to type."""
    why = ""
    for attempt in range(DELETIONS + 1):
        try:
            if state_of(ask(queued.describe()))[0] == "":
                say(f"{queued.name}: nothing is left")
                return
        except LaunchError as error:
            why = str(error)
        if attempt < DELETIONS:
            say(show(queued.delete()))
            deleted = ask(queued.delete())
            why = deleted.last_lines if deleted.code else why
            if deleted.code or attempt:  # deleted, and there: it takes a while to go
                time.sleep(queued.arguments.poll_s)
    raise LeftBehind(f"{queued.name} IS STILL THERE AND BILLED ({why}). Delete it: {show(queued.delete())}")
