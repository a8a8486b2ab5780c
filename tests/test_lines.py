"""Lines and JSON objects: bounded, and every fault names file and line."""

import gzip
import json
import os

import pytest
from bounds import within_bounds
from mpt_jax.tasks import lines as lines_module
from mpt_jax.tasks.lines import DEEPEST, check_file, json_object, lines, whole_text

from mpt_jax import tasks

HERE = "data.jsonl:3"


def refused(call, message):
    with pytest.raises(tasks.TaskError, match=message):
        call()


def test_lines_end_at_line_feeds_alone_and_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\u2028still two\n三".encode())
    assert list(lines(tmp_path / "a.txt")) == ["one\r\n", "two\u2028still two\n", "三"]
    with gzip.open(tmp_path / "a.txt.gz", "wb") as file:
        file.write((tmp_path / "a.txt").read_bytes())
    assert list(lines(tmp_path / "a.txt.gz")) == list(lines(tmp_path / "a.txt"))


def test_pipes_devices_and_folders_are_refused_without_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(lambda: list(lines(tmp_path / "pipe")), "pipe: is a pipe or device: save its content as a file")
    refused(lambda: list(lines("/dev/zero")), "/dev/zero: is a pipe or device")
    refused(lambda: check_file(tmp_path), "is a folder, and a file is needed")
    refused(lambda: check_file(tmp_path / "none", "--input"), "none: there is no such file: correct --input")
    refused(lambda: check_file(tmp_path / "a\0b"), "cannot be read")
    refused(lambda: check_file(tmp_path / ("x" * 300)), "cannot be read .*File name too long")


def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path / "a").write_text("x\n")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert list(lines(tmp_path / "link")) == ["x\n"]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(lambda: check_file(tmp_path / "loop"), "cannot be read")


def test_wrong_encoding_names_the_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("gut\ncafé\n".encode("latin-1"))
    refused(lambda: list(lines(tmp_path / "a.txt")), r"a\.txt:2: not UTF-8 .*: save it as UTF-8")
    (tmp_path / "b.txt").write_bytes("gut\n".encode("utf-16"))
    refused(lambda: list(lines(tmp_path / "b.txt")), r"b\.txt:1: not UTF-8")


def test_a_damaged_archive_names_its_file(tmp_path):
    whole = gzip.compress(b"line\n" * 1000)
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    (tmp_path / "other.gz").write_bytes(b"no archive")
    for name in ("cut.gz", "other.gz"):
        refused(lambda name=name: list(lines(tmp_path / name)), f"{name}:.*cannot be read")


def test_a_line_and_a_file_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "LINE_LIMIT", 100)
    (tmp_path / "long").write_text("x" * 100)
    assert len(next(lines(tmp_path / "long"))) == 100
    (tmp_path / "longer").write_text("\n" + "x" * 101)
    refused(lambda: list(lines(tmp_path / "longer")), "longer:2: a line of more than 100 bytes: end each row with a line feed")
    monkeypatch.setattr(lines_module, "FILE_LIMIT", 150)
    (tmp_path / "big").write_text(("x" * 90 + "\n") * 2)
    refused(lambda: whole_text(tmp_path / "big"), "more than 150 bytes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "not JSON"),
        ("[1]", r"a JSON object is needed.*got \[1\]"),
        ('{"a": ' + "1" * 5000 + "}", "a number of more digits than can be read"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", f"more than {DEEPEST} levels"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", f"more than {DEEPEST} levels"),
        ('{"a":' * 150 + "1" + "}" * 150, f"more than {DEEPEST} levels"),
        ('{"label": 0, "s": "x", "label": 1}', "field 'label' is there twice"),
        ('{"a": {"b": 1, "b": 2}}', "field 'b' is there twice"),
    ],
)
def test_json_that_is_refused(text, message):
    refused(lambda: json_object(text, HERE), f"^{HERE}: {message}")


def test_a_line_of_many_fields_takes_little_time():
    text = "{" + ", ".join(f'"field{n}": 0' for n in range(100_000)) + ', "field99999": 1}'
    with within_bounds():
        refused(lambda: json_object(text, HERE), f"^{HERE}: field 'field99999' is there twice")


def test_wide_and_moderately_deep_json_is_fine():
    wide = {"a": [[n] for n in range(1000)], "b": {"c": [1, None, {"d": "é"}]}}
    assert json_object(json.dumps(wide), HERE) == wide
    deep = json_object('{"a": ' + "[" * 98 + "]" * 98 + "}", HERE)
    assert json.loads(json.dumps(deep)) == deep
