"""A TPU slice that needs no launcher: what it runs, its log and its exit codes are in the bucket, and it deletes itself at its end.

The files go to MODEL_DIR/launch/NAME in the bucket; the script below is the start-up script of every worker. The name of that place is
in the metadata of the slice, so that status, logs and stop need the job's name, zone and project alone.
cloud.google.com/tpu/docs/queued-resources; cloud.google.com/compute/docs/instances/startup-scripts/linux.
"""

import json
import shlex
import tempfile
from pathlib import Path

from mpt_jax.launch.calls import Answer, LaunchError, ask, say, show

PLACE_KEY = "mpt-place"

# A worker that started again has files of its start before: run.sh (tpu_files.py) then ends at once with a code
STARTUP = """#!/bin/bash
# On every worker when it starts: fetches the files, runs the command once, keeps its log in the bucket; worker 0 deletes the slice
export HOME=/root
cd "$HOME"
place={place}
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
number=$(curl --fail --silent --retry 10 --retry-connrefused --header Metadata-Flavor:Google "$attributes/agent-worker-number") || number=0
put() {{ gcloud storage cp --quiet "$1" "$place/$1-$number"; }}
fetch() {{
  ls -d {folder}/started-* >/dev/null 2>&1 || {{ gcloud storage cp --quiet --recursive "$place/{folder}" . && bash {folder}/install.sh; }}
}}
{{ fetch && bash {folder}/run.sh; }} >log 2>&1 &
job=$!
while kill -0 "$job" 2>/dev/null; do sleep {every_s}; put log; done
wait "$job"
echo "$?" >code
put log
for attempt in 1 2 3 4 5; do put code && break; sleep {every_s}; done
if [ "$number" = 0 ]; then
  sleep {every_s}
  until {delete} >>log 2>&1; do put log; sleep {every_s}; done
fi
"""


def place_of(model_dir: str, name: str) -> str:
    """Where a job's files, logs and exit codes are."""
    return f"{model_dir.rstrip('/')}/launch/{name}"


def startup_script(place: str, folder: str, delete: list[str], every_s: int = 30) -> str:
    """The start-up script of the workers."""
    return STARTUP.format(place=shlex.quote(place), folder=folder, delete=show(delete), every_s=every_s)


def create(queued, place: str, folder: Path) -> Answer:
    """Copies the files to the bucket and asks for the slice. Raises LaunchError where the bucket does not take them."""
    removed = ask(["gcloud", "storage", "rm", "--quiet", f"{place}/**"])  # log and code of an earlier job of this name
    if removed.code and not _matched_nothing(removed):
        raise LaunchError(f"{shlex.quote(place)} cannot be emptied: {removed.last_lines}")
    # the slash: the folder goes into the place, also while that is not there yet
    copied = ask(["gcloud", "storage", "cp", "--quiet", "--recursive", str(folder), f"{place}/"])
    if copied.code:
        raise LaunchError(f"{folder.name} cannot be copied to {shlex.quote(place)}: {copied.last_lines}")
    with tempfile.TemporaryDirectory() as temporary:
        texts = {PLACE_KEY: place, "startup-script": startup_script(place, folder.name, queued.delete())}
        for name, text in texts.items():
            (Path(temporary) / name).write_text(text)
        argv = [*queued.create(), "--metadata-from-file=" + ",".join(f"{name}={temporary}/{name}" for name in texts)]
        say(show(argv))
        return ask(argv)


def place_in(description: str) -> str:
    """The place that the metadata of a described slice names; empty for one that was not detached."""
    nodes = json.loads(description or "{}").get("tpu", {}).get("nodeSpec", [])
    return next((found for node in nodes if (found := node.get("node", {}).get("metadata", {}).get(PLACE_KEY))), "")


def cat(place: str, name: str) -> str | None:
    """The content of a file of the place; None where it is not there (yet). Raises LaunchError where the bucket does not answer."""
    found = ask(["gcloud", "storage", "cat", f"{place}/{name}"])
    if found.code and not _matched_nothing(found):
        raise LaunchError(f"{shlex.quote(place)} cannot be read: {found.last_lines}")
    return None if found.code else found.stdout


def _matched_nothing(answer: Answer) -> bool:
    return "matched no objects" in answer.stderr or "not found" in answer.stderr.lower()
