"""Pretraining from packed files: rows come back as they were, are drawn as they count, and a short run writes a backbone that loads."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.nano import minilm, packed, training, vocabulary
from mpt_jax.config import BackboneSettings
from mpt_jax.model.backbone import SHIPPED, load_backbone

pytestmark = pytest.mark.long

PIECES = SHIPPED / "nano" / "spiece.model"
LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z a b c d e f g h i j k l"
ROWS = {
    "nano_a": [
        {"inputs": "good or bad? fine", "targets": "good", "text": "fine"},
        {"inputs": "good or bad? awful", "targets": "bad", "text": "awful"},
        {"inputs": "fill the gap. a ___ film", "targets": "fine", "text": "a fine film"},
        {"inputs": LONG, "targets": "letters", "text": LONG},
    ],
    "nano_b": [{"inputs": "fine", "targets": "good"}, {"inputs": "say", "targets": "a b c d e f"}],
}
SEGMENT = [*range(100, 200)]


def small_minilm() -> dict[str, np.ndarray]:
    """Random weights of MiniLM's form, 2 layers, with a tokenizer of the rows' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for rows in ROWS.values() for row in rows for word in row.get("text", "").split()})
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["[UNK]", *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_padding()
    rng, width = np.random.default_rng(0), 24
    weights = {minilm.WORDS: (len(words) + 1, width), minilm.PLACES: (512, width), minilm.KIND: (2, width)}
    weights |= {f"embeddings.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for name, (rows, columns) in {
            **{f"attention.self.{part}": (width, width) for part in ("query", "key", "value")},
            "attention.output.dense": (width, width), "intermediate.dense": (48, width), "output.dense": (width, 48),
        }.items():  # fmt: skip
            weights |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        weights |= {f"{layer}.{name}.LayerNorm.{part}": (width,) for name in ("attention.output", "output") for part in ("weight", "bias")}
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    used = np.arange(len(words) + 1)
    return {"used_V": used, "tokenizer": np.frombuffer(tokenizer.to_str().encode(), np.uint8), **minilm.rounded(drawn, used)}


@pytest.fixture
def made(tmp_path: Path) -> tuple[dict, dict]:
    """Two tasks of text rows, the first with texts, and one of running text, written and read."""
    pieces = vocabulary.load(PIECES)
    lines = {name: [packed.line_of(row) for row in rows] for name, rows in ROWS.items()} | {packed.SPANS: [pieces.decode(SEGMENT)]}
    rng = np.random.default_rng(0)
    start_VD = np.clip(np.rint(rng.normal(size=(8192, 192)) / packed.EMBEDDING_STEP), -127, 127).astype(np.int8)
    packed.write(tmp_path, lines, {"letters": ROWS["nano_a"][:1]}, small_minilm() | {"embedding_VD": start_VD})
    return packed.read(tmp_path, PIECES)


@pytest.mark.parametrize("row", [*ROWS["nano_a"], *ROWS["nano_b"]])
def test_a_row_comes_back_from_its_line(row):
    assert packed.row_of(packed.line_of(row)) == row


def test_a_text_is_written_once_where_the_inputs_end_with_it():
    assert packed.line_of(ROWS["nano_a"][0]).count("fine") == 1


def test_tokens_end_as_they_did_when_they_are_cut(made):
    names, arrays = made
    assert names["train"] == ["nano_a", "nano_b", packed.SPANS] and arrays["train_count"].tolist() == [4, 2, packed.CORRUPTIONS]
    length_R, pieces = arrays["train_inputs_length"], vocabulary.load(PIECES)
    ends = np.cumsum(length_R.astype(int))
    assert length_R.max() == packed.LONGEST["inputs"] and (arrays["train_inputs"][ends - 1] == packed.EOS).all()
    assert arrays["train_inputs"][: ends[0]].tolist() == [*pieces.encode(ROWS["nano_a"][0]["inputs"]), packed.EOS]


def test_a_row_has_its_texts_vector_and_one_without_a_text_has_zeros(made):
    _, arrays = made
    vectors_RE = arrays["vectors_XE"][arrays["text_R"]].astype(np.float32)
    assert np.allclose(np.linalg.norm(vectors_RE[:4], axis=1), 1.0, atol=1e-2) and not vectors_RE[4:].any()
    weights = {name: array for name, array in small_minilm().items() if name not in ("used_V", "tokenizer")}
    tokenizer = minilm.tokenizer_of(small_minilm()["tokenizer"].tobytes().decode())
    alone_XE = minilm.vectors_of(["a fine film"], tokenizer, small_minilm()["used_V"], weights, batch=1)
    assert np.allclose(alone_XE[0], vectors_RE[2], atol=2e-3)


def test_rows_are_drawn_as_their_tasks_count_and_are_whole(made):
    names, arrays = made
    short, long = training.split_by_shape(names, arrays, cap=3)
    assert (short.inputs_RL.shape[1], long.inputs_RL.shape[1]) == (40, 80)
    assert (short.weight_N + long.weight_N).tolist() == [3, 2, 2]
    batch = training.drawn(short, 4096, jax.numpy.asarray(arrays["vectors_XE"]), jax.random.key(0))
    share_N = np.bincount(batch["task_id_B"], minlength=3) / 4096
    assert np.allclose(share_N, short.weight_N / short.weight_N.sum(), atol=0.05)
    lengths_B = np.asarray(batch["input_length_B"])
    assert (np.asarray(batch["inputs_BL"])[np.arange(4096), lengths_B - 1] == packed.EOS).all()
    assert (np.asarray(batch["embedding_BE"]).any(axis=1) == (np.asarray(batch["task_id_B"]) == 0)).all()


def test_jax_gives_the_vectors_of_the_package():
    from benchmarks.nano import vectors

    pytest.importorskip(vectors.PACKAGE)
    texts = ["a fine film", "the company said on monday that it will cut 2,000 jobs in europe", "i'm so angry right now #fuming"]
    found_XE, exact_XE = minilm.unpacked(minilm.packed(texts))(texts), vectors.encode(texts, lambda message: None)
    assert (np.sum(found_XE.astype(np.float32) * exact_XE.astype(np.float32), axis=1) > 0.98).all()


def test_a_short_run_learns_and_writes_a_backbone(made, tmp_path):
    options = argparse.Namespace(
        packed=tmp_path, vocabulary=PIECES, output=tmp_path / "out", seconds=60.0, reserve=1.0, batch=32, rate=1e-3,
        teaching=1.0, dropout=0.1, cap=100, chunk=2, dtype="float32", seed=0,
    )  # fmt: skip
    training.train(options)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert lines[-1]["done"] and losses[-1] < losses[0] and set(lines[-1]["dev"]) == {"letters"}
    backbone = load_backbone(BackboneSettings(str(tmp_path / "out" / "nano")))
    assert backbone.num_parameters == 6_688_704 and backbone.vocabulary().size == 8192
    assert (tmp_path / "out" / "nano" / "model.safetensors").stat().st_size < 16e6
