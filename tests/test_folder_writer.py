"""Outputs on full, read-only, forbidden and taken places: one line, nothing half-written, nothing replaced."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import TINY, random_params

from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.main import main
from mpt_jax.model import formats
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import folder_writer, prompt_writers, prompts

BACKBONES, PROMPTS = ("hf", "own", "t5x", "orbax"), ("npz", "npy", "peft", "peft_single")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, str]:
    """What each format is written from."""
    folder = tmp_path_factory.mktemp("sources")
    folder.chmod(0o755)  # for who may not write
    formats.write_backbone("own", folder / "own", TINY, random_params(TINY))
    np.save(folder / "prompt.npy", np.random.default_rng(0).normal(size=(400, 512)).astype(np.float32))
    return {to: str(folder / ("own" if to in BACKBONES else "prompt.npy")) for to in BACKBONES + PROMPTS}


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(sources, to: str, output: Path, message: str, around: Path) -> None:
    """The command says one line and leaves everything as it was."""
    before = listing(around)
    with pytest.raises(UserError, match=message) as caught:
        convert(sources[to], to, str(output))
    assert "\n" not in str(caught.value)
    assert listing(around) == before


@contextlib.contextmanager
def small_disk():
    """Files of at most 20 kB, which is what a full disk does to a write."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("to", BACKBONES[:2] + PROMPTS)
def test_a_full_disk(to, sources, tmp_path):
    with small_disk():
        refused(sources, to, tmp_path / "out", "cannot be written: File too large", tmp_path)


@pytest.mark.parametrize("to", BACKBONES[2:])
def test_a_full_disk_under_tensorstore(to, tmp_path):
    params = random_params(TINY) | {"token_embedder/embedding": np.random.default_rng(0).normal(size=(48, 16)).astype(np.float32)}
    big = T5Config("custom", 4096, 16, 2, 8, 24, 3, 2)
    params |= {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in (
        ("token_embedder/embedding", (4096, 16)), ("decoder/logits_dense/kernel", (16, 4096)))}  # fmt: skip
    with small_disk(), pytest.raises(UserError, match="cannot be written: .*(File too large|RESOURCE_EXHAUSTED|file)"):
        formats.write_backbone(to, tmp_path / "out", big, params)
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("to", ["hf", "t5x", "orbax", "npz", "peft"])
def test_a_place_that_may_not_be_written(to, sources, tmp_path, forbidden):
    (tmp_path / "closed").mkdir()
    with forbidden(tmp_path / "closed"), pytest.raises(UserError, match="closed/.*cannot be written: Permission denied"):
        convert(sources[to], to, str(tmp_path / "closed" / "in" / "out"))
    assert listing(tmp_path) == {"closed": None}


@pytest.mark.parametrize("to", BACKBONES + PROMPTS)
def test_a_place_below_a_file(to, sources, tmp_path):
    (tmp_path / "file").write_text("x")
    refused(sources, to, tmp_path / "file" / "out", "cannot be written: Not a directory|cannot be written: File exists", tmp_path)


