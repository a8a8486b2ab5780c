"""The Kubernetes launcher against a stand-in for kubectl."""

import json
import signal
import time

import pytest
from mpt_jax.launch.__main__ import parse
from mpt_jax.launch.k8s import manifest
from stand_ins import StandIn


def arguments(*more: str) -> list[str]:
    options = ["--target", "k8s", "--image", "image", "--namespace", "team", "--name", "run", "--poll_s", "0.02"]
    return [*options, *more, "--", "train", "--gin_file=source.gin"]


def kubectl(folder, **scenario) -> StandIn:
    return StandIn(folder, "fake_kubectl.py", ("kubectl",), scenario)


def verbs(stand_in: StandIn) -> list[str]:
    """Calls without the questions."""
    return [call[2] for call in stand_in.calls if call[2] != "get"]


def test_success_and_logs_that_are_not_there_at_first(tmp_path):
    stand_in = kubectl(tmp_path, states=[{}, *[{"restarts": 0}] * 8, "Completed"], waiting=[True, True, False])
    code, output, said = stand_in.run(*arguments())
    assert code == 0 and output == "[pod/run-workers-0-0/main] step 1\n" and stand_in.left() == []
    assert verbs(stand_in) == ["create", "logs", "logs", "logs", "delete"] and "nothing is left" in said
    assert stand_in.calls[-1] == ["kubectl", "--namespace=team", "delete", "jobset", "run", "--ignore-not-found", "--wait"]


def test_output_of_every_start_is_shown_once(tmp_path):
    stand_in = kubectl(tmp_path, states=[*[{"restarts": 0}] * 6, *[{"restarts": 1}] * 6, "Completed"])
    code, output, said = stand_in.run(*arguments())
    assert code == 0 and output.count("step 1") == 2 and "1 restarts" in said


@pytest.mark.parametrize("codes, code", [([0, 2], 2), ([83, 83], 83), ([83, 1], 1), ([], 1), ([134, 84, 83, 2], 2)])
def test_failure_gives_the_commands_code(tmp_path, codes, code):
    stand_in = kubectl(tmp_path, states=[{"restarts": 0}, "Failed"], codes=codes)
    assert stand_in.run(*arguments())[0] == code and stand_in.left() == []


@pytest.mark.parametrize("moment, number, code", [("logs", signal.SIGINT, 130), ("create", signal.SIGTERM, 143)])
def test_ctrl_c_deletes(tmp_path, moment, number, code):
    stand_in = kubectl(tmp_path, states=[{"restarts": 0}], log_s=30)
    ended, _, said = stand_in.interrupt(moment, *arguments(), number=number)
    assert ended == code and stand_in.left() == [] and verbs(stand_in)[-1] == "delete" and "Traceback" not in said


def test_refusals(tmp_path):
    (tmp_path / "a").mkdir()
    stand_in = kubectl(tmp_path / "a", refused='error: no matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"')
    code, _, said = stand_in.run(*arguments())
    assert code == 2 and "no matches for kind" in said and stand_in.left() == []
    (tmp_path / "b").mkdir()
    stand_in = kubectl(tmp_path / "b", taken=True)
    code, _, said = stand_in.run(*arguments())
    assert code == 2 and verbs(stand_in) == ["create"] and "already exists" in said


def test_deleting_is_tried_again_and_its_failure_told(tmp_path):
    stand_in = kubectl(tmp_path, states=["Completed"], delete_errors=["unable", ""])
    assert stand_in.run(*arguments())[0] == 0 and verbs(stand_in)[-2:] == ["delete", "delete"] and stand_in.left() == []
    (tmp_path / "never").mkdir()
    stand_in = kubectl(tmp_path / "never", states=["Completed"], delete_errors=["unable"])
    code, _, said = stand_in.run(*arguments())
    assert code == 3 and "STILL THERE" in said and "kubectl --namespace=team delete jobset run" in said


def described(*more: str) -> dict:
    options, command = parse(arguments(*more))
    return manifest(options, command, "run")


def test_manifest_of_a_tpu_slice():
    value = described("--type", "v5e:4x4", "--spot", "--env", "NAME=a b", "--max_restarts", "3")
    job = value["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    labels = {"accelerator": "tpu-v5-lite-podslice", "topology": "4x4"}
    assert pod["nodeSelector"] == {f"cloud.google.com/gke-tpu-{k}": v for k, v in labels.items()} | {"cloud.google.com/gke-spot": "true"}
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["command"][-2:] == ["train", "--gin_file=source.gin"]
    assert {"name": "NAME", "value": "a b"} in container["env"]
    assert value["spec"]["failurePolicy"]["maxRestarts"] == 3 and value["spec"]["network"]["enableDNSHostnames"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [83, 84, 134] and pod["restartPolicy"] == "Never"
    last_start = next(int(variable["value"]) for variable in container["env"] if variable["name"] == "MPT_LAST_START")
    assert abs(time.time() + 168 * 3600 - last_start) < 60


def test_volumes_of_the_manifest():
    options, command = parse([*arguments("--claim", "data:/data"), "--gin.MODEL_DIR='gs://runs/source'"])
    template = manifest(options, command, "run")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    container = template["spec"]["containers"][0]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert template["spec"]["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "runs"
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/gcs/runs", "/data"]
    assert container["command"][-1] == "--gin.MODEL_DIR='/gcs/runs/source'"
    assert {"name": "MPT_CACHE_DIR", "value": "/gcs/runs/source/cache"} in container["env"]


def test_manifest_of_gpu_hosts():
    value = described("--type", "h100x8", "--nodes", "2")
    job = value["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == 2 and pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    values = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    assert values["JAX_COORDINATOR_ADDRESS"] == "run-workers-0-0.run:8476" and values["JAX_NUM_PROCESSES"] == "2"
    assert values["JAX_PLATFORMS"] == "cuda,cpu"


def test_dry_run(tmp_path):
    stand_in = kubectl(tmp_path)
    code, output, _ = stand_in.run(*arguments("--dry_run"))
    text, _, commands = output.partition("\nkubectl")
    assert code == 0 and stand_in.calls == [] and json.loads(text)["kind"] == "JobSet" and "--namespace=team create" in commands
