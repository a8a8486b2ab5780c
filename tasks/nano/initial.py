"""The nano backbone before training, as a backbone folder: config.json, model.safetensors, spiece.model.

Token embeddings start from MiniLM's word pieces; the output matrix starts from the same vectors, so that words of
like meaning have like logits from the first step; everything else is as T5 initialises.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np

from tasks.nano import vectors, vocabulary


def pieces_of(path: Path) -> list[str]:
    """All ids' pieces, sentinels included."""
    model = vocabulary.load(path)
    known = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return known + [f"<extra_id_{i}>" for i in reversed(range(vocabulary.EXTRA_IDS))]


def write(folder: Path, vocabulary_path: Path, seed: int) -> int:
    """Writes the folder; the number of parameters. Imports mpt_jax (network and sizes) here, not above."""
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file

    from mpt_jax.model.families import t5
    from mpt_jax.model.families.t5_config import NANO as config
    pieces = pieces_of(vocabulary_path)
    if len(pieces) != config.vocab_size:
        raise ValueError(f"vocabulary has {len(pieces)} ids, NANO.vocab_size is {config.vocab_size}")
    arrays = {path: np.asarray(array) for path, array in flatten_dict(t5.init(config, seed), sep="/").items()}
    embedding = vectors.word_piece_embeddings(pieces, config.d_model, seed)
    arrays["token_embedder/embedding"] = embedding
    # T5's output matrix is N(0, 1/D) where its embeddings are N(0, 1): the same vectors, scaled alike.
    arrays["decoder/logits_dense/kernel"] = np.ascontiguousarray(embedding.T) * np.float32(config.d_model**-0.5)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(vocabulary_path, folder / "spiece.model")
    return sum(array.size for array in arrays.values())
