"""The nano backbone before training, as a backbone folder: config.json, model.safetensors, spiece.model.

Token embeddings start from MiniLM's word pieces; the output matrix starts from the same vectors, so that words of
like meaning have like logits from the first step; everything else is as T5 initialises.
"""

from pathlib import Path

import numpy as np

from benchmarks.nano import vectors, vocabulary


def pieces_of(path: Path) -> list[str]:
    """All ids' pieces, sentinels included."""
    model = vocabulary.load(path)
    known = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    return known + [f"<extra_id_{i}>" for i in reversed(range(vocabulary.EXTRA_IDS))]


def embedding_of(vocabulary_path: Path, seed: int) -> np.ndarray:
    """Token embeddings (V, D) float32 at the start. Needs the sentence encoder's package."""
    from mpt_jax.model.families.t5_config import NANO

    return vectors.word_piece_embeddings(pieces_of(vocabulary_path), NANO.d_model, seed)


def write(folder: Path, vocabulary_path: Path, seed: int, embedding: np.ndarray) -> int:
    """Writes the folder; the number of parameters. Imports mpt_jax (network and sizes) here, not above."""
    import jax

    from mpt_jax.model import formats
    from mpt_jax.model.families import family_of
    from mpt_jax.model.families.t5_config import NANO
    from mpt_jax.model.formats.arrays import flatten

    pieces = len(pieces_of(vocabulary_path))
    if pieces != NANO.vocab_size:
        raise ValueError(f"vocabulary has {pieces} ids, NANO.vocab_size is {NANO.vocab_size}")
    arrays = {path: np.asarray(array) for path, array in flatten(jax.jit(lambda: family_of(NANO).init(NANO, seed))()).items()}
    arrays["token_embedder/embedding"] = embedding
    # T5's output matrix is N(0, 1/D) where its embeddings are N(0, 1): the same vectors, scaled alike.
    arrays["decoder/logits_dense/kernel"] = np.ascontiguousarray(embedding.T) * np.float32(NANO.d_model**-0.5)
    formats.write_backbone("own", str(folder), NANO, arrays, str(vocabulary_path))
    return sum(array.size for array in arrays.values())
