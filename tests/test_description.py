"""What `mpt-jax tasks NAME` shows."""

import json

import pytest
import tiny_tokenizers
from tiny_causal import flat_params, smaller

from mpt_jax import tasks
from mpt_jax.config import BackboneSettings, DataSettings
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.infer.commands import show_task
from mpt_jax.model import formats

ENDED = dict.fromkeys(("inputs", "targets"), lambda text: [*text, "end"])


@pytest.fixture
def words(table):
    sizes = {"train": range(1, 21), "validation": [2, 3]}

    def generate(split):
        for size in sizes[split]:
            yield {"words": "w" * size, "label": size % 2, "embedding": [0.0]}

    return tasks.add(
        tasks.Task(
            "words",
            "generated",
            ("train", "validation"),
            "{words}",
            labels=("even", "odd"),
            generate=generate,
            version="1",
            packages=("python",),
            embedding_size=1,
        )
    )


def test_describe(words):
    found = tasks.describe("words", ENDED, {"inputs": 16, "targets": 4}, shown=1)
    assert json.loads(json.dumps(found)) == found
    assert found["main_score"] == "accuracy"
    assert found["source"]["train"] == "generated from python (version 1)"
    assert found["examples"] == [{"words": "w", "label": 1, "inputs": "w", "targets": "odd"}]
    assert found["splits"]["train"] == {
        "rows": 20,
        "complete": True,
        "labels": {"even": 10, "odd": 10},
        "inputs": {"median": 11.5, "p95": pytest.approx(20.05), "max": 21, "limit": 16, "cut": 5},
        "targets": {"median": 4.5, "p95": 5.0, "max": 5, "limit": 4, "cut": 10},
    }
    assert found["splits"]["validation"]["rows"] == 2


def test_a_limit_is_told(words):
    found = tasks.describe("words", ENDED, {"inputs": 16, "targets": 4}, limit=2)["splits"]
    assert (found["train"]["rows"], found["train"]["complete"]) == (2, False)
    assert (found["validation"]["rows"], found["validation"]["complete"]) == (2, True)


def test_tokens_and_files(table, tmp_path):
    rows = [{"inputs_tokens": [5, 6, 1], "targets_tokens": [7, 1]}]
    tasks.add(
        tasks.Task("ids", "generated", ("train",), generate=lambda split: rows, version="1", tokens=True)
    )
    found = tasks.describe("ids", ENDED, {"inputs": 2, "targets": 2})
    assert found["splits"]["train"]["inputs"]["max"] == 3
    assert found["splits"]["train"]["inputs"]["cut"] == 1
    assert found["main_score"] is None
    (tmp_path / "a.csv").write_text("a,b\nx,y\n")
    tasks.csv("file", files={"train": tmp_path / "a.csv"}, template="{a}", target="{b}")
    assert tasks.describe("file", ENDED, {})["source"] == {"train": str(tmp_path / "a.csv")}


def test_targets_that_the_vocabulary_writes_otherwise_are_counted(table, words):
    rows = [{"inputs": "a", "targets": text} for text in ("Paris", "rome ", "Wait", "end")]
    tasks.add(tasks.Task("texts", "generated", ("train",), generate=lambda split: rows, version="1"))
    found = tasks.describe("texts", ENDED, {}, written=lambda text: text.lower().strip())["splits"]["train"]["respelled"]
    assert found["rows"] == 2 and (found["target"], found["written"]) == ("Paris", "paris")
    assert tasks.describe("words", ENDED, {}, written=str.upper)["splits"]["train"]["respelled"]["rows"] == 0


def test_lengths_of_a_decoder_only_model_are_those_of_its_rows(table, tmp_path):
    """A token that starts the input, the text, the cue; and the target after a space."""
    config, cue = smaller("llama", vocab_size=400), "\nAnswer:"
    tokenizer = tiny_tokenizers.write(tmp_path / "tokenizer", "bytes_cut") / "tokenizer.json"
    formats.write_backbone("own", tmp_path / "model", config, flat_params(config), str(tokenizer))
    (tmp_path / "a.csv").write_text("a,b\nThe dog is a dog,yes\nA,no way\n")
    tasks.csv("file", files={"train": tmp_path / "a.csv"}, template="{a}", target="{b}")
    vocabulary = load_vocabulary(tokenizer).continuing(cue)
    inputs, targets = len(vocabulary.input_tokens("The dog is a dog")), len(vocabulary.target_tokens("no way"))
    assert inputs > 1 + len(load_vocabulary(tokenizer).encode("The dog is a dog")) + 1
    data = DataSettings(cue=cue, feature_lengths={"inputs": inputs - 1, "targets": targets})
    shown = show_task("file", BackboneSettings(str(tmp_path / "model")), data)
    assert f"longest {inputs} tokens; 1 get cut at {inputs - 1}" in shown and f"longest {targets} tokens; 0 get cut at {targets}" in shown
