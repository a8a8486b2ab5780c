"""Kubernetes: one JobSet of as many pods as the slice or the nodes have hosts, followed and deleted at the end.

A pod that was preempted, lost a peer or lost its node restarts the whole set, at most --max_restarts times; any other failure fails it.
Buckets in the command are mounted by GKE's driver (launch/buckets.py); elsewhere give a --claim.
Needs the JobSet controller 0.6 or newer in the cluster. The manifest is JSON, which kubectl reads as YAML.
Sources: jobset.sigs.k8s.io/docs/reference; kubernetes.io/docs/tasks/job/pod-failure-policy;
cloud.google.com/kubernetes-engine/docs/how-to/tpus.
"""

import argparse
import json
import re
import secrets
import subprocess
import time
from collections.abc import Sequence

from mpt_jax.launch.buckets import MOUNT_OPTIONS, model_dir, mounted
from mpt_jax.launch.calls import EXIT_LEFT_BEHIND, LaunchError, ask, end, follow, say, show, signals_wait, variables
from mpt_jax.launch.limits import add_limit, add_price, add_total, last_start, seconds
from mpt_jax.launch.machines import GPU_HOSTS, gpu_host, tpu_slice

from mpt_jax.errors import EXIT_PEER_LOST, EXIT_PEER_LOST_ABORTED, EXIT_PREEMPTED
from mpt_jax.launched import LAST_START

PORT = 8476  # of the coordinator
GRACE_S = 120  # between SIGTERM and SIGKILL: time to save
DELETIONS = 5
RESTARTED = (EXIT_PREEMPTED, EXIT_PEER_LOST, EXIT_PEER_LOST_ABORTED)  # codes after which all pods start again
MOST_PODS = 1024  # whose logs are asked for together where their number is not known [ours]
KEPT_S = 24 * 3600  # that the cluster keeps an ended set, with its pods' logs, where no launcher deletes it [ours]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this target."""
    parser.add_argument("--type", default="v5e:2x2", help="TPU slice GENERATION:TOPOLOGY or kind of GPU host (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="hosts with GPUs; a TPU slice has its own number (default: %(default)s)")
    parser.add_argument("--image", required=True, help="container image with mpt_jax")
    parser.add_argument("--name", default="", help="of the JobSet (default: made up, unique)")
    add_price(parser)
    add_limit(parser)
    add_total(parser)
    parser.add_argument("--service_account", default="", help="Kubernetes service account that may read and write the bucket")
    parser.add_argument("--claim", default="", metavar="NAME:/PATH", help="persistent volume claim, mounted at that path in all pods")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable for the command; may be repeated")
    parser.add_argument("--max_restarts", type=int, default=20, help="starts again after preemptions (default: %(default)s)")
    parser.add_argument("--poll_s", type=float, default=5.0, help="seconds between questions about the state (default: %(default)s)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options that say where a job is, for launching and for status, logs and stop."""
    parser.add_argument("--namespace", default="default", help="(default: %(default)s)")


def manifest(arguments: argparse.Namespace, command: Sequence[str], name: str) -> dict:
    """The JobSet."""
    if arguments.type in GPU_HOSTS:
        host, pods = gpu_host(arguments.type), arguments.nodes
        selector = {"cloud.google.com/gke-accelerator": host.gke_accelerator}
        resources = {"nvidia.com/gpu": host.gpus}
        platform = ["JAX_PLATFORMS=cuda,cpu"]  # an error where the driver is not found, instead of a run on the CPU
    else:
        machine = tpu_slice(arguments.type)
        pods = machine.hosts
        selector = {"cloud.google.com/gke-tpu-accelerator": machine.gke_accelerator, "cloud.google.com/gke-tpu-topology": machine.topology}
        resources = {"google.com/tpu": machine.chips_per_host}
        platform = []  # JAX itself does so where libtpu is installed
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    if arguments.flex_start:
        selector["cloud.google.com/gke-flex-start"] = "true"
    command, buckets = mounted(command, "/gcs")
    volumes, mounts = _volumes(buckets, arguments.claim)
    folder = model_dir(command)
    shared = [f"MPT_CACHE_DIR={folder}/cache"] if folder else []  # the first pod writes token caches that all read
    container = {
        "name": "main",
        "image": arguments.image,
        "command": ["python", "-u", "-m", "mpt_jax", *command],
        "env": _variables([f"{LAST_START}={last_start(arguments)}", *platform, *shared, *arguments.env], name, pods),
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": resources, "requests": resources},
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": volumes,
    }
    if arguments.spot:
        pod["tolerations"] = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": list(RESTARTED)}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "activeDeadlineSeconds": seconds(arguments),  # of each start, the wait for nodes included
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"annotations": {"gke-gcsfuse/volumes": "true"} if buckets else {}}, "spec": pod},
    }
    policy = [
        {"name": "preempted", "action": "RestartJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
        {"name": "failed", "action": "FailJobSet"},
    ]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": arguments.namespace,
            # a slice belongs to one job: GKE puts its pods on one node pool
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "ttlSecondsAfterFinished": KEPT_S,
            "network": {"enableDNSHostnames": True, "subdomain": name},  # the controller makes this headless service
            "failurePolicy": {"maxRestarts": arguments.max_restarts, "rules": policy},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def _volumes(buckets: Sequence[str], claim: str) -> tuple[list[dict], list[dict]]:
    """(volumes of a pod, where its container sees them)."""
    options = ",".join(MOUNT_OPTIONS)
    volumes, mounts = [], []
    for n, bucket in enumerate(buckets):
        attributes = {"mountOptions": options, "bucketName": bucket}
        volumes.append({"name": f"bucket-{n}", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}})
        mounts.append({"name": f"bucket-{n}", "mountPath": f"/gcs/{bucket}"})
    if claim:
        name, _, path = claim.partition(":")
        if not name or not path.startswith("/"):
            raise LaunchError(f"--claim {claim!r}: it takes NAME:/PATH.")
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": name}})
        mounts.append({"name": "claim", "mountPath": path})
    return volumes, mounts


