"""Files that commands write: whole, or kept in part, and never in the place of a link or a device."""

import os
import subprocess
import sys
import threading

import pytest

from mpt_jax.errors import UserError
from mpt_jax.output import descriptor, file_name, kept_in_part, replaceable


def write(path, *texts):
    with kept_in_part(path, "--output") as file:
        for text in texts:
            if isinstance(text, BaseException):
                raise text
            file.write(text.encode())


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "out"
    with kept_in_part(path, "--output") as file:
        file.write(b"half")
        file.flush()
        assert not path.exists() and (path.parent / "out.partial").read_bytes() == b"half"
    assert path.read_bytes() == b"half" and os.listdir(path.parent) == ["out"]


@pytest.mark.parametrize("error", [UserError("bad row"), KeyboardInterrupt(), RuntimeError("any")])
def test_what_was_written_before_an_error_is_kept_and_the_old_file_as_well(tmp_path, error, capsys):
    (tmp_path / "out").write_text("old")
    with pytest.raises(type(error)):
        write(tmp_path / "out", "first\n", error)
    assert (tmp_path / "out").read_text() == "old" and (tmp_path / "out.partial").read_text() == "first\n"
    assert f"kept in '{tmp_path}/out.partial'" in capsys.readouterr().err
    write(tmp_path / "out", "all")
    assert (tmp_path / "out").read_text() == "all" and os.listdir(tmp_path) == ["out"]


def test_an_error_before_anything_was_written_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        write(tmp_path / "out", UserError("no"))
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_wrote_is_kept(tmp_path):
    code = (
        "import os, signal, sys; from mpt_jax.output import kept_in_part\n"
        "with kept_in_part(sys.argv[1], '--output') as file:\n"
        "    file.write(b'first'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False).returncode == -9
    assert (tmp_path / "out.partial").read_text() == "first"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("there", "absent"):
        (tmp_path / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "there").write_text("old")
    for name in ("there", "absent"):
        write(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / "real" / name).read_text() == "new"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="--output .*loop' cannot be written: Too many levels"):
        write(tmp_path / "loop", "new")


def test_devices_and_pipes_are_written_and_stay(tmp_path):
    before = os.stat("/dev/null").st_mode
    write("/dev/null", "new")
    (tmp_path / "null").symlink_to("/dev/null")
    write(tmp_path / "null", "new")
    assert os.stat("/dev/null").st_mode == before and (tmp_path / "null").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    thread.start()
    write(tmp_path / "pipe", "through")
    thread.join()
    assert read == ["through"] and os.listdir(tmp_path) in (["null", "pipe"], ["pipe", "null"])
    with pytest.raises(UserError, match="--output '/dev/full' cannot be written: No space left on device"):
        write("/dev/full", "new")


def test_open_files_of_the_process(tmp_path):
    assert [descriptor(path) for path in ("/dev/stdout", "/dev/stderr", "/dev/fd/5", "/proc/self/fd/1", "/dev/null")] == [1, 2, 5, 1, None]
    code = "from mpt_jax.output import kept_in_part\nwith kept_in_part('/dev/stdout', 'o') as file: file.write(b'row')\nprint('end')"
    with open(tmp_path / "out", "w") as file:
        print("before", file=file, flush=True)
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "before\nrowend\n"
    (tmp_path / "link").symlink_to("/dev/stdout")
    done = subprocess.run([sys.executable, "-c", code.replace("/dev/stdout", str(tmp_path / "link"))], capture_output=True, check=True)
    assert done.stdout == b"rowend\n" and (tmp_path / "link").is_symlink()
    with pytest.raises(UserError, match="--output '/dev/fd/999' cannot be written: Bad file descriptor"):
        write("/dev/fd/999", "x")


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "x.partial").symlink_to(tmp_path / "file")
    for path, message in (
        (tmp_path, "is a folder"),
        (f"{tmp_path}/new/", "is a folder"),
        (tmp_path / "file" / "out", "cannot be written: Not a directory"),
        ("/proc/no/such", "cannot be written"),
        (tmp_path / "x", "cannot be written: Too many levels of symbolic links"),
        (tmp_path / ("n" * 300), "cannot be written: File name too long"),
    ):
        with pytest.raises(UserError, match=message):
            write(path, "new")
    assert (tmp_path / "file").read_text() == "x"


def test_two_commands_do_not_write_one_file(tmp_path):
    with kept_in_part(tmp_path / "out", "--output") as file:
        file.write(b"mine")
        with pytest.raises(UserError, match="is being written by another command"):
            write(tmp_path / "out", "theirs")
    assert (tmp_path / "out").read_text() == "mine"


def test_what_may_be_replaced(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert replaceable(tmp_path / "link", "o") == tmp_path / "real"
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(UserError, match="and would be replaced: give the name of a file"):
            replaceable(path, "o")


def test_file_names_keep_names_apart():
    names = ["rte", "RTE", "rte:index", "rte_index", "rte.index", "rte#index", "a:b:c", "a_b:c", "a:b_c", "é", "東京" * 60]
    names += ["e" * 300, "e" * 301, "..", ".", "", "../a"]
    found = [file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(0 < len(name.encode()) < 220 and name.strip(".") and "/" not in name and ":" not in name for name in found)
    assert [file_name(name) for name in ("rte", "rte_index", "a.b#1")] == ["rte", "rte_index", "a.b#1"]
