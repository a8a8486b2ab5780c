"""Run folders: what they hold, and another run's configuration."""

import dataclasses
import json
import os
import re

import pytest

from mpt_jax.config import BackboneSettings, Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.run_folder import FREE_TO_CHANGE, LAYOUT, differences, open_run_folder, parse_run, read_run_json, require


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


@pytest.mark.parametrize("name", LAYOUT)
def test_with_dropout_the_layout_of_micro_batches_is_the_runs(tmp_path, name):
    """Each micro-batch draws its masks."""
    open_run_folder(str(tmp_path), description(dropout_rate=0.1), "")
    with pytest.raises(UserError, match=rf"another configuration \(train.{name}: 1 there, 2 now\)"):
        open_run_folder(str(tmp_path), description(dropout_rate=0.1, **{name: 2}), "")


def test_free_to_change_are_settings():
    """Names that no settings have would free nothing."""
    known = {field.name for value in Settings(TrainSettings("teacher")) if value is not None for field in dataclasses.fields(value)}
    assert known >= set(FREE_TO_CHANGE)


def test_another_configuration_is_refused_and_left_alone(tmp_path):
    open_run_folder(str(tmp_path), description(), "")
    with pytest.raises(UserError, match="train.train_steps: 5 there, 6 now"):
        open_run_folder(str(tmp_path), description(train_steps=6), "")
    assert json.loads((tmp_path / "run.json").read_text()) == description()


MADE_FROM = {"rows of a, train": "1", "prompts of the teachers": "2"}
ROW = {"task": "a", "group": 0, "seed": 0}
RUN = {**description(), "tasks": ["a"], "runs": [ROW], "backbone": {"fingerprint": "f"}, "made_from": MADE_FROM}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tasks": ["b"], "runs": [{"task": "b", "group": 0, "seed": 0}]}, r"tasks: \['a'\] there, \['b'\] now"),
        ({"backbone": {"fingerprint": "g"}}, "weights of the backbone: 'f' there, 'g' now"),
        ({"made_from": MADE_FROM | {"rows of a, train": "9"}}, "rows of a, train: '1' there, '9' now"),
        ({"made_from": {"rows of a, train": "1"}}, "prompts of the teachers: '2' there, None now"),
        ({"runs": [{"task": "a", "group": 0, "seed": 0, "few_shot": [3]}]}, "few-shot rows of its runs"),
    ],
)
def test_a_run_that_is_made_from_something_else_is_refused_and_nothing_is_written(tmp_path, change, message):
    open_run_folder(str(tmp_path), RUN, "TRAIN_STEPS = 5\n")
    with pytest.raises(UserError, match=message):
        open_run_folder(str(tmp_path), RUN | change, "TRAIN_STEPS = 6\n")
    assert json.loads((tmp_path / "run.json").read_text()) == RUN
    assert (tmp_path / "config.gin").read_text() == "TRAIN_STEPS = 5\n"


def test_pipes_and_devices_in_the_place_of_a_runs_files_are_named(tmp_path):
    for number, there in enumerate((os.mkfifo, lambda path: path.symlink_to("/dev/full"), lambda path: path.mkdir())):
        run = tmp_path / str(number)
        run.mkdir()
        there(run / "config.gin")
        with pytest.raises(UserError, match="config.gin' is a .*, and would be replaced"):
            open_run_folder(str(run), RUN, "")
    os.mkfifo(tmp_path / "run.json.tmp")  # of a name that writing needs: nobody reads it
    open_run_folder(str(tmp_path), RUN, "SEED = 'é'\n")
    assert (tmp_path / "config.gin").read_bytes() == "SEED = 'é'\n".encode()


def test_a_run_of_an_earlier_version_goes_on():
    """Settings that it did not have count with their defaults; what it was made from was not written and is not compared."""
    old = {name: value for name, value in RUN.items() if name != "made_from"}
    added = {"settings": {**RUN["settings"], "train": {**RUN["settings"]["train"], "dropout_rate": 0.0}}}
    assert differences(old, RUN | added) == []
    added["settings"]["train"]["dropout_rate"] = 0.1
    assert differences(old, RUN | added) == ["train.dropout_rate: 0.0 there, 0.1 now"]


def test_a_run_of_the_first_version_goes_on():
    """It kept the backbone's settings among those of training, and called the teachers' mode otherwise."""
    new = json.loads(json.dumps(Settings(TrainSettings("source"), BackboneSettings("x", dtype="bfloat16")).describe()))
    old = json.loads(json.dumps(new))
    backbone, distillation = old.pop("backbone"), old["distillation"]
    old["train"] |= {"backbone": backbone.pop("path"), **backbone}
    distillation["teacher"] = distillation.pop("teacher_mode")
    for later in ("method", "eval_method", "dropout_rate", "allow_unfinished", "int8"):
        del old["train"][later]
    read = parse_run(json.dumps({**RUN, "settings": old}).encode(), "run.json")
    assert differences(read, {**RUN, "settings": new}) == []
    new["backbone"]["dtype"], new["distillation"]["teacher_mode"] = "float32", "cached"
    assert differences(read, {**RUN, "settings": new}) == [
        "backbone.dtype: 'bfloat16' there, 'float32' now", "distillation.teacher_mode: 'beside' there, 'cached' now",
    ]  # fmt: skip