def _variables(bindings: Sequence[str], name: str, pods: int) -> list[dict]:
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    own: list[dict] = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-workers-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(pods)},
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]
    return own + [{"name": variable, "value": value} for variable, value in variables(bindings)]


class JobSet:
    """The kubectl commands about one JobSet."""

    def __init__(self, namespace: str, name: str, pods: int = MOST_PODS):
        self.name, self._pods = name, pods
        self._selector = f"--selector=jobset.sigs.k8s.io/jobset-name={name}"
        self._kubectl = ["kubectl", f"--namespace={namespace}"]

    def create(self) -> list[str]:
        """Makes it from the manifest on standard input; refuses a name that is there."""
        return [*self._kubectl, "create", "--filename=-"]

    def get(self) -> list[str]:
        """Asks for its state."""
        return [*self._kubectl, "get", "jobset", self.name, "--output=json", "--ignore-not-found"]

    def pods(self) -> list[str]:
        """Asks for its pods."""
        return [*self._kubectl, "get", "pods", self._selector, "--output=json"]

    def logs(self, follow: bool = True) -> list[str]:
        """All pods' output, so far or as it comes."""
        followed = ["--follow"] if follow else []
        return [*self._kubectl, "logs", *followed, self._selector, "--prefix", "--tail=-1", f"--max-log-requests={self._pods}"]

    def delete(self) -> list[str]:
        """Deletes it with its pods and service, and waits for that."""
        return [*self._kubectl, "delete", "jobset", self.name, "--ignore-not-found", "--wait"]


