"""The TPU launcher against a stand-in for gcloud: which calls it makes, and that afterwards nothing exists that it created."""

import os
import signal
import subprocess

import pytest
from mpt_jax.launch import tpu_files
from mpt_jax.launch.__main__ import main, parse
from stand_ins import ROOT, StandIn

QUOTA = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone us-west4-a."
)
WHERE = ["--zone=us-west4-a", "--project=acme"]
MODEL_DIR = "--gin.MODEL_DIR='gs://bucket/run'"
ONCE = ["create", "describe", "describe", "describe", "scp", "ssh install.sh", "ssh run.sh"]
END = ["describe", "delete", "describe"]


def arguments(folder, *more: str) -> list[str]:
    wheel = folder / "mpt_jax-0.1.0-py3-none-any.whl"
    wheel.touch()
    options = ["--target", "tpu", "--type", "v5e:4x4", *WHERE, "--name", "run", "--spot", "--poll_s", "0.01", "--wheel", str(wheel), *more]
    return [*options, "--", "train", "--gin_file=source.gin", MODEL_DIR]


def gcloud(folder, **scenario) -> StandIn:
    return StandIn(folder, "fake_gcloud.py", ("gcloud",), {"states": ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], **scenario})


def verbs(stand_in: StandIn) -> list[str]:
    scripts = {True: lambda call: call[4] + " " + call[-1].split("/")[-1], False: lambda call: call[4]}
    calls = [[part for part in call if part != "alpha"] for call in stand_in.calls]
    return [scripts[call[4] == "ssh"](call) for call in calls if call[1] == "compute"]


