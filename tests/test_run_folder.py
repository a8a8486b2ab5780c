"""Run folders: what they hold, and another run's configuration."""

import dataclasses
import json

import pytest

from mpt_jax.config import Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.run_folder import FREE_TO_CHANGE, open_run_folder


def description(**changes) -> dict:
    train = {"train_steps": 5, **dict.fromkeys(FREE_TO_CHANGE, 1)} | changes
    return {"stage": "teacher", "settings": {"train": train, "data": {"feature_lengths": {"inputs": 8}}}}


def test_it_holds_the_description_and_the_gin_configuration(tmp_path):
    folder = open_run_folder(str(tmp_path / "a" / "b"), description(), "TRAIN_STEPS = 5\n")
    assert json.loads((folder / "run.json").read_text()) == description()
    assert (folder / "config.gin").read_text() == "TRAIN_STEPS = 5\n"


@pytest.mark.parametrize("name", FREE_TO_CHANGE)
def test_what_changes_no_result_may_change(tmp_path, name):
    open_run_folder(str(tmp_path), description(), "before")
    open_run_folder(str(tmp_path), description(**{name: 2}), "after")
    assert json.loads((tmp_path / "run.json").read_text())["settings"]["train"][name] == 2
    assert (tmp_path / "config.gin").read_text() == "after"


def test_free_to_change_are_settings():
    """Names that no settings have would free nothing."""
    known = {field.name for value in Settings(TrainSettings("teacher")) for field in dataclasses.fields(value)}
    assert known >= set(FREE_TO_CHANGE)


def test_another_configuration_is_refused_and_left_alone(tmp_path):
    open_run_folder(str(tmp_path), description(), "")
    with pytest.raises(UserError, match="train.train_steps: 5 there, 6 now"):
        open_run_folder(str(tmp_path), description(train_steps=6), "")
    assert json.loads((tmp_path / "run.json").read_text()) == description()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_run_folder(str(tmp_path / "file" / "run"), description(), "")
