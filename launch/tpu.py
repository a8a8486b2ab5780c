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
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.launch.buckets import MOUNT_OPTIONS, model_dir, mounted
from mpt_jax.launch.calls import EXIT_LEFT_BEHIND, Answer, LaunchError, ask, follow, say, show, signals_wait, variables
from mpt_jax.launch.machines import Slice, tpu_slice

from mpt_jax.errors import EXIT_PREEMPTED

ROOT = Path(__file__).parent.parent
FOLDER = "mpt_jax_run"  # on the workers, in the home folder
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
    parser.add_argument("--zone", required=True, help="zone, for example us-west4-a")
    parser.add_argument("--project", required=True, help="project that pays")
    parser.add_argument("--name", default="", help="of queued resource and node (default: made up, unique)")
    parser.add_argument("--runtime", default="", help="software of the TPU VM (default: that of the type)")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--max_restarts", type=int, default=20, help="new slices after preemptions (default: %(default)s)")
    parser.add_argument("--wait_hours", type=float, default=24.0, help="hours to wait for a slice (default: %(default)s)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated")
    parser.add_argument("--ship", action="append", default=[], metavar="PATH", help="file or folder copied next to the command")
    parser.add_argument("--wheel", default="", help="wheel of mpt_jax to install (default: built from this checkout)")
    parser.add_argument("--poll_s", type=float, default=20.0, help="seconds between questions about the state (default: %(default)s)")


class Queued:
    """One queued resource with one node of the same name: the gcloud commands about it."""

    def __init__(self, arguments: argparse.Namespace, name: str, machine: Slice):
        self.arguments, self.name, self.machine = arguments, name, machine
        self._where = [f"--zone={arguments.zone}", f"--project={arguments.project}"]

    def _resource(self, verb: str, *more: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, self.name, *self._where, *more]

    def create(self) -> list[str]:
        """Asks for the slice."""
        runtime = self.arguments.runtime or self.machine.runtime
        spot = ["--spot"] if self.arguments.spot else []
        types = [f"--accelerator-type={self.machine.accelerator_type}", f"--runtime-version={runtime}"]
        return self._resource("create", f"--node-id={self.name}", *types, *spot)

    def describe(self) -> list[str]:
        """Asks for its state."""
        return self._resource("describe", "--format=json")

    def delete(self) -> list[str]:
        """Deletes it with its node."""
        return self._resource("delete", "--force", "--quiet")

    def copy(self, folder: Path) -> list[str]:
        """Copies a folder into the home folder of all workers."""
        return ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse", str(folder), f"{self.name}:", *self._where, "--worker=all"]

    def on_workers(self, script: str) -> list[str]:
        """Runs a script of the folder on all workers at once."""
        run = f"--command=bash {FOLDER}/{script}"
        return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", self.name, *self._where, "--worker=all", run]


INSTALL = """#!/bin/bash
# Python 3.11 and mpt_jax with the TPU's libraries, in a folder of their own
set -euo pipefail
cd "$HOME/{folder}"
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python 3.11 venv
python3 -m uv pip install --quiet --python venv/bin/python {constraints}"mpt_jax[tpu] @ file://$PWD/{wheel}"
{mounts}"""

MOUNTS = """
key=/usr/share/keyrings/cloud.google.asc
curl --silent https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
  sudo tee /etc/apt/sources.list.d/gcsfuse.list
sudo apt-get update -qq
sudo apt-get install -qq --yes gcsfuse
for bucket in {buckets}; do
  mkdir -p "gcs/$bucket"
  gcsfuse {options} "$bucket" "gcs/$bucket"
done
"""

RUN = """#!/bin/bash
# Starts the command once; called again, after a broken connection, follows the one that runs
cd "$HOME/{folder}"
{exports}
if mkdir started 2>/dev/null; then
  setsid bash -c '"$@"; echo $? >code.tmp; mv code.tmp code' command {command} >log 2>&1 </dev/null &
fi
while [ ! -f log ]; do sleep 0.2; done
tail -n +1 -f log | sed -u "s/^/[$(hostname)] /" &
while [ ! -f code ]; do sleep 1; done
sleep 1
pkill -P $$ tail
exit "$(cat code)"
"""


def write_folder(folder: Path, arguments: argparse.Namespace, command: Sequence[str], wheel: Path) -> None:
    """Fills the folder that goes to the workers: wheel, constraints, what is shipped, the two scripts."""
    shutil.copy(wheel, folder)
    constraints = ROOT / "constraints.txt"
    if constraints.is_file():
        shutil.copy(constraints, folder)
    for path in map(Path, arguments.ship):
        if not path.exists():
            raise LaunchError(f"--ship {path}: no such file or folder.")
        shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
    for name, text in scripts(arguments, command, wheel.name).items():
        (folder / name).write_text(text)


def scripts(arguments: argparse.Namespace, command: Sequence[str], wheel: str) -> dict[str, str]:
    """Text of install.sh and run.sh."""
    command, buckets = mounted(command, "gcs")
    folder = model_dir(command)
    shared = [f"MPT_CACHE_DIR={folder}/cache"] if folder else []  # the first worker writes token caches that all read
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables([*shared, *arguments.env])]
    options = " ".join(f"--{option}" for option in MOUNT_OPTIONS)
    return {
        "install.sh": INSTALL.format(
            folder=FOLDER,
            constraints="-c constraints.txt " if (ROOT / "constraints.txt").is_file() else "",
            wheel=wheel,
            mounts=MOUNTS.format(buckets=show(buckets), options=options) if buckets else "",
        ),
        "run.sh": RUN.format(
            folder=FOLDER,
            exports="\n".join(exports),
            command=show(["venv/bin/python", "-u", "-m", "mpt_jax", *command]),
        ),
    }


def build_wheel(folder: Path) -> Path:
    """A wheel of this checkout."""
    if not (ROOT / "pyproject.toml").is_file():
        raise LaunchError("this is not a checkout, so no wheel can be built from it; give --wheel FILE.")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    built = ask(argv)
    wheels = list(folder.glob("mpt_jax-*.whl"))
    if built.code or not wheels:
        raise LaunchError(f"{show(argv)} failed: {built.last_lines}")
    return wheels[0]


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
            return _with_restarts(queued, folder)
        except LeftBehind as error:
            say(str(error))
            return EXIT_LEFT_BEHIND


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
            raise _refused(queued, created.last_lines)
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


def _refused(queued: Queued, message: str) -> LaunchError:
    hint = " Ask for quota, or choose another --type, --zone, or --spot." if "quota" in message.lower() else ""
    return LaunchError(f"no {queued.machine.accelerator_type} in {queued.arguments.zone}: {message}{hint}")


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
            raise _refused(queued, message)
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
            if deleted.code:
                why = deleted.last_lines
                time.sleep(queued.arguments.poll_s)
    raise LeftBehind(f"{queued.name} IS STILL THERE AND BILLED ({why}). Delete it: {show(queued.delete())}")