def test_success_makes_exactly_these_calls(tmp_path):
    stand_in = gcloud(tmp_path)
    code, output, said = stand_in.run(*arguments(tmp_path))
    assert code == 0 and "[worker-0] step 1" in output

    def queued(verb, *more):
        return ["gcloud", "compute", "tpus", "queued-resources", verb, "run", *WHERE, *more]

    def ssh(script):
        command = f"--command=bash mpt_jax_run/{script}"
        return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "run", *WHERE, "--worker=all", command]

    described = queued("describe", "--format=json")
    copied = stand_in.calls[4]
    assert copied[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse"] and copied[6].endswith("/mpt_jax_run")
    assert copied[7:] == ["run:", *WHERE, "--worker=all"]
    types = ["--node-id=run", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"]
    created = queued("create", *types, "--max-run-duration=86400s", "--valid-until-duration=86400s")
    created.insert(1, "alpha")
    expected = [created, *[described] * 3, copied, ssh("install.sh"), ssh("run.sh")]
    assert stand_in.calls == [*expected, described, queued("delete", "--force", "--quiet"), described]
    assert stand_in.left() == [] and "nothing is left" in said


def test_quota_refused_at_once(tmp_path):
    stand_in = gcloud(tmp_path, create_errors=[QUOTA])
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 2 and "TPUV5sPreemptibleLitepod" in said and "Ask for quota" in said and "Traceback" not in said
    assert verbs(stand_in) == ["create", "describe"] and stand_in.left() == []


def test_quota_refused_later(tmp_path):
    stand_in = gcloud(tmp_path, states=["WAITING_FOR_RESOURCES", "FAILED"], failed="Quota limit 'TPUV5' has been exceeded.")
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 2 and "Quota limit 'TPUV5'" in said and "Ask for quota" in said
    assert verbs(stand_in) == ["create", "describe", "describe", *END] and stand_in.left() == []


@pytest.mark.parametrize("preempted", [[255, "SUSPENDED"], [83, ""]])
def test_a_preempted_slice_is_deleted_and_created_again(tmp_path, preempted):
    stand_in = gcloud(tmp_path, runs=[preempted, [0, ""]])
    code, _, said = stand_in.run(*arguments(tmp_path))
    looked = [] if preempted[0] == 83 else ["describe"]
    assert code == 0 and "start 1 of at most 21" in said
    assert verbs(stand_in) == [*ONCE, *looked, *END, *ONCE, *END] and stand_in.left() == []


def test_preempted_before_it_was_ready_and_too_often(tmp_path):
    stand_in = gcloud(tmp_path, states=["PROVISIONING", "SUSPENDED"])
    code, _, _ = stand_in.run(*arguments(tmp_path, "--max_restarts", "1"))
    assert code == 83 and verbs(stand_in) == ["create", "describe", "describe", *END] * 2 and stand_in.left() == []


def test_a_failing_command_gives_its_code(tmp_path):
    stand_in = gcloud(tmp_path, runs=[[2, ""]])
    assert stand_in.run(*arguments(tmp_path))[0] == 2
    assert verbs(stand_in) == [*ONCE, "describe", *END] and stand_in.left() == []


def test_a_broken_connection_is_made_again(tmp_path):
    stand_in = gcloud(tmp_path, runs=[[255, ""], [0, ""]])
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 0 and "connection 1 broke" in said
    assert verbs(stand_in) == [*ONCE, "describe", "describe", "ssh run.sh", *END] and stand_in.left() == []


def test_installing_fails(tmp_path):
    stand_in = gcloud(tmp_path, install=1)
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 2 and "installing on the workers failed" in said and stand_in.left() == []


@pytest.mark.parametrize(
    "moment, scenario, number, code",
    [
        (" create ", {"create_s": 0.5}, signal.SIGINT, 130),
        (" describe ", {"states": ["WAITING_FOR_RESOURCES"]}, signal.SIGINT, 130),
        ("install.sh", {"install_s": 30}, signal.SIGINT, 130),
        ("run.sh", {"run_s": 30}, signal.SIGINT, 130),
        ("run.sh", {"run_s": 30}, signal.SIGTERM, 143),
    ],
)
def test_ctrl_c_deletes(tmp_path, moment, scenario, number, code):
    stand_in = gcloud(tmp_path, **scenario)
    ended, _, said = stand_in.interrupt(moment, *arguments(tmp_path), number=number)
    done = verbs(stand_in)
    assert stand_in.left() == [] and "Traceback" not in said
    assert done[0] == "create" and done[-3:] == END and done.count("create") == 1
    assert ended == code
    if moment == "run.sh":
        assert done == [*ONCE, *END]


def test_deleting_is_tried_again_and_its_failure_told(tmp_path):
    stand_in = gcloud(tmp_path, delete_errors=["internal", ""])
    assert stand_in.run(*arguments(tmp_path))[0] == 0
    assert verbs(stand_in) == [*ONCE, "describe", "delete", *END] and stand_in.left() == []
    (tmp_path / "never").mkdir()
    stand_in = gcloud(tmp_path / "never", delete_errors=["internal"])
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 3 and stand_in.left() == ["run"]
    assert "STILL THERE" in said and "Delete it: gcloud compute tpus queued-resources delete run --zone=us-west4-a" in said


def test_gcloud_without_an_account(tmp_path):
    stand_in = gcloud(tmp_path, create_errors=["ERROR: You do not currently have an active account selected."], describe_error="no account")
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 2 and "active account" in said and "look with: gcloud" in said
    assert verbs(stand_in) == ["create", "describe"]


def test_a_slice_of_somebody_else_is_never_deleted(tmp_path):
    stand_in = gcloud(tmp_path, taken=True)
    code, _, said = stand_in.run(*arguments(tmp_path))
    assert code == 2 and "already exists" in said and verbs(stand_in) == ["create"]


def test_dry_run_calls_nothing(tmp_path):
    stand_in = gcloud(tmp_path)
    code, output, _ = stand_in.run(*arguments(tmp_path, "--dry_run", "--env", "NAME=a b"))
    assert code == 0 and stand_in.calls == []
    assert "gcloud alpha compute tpus queued-resources create run" in output
    assert "export NAME='a b'" in output and output.rstrip().endswith("--format=json")


@pytest.mark.parametrize(
    "changes, command, message",
    [
        (["--type", "v5e:3x3"], MODEL_DIR, "known: v5e:4x4; v5e: 1x1, 2x2"),
        (["--type", "v9:2x2"], MODEL_DIR, "generations v4, v5e, v5p, v6e"),
        ([], "--gin.MODEL_DIR='runs/source'", "gs://BUCKET/FOLDER"),
        (["--env", "NAME"], MODEL_DIR, "NAME=VALUE"),
        (["--ship", "nowhere"], MODEL_DIR, "--ship nowhere"),
        (["--wheel", "none.whl"], MODEL_DIR, "--wheel none.whl"),
    ],
)
def test_bad_options_are_refused_before_anything_is_created(tmp_path, capsys, monkeypatch, changes, command, message):
    stand_in = gcloud(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    options = arguments(tmp_path)
    assert main([*options[: options.index("--")], *changes, "--", "train", command]) == 2
    assert message in capsys.readouterr().err and stand_in.calls == []


@pytest.mark.parametrize("code", [7])
def test_the_workers_script_starts_once_and_follows(tmp_path, code):
    """The script for real, in a home folder of its own: two calls at once see one start, its whole output and its exit code."""
    work = tmp_path / tpu_files.FOLDER
    (work / "venv" / "bin").mkdir(parents=True)
    program = work / "venv" / "bin" / "python"
    program.write_text(f'#!/bin/bash\necho x >>starts\necho "$NAME: $*"\nsleep 1\necho last\nexit {code}\n')
    program.chmod(0o755)
    options, command = parse(arguments(tmp_path, "--env", "NAME=a b"))
    for name, text in tpu_files.scripts(options, command, "mpt.whl").items():
        (work / name).write_text(text)
        assert subprocess.run(["bash", "-n", str(work / name)], check=False).returncode == 0

    def start():
        home = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.Popen(["bash", str(work / "run.sh")], env=home, stdout=subprocess.PIPE, text=True)

    for process in [start(), start()]:
        output = process.communicate(timeout=30)[0]
        assert process.returncode == code
        assert "a b: -u -m mpt_jax train --gin_file=source.gin --gin.MODEL_DIR='gcs/bucket/run'" in output
        assert output.rstrip().endswith("last")
    assert (work / "starts").read_text() == "x\n"


def test_buckets_are_mounted_on_the_workers(tmp_path):
    options, _ = parse(arguments(tmp_path))
    command = ["train", MODEL_DIR, "--gin.TEACHER_DIR='gs://other-1/teachers'", "--gin.SEED=[1, 2]"]
    texts = tpu_files.scripts(options, command, "mpt.whl")
    assert "for bucket in bucket other-1; do" in texts["install.sh"] and "--rename-dir-limit=" in texts["install.sh"]
    assert "gs://" not in texts["run.sh"] and "gcs/other-1/teachers" in texts["run.sh"]
    assert "export MPT_CACHE_DIR=gcs/bucket/run/cache" in texts["run.sh"]
    assert "gcsfuse" not in tpu_files.scripts(options, ["tasks"], "mpt.whl")["install.sh"]


def test_mounting_waits_for_a_machine_that_updates_itself(tmp_path):
    """apt is locked twice; the second bucket is not there, and that ends the script."""
    (tmp_path / "bin").mkdir()
    fakes = {
        "sudo": '[ "$1" != tee ] || exec cat; echo "$*" >>calls; [ "$1" != apt-get ] || [ "$(grep -c apt-get calls)" -gt 2 ]',
        "sleep": 'echo "sleep $1" >>calls',
        "gcsfuse": 'echo "gcsfuse ${@: -2:1}" >>calls; [ "${@: -2:1}" = first ]',
        "curl": "true",
        "lsb_release": "echo jammy",
    }
    for name, body in fakes.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    script = "set -euo pipefail\n" + tpu_files.MOUNTS.format(buckets="first second", options="--implicit-dirs")
    path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path, env=path, check=False, capture_output=True).returncode == 1
    update, install = "apt-get update -qq", "apt-get install -qq --yes gcsfuse"
    tries = [update, "sleep 10", update, "sleep 10", update, install]
    assert (tmp_path / "calls").read_text().splitlines() == [*tries, "gcsfuse first", "gcsfuse second"]


def test_shipped_files_lie_beside_the_command(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").touch()
    (tmp_path / "my_tasks.py").touch()
    options, command = parse(arguments(tmp_path, "--ship", str(tmp_path / "data"), "--ship", str(tmp_path / "my_tasks.py")))
    (tmp_path / "out").mkdir()
    tpu_files.write_folder(tmp_path / "out", options, command, tmp_path / "mpt_jax-0.1.0-py3-none-any.whl")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    wanted = {"data/a.jsonl", "my_tasks.py", "install.sh", "run.sh", "mpt_jax-0.1.0-py3-none-any.whl"}
    constraints = {"constraints.txt"} if (tpu_files.ROOT / "constraints.txt").is_file() else set()  # not beside a wheel
    assert names == wanted | {"data"} | constraints
    assert (ROOT / "constraints.txt").is_file()


@pytest.mark.parametrize(
    "shipped, message",
    [
        (["."], "--ship .: it goes to the workers under its name, so give it by its name: --ship /"),
        ([".."], "--ship ..: it goes to the workers under its name"),
        (["a/data", "b/data"], "--ship b/data: the name 'data' is taken on the workers"),
        (["a/run.sh"], "--ship a/run.sh: the name 'run.sh' is taken"),
        (["a/venv"], "--ship a/venv: the name 'venv' is taken"),
        (["a/links"], "--ship a/links cannot be copied"),
    ],
)
def test_what_cannot_be_shipped_is_named(tmp_path, monkeypatch, shipped, message):
    for name in ("a/data", "b/data", "a/venv", "a/links", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "run.sh").touch()
    (tmp_path / "a" / "links" / "nothing").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    options, command = parse(arguments(tmp_path, *(word for path in shipped for word in ("--ship", path))))
    with pytest.raises(tpu_files.LaunchError) as raised:
        tpu_files.write_folder(tmp_path / "out", options, command, tmp_path / "mpt_jax-0.1.0-py3-none-any.whl")
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
