"""A pieces vocabulary (vocabulary.py) as SeqIO's: the same ids. Imports SeqIO and TensorFlow."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf


class SeqioPieces(seqio.Vocabulary):
    """Text to ids as a PiecesVocabulary does, without what stands around a text; ``eos_id`` is the first token that ends one."""

    def __init__(self, pieces: Any):
        self.pieces = pieces
        super().__init__(extra_ids=0)

    @property
    def bos_id(self) -> int | None:
        return self.pieces.start[0] if self.pieces.start else None

    @property
    def eos_id(self) -> int | None:
        return self.pieces.ends[0]

    @property
    def unk_id(self) -> int | None:
        return None

    @property
    def pad_id(self) -> int:
        return self.pieces.pad_id

    @property
    def _base_vocab_size(self) -> int:
        return self.pieces.size

    def _encode(self, s: str | bytes) -> Sequence[int]:
        return self.pieces.encode(s.decode("utf-8") if isinstance(s, bytes) else s)

    def _decode(self, ids: Iterable[int]) -> str:
        return self.pieces.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        """A text -> its ids; a list of texts -> a ragged tensor."""
        s = tf.convert_to_tensor(s)

        def rows(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            encoded = [self._encode(text) for text in np.asarray(texts, object).reshape(-1)]
            splits = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
            return np.array([number for row in encoded for number in row], np.int32), splits

        values, splits = tf.numpy_function(rows, [s], (tf.int32, tf.int64), stateful=False)
        values.set_shape([None])
        splits.set_shape([None])
        return values if s.shape.rank == 0 else tf.RaggedTensor.from_row_splits(values, splits, validate=False)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids -> their text; rows of ids -> a text each."""

        def texts(ids: np.ndarray) -> np.ndarray:
            return np.array([self._decode(row).encode("utf-8") for row in np.atleast_2d(ids)], object).reshape(ids.shape[:-1])

        ids = ids.to_tensor(self.pad_id) if isinstance(ids, tf.RaggedTensor) else ids
        found = tf.numpy_function(texts, [ids], tf.string, stateful=False)
        found.set_shape(ids.shape[:-1])
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioPieces) and self.pieces.tokens_fingerprint == other.pieces.tokens_fingerprint

    def __repr__(self) -> str:
        return f"SeqioPieces({self.pieces!r})"
