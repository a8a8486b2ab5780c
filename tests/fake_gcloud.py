"""Stand-in for gcloud's TPU commands. Texts and JSON as the real one gives them (gcloud 5xx; queuedResources of tpu.googleapis.com/v2)."""

import json
import shutil
import sys
import time
from pathlib import Path

from stand_ins import following, opened


def storage(folder: Path, arguments: list[str]) -> None:
    """``storage cp FILE gs://…``, ``storage cat gs://…``, ``storage rm gs://…/**``: a bucket is a folder."""
    paths = [argument for argument in arguments[2:] if not argument.startswith("--")]
    here = [folder / path.removeprefix("gs://") if path.startswith("gs://") else Path(path) for path in paths]
    everything = here[0].name == "**"
    if not (here[0].parent if everything else here[0]).exists():
        print(f"ERROR: (gcloud.storage.{arguments[1]}) The following URLs matched no objects or files:\n{paths[0]}", file=sys.stderr)
        sys.exit(1)
    if arguments[1] == "cat":
        print(here[0].read_text(), end="")
    elif arguments[1] == "rm":
        assert everything and "--quiet" in arguments
        shutil.rmtree(here[0].parent)
    elif here[0].is_dir():
        assert "--recursive" in arguments
        # the real one keeps the folder's own name only below what exists or is written with a slash at its end
        below = paths[1].endswith("/") or here[1].is_dir()
        shutil.copytree(here[0], here[1] / here[0].name if below else here[1], dirs_exist_ok=True)
    else:
        here[1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here[0], here[1])
    sys.exit(0)


folder, scenario, _, arguments = opened()
if arguments[0] == "storage":
    storage(folder, arguments)
if arguments[0] == "alpha":
    arguments = arguments[1:]
verb, name = arguments[3], arguments[4]
flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments[4:] if argument.startswith("--"))
if verb == "scp":
    name = arguments[6].removesuffix(":")
resource = folder / f"{name}.resource"


def fail(text: str, code: int = 1) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)


def missing() -> None:
    path = f"projects/{flags['project']}/locations/{flags['zone']}/queuedResources/{name}"
    fail(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: Resource '{path}' was not found")


if verb == "create":
    time.sleep(scenario.get("create_s", 0))
    error = following(folder, "create", scenario.get("create_errors", [""]))
    if resource.exists() or scenario.get("taken"):
        fail(f"ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource '{name}' already exists")
    if error:
        fail(error)
    assert "max-run-duration" in flags and "valid-until-duration" in flags, "nothing would end it"
    files = dict(part.split("=", 1) for part in flags["metadata-from-file"].split(",")) if "metadata-from-file" in flags else {}
    resource.write_text(json.dumps({key: Path(path).read_text() for key, path in files.items()}))
    if scenario.get("create_late_error"):
        fail(scenario["create_late_error"])
    print(f"Create request issued for: [{name}]", file=sys.stderr)
elif verb == "describe":
    if "describe_error" in scenario:
        fail(scenario["describe_error"])
    if not resource.exists():
        missing()
    lost = folder / f"{name}.lost"
    state = lost.read_text() if lost.exists() else following(folder, f"{name}.states", scenario.get("states", ["ACTIVE"]))
    details = {"failedData": {"error": {"code": 8, "message": scenario["failed"]}}} if state == "FAILED" else {}
    tpu = {"nodeSpec": [{"nodeId": name, "node": {"metadata": json.loads(resource.read_text())}}]}
    print(json.dumps({"name": f"queuedResources/{name}", "tpu": tpu, "state": {"state": state, **details}}))
elif verb == "delete":
    if not resource.exists():
        missing()
    assert "force" in flags and "quiet" in flags  # the real one refuses an active resource, or asks
    if following(folder, "delete", scenario.get("delete_errors", [""])):
        fail("ERROR: (gcloud.compute.tpus.queued-resources.delete) INTERNAL: an internal error has occurred")
    for path in (resource, folder / f"{name}.lost", folder / f"{name}.states.count"):
        path.unlink(missing_ok=True)
elif verb == "scp":
    assert resource.exists() and flags["worker"] == "all" and "recurse" in flags
elif verb == "ssh":
    assert resource.exists() and flags["worker"] == "all"
    if flags["command"].endswith("run.sh"):
        print("[worker-0] step 1", flush=True)
        time.sleep(scenario.get("run_s", 0))
        code, state = following(folder, "run", scenario.get("runs", [[0, ""]]))
        if state:
            (folder / f"{name}.lost").write_text(state)
        sys.exit(code)
    time.sleep(scenario.get("install_s", 0))
    sys.exit(scenario.get("install", 0))
else:
    fail(f"ERROR: (gcloud) Invalid choice: '{verb}'.", 2)
