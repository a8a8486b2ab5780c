"""Jobs that need no launcher: --detach, status, logs and stop from a fresh process, limits, sweeps; a launcher that is killed anywhere."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mpt_jax.launch import tpu_detached
from mpt_jax.launch.__main__ import main, parse
from mpt_jax.launch.buckets import model_dir, without
from mpt_jax.launch.calls import LaunchError
from mpt_jax.launch.k8s import manifest
from mpt_jax.launch.sweeps import jobs_of
from mpt_jax.launch.tpu_files import FOLDER
from stand_ins import ROOT, StandIn

MODEL_DIR = "--gin.MODEL_DIR='gs://bucket/run'"
SWEEP = "LEARNING_RATE=0.1,0.3 TrainSettings.seeds=1,2"


class Target:
    """A target over its stand-in: options for launching, and for status, logs and stop."""

    def __init__(self, name: str, folder: Path, **scenario):
        self.name = name
        script, programs, place, own = {
            "tpu": ("fake_gcloud.py", ("gcloud",), ["--zone=us-west4-a", "--project=acme"], ["--wheel", str(folder / "mpt_jax-0-py3.whl")]),
            "k8s": ("fake_kubectl.py", ("kubectl",), ["--namespace=team"], ["--image", "image"]),
            "slurm": (
                "fake_slurm.py", ("sbatch", "srun", "scontrol", "scancel", "squeue", "sacct"), ["--folder", str(folder)],
                ["--python", str(folder / "python")],
            ),
        }[name]  # fmt: skip
        (folder / "mpt_jax-0-py3.whl").touch()
        (folder / "python").write_text("#!/bin/bash\necho step 1: $*; sleep 20 & wait")
        (folder / "python").chmod(0o755)
        self.place = ["--target", name, *place]
        self.options = [*self.place, *own, "--name", "run", "--poll_s", "0.02"]
        self.stand_in = StandIn(folder, script, programs, scenario)

    def command(self, *more: str) -> list[str]:
        return [*self.options, *more, "--", "train", "--gin_file=source.gin", MODEL_DIR]

    def act(self, action: str, *more: str, name: str = "run") -> tuple[int, str, str]:
        return self.stand_in.run(action, name, *self.place, *more)


@pytest.fixture(params=["tpu", "k8s", "slurm"])
def target(request, tmp_path):
    scenario = {"states": ["WAITING_FOR_RESOURCES", "ACTIVE"], "run_s": 5} if request.param == "tpu" else {"states": [{"restarts": 0}]}
    return Target(request.param, tmp_path, **scenario)


def test_a_detached_job_is_found_and_stopped_by_its_name_alone(target, tmp_path):
    code, _, said = target.stand_in.run(*target.command("--detach"))
    assert code == 0 and len(target.stand_in.left()) == 1
    assert f"python -m mpt_jax.launch status|logs|stop run --target {target.name}" in said
    code, output, _ = target.act("status")
    assert code == 0 and re.search({"tpu": "WAITING|ACTIVE", "k8s": "running", "slurm": "PENDING|RUNNING"}[target.name], output), output
    if target.name == "tpu":
        place = tmp_path / "bucket" / "run" / "launch" / "run"
        assert {path.name for path in (place / FOLDER).iterdir()} >= {"install.sh", "run.sh", "mpt_jax-0-py3.whl"}
        code, _, said = target.stand_in.run(*target.command("--detach"))
        assert code == 2 and "run is there already (ACTIVE). Give another --name" in said
        (place / "log-0").write_text("step 1\n")  # as a worker does
    deadline = time.monotonic() + 10
    while "step 1" not in (found := target.act("logs"))[1]:
        assert time.monotonic() < deadline, found
    code, _, said = target.act("stop", "--poll_s", "0.05")
    assert code == 0 and target.stand_in.left() == [] and "nothing is left" in said
    assert target.act("stop")[0] == 0 and target.act("status")[0] == 0
    assert target.act("stop", name="other")[0] == 0


@pytest.mark.slow
def test_a_launcher_killed_anywhere_leaves_a_job_that_another_one_stops(target, tmp_path):
    """kill -9 after each call that it makes; no create call lacks a limit (the stand-ins refuse one that does)."""
    moments = {"tpu": ["create", "describe", "scp", "install.sh", "run.sh"], "k8s": ["create", "get", "logs"]}
    moments["slurm"] = ["sbatch", "show job"]
    for moment in moments[target.name]:
        (tmp_path / "calls.jsonl").write_text("")
        for counter in tmp_path.glob("*.count"):
            counter.unlink()
        (tmp_path / "cancelled").unlink(missing_ok=True)
        process = target.stand_in.start(*target.command())
        deadline = time.monotonic() + 30
        while not any(moment in " ".join(call) for call in target.stand_in.calls):
            assert process.poll() is None and time.monotonic() < deadline, moment
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # the call that is under way
        assert len(target.stand_in.left()) == 1, moment
        assert "not there" not in target.act("status")[1]
        code, _, said = target.act("stop", "--poll_s", "0.02")
        assert code == 0 and target.stand_in.left() == [], (moment, said)


@pytest.mark.parametrize("moment", [" describe ", "storage rm", "storage cp", " create "])
def test_a_launcher_killed_as_it_detaches_leaves_nothing_or_a_job_that_another_one_stops(tmp_path, moment):
    target = Target("tpu", tmp_path, create_s=0.3)
    process = target.stand_in.start(*target.command("--detach"))
    deadline = time.monotonic() + 30
    while not any(moment in " ".join(call) for call in target.stand_in.calls):
        assert process.poll() is None and time.monotonic() < deadline, moment
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # the call that is under way
    assert len(target.stand_in.left()) == (moment == " create ")
    assert target.act("stop", "--poll_s", "0.02")[0] == 0 and target.stand_in.left() == []


def test_a_refused_slice_that_was_made_after_all_is_deleted(tmp_path):
    target = Target("tpu", tmp_path, create_late_error="ERROR: (gcloud) DEADLINE_EXCEEDED: no answer in time")
    code, _, said = target.stand_in.run(*target.command("--detach"))
    assert code == 2 and "DEADLINE_EXCEEDED" in said and target.stand_in.left() == []


def test_a_new_job_does_not_show_the_end_of_one_before_it(tmp_path):
    target = Target("tpu", tmp_path)
    place = tmp_path / "bucket" / "run" / "launch" / "run"
    place.mkdir(parents=True)
    for name in ("code-0", "log-0"):
        (place / name).write_text("7\n")
    assert target.stand_in.run(*target.command("--detach"))[0] == 0
    assert target.act("status")[1] == "run: ACTIVE\n" and target.act("logs")[1] == ""


def test_a_job_that_slurm_lists_for_a_while_after_its_end_is_waited_for(tmp_path):
    target = Target("slurm", tmp_path, lingers_s=1.2)
    assert target.stand_in.run(*target.command("--detach"))[0] == 0
    code, _, said = target.act("stop", "--poll_s", "0.6")
    assert code == 0 and "nothing is left" in said


def test_a_job_that_cannot_be_stopped_is_named(tmp_path):
    target = Target("k8s", tmp_path, delete_errors=["unable"])
    target.stand_in.run(*target.command("--detach"))
    code, _, said = target.act("stop", "--poll_s", "0.01")
    assert code == 3 and "STILL THERE" in said and target.stand_in.left() == ["run"]


def test_an_ended_job_tells_its_exit_code(tmp_path):
    for name in ("tpu", "k8s", "slurm"):
        (tmp_path / name).mkdir()
    tpu = Target("tpu", tmp_path / "tpu")
    place = tmp_path / "tpu" / "bucket" / "run" / "launch" / "run"
    place.mkdir(parents=True)
    (place / "code-0").write_text("2\n")
    assert tpu.act("status", "--model_dir", "gs://bucket/run")[1] == "run: not there; the command ended with code 2\n"
    assert "--model_dir" in tpu.act("logs")[2]
    k8s = Target("k8s", tmp_path / "k8s", states=["Failed"], codes=[0, 2])
    k8s.stand_in.run(*k8s.command("--detach"))
    assert k8s.act("status")[1] == "run: Failed; the command ended with code 2\n"
    slurm = Target("slurm", tmp_path / "slurm")
    (tmp_path / "slurm" / "python").write_text("#!/bin/bash\nexit 2")
    slurm.stand_in.run(*slurm.command("--detach"))
    deadline = time.monotonic() + 10
    while "exit code 2:0" not in slurm.act("status")[1]:
        assert time.monotonic() < deadline
    assert "no log of other" in slurm.act("logs", name="other")[2]


METADATA = '#!/bin/bash\ncase " $* " in *" --fail "*) exit 22 ;; esac\necho "<html>404</html>"\n'  # curl, of a worker that has no number


def start_worker(target: Target, home: Path, place: str) -> None:
    """The start-up script of a detached slice for real, in a home folder of its own."""
    home.mkdir(exist_ok=True)
    delete = ["gcloud", "compute", "tpus", "queued-resources", "delete", "run", "--zone=us-west4-a", "--project=acme", "--force", "--quiet"]
    script = tpu_detached.startup_script(place, FOLDER, delete, every_s=0).replace("/root", str(home))
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    curl = target.stand_in.folder / "bin" / "curl"
    curl.write_text(METADATA)
    curl.chmod(0o755)
    subprocess.run(["bash", "-c", script], env={"PATH": f"{curl.parent}:/usr/bin:/bin"}, timeout=60, check=False)


@pytest.mark.parametrize("run", ["run", 'it\'s "$HOME"; run, 2'])
def test_the_workers_of_a_detached_slice_keep_log_and_code_and_delete_the_slice(tmp_path, run):
    """With a command that fails, and a deletion that is refused twice."""
    target = Target("tpu", tmp_path, delete_errors=["busy", "busy", ""])
    model_dir = f"gs://bucket/{run}"
    code, _, said = target.stand_in.run(*target.options, "--detach", "--", "train", "source", "--model-dir", model_dir)
    assert code == 0 and f"--project=acme {shlex.quote(f'--model_dir={model_dir}')}\n" in said
    place = tmp_path / "bucket" / run / "launch" / "run"
    (place / FOLDER / "install.sh").write_text("echo installed\n")
    (place / FOLDER / "run.sh").write_text("echo step 1; exit 7\n")
    start_worker(target, tmp_path / "home", f"{model_dir}/launch/run")
    log = (place / "log-0").read_text()
    assert log.startswith("installed\nstep 1\n") and log.count("INTERNAL") == 2 and target.stand_in.left() == []
    code, output, _ = target.act("status", "--model_dir", model_dir)
    assert code == 0 and "ended with code 7" in output
    assert target.act("logs", "--model_dir", model_dir)[1] == log


def test_a_worker_that_starts_again_ends_the_job_and_deletes_the_slice(tmp_path):
    """The processes of before ended with the machine, so the script has nothing to wait for."""
    target = Target("tpu", tmp_path)
    assert target.stand_in.run(*target.command("--detach"))[0] == 0
    place = tmp_path / "bucket" / "run" / "launch" / "run"
    shutil.copytree(place / FOLDER, tmp_path / "home" / FOLDER)
    (tmp_path / "home" / FOLDER / "started-before").mkdir()
    (tmp_path / "home" / FOLDER / "log").write_text("step 1\n")
    start_worker(target, tmp_path / "home", "gs://bucket/run/launch/run")
    assert (place / "code-0").read_text() == "83\n" and target.stand_in.left() == []
    assert "step 1\n" in (place / "log-0").read_text() and "the machine started again" in (place / "log-0").read_text()


def test_limits_and_prices(tmp_path, capsys, monkeypatch):
    target = Target("tpu", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    for given, message in (
        (["--max_hours", "0"], "--max_hours 0: it takes 1/60 .. 8,760 hours"),
        (["--max_hours", "200", "--flex_start"], "it takes 1/60 .. 168 hours"),
        (["--spot", "--flex_start"], "give one of them"),
    ):
        for name in ("tpu", "k8s"):
            own = target.options if name == "tpu" else ["--target", "k8s", "--image", "image"]
            assert main([*own, *given, "--", "train", MODEL_DIR]) == 2
            assert message in capsys.readouterr().err
    assert target.stand_in.calls == []
    assert main(target.command("--dry_run", "--flex_start", "--max_hours", "1.5", "--wait_hours", "2")) == 0
    created = "--provisioning-model=flex-start --max-run-duration=5400s --valid-until-duration=7200s"
    assert created in capsys.readouterr().out
    options, command = parse(["--target", "k8s", "--image", "image", "--flex_start", "--max_hours", "2", "--", "train"])
    spec = manifest(options, command, "run")["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["activeDeadlineSeconds"] == 7200 and spec["ttlSecondsAfterFinished"] == 86400
    assert job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-flex-start"] == "true"


def test_jobs_of_a_sweep():
    command = ["train", "--gin_file=source.gin", MODEL_DIR, "--gin.LEARNING_RATE=0.7", "--gin.BATCH_SIZE=8"]
    jobs = jobs_of(SWEEP, command)
    assert [job.label for job in jobs] == [f"learning_rate-{rate}_seeds-{seed}" for rate in ("0.1", "0.3") for seed in (1, 2)]
    assert jobs[1].folder == "gs://bucket/run/learning_rate-0.1_seeds-2"
    given = [f"--model_dir={jobs[1].folder}", "--gin.LEARNING_RATE=0.1", "--gin.TrainSettings.seeds=2"]
    assert jobs[1].command == ["train", "--gin_file=source.gin", "--gin.BATCH_SIZE=8", *given]
    assert [job.folder for job in jobs_of("SEED=1,2", ["train", "--model_dir=runs/a"])] == ["runs/a/seed-1", "runs/a/seed-2"]
    (job,) = jobs_of("seed=3", ["train", "source", "--model_dir", "runs/a", "--seed", "1", "--batch_size", "8"])
    assert job.command == ["train", "source", "--batch_size", "8", "--model_dir=runs/a/seed-3", "--seed=3"]


@pytest.mark.parametrize(
    "given",
    [
        ["--model_dir", "runs/a"], ["--MODEL_DIR=runs/a"], ["--model-dir", "runs/a"], ["--gin.MODEL_DIR='runs/a'"],
        ["--gin.TrainSettings.model_dir='runs/a'"], ["--model_dir=runs/b", "--MODEL-DIR", "runs/a"],
    ],
)  # fmt: skip
def test_a_command_says_its_settings_as_mpt_jax_takes_them(given):
    command = ["train", "--allow_unfinished", "source", *given, "--dry_run", "--gin.TrainSettings.seeds=1"]
    assert model_dir(command) == "runs/a"
    assert without(command, ["model_dir"]) == ["train", "--allow_unfinished", "source", "--dry_run", "--gin.TrainSettings.seeds=1"]
    (job,) = jobs_of("SEED=3 ALLOW_UNFINISHED=True", command)
    expected = ["--model_dir=runs/a/seed-3_allow_unfinished-True", "--gin.SEED=3", "--gin.ALLOW_UNFINISHED=True"]
    assert job.command == ["train", "source", "--dry_run", *expected]
    assert model_dir(["train", "--model_dir", "--dry_run"]) is None


@pytest.mark.parametrize(
    "sweep, message",
    [
        ("SEED", "takes NAME=VALUE,VALUE"),
        ("SEED=", "takes NAME=VALUE,VALUE"),
        ("SEED=1,1", "each value once"),
        ("SEED=1 SEED=2", "each setting"),
        ("MODEL_DIR=a,b", "not MODEL_DIR"),
        ("TrainSettings.model_dir=a,b", "not MODEL_DIR"),
        ("SEED=1 TrainSettings.seeds=2", "each setting"),
        ("SEED=[1]", "plain values"),
        ("a.x=1,2 b.X=1,2", "same last name"),
        ("A=" + ",".join(map(str, range(1001))), "makes 1,001 jobs"),
        (" ", "makes 0 jobs"),
    ],
)
def test_what_is_no_sweep_is_refused(sweep, message):
    with pytest.raises(LaunchError, match=message):
        jobs_of(sweep, ["train", MODEL_DIR])


def test_a_sweep_is_a_job_each(tmp_path):
    for name in ("tpu", "k8s", "slurm"):
        (tmp_path / name).mkdir()
        scenario = {"slurm": {"states": []}}.get(name, {})
        target = Target(name, tmp_path / name, **scenario)
        (tmp_path / name / "python").write_text("#!/bin/bash\necho ran: $*")
        assert "needs --detach" in target.stand_in.run(*target.command("--sweep", SWEEP))[2]
        code, _, said = target.stand_in.run(*target.command("--sweep", SWEEP, "--detach"))
        assert code == 0 and "one report, once they have ended: mpt-jax report gs://bucket/run/learning_rate-0.1_seeds-1 " in said
        assert said.rstrip().endswith("--output gs://bucket/run/report")
        if name != "slurm":
            assert target.stand_in.left() == [f"run-{number}" for number in range(4)]
            continue
        deadline = time.monotonic() + 20
        while target.stand_in.left():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [call[0] for call in target.stand_in.calls if call[0] == "sbatch"] == ["sbatch"]
        logs = sorted((tmp_path / name).glob("run-*-*.log"))
        assert len(logs) == 4 and "--gin.LEARNING_RATE=0.3 --gin.TrainSettings.seeds=1" in logs[2].read_text()
        assert target.act("logs")[1].count("ran: ") == 8  # two processes each


def test_a_local_sweep_trains_one_after_the_other_and_reports(tmp_path):
    (tmp_path / "mpt_jax").mkdir()
    (tmp_path / "mpt_jax" / "__init__.py").touch()
    for path in (ROOT / "mpt_jax").glob("[a-z]*.py"):
        (tmp_path / "mpt_jax" / path.name).symlink_to(path)
    (tmp_path / "mpt_jax" / "launch").symlink_to(ROOT / "launch")
    (tmp_path / "gin").symlink_to(ROOT / "gin")
    (tmp_path / "mpt_jax" / "__main__.py").write_text("import json, sys; open('ran.jsonl', 'a').write(json.dumps(sys.argv[1:]) + '\\n')")
    options = ["--target", "local", "--processes", "1", "--sweep", "SEED=1,2", "--", "train", "--gin.MODEL_DIR='runs/a'"]
    done = subprocess.run([sys.executable, "-m", "mpt_jax.launch", *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = [json.loads(line) for line in (tmp_path / "ran.jsonl").read_text().splitlines()]
    assert ran[:2] == [["train", f"--model_dir=runs/a/seed-{seed}", f"--gin.SEED={seed}"] for seed in (1, 2)]
    assert ran[2] == ["report", "runs/a/seed-1", "runs/a/seed-2", "--output", "runs/a/report"]
