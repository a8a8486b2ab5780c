"""The paper's tasks from TFDS: rows written with each builder's own features give what the published files give."""

from pathlib import Path

import numpy as np
import pytest
from mpt_jax.tasks.paper import location, prepare, reading, sets
from paper_files import write_published

from mpt_jax import tasks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tfds():
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


def complete(features, record):
    """The record with an empty value for each feature that the test's rows do not have."""
    found = {}
    for key, feature in features.items():
        kind = type(feature).__name__
        if kind == "FeaturesDict":
            found[key] = complete(feature, record.get(key, {}))
        elif key == "answers" and isinstance(record.get(key), dict):
            found[key] = {"text": record[key]["text"], "answer_start": [0] * len(record[key]["text"])}
        elif key in record:
            found[key] = record[key]
        else:
            numeric = np.issubdtype(getattr(feature, "np_dtype", np.object_), np.number) if kind != "Sequence" else False
            found[key] = [] if kind in ("Sequence", "Dataset") else 0 if numeric else ""
    return found


def prepare_builder(tfds, row, data_dir):
    """Writes the set's rows as its TFDS builder would have, and returns nothing: the rows are found by `location`."""
    builder = tfds.builder(row.tfds, data_dir=data_dir)
    Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, 1000)
    where = location.locate(row)
    names = {row.tfds_splits[role]: role for role in sets.ROLES[row.carving]}
    writer.initialize_splits(list(names))
    for split, role in names.items():
        examples = []
        for record in location.read(row, where, role):
            if row.labels:
                value = record.get("label", record.get("answer"))
                index = int(value) - 1 if row.name == "winogrande" else reading._label(row, value)
                record = {**record, "label": index}
            if row.name == "stsb":
                record["label"] = float(record["label"])
            examples.append(complete(builder.info.features, record))
        writer.add_examples({split: examples})
    writer.close_all()


@pytest.mark.parametrize("name", sets.SETS)
def test_tfds_gives_the_rows_of_the_files(tfds, folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "DEV_ROWS", 2)
    monkeypatch.setenv(location.DATA_FOLDER, str(folder))
    prepare_builder(tfds, sets.SETS[name], tmp_path)
    expected = {split: {(row["inputs"], row["targets"]) for row in tasks.rows(name, split)} for split in reading.SPLITS}
    keys = tasks.ingredients(name, "train")
    monkeypatch.delenv(location.DATA_FOLDER)
    monkeypatch.setenv(location.TFDS_FOLDER, str(tmp_path))
    found = {split: list(tasks.rows(name, split)) for split in reading.SPLITS}
    assert {split: {(row["inputs"], row["targets"]) for row in rows} for split, rows in found.items()} == expected
    assert tasks.ingredients(name, "train")["origin"]["tfds"] == sets.SETS[name].tfds and tasks.ingredients(name, "train") != keys
    scores = tasks.scorer(name)(found["test"], [row["targets"] for row in found["test"]])
    assert np.isfinite(list(scores.values())).all()


def test_punctuation_is_padded_as_t5_does_it():
    """T5's own expression, in TensorFlow's regular expressions."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    letters = list("ab1_ .,\"'()\n\t—é東①²½\u0301\u00a0%€🙂")
    for _ in range(100):
        text = "".join(rng.choice(letters, size=12))
        padded = tf.strings.regex_replace(text, r"([^_\s\p{N}\p{L}\p{M}])", r" \1 ")
        assert prepare.pad_punctuation(text) == tf.strings.regex_replace(padded, r"\s+", " ").numpy().decode().strip(" ")


def test_a_damaged_folder_is_one_line(tfds, tmp_path, monkeypatch):
    where = tmp_path / "glue" / "sst2" / "2.0.0"
    where.mkdir(parents=True)
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    for content in ("", "not JSON", "{}", '{"name": 5}'):
        (where / "dataset_info.json").write_text(content)
        with pytest.raises(tasks.TaskError, match="split .* of this TFDS folder cannot be read"):
            list(tasks.rows("sst2", "train"))
