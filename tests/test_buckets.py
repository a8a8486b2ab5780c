"""Buckets (buckets.py, bucket_run.py) against real object-store servers: what is put up is whole or not there, what comes down is whole."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from object_server import BUCKET, Server

from mpt_jax import bucket_run, buckets
from mpt_jax.errors import UserError

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")
pytest.importorskip("gcp_storage_emulator")
pytest.importorskip("moto")


@pytest.fixture(scope="module", params=["gs", "s3"])
def server(request, tmp_path_factory):
    server = Server(request.param, tmp_path_factory.mktemp("server") / "objects")
    server.start()
    yield server
    server.stop()


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


@pytest.mark.slow
def test_what_cannot_be_used_is_one_sentence(server, address, monkeypatch):
    with pytest.raises(buckets.Unreachable, match="there is no bucket 'elsewhere'"):
        buckets.write(f"{server.scheme}://elsewhere/x", b"1")
    variable = "STORAGE_EMULATOR_HOST" if server.scheme == "gs" else "AWS_ENDPOINT_URL"
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody is there
    started = time.monotonic()
    with pytest.raises(buckets.Unreachable, match="does not answer .*when it does again, the same command continues"):
        buckets.listed(f"{address}/away")
    assert time.monotonic() - started < 60


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
    with bucket_run.kept_in(run, local):
        as_host(monkeypatch, "two", tmp_path)
        with pytest.raises(UserError, match=rf"'{run}' is being trained in by process {os.getpid()} on one, which said so \d+ s ago"):
            train_to(run, 1)
        monkeypatch.setattr(bucket_run, "STALE_S", -1.0)
        assert train_to(run, 1) == []


@pytest.mark.slow
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
