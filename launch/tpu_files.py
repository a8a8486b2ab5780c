"""What goes to the workers of a TPU slice: a wheel, what is shipped, and the scripts that install and run it."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mpt_jax.launch.buckets import MOUNT_OPTIONS, model_dir, mounted
from mpt_jax.launch.calls import LaunchError, ask, show, variables

from mpt_jax.errors import EXIT_PREEMPTED

ROOT = Path(__file__).parent.parent
FOLDER = "mpt_jax_run"  # on the workers, in the home folder
TAKEN = {"constraints.txt", "install.sh", "run.sh", "venv", "gcs", "log", "code", "code.tmp"}  # names there; also started-*, the wheel

INSTALL = """#!/bin/bash
# Python 3.11 and mpt_jax with the TPU's libraries, in a folder of their own
set -euo pipefail
cd "$HOME/{folder}"
rm -rf venv  # half of one, where the machine started again meanwhile
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --python 3.11 venv
python3 -m uv pip install --quiet --python venv/bin/python {constraints}"mpt_jax[tpu] @ file://$PWD/{wheel}"
{mounts}"""

MOUNTS = """
key=/usr/share/keyrings/cloud.google.asc
curl --fail --silent https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
  sudo tee /etc/apt/sources.list.d/gcsfuse.list
for attempt in $(seq 30); do  # a machine that has just started updates itself, and holds apt's lock
  sudo apt-get update -qq && sudo apt-get install -qq --yes gcsfuse && break
  sleep 10
done
for bucket in {buckets}; do
  mkdir -p "gcs/$bucket"
  gcsfuse {options} "$bucket" "gcs/$bucket"
done
"""

RUN = """#!/bin/bash
# Starts the command once; called again, after a broken connection, follows the one that runs; after a restart of the machine ends
cd "$HOME/{folder}"
{exports}
if mkdir "started-$(cat /proc/sys/kernel/random/boot_id)" 2>/dev/null; then
  set -- started-*
  if [ $# -eq 1 ]; then
    setsid bash -c '"$@"; echo $? >code.tmp; mv code.tmp code' command {command} >log 2>&1 </dev/null &
  elif [ ! -f code ]; then
    echo "the machine started again, which ended the command" >>log
    echo {preempted} >code
  fi
fi
while [ ! -f log ]; do sleep 0.2; done
tail -n +1 -f log | sed -u "s/^/[$(hostname)] /" &
while [ ! -f code ]; do sleep 1; done
sleep 1
pkill -P $$ tail
exit "$(cat code)"
"""


def write_folder(folder: Path, arguments: argparse.Namespace, command: Sequence[str], wheel: Path) -> None:
    """Fills the folder that goes to the workers: wheel, constraints, what is shipped, the two scripts.

    Raises LaunchError for what cannot be shipped: nothing there, no name of its own, a name that is taken, a file that cannot be read.
    """
    shutil.copy(wheel, folder)
    constraints = ROOT / "constraints.txt"
    if constraints.is_file():
        shutil.copy(constraints, folder)
    for path in map(Path, arguments.ship):
        _check_shipped(path, folder)
        try:
            shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)
        except OSError as error:
            raise LaunchError(f"--ship {path} cannot be copied: {error.strerror or error}") from error
    for name, text in scripts(arguments, command, wheel.name).items():
        (folder / name).write_text(text)


def _check_shipped(path: Path, folder: Path) -> None:
    if not path.exists():
        raise LaunchError(f"--ship {path}: no such file or folder.")
    if path.name in ("", ".."):
        raise LaunchError(f"--ship {path}: it goes to the workers under its name, so give it by its name: --ship {path.resolve()}")
    if path.name in TAKEN or path.name.startswith("started-") or (folder / path.name).exists():
        raise LaunchError(f"--ship {path}: the name {path.name!r} is taken on the workers; give the file or folder another name.")


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
            preempted=EXIT_PREEMPTED,
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
