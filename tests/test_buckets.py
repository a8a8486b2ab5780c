"""Buckets (buckets.py, bucket_run.py) against real object-store servers: what is put up is whole or not there, what comes down is whole."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from object_server import BUCKET, Server

from mpt_jax import bucket_run, buckets
from mpt_jax.errors import UserError
from mpt_jax.main import main


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request, tmp_path_factory):
    server = Server(request.param, tmp_path_factory.mktemp("server") / "objects")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def elsewhere(server, monkeypatch):
    """Leads the libraries to another server, without the pauses that gcsfs makes between tries, of seconds."""

    def lead(url: str, seconds: float) -> None:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST" if server.scheme == "gs" else "AWS_ENDPOINT_URL", url)
        monkeypatch.setattr(buckets, "SECONDS", seconds)
        if server.scheme == "gs":
            monkeypatch.setattr("gcsfs.retry.min", lambda *_: 0.0, raising=False)

    return lead


@pytest.fixture
def address(server, tmp_path, monkeypatch):
    """An address of the test's own; this host keeps what comes from it in a folder of the test's own."""
    for name, value in (server.environment | {"MPT_CACHE_DIR": str(tmp_path / "host")}).items():
        monkeypatch.setenv(name, value)
    yield f"{server.scheme}://{BUCKET}/{tmp_path.name}"


def write_folder(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def texts(folder: str | Path) -> dict[str, str]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_files_and_folders_come_as_they_are_and_again_where_they_change(address, tmp_path):
    buckets.write(f"{address}/a.txt", b"one")
    buckets.write(f"{address}/sub/b.txt", b"two")
    assert Path(buckets.here("X", f"{address}/a.txt")).read_text() == "one"
    for end in (b"x", b"\n", b"\r", b"\r\n"):
        buckets.write(f"{address}_ends", b"a\r\n\0\xff" + end)
        assert buckets.read(f"{address}_ends") == b"a\r\n\0\xff" + end
    assert texts(buckets.here("X", address)) == {"a.txt": "one", "sub/b.txt": "two"}
    buckets.write(f"{address}/a.txt", b"three")
    buckets.remove(address, ["sub/b.txt"])
    assert texts(buckets.here("X", f"{address}/")) == {"a.txt": "three"}
    with pytest.raises(UserError, match=rf"X = '{address}/none': there is nothing at this address"):
        buckets.here("X", f"{address}/none")
    assert buckets.here("X", str(tmp_path)) == str(tmp_path)


def test_a_place_here_and_its_address_belong_together(address):
    place = buckets.place_of(f"{address}/a/b")
    assert buckets.address_of(place) == f"{address}/a/b" and buckets.address_of("/tmp/x") is None
    for wrong in ("gs://", "gs:///x", "gs://b/../x", "s3://b//x", "gs://B_/x"):
        with pytest.raises(UserError, match="BUCKET/FOLDER"):
            buckets.place_of(wrong)


@pytest.mark.parametrize("name", ["run/../../x", "/x", "a//b", "..", "a\\b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, monkeypatch, name):
    """Neither library puts such an object, so the listing is made up."""
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "host"))
    monkeypatch.setattr(buckets, "listed", lambda address: {each: buckets.Object(each, 1, "1") for each in ("run.json", name)})

    def train() -> None:
        with bucket_run.training_folder("MODEL_DIR", "gs://bucket/run"):
            pass

    for bring in (train, lambda: buckets.here("MODEL_DIR", "gs://bucket/run")):
        with pytest.raises(UserError, match=r"MODEL_DIR = 'gs://bucket/run' holds .*, which is not the path of a file: remove it there"):
            bring()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"training.lock"}


def test_a_folder_is_there_once_its_marker_is(address, tmp_path):
    local = write_folder(tmp_path / "new", x="1", sub__y="2")
    buckets.put_folder(local, f"{address}/checkpoints/5")
    assert texts(buckets.here("X", address)) == {"checkpoints/5/x": "1", "checkpoints/5/sub/y": "2"}
    buckets.write(f"{address}/checkpoints/9/x", b"half")  # without a marker
    assert "checkpoints/9/x" not in texts(buckets.here("X", address))
    buckets.write(f"{address}/checkpoints/5/x", b"3")  # not what was put up
    assert not buckets.fetch_folder(f"{address}/checkpoints/9", tmp_path / "nine") and not (tmp_path / "nine").exists()
    with pytest.raises(UserError, match="checkpoints/5/x is not what was written"):
        buckets.fetch_folder(f"{address}/checkpoints/5", tmp_path / "five")
    assert not (tmp_path / "five").exists()
    buckets.write(f"{address}/checkpoints/5/{buckets.MARKER}", json.dumps({"files": {"../../x": [1, "0"]}}).encode())
    with pytest.raises(UserError, match="is damaged"):
        buckets.fetch_folder(f"{address}/checkpoints/5", tmp_path / "five")
    buckets.remove_folder(f"{address}/checkpoints/5")
    assert buckets.listed(f"{address}/checkpoints/5") == {}


KILLED = """
import os, sys
from pathlib import Path
from mpt_jax import buckets
left = int(sys.argv[1])
def counted(function):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*arguments)
    return call
