"""Metrics files and progress lines."""

import json
import os
import re
import shutil
import sys

import pytest
from hostile import refused

from mpt_jax import distributed
from mpt_jax.errors import UserError
from mpt_jax.metrics import MetricsWriter, ProgressLine, read_metrics


def test_lines_and_events(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, "train", {"loss": 2.0}, "a", 0)
    writer.close()
    assert read_metrics(tmp_path) == [{"step": 1, "split": "train", "task": "a", "run": 0, "loss": 2.0}]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_continued_run_drops_later_lines_and_a_cut_one(tmp_path):
    lines = [json.dumps({"step": step, "split": "train"}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "spl')
    MetricsWriter(tmp_path, start_step=2).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "text, message",
    [
        (b"{", "2 is not JSON"),
        (b"\xff", "2 is not JSON"),
        (b"3", "2 is damaged .it is not an object"),
        (b'{"step": "1", "split": "train"}', "step is '1'"),
        (b'{"step": 1}', "split is None"),
        (b'{"step": 1, "split": "dev", "task": 3}', "task is 3"),
        (b'{"step": 1, "split": "dev", "run": true}', "run is True"),
        (b'{"step": 1, "split": "dev", "loss": 1' + b"0" * 400 + b"}", "loss is 1000"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_damaged_line_is_named_and_left_alone(tmp_path, text, message):
    """But for the last one, which a kill may have cut."""
    whole = b'{"step": 1, "split": "train"}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(whole + text + b"\n" + whole)
    for read in (lambda: read_metrics(tmp_path), lambda: MetricsWriter(tmp_path, 5)):
        with pytest.raises(UserError, match=r"metrics.jsonl:2") as raised:
            read()
        assert re.search(message, str(raised.value)) and len(str(raised.value)) < 400
    assert path.read_bytes() == whole + text + b"\n" + whole
    path.write_bytes(whole + text)
    assert len(read_metrics(tmp_path)) == 1


def test_a_line_without_end_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "split": "train"}\n')
    os.truncate(tmp_path / "metrics.jsonl", 2**34)
    refused(lambda: read_metrics(tmp_path), "metrics.jsonl:2 is damaged: it is a line of more than")


def test_a_file_that_is_not_one(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl is a pipe"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("place", ["/dev/full", "gone"])
def test_a_folder_that_takes_no_more_is_named(tmp_path, place):
    """The disk is full, or the folder deleted, while training writes."""
    writer = MetricsWriter(tmp_path)
    if place == "gone":
        shutil.rmtree(tmp_path)
        message = "No such file or directory"
    else:
        writer._file.close()
        writer._file = open(place, "w")
        message = "No space left on device"
    with pytest.raises(UserError, match=f"MODEL_DIR = .* cannot be written: {message}"):
        writer.write(1, "train", {"loss": 2.0}, "a", 0)
        writer.flush()


def test_what_nobody_reads_ends_nothing(monkeypatch):
    """Standard error is a pipe that was closed, or a full disk: progress and messages are lost, training is not."""
    for target in ("/dev/full", None):
        if target is None:
            read, write = os.pipe()
            os.close(read)
            monkeypatch.setattr(sys, "stderr", os.fdopen(write, "w"))
        else:
            monkeypatch.setattr(sys, "stderr", open(target, "w"))
        with pytest.raises(OSError):
            os.write(sys.stderr.fileno(), b"x")
        distributed.say("a line")
        with ProgressLine("train", 4, seconds_between_lines=0.0) as progress:
            progress.update(3)
        assert progress.done == 3


def test_plain_progress_tells_rate_and_time_left(capsys):
    with ProgressLine("train", 4, start=2, seconds_between_lines=0.0) as progress:
        progress.update(3, "loss 1.0")
    text = capsys.readouterr().err
    assert "train: 3/4 steps" in text and "s left" in text and "loss 1.0" in text
