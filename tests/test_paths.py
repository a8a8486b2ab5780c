"""Paths that a user gives: `~`, addresses, names that Orbax cannot find again."""

from pathlib import Path

import pytest

from mpt_jax import paths
from mpt_jax.config import BackboneSettings, DataSettings, EvalSettings, PromptSettings, TaskSettings, TrainSettings
from mpt_jax.convert import convert
from mpt_jax.errors import UserError

HOME = Path.home()


def test_the_home_folder_is_expanded_in_every_setting_that_is_a_path():
    train = TrainSettings("teacher", "~/run", teacher_dir="~/t", source_dir="~/s")
    assert [train.model_dir, train.teacher_dir, train.source_dir] == [f"{HOME}/run", f"{HOME}/t", f"{HOME}/s"]
    backbone = BackboneSettings("~/t5", "~/v.model")
    assert [backbone.path, backbone.vocabulary] == [f"{HOME}/t5", f"{HOME}/v.model"]
    assert DataSettings(cache_dir="~/c").cache_dir == f"{HOME}/c" and EvalSettings("~/run").model_dir == f"{HOME}/run"
    assert PromptSettings(init="file", init_file="~/p.npy").init_file == f"{HOME}/p.npy"
    tasks = TaskSettings(names=["a"], data_dir="~/d", module="~/m.py")
    assert tasks.data_dir == f"{HOME}/d" and tasks.module == f"{HOME}/m.py"
    assert TrainSettings("teacher", "x").teacher_dir == "" and BackboneSettings("nano").path == "nano"


@pytest.mark.parametrize("path", ["x" * 256, "é" * 128, "y/" * 1000, "z" * 250 + "/" + "x/" * 2000, "~/" + "x" * 256])
def test_what_no_file_system_holds_is_too_long(path):
    for make in (lambda: TrainSettings("teacher", path), lambda: BackboneSettings(path), lambda: DataSettings(cache_dir=path)):
        with pytest.raises(UserError, match="is longer than a path can be .4,095 bytes") as caught:
            make()
        assert len(str(caught.value)) < 250
    assert paths.expanded("X", "x" * 255 + "/y" * 100)


@pytest.mark.parametrize("address", ["hdfs://host/run", "file:///run", "gs:/bucket/run", "GS://b"])
def test_an_address_that_nothing_reads_is_refused(address):
    for make in (
        lambda: TrainSettings("target", "x", source_dir=address),
        lambda: TrainSettings("source", "x", teacher_dir=address),
        lambda: BackboneSettings(address),
        lambda: BackboneSettings(vocabulary=address),
        lambda: DataSettings(cache_dir=address),
        lambda: EvalSettings(address),
        lambda: paths.writable_run("MODEL_DIR", address),
    ):
        with pytest.raises(UserError, match=r"cannot be used, only a local path( or gs://, s3://)?; copy it here"):
            make()


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_folders_may_be_in_buckets(scheme):
    address = f"{scheme}://bucket/run"
    assert TrainSettings("source", address, teacher_dir=address, source_dir=address).source_dir == address
    assert DataSettings(cache_dir=address).cache_dir == EvalSettings(address).model_dir == BackboneSettings(address).path == address
    with pytest.raises(UserError, match="cannot be used, only a local path"):
        BackboneSettings(vocabulary=address)


@pytest.mark.parametrize(
    "path, message",
    [("a\0b", "has a zero byte"), ("a\udcff", "is not UTF-8"), ("~nobody_here/run", "there is no user 'nobody_here'")],
)
def test_a_path_that_no_file_system_holds(path, message):
    with pytest.raises(UserError, match=message):
        TrainSettings("teacher", path)


@pytest.mark.parametrize("name", ["seeds[1,2]", "a]", "what?", "*", "a\\b"])
def test_a_run_is_not_trained_where_orbax_would_not_find_it_again(name, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="a pattern for Orbax"):
        paths.writable_run("MODEL_DIR", str(tmp_path / name))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match="a pattern for Orbax"):  # the folder around it counts as well
        paths.writable_run("MODEL_DIR", "run")


def test_a_conversion_to_orbax_is_not_written_there_either(tmp_path):
    with pytest.raises(UserError, match=r"--output = .* holds \[ \], a pattern for Orbax"):
        convert("nano", "orbax", str(tmp_path / "b[1]"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_moved_to_such_a_name_is_read_if_orbax_can():
    assert str(paths.readable_run("run folder", "/x/seeds[1,2]")) == "/x/seeds[1,2]"
    for name in ("a\\b", "a**"):
        with pytest.raises(UserError, match="Orbax reads no checkpoint in such a path; rename the folder"):
            paths.readable_run("run folder", f"/x/{name}")


def test_no_folder_is_no_folder():
    with pytest.raises(UserError, match="--model_dir is empty; give a folder"):
        paths.writable_run("--model_dir", "")


def test_ordinary_names_stay():
    for name in ("a b", "ä漢", "a=0.3,b", "{x}", "100%", "$HOME", "C:", "a:b"):
        assert str(paths.writable_run("MODEL_DIR", f"/x/{name}")) == f"/x/{name}"


def test_another_folder_at_the_path_is_not_the_one_that_was_opened(tmp_path):
    """A file system may give the number of a deleted folder to the next: one that is held open keeps it."""
    folder = tmp_path / "x"
    folder.mkdir()
    opened = paths.Opened(folder)
    assert opened.is_there()
    folder.rename(tmp_path / "y")
    assert not opened.is_there()
    (tmp_path / "y").rename(folder)
    assert opened.is_there()
    for _ in range(20):
        folder.rmdir()
        folder.mkdir()
        assert not opened.is_there()
    opened.close()