def launch(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    """Runs the command as a JobSet. Returns its exit code, EXIT_PREEMPTED after the last restart, or EXIT_LEFT_BEHIND."""
    name = arguments.name or f"mpt-{secrets.token_hex(3)}"
    described = manifest(arguments, command, name)
    text = json.dumps(described, indent=2)
    pods = described["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"]
    jobset = JobSet(arguments.namespace, name, pods)
    if arguments.dry_run:
        print(text)
        for argv in (jobset.create(), jobset.get(), jobset.logs(), jobset.pods(), jobset.delete()):
            print(show(argv))
        return 0
    ours, left = True, False
    try:
        with signals_wait():
            say(show(jobset.create()))
            created = ask(jobset.create(), text)
            # of a set by this name that somebody else made, nothing may be deleted
            ours = not (created.code and re.search(r"already.?exists", created.stderr, re.IGNORECASE))
        if created.code:
            raise LaunchError(f"kubectl refused the JobSet: {created.last_lines}")
        if arguments.detach:
            ours = False
            place = f"{name} --target k8s --namespace={arguments.namespace}"
            say(f"JobSet {name} is there; python -m mpt_jax.launch status|logs|stop {place}")
            return 0
        code = _follow(jobset, arguments.poll_s)
    finally:
        if ours:
            with signals_wait():
                left = not _delete(jobset, arguments.poll_s)
    return EXIT_LEFT_BEHIND if left else code


def _state(jobset: JobSet) -> tuple[str, int]:
    """('Completed', 'Failed', 'running', or '' where there is no such set; its restarts). Raises LaunchError where kubectl fails."""
    answer = ask(jobset.get())
    if answer.code:
        raise LaunchError(f"kubectl cannot get JobSet {jobset.name}: {answer.last_lines}")
    if not answer.stdout.strip():
        return "", 0
    status = json.loads(answer.stdout).get("status", {})
    return next(iter(_ended(status)), "running"), status.get("restarts", 0)


def _ended(status: dict) -> list[str]:
    return [c["type"] for c in status.get("conditions", []) if c["type"] in ("Completed", "Failed") and c["status"] == "True"]


def status(arguments: argparse.Namespace) -> int:
    """Prints the state of a JobSet, and the exit code of one that failed."""
    jobset = JobSet(arguments.namespace, arguments.name)
    state, restarts = _state(jobset)
    code = f"; the command ended with code {_worst_code(jobset)}" if state == "Failed" else ""
    print(f"{arguments.name}: {state or 'not there'}{f', {restarts} restarts' if restarts else ''}{code}")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Prints what all pods have said so far."""
    return follow(JobSet(arguments.namespace, arguments.name).logs(follow=False))


def stop(arguments: argparse.Namespace) -> int:
    """Deletes a JobSet, detached or left behind by a launcher that died."""
    with signals_wait():
        return 0 if _delete(JobSet(arguments.namespace, arguments.name), arguments.poll_s) else EXIT_LEFT_BEHIND


def _follow(jobset: JobSet, poll_s: float) -> int:
    """Passes the pods' output through until the set has ended; returns the command's exit code."""
    logs, logged, following, last = None, -1, -1, ""
    try:
        while True:
            answer = ask(jobset.get())
            if answer.code == 0 and not answer.stdout.strip():
                raise LaunchError(f"JobSet {jobset.name} is gone: somebody deleted it.")
            status = json.loads(answer.stdout).get("status", {}) if answer.code == 0 else {}
            ended = _ended(status)
            restarts = status.get("restarts", 0)
            state = ended[0] if ended else f"running, {restarts} restarts"
            if state != last and status:
                say(f"JobSet {jobset.name}: {state}")
                last = state
            if logs is not None and logs.poll() == 0:
                logged = following  # all there was of this start
            if ended:
                break
            # pods that still wait for a node have no log yet, so kubectl fails and is asked again
            if restarts > logged and (logs is None or logs.poll() is not None):
                following, quiet = restarts, subprocess.DEVNULL
                with signals_wait():
                    logs = subprocess.Popen(jobset.logs(), stdin=quiet, stderr=quiet, start_new_session=True)
            time.sleep(poll_s)
        if logs is not None and logs.poll() is None:
            time.sleep(poll_s)
        return 0 if ended == ["Completed"] else _worst_code(jobset)
    finally:
        if logs is not None:
            end([logs], 5.0)


def _worst_code(jobset: JobSet) -> int:
    """Exit code of the failed pods: that of a failure, if there is one, before those that follow from another pod's or a machine's end."""
    answer = ask(jobset.pods())
    pods = json.loads(answer.stdout)["items"] if answer.code == 0 else []
    statuses = [status for pod in pods for status in pod.get("status", {}).get("containerStatuses", [])]
    codes = [status.get("state", {}).get("terminated", {}).get("exitCode", 0) for status in statuses]
    failed = sorted((code for code in codes if code), key=lambda code: code in RESTARTED)
    return failed[0] if failed else 1


def _delete(jobset: JobSet, poll_s: float) -> bool:
    for _ in range(DELETIONS):
        deleted = ask(jobset.delete())
        if deleted.code == 0:
            say(f"JobSet {jobset.name}: nothing is left")
            return True
        time.sleep(poll_s)
    say(f"JobSet {jobset.name} IS STILL THERE ({deleted.last_lines}). Delete it: {show(jobset.delete())}")
    return False
