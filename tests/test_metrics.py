"""Metrics files and progress lines."""

import json

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


def test_plain_progress_tells_rate_and_time_left(capsys):
    with ProgressLine("train", 4, start=2, seconds_between_lines=0.0) as progress:
        progress.update(3, "loss 1.0")
    text = capsys.readouterr().err
    assert "train: 3/4 steps" in text and "s left" in text and "loss 1.0" in text
