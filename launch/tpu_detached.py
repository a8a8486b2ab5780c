"""A TPU slice that needs no launcher: what it runs, its log and its exit codes are in the bucket, and it deletes itself at its end.

The files go to MODEL_DIR/launch/NAME in the bucket; the script below is the start-up script of every worker. The name of that place is
in the metadata of the slice, so that status, logs and stop need the job's name, zone and project alone.
cloud.google.com/tpu/docs/queued-resources; cloud.google.com/compute/docs/instances/startup-scripts/linux.
"""

import json
import shlex
import tempfile
from pathlib import Path

from mpt_jax.launch.calls import LaunchError, ask, say, show

PLACE_KEY = "mpt-place"

STARTUP = """#!/bin/bash
# On every worker when it starts: fetches the files, runs the command once, keeps its log in the bucket; worker 0 deletes the slice
export HOME=/root
cd "$HOME"
number=$(curl --silent --header Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
number=${{number:-0}}
put() {{ gcloud storage cp --quiet said "{place}/log-$number"; }}
{{ gcloud storage cp --quiet --recursive "{place}/{folder}" . && bash {folder}/install.sh && bash {folder}/run.sh; }} >said 2>&1 &
job=$!
while kill -0 "$job" 2>/dev/null; do sleep {every_s}; put; done
wait "$job"; code=$?
put
echo "$code" >code && gcloud storage cp --quiet code "{place}/code-$number"
if [ "$number" = 0 ]; then
  sleep {every_s}
  {delete}
fi
"""


def place_of(model_dir: str, name: str) -> str:
    """Where a job's files, logs and exit codes are."""
    return f"{model_dir.rstrip('/')}/launch/{name}"


def startup_script(place: str, folder: str, delete: list[str], every_s: int = 30) -> str:
    """The start-up script of the workers."""
    return STARTUP.format(place=place, folder=folder, delete=show([*delete, "--async"]), every_s=every_s)


def create(queued, place: str, folder: Path) -> None:
    """Copies the files to the bucket and asks for the slice. Raises LaunchError where one of them is refused."""
    copied = ask(["gcloud", "storage", "cp", "--quiet", "--recursive", str(folder), place])
    if copied.code:
        raise LaunchError(f"{folder.name} cannot be copied to {place}: {copied.last_lines}")
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "startup.sh"
        script.write_text(startup_script(place, folder.name, queued.delete()))
        argv = [*queued.create(), f"--metadata={PLACE_KEY}={place}", f"--metadata-from-file=startup-script={script}"]
        say(show(argv))
        created = ask(argv)
    if created.code:
        raise queued.refused(created.last_lines)


def place_in(description: str) -> str:
    """The place that the metadata of a described slice names; empty for one that was not detached."""
    nodes = json.loads(description or "{}").get("tpu", {}).get("nodeSpec", [])
    return next((found for node in nodes if (found := node.get("node", {}).get("metadata", {}).get(PLACE_KEY))), "")


def cat(place: str, name: str) -> str | None:
    """The content of a file of the place; None where it is not there (yet). Raises LaunchError where the bucket does not answer."""
    found = ask(["gcloud", "storage", "cat", f"{place}/{name}"])
    if found.code and "matched no objects" not in found.stderr and "not found" not in found.stderr.lower():
        raise LaunchError(f"{shlex.quote(place)} cannot be read: {found.last_lines}")
    return None if found.code else found.stdout