for name in ("put_file", "write", "remove"):
    setattr(buckets, name, counted(getattr(buckets, name)))
buckets.put_folder(Path(sys.argv[2]), sys.argv[3])
print("whole")
"""


@pytest.mark.slow
def test_a_put_that_is_killed_anywhere_leaves_nothing_that_is_read(address, tmp_path):
    """The old folder until the first object is replaced, then none, the new one at the end."""
    old = write_folder(tmp_path / "old", x="old", y="old")
    new = write_folder(tmp_path / "new", x="new", y="new")
    seen = []
    for operations in range(5):
        buckets.put_folder(old, f"{address}/c/5")
        argv = [sys.executable, "-c", KILLED, str(operations), str(new), f"{address}/c/5"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == (0 if done.stdout else 9), done.stderr
        there = buckets.fetch_folder(f"{address}/c/5", tmp_path / "read")
        seen.append(set(texts(tmp_path / "read").values()) if there else None)
    assert seen == [{"old"}, None, None, None, {"new"}]


AWAY = "does not answer .*when it does again, the same command continues"


def test_what_cannot_be_used_is_one_sentence(server, address, elsewhere):
    with pytest.raises(buckets.Unreachable, match="there is no bucket 'elsewhere'"):
        buckets.write(f"{server.scheme}://elsewhere/x", b"1")
    elsewhere("http://127.0.0.1:9", 30.0)  # nobody is there
    with pytest.raises(buckets.Unreachable, match=AWAY):
        buckets.listed(f"{address}/away")


def test_a_server_that_takes_a_request_and_never_answers_is_not_waited_for(monkeypatch):
    retry = pytest.importorskip("gcsfs.retry")
    monkeypatch.setattr(retry, "min", lambda *_: 0.0, raising=False)  # its pause between tries, of seconds
    monkeypatch.setattr(buckets, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(buckets.Unreachable, match=AWAY):
            buckets.write("gs://bucket/x", b"1")


class Forbidding(http.server.BaseHTTPRequestHandler):
    """Allows nothing."""

    def refuse(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(403)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_HEAD = refuse

    def log_message(self, *_) -> None:
        pass


def test_what_is_forbidden_is_not_called_unanswered(monkeypatch):
    pytest.importorskip("gcsfs")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(buckets.Unreachable, match=r"cannot be used: it is not allowed \(.*; give credentials"):
            buckets.write("gs://bucket/x", b"1")
        server.shutdown()


def test_a_folder_that_is_removed_while_it_goes_up_gets_no_marker(address, tmp_path, monkeypatch):
    put, local = buckets.put_file, write_folder(tmp_path / "folder", x="1", y="2")

    def put_and_remove(path: Path, there: str) -> None:
        put(path, there)
        (local / "x").unlink(missing_ok=True)

    monkeypatch.setattr(buckets, "put_file", put_and_remove)
    for _ in range(2):  # half of it gone, then all
        with pytest.raises(FileNotFoundError):
            buckets.put_folder(local, f"{address}/checkpoints/5")
        assert buckets.committed(f"{address}/checkpoints/5") is None
        shutil.rmtree(local, ignore_errors=True)


def test_a_file_that_is_not_on_this_host_is_not_called_a_missing_bucket(address, tmp_path):
    with pytest.raises(FileNotFoundError):
        buckets.put_file(tmp_path / "none", f"{address}/none")


@pytest.mark.slow
def test_prompts_of_a_run_in_a_bucket_are_converted(address, tmp_path):
    bank = Path(bucket_run.__file__).parent / "banks" / "smollm2"
    for path in sorted(each for each in bank.rglob("*") if each.is_file()):
        buckets.put_file(path, f"{address}/bank/{path.relative_to(bank).as_posix()}")
    for name, source in (("here", str(bank)), ("there", f"{address}/bank")):
        assert main(["convert", "--from", source, "--to", "npz", "--output", str(tmp_path / f"{name}.npz")]) == 0
    found, expected = (np.load(tmp_path / f"{name}.npz") for name in ("there", "here"))
    assert found.files == expected.files and "sst2" in found.files
    # the metadata names the source
    assert all((found[name] == expected[name]).all() for name in expected.files if name != "bank/metadata")


def test_a_missing_library_is_told_with_what_to_install(monkeypatch):
    for address, library in (("gs://b/x", "gcsfs"), ("s3://b/x", "s3fs")):
        monkeypatch.setitem(sys.modules, "gcsfs.core" if library == "gcsfs" else library, None)
        with pytest.raises(UserError, match=rf"'{address}' needs {library}, which is not installed: pip install 'mpt_jax\[buckets\]'"):
            buckets.listed(address)


def test_task_files_and_module_lie_in_a_bucket(address, tmp_path, table):
    from mpt_jax import tasks

    for name in ("part-1", "part-2"):
        buckets.write(f"{address}/data/{name}.jsonl", (json.dumps({"word": name, "label": 1}) + "\n").encode())
    text = "import tasks\nfor name, file in (('near', 'data/part-1.jsonl'), ('far', '{0}/data/part-*.jsonl')):\n"
    text += "    tasks.jsonl(name, files={{'train': file}}, template='{{word}}', labels=('no', 'yes'))\n"
    buckets.write(f"{address}/my_tasks.py", text.format(address).encode())
    tasks.import_module(buckets.here("MIXTURE_OR_TASK_MODULE", f"{address}/my_tasks.py"))
    found = {name: [row["inputs"] for row in tasks.rows(name, "train")] for name in ("near", "far")}
    assert found == {"near": ["part-1"], "far": ["part-1", "part-2"]}


# run folders


def as_host(monkeypatch, name: str, tmp_path: Path) -> None:
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / name))
    monkeypatch.setattr(bucket_run.socket, "gethostname", lambda: name)


def train_to(address: str, step: int) -> list[int]:
    """As a training does: the steps that are there at its start; then files and checkpoints up to a step."""
    local = buckets.place_of(address, buckets.TRAINED)
    local.mkdir(parents=True, exist_ok=True)
    (local / bucket_run.LOCAL_LOCK).touch()
    with bucket_run.kept_in(address, local):
        there = bucket_run._steps_of(local)
        for each in range(max(there, default=0) + 1, step + 1):
            write_folder(local, **{"run.json": "{}", "metrics.jsonl": f"{each}\n", f"checkpoints__{each}__state": f"bank {each}"})
            for old in bucket_run._steps_of(local)[:-2]:
                for path in (local / "checkpoints" / str(old)).iterdir():
                    path.unlink()
                (local / "checkpoints" / str(old)).rmdir()
    return there


def test_another_host_goes_on_from_the_newest_checkpoint(address, tmp_path, monkeypatch):
    run = f"{address}/run"
    as_host(monkeypatch, "one", tmp_path)
    assert train_to(run, 3) == []
    as_host(monkeypatch, "two", tmp_path)
    assert train_to(run, 5) == [2, 3]
    names = {"run.json": "{}", "metrics.jsonl": "5\n", "checkpoints/4/state": "bank 4", "checkpoints/5/state": "bank 5"}
    found = texts(buckets.here("X", run))
    assert {name: found.get(name) for name in names} == names and "checkpoints/3/state" not in found
    as_host(monkeypatch, "one", tmp_path)  # which is behind the bucket now
    assert 5 in train_to(run, 5)
    assert (buckets.place_of(run, buckets.TRAINED) / "metrics.jsonl").read_text() == "5\n"
    assert bucket_run.LOCK not in buckets.listed(run)


def test_a_host_that_is_ahead_of_the_bucket_keeps_what_it_has(address, tmp_path, monkeypatch):
    run = f"{address}/run"
    as_host(monkeypatch, "one", tmp_path)
    train_to(run, 2)
    local = buckets.place_of(run, buckets.TRAINED)
    write_folder(local, **{"metrics.jsonl": "3\n", "checkpoints__3__state": "bank 3"})  # the process was killed before it went up
    assert train_to(run, 3) == [1, 2, 3]
    assert texts(buckets.here("X", run))["checkpoints/3/state"] == "bank 3"


def test_a_run_that_was_removed_from_the_bucket_does_not_come_back(address, tmp_path, monkeypatch, capsys):
    run = f"{address}/run"
    as_host(monkeypatch, "one", tmp_path)
    train_to(run, 2)
    buckets.remove_folder(run)
    assert train_to(run, 1) == []
    assert "no longer holds the run" in capsys.readouterr().err
    assert [path for path in buckets.place_of(run, buckets.TRAINED).parent.iterdir() if ".aside-" in path.name]


def test_a_second_host_is_refused_while_the_first_one_lives(address, tmp_path, monkeypatch):
    run = f"{address}/run"
    as_host(monkeypatch, "one", tmp_path)
    local = buckets.place_of(run, buckets.TRAINED)
    local.mkdir(parents=True)
    with pytest.raises(UserError, match="is no longer this process's: its training_lock.json is gone"):
        with bucket_run.kept_in(run, local):
            as_host(monkeypatch, "two", tmp_path)
            with pytest.raises(UserError, match=rf"'{run}' is being trained in by process {os.getpid()} on one, which said so \d+ s ago"):
                train_to(run, 1)
            monkeypatch.setattr(bucket_run, "STALE_S", -1.0)
            assert train_to(run, 1) == []


def lock_text(host: str, pid: int, ago: float = 0.0) -> bytes:
    return json.dumps({"host": host, "pid": pid, "at": time.time() - ago, "token": "another"}).encode()


def test_another_process_of_this_host_is_a_holder_as_long_as_it_lives(address):
    run, other = f"{address}/run", subprocess.Popen(["sleep", "60"])
    buckets.write(f"{run}/{bucket_run.LOCK}", lock_text(socket.gethostname(), other.pid))
    with pytest.raises(UserError, match=f"is being trained in by process {other.pid} on"):
        train_to(run, 1)
    other.kill()
    other.wait()
    assert train_to(run, 1) == []


@pytest.mark.parametrize("ago, refused", [(30.0, True), (-30.0, True), (3600.0, False), (-3600.0, False)])
def test_a_holder_counts_while_its_last_sign_is_near_by_whichever_clock(address, ago, refused):
    run = f"{address}/run"
    buckets.write(f"{run}/{bucket_run.LOCK}", lock_text("far", 1, ago))
    if not refused:
        assert train_to(run, 1) == []
        return
    with pytest.raises(UserError, match="is being trained in by process 1 on far"):
        train_to(run, 1)


def test_who_lost_the_lock_puts_nothing_more_up_and_leaves_the_lock_alone(address, tmp_path, monkeypatch, capsys):
    for name, seconds in (("LOOK_S", 0.02), ("BEAT_S", 0.05), ("FILES_S", 0.0)):
        monkeypatch.setattr(bucket_run, name, seconds)
    as_host(monkeypatch, "one", tmp_path)
    run = f"{address}/run"
    local = buckets.place_of(run, buckets.TRAINED)
    local.mkdir(parents=True)
    lost = "is no longer this process's: process 1 on two, .* trains there, so nothing more goes up"
    with pytest.raises(UserError, match=f"{lost}. What this one saved is in '{local}'"):
        with bucket_run.kept_in(run, local):
            said, deadline = "", time.monotonic() + 20
            while "nothing more goes up. Training goes on" not in said:
                assert time.monotonic() < deadline
                buckets.write(f"{run}/{bucket_run.LOCK}", lock_text("two", 1))
                time.sleep(0.05)
                said += capsys.readouterr().err
            write_folder(local, **{"run.json": "{}", "checkpoints__1__state": "bank 1"})
            time.sleep(0.2)
    assert json.loads(buckets.read(f"{run}/{bucket_run.LOCK}"))["host"] == "two"
    assert set(buckets.listed(run)) == {bucket_run.LOCK, bucket_run.IDENTITY}


def test_what_is_put_up_goes_on_while_checkpoints_come_and_go_and_a_disk_fails_once(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bucket_run, "LOOK_S", 0.01)
    monkeypatch.setattr(bucket_run, "FILES_S", 0.0)
    put, failures = buckets.put_folder, [OSError(5, "Input/output error")]

    def put_folder(folder: Path, there: str) -> None:
        if failures:
            raise failures.pop()
        put(folder, there)

    monkeypatch.setattr(buckets, "put_folder", put_folder)
    run = f"{address}/run"
    local = buckets.place_of(run, buckets.TRAINED)
    local.mkdir(parents=True)
    with bucket_run.kept_in(run, local):
        ended = time.monotonic() + 1.5
        while time.monotonic() < ended:  # as Orbax does
            half = write_folder(local / "checkpoints" / "1.orbax-checkpoint-tmp", a__b__c="1", a__d="2", e="3")
            half.rename(local / "checkpoints" / "1")
            shutil.rmtree(local / "checkpoints" / "1")
        write_folder(local / "checkpoints" / "half", state="bank 2").rename(local / "checkpoints" / "2")
        deadline = time.monotonic() + 30
        while f"checkpoints/2/{buckets.MARKER}" not in buckets.listed(run):
            assert time.monotonic() < deadline, "nothing goes up any more"
            time.sleep(0.05)
    assert not failures and "cannot be read: Input/output error. Training goes on" in capsys.readouterr().err


def test_a_checkpoint_that_is_damaged_here_stays_in_the_bucket(address):
    run = f"{address}/run"
    train_to(run, 3)
    local = buckets.place_of(run, buckets.TRAINED)
    with bucket_run.kept_in(run, local):
        (local / "damaged_checkpoints").mkdir()
        (local / "checkpoints" / "3").rename(local / "damaged_checkpoints" / "3_")
    assert texts(buckets.here("X", run))["checkpoints/3/state"] == "bank 3"
    assert train_to(run, 3) == [2, 3] and (local / "checkpoints" / "3" / "state").read_text() == "bank 3"


@pytest.mark.parametrize("given", ["5m", "", "-1", "1e3"])
def test_a_wait_that_is_not_a_number_is_refused_before_anything_happens(tmp_path, monkeypatch, given):
    monkeypatch.setenv("MPT_BUCKET_WAIT_S", given)
    with pytest.raises(UserError, match=f"MPT_BUCKET_WAIT_S = '{given}' is not a number of seconds"):
        with bucket_run.kept_in("gs://bucket/run", tmp_path):
            pass


@pytest.mark.long
def test_a_bucket_that_goes_away_is_told_once_and_filled_when_it_is_back(tmp_path, monkeypatch, capsys):
    server = Server("gs", tmp_path / "objects")
    server.start()
    for name, value in (server.environment | {"MPT_CACHE_DIR": str(tmp_path / "host"), "MPT_BUCKET_WAIT_S": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_run, "LOOK_S", 0.05)
    run = f"gs://{BUCKET}/run"
    local = buckets.place_of(run, buckets.TRAINED)
    local.mkdir(parents=True)
    try:
        with bucket_run.kept_in(run, local):
            server.stop()
            write_folder(local, **{"run.json": "{}", "checkpoints__1__state": "bank 1"})
            said, deadline = "", time.monotonic() + 60
            while "Training goes on" not in said:
                assert time.monotonic() < deadline
                said += capsys.readouterr().err
                time.sleep(0.05)
            server.start()
            while f"checkpoints/1/{buckets.MARKER}" not in buckets.listed(run):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            server.stop()
            write_folder(local, **{"checkpoints__2__state": "bank 2"})
        pytest.fail("what could not go up was not told")
    except UserError as error:
        assert "does not answer" in str(error)
        assert f"Everything is in {str(local)!r}; the same command on this host puts it up" in str(error)
    server.start()
    assert train_to(run, 2) == [1, 2]
    assert texts(buckets.here("X", run))["checkpoints/2/state"] == "bank 2"
    server.stop()
