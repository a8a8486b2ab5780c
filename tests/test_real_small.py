"""The study of docs/real_small.md: its splits share no row, its commands are ones that mpt-jax takes."""

import json

import pytest

from benchmarks import real_small
from mpt_jax import command_line, gin_settings
from mpt_jax.config import DataSettings, PromptSettings, TrainSettings


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Forty rows of every task, two of them in both files, in published layout."""
    monkeypatch.chdir(tmp_path)
    for name in real_small.SOURCES + real_small.TARGETS:
        folder = tmp_path / "published" / name
        folder.mkdir(parents=True)
        rows = [{"sentence": f"{name} {n}", "label": n % 2, "idx": n} for n in range(40)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        test = f"{real_small.TEST_FILES.get(name, 'validation')}.jsonl"
        (folder / test).write_text("".join(json.dumps({**row, "idx": 99}) + "\n" for row in rows[:2]))
    return tmp_path / "published"


def read(name, split):
    return [json.loads(line) for line in (real_small.FOLDER / name / f"{split}.jsonl").open()]


def test_splits_share_no_text_and_lose_none(data):
    real_small.split_rows(data)
    for name in real_small.SOURCES + real_small.TARGETS:
        texts = {split: [real_small.text_of(row) for row in read(name, split)] for split in ("train", "validation", "test")}
        assert [len(rows) for rows in texts.values()] == [35, 3, 2]
        assert len(set().union(*texts.values())) == 40
    assert real_small.most_frequent("sst2") == 50.0 and real_small.most_frequent("cola") == 0.0


def test_every_command_is_one_that_the_program_takes():
    commands = list(real_small.commands())
    assert len(commands) == 2 + 2 * (2 + len(real_small.TARGETS) * len(real_small.SEEDS))
    for run, arguments in commands:
        parsed = command_line.parse_arguments(arguments)
        gin_settings.parse_gin(parsed.gin_file, parsed.gin_bindings)
        train = gin_settings.configured(TrainSettings)
        assert train.model_dir == str(real_small.FOLDER / run)
        plain = gin_settings.configured(PromptSettings).rank == 0
        assert plain == (run.startswith("plain") or run == "teachers")
        assert gin_settings.configured(DataSettings).k_shot == (real_small.SHOTS if "_few" in run else 0)
        assert gin_settings.stage_settings().optimizer.learning_rate == (3e-4 if "finetune" in run else 0.3)
