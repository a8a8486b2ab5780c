"""Stand-in for kubectl and the JobSet controller: a set walks through the scenario's states, one a question."""

import json
import sys
import time

from stand_ins import following, opened

folder, scenario, _, arguments = opened()
assert arguments[0] == "--namespace=team"
verb = arguments[1]
if verb == "create":
    manifest = json.load(sys.stdin)
    resource = folder / f"{manifest['metadata']['name']}.resource"
    if resource.exists() or scenario.get("taken"):
        print(f'Error from server (AlreadyExists): jobsets.jobset.x-k8s.io "{resource.stem}" already exists', file=sys.stderr)
        sys.exit(1)
    if "refused" in scenario:
        print(scenario["refused"], file=sys.stderr)
        sys.exit(1)
    resource.write_text(json.dumps(manifest))
elif verb == "get" and arguments[2] == "jobset":
    resource = folder / f"{arguments[3]}.resource"
    if resource.exists():
        status = following(folder, "states", scenario.get("states", [{}, {"restarts": 0}, "Completed"]))
        if isinstance(status, str):
            status = {"conditions": [{"type": status, "status": "True"}], "restarts": 0}
        print(json.dumps({"kind": "JobSet", "status": status}))
elif verb == "get":
    codes = scenario.get("codes", [])
    items = [{"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": code}}}]}} for code in codes]
    print(json.dumps({"items": items}))
elif verb == "logs":
    if following(folder, "logs", scenario.get("waiting", [False])):
        print("Error from server (BadRequest): container is waiting to start: ContainerCreating", file=sys.stderr)
        sys.exit(1)
    print("[pod/run-workers-0-0/main] step 1", flush=True)
    time.sleep(scenario.get("log_s", 0))
elif verb == "delete":
    if following(folder, "delete", scenario.get("delete_errors", [""])):
        print("error: the server is currently unable to handle the request", file=sys.stderr)
        sys.exit(1)
    (folder / f"{arguments[3]}.resource").unlink(missing_ok=True)
