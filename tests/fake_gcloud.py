"""Stand-in for gcloud's TPU commands. Texts and JSON as the real one gives them (gcloud 5xx; queuedResources of tpu.googleapis.com/v2)."""

import json
import sys
import time

from stand_ins import following, opened

folder, scenario, _, arguments = opened()
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
    resource.write_text("[]")
    print(f"Create request issued for: [{name}]", file=sys.stderr)
elif verb == "describe":
    if "describe_error" in scenario:
        fail(scenario["describe_error"])
    if not resource.exists():
        missing()
    lost = folder / f"{name}.lost"
    state = lost.read_text() if lost.exists() else following(folder, f"{name}.states", scenario.get("states", ["ACTIVE"]))
    details = {"failedData": {"error": {"code": 8, "message": scenario["failed"]}}} if state == "FAILED" else {}
    print(json.dumps({"name": f"queuedResources/{name}", "state": {"state": state, **details}}))
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