@pytest.mark.parametrize("to", ["hf", "orbax", "npz", "npy", "peft_single"])
@pytest.mark.parametrize("taken", ["file", "full folder", "link", "link to nothing", "link to a folder", "pipe"])
def test_what_is_there_stays(to, taken, sources, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / (f"out.{to}" if to in ("npz", "npy") else "out")
    {
        "file": lambda: output.write_text("x"), "full folder": lambda: (output / "x").mkdir(parents=True),
        "link": lambda: output.symlink_to("elsewhere/file"), "link to nothing": lambda: output.symlink_to("nothing"),
        "link to a folder": lambda: output.symlink_to("elsewhere"), "pipe": lambda: os.mkfifo(output),
    }[taken]()  # fmt: skip
    (tmp_path / "elsewhere" / "file").write_text("y") if taken == "link" else None
    refused(sources, to, output, "is there already|is a device or pipe", tmp_path)
    assert os.path.islink(output) == taken.startswith("link")


def test_a_device_is_not_replaced(sources):
    for to in ("hf", "npz", "npy"):
        output = "/dev/null" if to == "hf" else f"/dev/null/x.{to}"
        with pytest.raises(UserError, match="is there already|is a device or pipe|Not a directory|File exists"):
            convert(sources[to], to, output)
    assert Path("/dev/null").is_char_device()


def test_an_empty_folder_is_filled(sources, tmp_path):
    (tmp_path / "out").mkdir()
    assert convert(sources["hf"], "hf", str(tmp_path / "out"))


def test_a_name_that_no_file_system_takes(sources, tmp_path):
    for name in ("x" * 300, "a\0b", "\ud800"):
        with pytest.raises(UserError, match="cannot be written"):
            convert(sources["hf"], "hf", str(tmp_path / name))
    assert listing(tmp_path) == {}


def test_a_write_that_fails_in_the_middle_leaves_nothing(tmp_path):
    def write(folder):
        Path(folder, "x").write_text("half")
        raise KeyError

    with pytest.raises(KeyError):
        folder_writer.write_folder(str(tmp_path / "out"), write)
    with pytest.raises(KeyError):
        folder_writer.write_files({str(tmp_path / "a"): lambda file: file.write(b"x"), str(tmp_path / "b"): lambda file: {}["x"]})
    assert listing(tmp_path) == {}


KILLED = """
import sys, time
from mpt_jax.model.formats.folder_writer import write_folder
write_folder(sys.argv[1], lambda folder: (open(folder + "/x", "w").close(), print(folder, flush=True), time.sleep(60)))
"""


def test_what_a_killed_process_left_is_cleared_by_the_next_one(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    left = Path(process.stdout.readline().strip())
    assert (left / "x").exists() and left.parent == tmp_path
    folder_writer.write_folder(str(tmp_path / "other"), lambda folder: None)
    folder_writer.write_files({str(tmp_path / "out.npy"): lambda file: None})
    assert left.exists()  # of another output, and of a living process
    process.kill()
    process.wait()
    time.sleep(0.05)
    folder_writer.write_folder(str(tmp_path / "out"), lambda folder: None)
    assert sorted(os.listdir(tmp_path)) == ["other", "out", "out.npy"]


def test_two_formats_of_one_name_do_not_collide(sources, tmp_path):
    for to in ("npz", "npy"):
        convert(sources[to], to, str(tmp_path / "x"))
    assert sorted(os.listdir(tmp_path)) == ["x.npy", "x.npy.md", "x.npz", "x.npz.md"]


def bank(*names: str) -> prompts.PromptFile:
    array = np.random.default_rng(0).normal(size=(len(names), 4, 6)).astype(np.float32)
    return prompts.plain(array, names, {})


@pytest.mark.parametrize("kind", ["npy", "peft_single"])
def test_tasks_that_would_be_written_to_one_file(kind, tmp_path):
    with pytest.raises(UserError, match="tasks 'Task' and 'task' would both be written"):
        prompt_writers.write(kind, str(tmp_path / "out"), bank("Task", "task"))
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("name", ["..", ".", "../x", "/x", ".hidden", "file", "a/b", "a\\b", "arr_0", "ü", "*"])
def test_odd_names_of_tasks(name, tmp_path):
    factors = np.ones((2, 4, 1), np.float32), np.random.default_rng(0).normal(size=(2, 1, 6)).astype(np.float32)
    held = prompts.PromptFile(np.ones((1, 4, 6), np.float32), *factors, np.zeros(2, np.int32), ("a", name), {})
    for kind in ("npy", "npz", "peft", "peft_single"):
        written = prompt_writers.write(kind, str(tmp_path / "in" / kind), held)
        assert all(Path(path).resolve().is_relative_to(tmp_path / "in") for path in written)
    assert os.listdir(tmp_path) == ["in"]
    for path in ("npz.npz", "peft"):
        assert prompts.read(tmp_path / "in" / path).task_names == ("a", name)
    np.testing.assert_array_equal(prompts.read(tmp_path / "in" / "npz.npz").compose(), held.compose())
    np.testing.assert_array_equal(np.load(tmp_path / "in" / "npz.npz")["a"], held.compose()[0])


def test_a_task_called_like_a_part_of_the_bank(tmp_path):
    with pytest.raises(UserError, match="called 'bank/group_N' has the name of an array of the bank"):
        prompt_writers.write("npz", str(tmp_path / "x"), bank("a", "bank/group_N"))
    assert listing(tmp_path) == {}


def test_the_command_says_one_line(sources, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["convert", "--from", sources["hf"], "--to", "hf", "--output", str(tmp_path / "file" / "out")]) != 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "cannot be written: " in said[0]
