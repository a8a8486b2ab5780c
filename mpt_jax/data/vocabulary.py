"""Text to token ids and back, with the ids of SeqIO's vocabularies and without TensorFlow."""

from __future__ import annotations

import abc
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mpt_jax.data import tokenizer_json
from mpt_jax.errors import UserError

if TYPE_CHECKING:
    import seqio

PAD_ID = 0  # T5's convention, seqio/vocabularies.py
EOS_ID = 1
UNK_ID = 2
BYTES = "bytes"
SENTINELS = 100  # T5: 32,000 pieces + 100 <extra_id_*>
BYTE_SENTINELS = 125  # ByT5: 3 special + 256 bytes + 125 = 384
_USER_DEFINED = 4  # sentencepiece_model.proto: ModelProto.SentencePiece.Type


class Vocabulary(abc.ABC):
    """Token ids 0..size-1: 0 padding, 1 end of sequence; `fingerprint` stands for model and sentinels."""

    pad_id: int = PAD_ID
    eos_id: int = EOS_ID

    def __init__(self, path: str, extra_ids: int, content: bytes):
        self.path = path
        self.extra_ids = extra_ids
        self.fingerprint = hashlib.sha256(content + f"|{extra_ids}".encode()).hexdigest()[:16]

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of ids, sentinels included."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without end of sequence."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first end of sequence; padding is dropped."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, extra_ids={self.extra_ids})"


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model plus `<extra_id_0>` (the last id) and so on downwards, as in SeqIO."""

    def __init__(self, path: str, extra_ids: int | None):
        content, own_sentinels = _read_model(path)
        extra_ids = own_sentinels if extra_ids is None else extra_ids
        super().__init__(path, extra_ids, content)
        self._content = content
        self._pieces = _load_pieces(path, content, extra_ids)
        self._size = self._pieces.GetPieceSize()

    @property
    def size(self) -> int:
        return self._size

    def model_file(self) -> str:
        """A file with the SentencePiece model: `path`, or one in the cache folder that a tokenizer.json is turned into."""
        if Path(self.path).name != tokenizer_json.NAME:
            return self.path
        cache = Path(os.environ.get("MPT_CACHE_DIR") or Path.home() / ".cache" / "mpt_jax")
        file = cache / "vocabularies" / f"{self.fingerprint}.model"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(self._content)
            temporary.replace(file)
        return str(file)

    def encode(self, text: str) -> list[int]:
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        known = (token if token < self._size else UNK_ID for token in _until_eos(ids))
        return self._pieces.DecodeIds([token for token in known if token != PAD_ID])


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes + 3, as ByT5 and `seqio.ByteVocabulary`; sentinels have ids and no text."""

    def __init__(self, extra_ids: int):
        super().__init__(BYTES, extra_ids, BYTES.encode())

    @property
    def size(self) -> int:
        return 3 + 256 + self.extra_ids

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode("utf-8")]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(token - 3 for token in _until_eos(ids) if 3 <= token < 259).decode("utf-8", "ignore")


def load_vocabulary(path: str | Path, extra_ids: int | None = None) -> Vocabulary:
    """The vocabulary in `path`: a SentencePiece file, a Hugging Face tokenizer.json, a folder with either, or "bytes".

    `extra_ids`: number of sentinels; None is 100 (T5), 125 for "bytes" (ByT5), what a tokenizer.json has.
    Raises UserError if the file is missing or damaged, or if its padding and end of sequence are not 0 and 1.
    """
    if extra_ids is not None and extra_ids < 0:
        raise UserError(f"extra_ids = {extra_ids}: must be 0 or more")
    if str(path) == BYTES:
        return ByteVocabulary(BYTE_SENTINELS if extra_ids is None else extra_ids)
    file = Path(path)
    if file.is_dir():
        spiece, converted = file / "spiece.model", file / tokenizer_json.NAME
        file = converted if converted.exists() and not spiece.exists() else spiece
    return SentencePieceVocabulary(str(file), extra_ids)


def seqio_vocabulary(vocabulary: Vocabulary) -> seqio.Vocabulary:
    """The SeqIO vocabulary with the same ids; imports SeqIO and TensorFlow."""
    import seqio

    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary(vocabulary.extra_ids)
    assert isinstance(vocabulary, SentencePieceVocabulary)
    return seqio.SentencePieceVocabulary(vocabulary.model_file(), vocabulary.extra_ids)


def _until_eos(ids: Iterable[int]) -> list[int]:
    """`ids` as Python integers before the first end of sequence."""
    tokens = [int(token) for token in ids]
    return tokens[: tokens.index(EOS_ID)] if EOS_ID in tokens else tokens


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"vocabulary {path!r} cannot be read ({error}): name a local file") from error


def _read_model(path: str) -> tuple[bytes, int]:
    """A serialised SentencePiece model and the number of sentinels to add to it."""
    if Path(path).name == tokenizer_json.NAME:
        return tokenizer_json.sentencepiece_model(path)
    return _read(path), SENTINELS


def _load_pieces(path: str, content: bytes, extra_ids: int):
    """The SentencePiece processor of `content` with sentinels added in SeqIO's order, last one first."""
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise UserError(f"vocabulary {path!r} is no SentencePiece model, or damaged ({error})") from error
    if any("<extra_id_0>" in piece.piece for piece in model.pieces) and extra_ids:
        raise UserError(f"vocabulary {path!r} already holds <extra_id_0>: set extra_ids = 0, not {extra_ids}")
    for number in reversed(range(extra_ids)):
        model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=_USER_DEFINED)
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(model.SerializeToString())
    except RuntimeError as error:
        raise UserError(f"vocabulary {path!r} cannot be loaded by SentencePiece ({error})") from error
    found = (pieces.pad_id(), pieces.eos_id(), pieces.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise UserError(
            f"vocabulary {path!r} has padding, end, unknown = {found}; T5 needs {(PAD_ID, EOS_ID, UNK_ID)}: "
            "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1"
        )
    return pieces
