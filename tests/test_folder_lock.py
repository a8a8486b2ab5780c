"""One training at a time in a folder, and what a lock leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpt_jax.errors import UserError
from mpt_jax.folder_lock import NAME, locked

HOLDER = """
import sys, time
from mpt_jax.folder_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder of the test."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_at_once_and_told_who_holds_it(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"MODEL_DIR = .*run' is being trained in by process {holder.pid} on \S+ since \d{{4}}-"):
        with locked(tmp_path / "run"):
            pass
    assert time.monotonic() - started < 1.0
    assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == holder.pid


def test_a_killed_holder_is_not_in_the_way(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / NAME).exists()
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / NAME).exists()


def test_a_folder_into_which_nothing_came_is_removed_with_those_around_it(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / NAME).exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "run.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["run.json"]


def test_a_lock_can_be_taken_again_and_outlives_its_folder(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / NAME).read_text())["pid"] == os.getpid()
            (tmp_path / "run" / NAME).unlink()
            (tmp_path / "run").rmdir()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_stands_where_the_lock_belongs_is_left_alone(tmp_path, kind):
    path, other = tmp_path / NAME, tmp_path / "other"
    other.write_text("kept")
    if kind == "file":
        path.write_text("{")  # what a holder of before could not finish
        with locked(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        return
    path.symlink_to(other) if kind == "link" else path.mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        with locked(tmp_path):
            pass
    assert other.read_text() == "kept" and path.exists()


@pytest.mark.parametrize("path", ["/proc/run", "/dev/null/run", "/dev/null"])
def test_a_forbidden_folder_is_named(path):
    with pytest.raises(UserError, match=f"MODEL_DIR = '{path}' cannot be written"):
        with locked(Path(path)):
            pass