def test_descriptions_of_other_writers_are_read(tmp_path):
    """A converted prompt and a run under T5X's trainer may say less of themselves; 0.1 kept the backbone's settings elsewhere."""
    path = tmp_path / "run.json"
    for there, expected in (
        ({"runs": []}, {"runs": [], "method": "prompt"}),
        ({"stage": "finetune", "settings": {"anything": 1}}, {"stage": "finetune", "settings": {"anything": 1}, "method": "weights"}),
        (
            {"stage": "teacher", "settings": {"train": {"backbone": "x", "dtype": "bfloat16", "train_steps": 3}}},
            {
                "stage": "teacher", "method": "prompt",
                "settings": {"train": {"train_steps": 3}, "backbone": {"path": "x", "dtype": "bfloat16"}},
            },
        ),
        ({"settings": None, "made_from": None}, {"settings": None, "made_from": None, "method": "prompt"}),
    ):  # fmt: skip
        path.write_text(json.dumps(there))
        assert read_run_json(tmp_path) == expected
        assert differences(read_run_json(tmp_path), expected) == []


def test_checkpoints_without_a_run_json_are_not_continued(tmp_path):
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(UserError, match="holds checkpoints but no run.json"):
        open_run_folder(str(tmp_path), RUN, "")
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not JSON: Expecting value"),
        (b'{"tasks": ["a"', "is not JSON"),
        (b"{\xff}", "is not JSON: 'utf-8'"),
        (b"[]", "it holds a list, not an object"),
        (b"3", "it holds a int"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"stage": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"stage": 3}', "stage is 3"),
        (b'{"runs": {}}', "runs is {}"),
        (b'{"runs": [3]}', r"runs\[0\].task is 3"),
        (b'{"runs": [{"task": "a"}]}', r"runs\[0\].group is None"),
        (b'{"runs": [{"task": "a", "group": 1, "seed": 0}]}', r"runs\[0\].group is 1, there are 1 runs"),
        (b'{"runs": [{"task": "a", "group": true, "seed": 0}]}', r"runs\[0\].group is True"),
        (b'{"runs": [{"task": "a", "group": 0, "seed": "1"}]}', r"runs\[0\].seed is '1'"),
        (b'{"runs": [{"task": "a", "group": 0, "seed": 0}], "tasks": ["b"]}', r"tasks is \['b'\], its runs are of \['a'\]"),
        (b'{"runs": [], "tasks": [["a"]]}', r"tasks is \[\['a'\]\]"),
        (b'{"tasks": [5]}', r"tasks is \[5\]"),
        (b'{"settings": {"train": []}}', r"settings.train is \[\]"),
        (b'{"settings": {"data": {"feature_lengths": {"inputs": 1e400}}}}', "inputs is inf"),
        (b'{"backbone": {"fingerprint": null, "name": 4}}', "backbone.name is 4"),
        (b'{"settings": {"backbone": {"dtype": 4}}}', "settings.backbone.dtype is 4"),
        (b'{"settings": {"train": {"backbone": 4}}}', "settings.backbone.path is 4"),
        (b'{"settings": {"backbone": {"size": "xl"}}}', "settings.backbone.size is not a setting"),
    ],
)
def test_a_damaged_run_json_is_named_with_what_is_wrong(tmp_path, content, message):
    (tmp_path / "run.json").write_bytes(content)
    for read in (lambda: read_run_json(tmp_path), lambda: open_run_folder(str(tmp_path), RUN, "")):
        with pytest.raises(UserError, match=r"run.json' is (damaged|not JSON)") as raised:
            read()
        assert re.search(message, str(raised.value)) and len(str(raised.value)) < 400
    assert (tmp_path / "run.json").read_bytes() == content


def test_a_folder_that_is_not_a_run_folder_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path, "it has no run.json"), (tmp_path / "none", "it does not exist"), (tmp_path / "file", "it is a file")):
        with pytest.raises(UserError, match=f"is not a run folder: {reason}"):
            read_run_json(path)
    (tmp_path / "run.json").mkdir()
    with pytest.raises(UserError, match=r"run.json is a folder; a regular file is needed"):
        read_run_json(tmp_path)


def test_entries_that_a_reader_needs_are_named():
    require(RUN, "here", "backbone.fingerprint", "tasks")
    with pytest.raises(UserError, match=r"here/run.json' lacks backbone.name, settings.backbone.dtype"):
        require(RUN, "here", "tasks", "backbone.name", "settings.backbone.dtype")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        open_run_folder(str(tmp_path / "file" / "run"), description(), "")
