"""Text to token ids and back, with the ids of SeqIO's vocabularies and without TensorFlow."""

import abc
import copy
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpt_jax.data import byte_pairs, pieces, tokenizer_files, tokenizer_json
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.data.frame import Frame
from mpt_jax.errors import UserError
from mpt_jax.regular_files import parse_json, read_regular, shown

if TYPE_CHECKING:
    import seqio

PAD_ID = 0  # T5's convention, seqio/vocabularies.py
EOS_ID = 1
UNK_ID = 2
BYTES = "bytes"
SENTINELS = 100  # T5: 32,000 pieces + 100 <extra_id_*>
BYTE_SENTINELS = 125  # ByT5: 3 special + 256 bytes + 125 = 384
MOST_BYTES = 16 * 2**20  # of a SentencePiece model; mT5's has 4 MB
MOST_EXTRA_IDS = 100_000
FILES = ("spiece.model", "sentencepiece.model", tokenizer_json.NAME, byte_pairs.NAME)  # in a folder, the first that is there
SENTINEL = re.compile(r"▁?<extra_id_([0-9]{1,6})>")
_USER_DEFINED = 4  # sentencepiece_model.proto: ModelProto.SentencePiece.Type


class Vocabulary(abc.ABC):
    """Token ids 0..size-1. pad_id fills rows up, each of `ends` ends a text, `frame` stands around inputs and targets.

    `fingerprint` stands for everything that makes ids of a text.
    """

    pad_id: int = PAD_ID
    first_id: int = PAD_ID + 1  # the lowest id that a text can have
    ends: tuple[int, ...] = (EOS_ID,)
    start: tuple[int, ...] = ()  # tokens before every text, where a model has such
    frame = Frame(input_end=(EOS_ID,), target_end=(EOS_ID,))
    continues = False  # whether a target goes on where its input ends

    def __init__(self, path: str, extra_ids: int, content: bytes):
        self.path = path
        self.extra_ids = extra_ids
        self.fingerprint = hashlib.sha256(content + f"|{extra_ids}".encode()).hexdigest()[:16]

    def continuing(self, cue: str = "") -> "Vocabulary":
        """The same tokens for a decoder-only model: an input ends with the cue, and a target follows after a space."""
        return self._continuing(tuple(self.encode(cue)), " ")

    def _continuing(self, cue: tuple[int, ...], space: str) -> "Vocabulary":
        found = copy.copy(self)
        found.continues, found.frame = True, Frame(self.start, cue, space, self.ends[:1])
        content = f"{self.fingerprint}|{dataclasses.astuple(found.frame)}"
        found.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        return found

    def within(self, size: int) -> "Vocabulary":
        """The vocabulary without special tokens from the id ``size`` on, which a model has no embeddings of; itself where it has none."""
        return self

    def answering(self, decoder_start_id: int) -> "Vocabulary":
        """The same tokens for an encoder-decoder: a target starts as every text does, except with what the decoder starts with."""
        if not self.start or self.start == (decoder_start_id,):
            return self
        found = copy.copy(self)
        found.frame = dataclasses.replace(self.frame, target_start=self.start)
        found.fingerprint = hashlib.sha256(f"{self.fingerprint}|{dataclasses.astuple(found.frame)}".encode()).hexdigest()[:16]
        return found

    def input_tokens(self, text: str) -> list[int]:
        """Token ids of an input, with what stands around it."""
        return [*self.frame.input_start, *self.encode(text), *self.frame.input_end]

    def target_tokens(self, text: str) -> list[int]:
        """Token ids of a target, its end included."""
        return [*self.frame.target_start, *self.encode(self.frame.target_space + text), *self.frame.target_end]

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of a target's tokens: `decode` without the space in front."""
        return self.decode(ids).removeprefix(self.frame.target_space)

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of ids, sentinels included."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text` alone."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` up to the first of `ends`; padding is dropped."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, extra_ids={self.extra_ids})"


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model plus `<extra_id_0>` (the last id) and so on downwards, as in SeqIO.

    A model that holds its sentinels already (T5X's cc_all.32000.100extra, mT5's) gets no more of them.
    """

    def __init__(self, path: str, extra_ids: int | None):
        content, sentinels = _read_model(path)
        model = _parse_model(path, content)
        held = sum(SENTINEL.fullmatch(piece.piece) is not None for piece in model.pieces)
        if held and extra_ids:
            raise UserError(f"vocabulary {path!r} already holds {held} <extra_id_*>: leave extra_ids out, or set it to 0, not {extra_ids}")
        counts = None  # of sentinels, that the other files may state; any where the user states it
        if extra_ids is None:
            extra_ids = sentinels if sentinels is not None else 0 if held else SENTINELS
            counts = (held, 0) if held else (extra_ids,)
        super().__init__(path, extra_ids, content)
        self.sentinels = held + extra_ids  # in all
        self._content = content
        self._pieces = _load_pieces(path, model, extra_ids)
        self._size = self._pieces.GetPieceSize()
        self._check_folder(Path(path).parent, counts)

    @property
    def size(self) -> int:
        return self._size

    def _check_folder(self, folder: Path, sentinels: tuple[int, ...] | None) -> None:
        """UserError if a Hugging Face tokenizer around the model has other pieces, or adds tokens to them."""
        tokenizer_files.check(functools.partial(_object_of, folder), str(folder), self._special, sentinels)
        converted = _object_of(folder, tokenizer_json.NAME) if Path(self.path).name != tokenizer_json.NAME else {}
        if not converted:
            return
        where = str(folder / tokenizer_json.NAME)
        tokenizer_files.check_added(tokenizer_json.added_tokens(converted, where), self._special)
        rows = converted.get("model", {}).get("vocab") if isinstance(converted.get("model"), dict) else None
        for number, row in enumerate(rows if isinstance(rows, list) else ()):
            theirs = row[0] if isinstance(row, list) and row else row
            ours = self._pieces.IdToPiece(number) if number < self._size else None
            if theirs != ours and not (isinstance(theirs, str) and SENTINEL.fullmatch(theirs) and self._special(theirs) == number):
                raise UserError(f"{where} has {shown(theirs)} for id {number}, {self.path} has {shown(ours)}: take the wrong one out.")

    def _special(self, token: str) -> int | None:
        """The id of padding, end, unknown or a sentinel by its text; None for other texts."""
        if any("\ud800" <= letter <= "\udfff" for letter in token):  # SentencePiece takes no lone surrogates
            return None
        found = SENTINEL.fullmatch(token)
        number = self._pieces.PieceToId(f"▁<extra_id_{found[1]}>" if found else token)
        known = number < self._size and (number > UNK_ID if found else self._pieces.IdToPiece(number) == token and number <= UNK_ID)
        return number if known else None

    def model_file(self) -> str:
        """A file with the SentencePiece model: `path`, or one in the cache folder that a tokenizer.json is turned into."""
        if Path(self.path).name != tokenizer_json.NAME:
            return self.path
        file = cache_folder() / "vocabularies" / f"{self.fingerprint}.model"
        if not file.exists():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary = file.with_suffix(f".{os.getpid()}")
                temporary.write_bytes(self._content)
                temporary.replace(file)
            except OSError as error:
                raise UserError(f"{file} cannot be written ({error.strerror}): set MPT_CACHE_DIR to a folder that can.") from error
        return str(file)

    def model_proto(self):
        """The model's protocol buffer, with all its sentinels."""
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self._pieces.serialized_model_proto())  # type: ignore[attr-defined]

    def encode(self, text: str) -> list[int]:
        return self._pieces.EncodeAsIds(text)

    def decode(self, ids: Iterable[int]) -> str:
        known = (token if token < self._size else UNK_ID for token in _until_end(ids, self.ends))
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
        return bytes(token - 3 for token in _until_end(ids, self.ends) if 3 <= token < 259).decode("utf-8", "ignore")


class PiecesVocabulary(Vocabulary):
    """A tokenizer of the library `tokenizers`: any tokenizer.json, what a GGUF file holds, or a vocab.json with its merges.txt.

    Special tokens in a text are those tokens. Around an input stands what the tokenizer itself puts there. `tokens_fingerprint` stands
    for the tokenizer alone, whatever its ends or what stands around a text.
    """

    first_id = 0

    def __init__(self, path: str):
        if Path(path).name == byte_pairs.NAME:
            tokenizer, ids = byte_pairs.from_files(path)
        else:
            tokenizer, ids = pieces.from_gguf(path) if pieces.is_gguf(path) else pieces.from_json(path)
        if not ids["ends"]:
            raise UserError(f"vocabulary {path!r} names no end token (eos_token): nothing would end an answer.")
        self._take(path, tokenizer)
        self.ends, self.pad_id, self.start = ids["ends"], ids["pad"], ids["start"]
        with pieces.library(path):
            last = tuple(tokenizer.encode("a").ids[-1:])
        self.frame = Frame(self.start, tuple(token for token in last if token in self.ends), "", self.ends[:1])

    def _take(self, path: str, tokenizer) -> None:
        with pieces.library(path):
            super().__init__(path, 0, tokenizer.to_str().encode())
            self._size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
            first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
            self._lone_space = next((tokenizer.token_to_id(space) for space in pieces.SPACES if first and first[0].startswith(space)), None)
            self._spaced = bool(first) and first[0].startswith(pieces.SPACES)
        self._tokenizer, self.tokens_fingerprint = tokenizer, self.fingerprint

    @property
    def size(self) -> int:
        return self._size

    def within(self, size: int) -> "Vocabulary":
        if self._size <= size:
            return self
        found = copy.copy(self)
        found._take(self.path, pieces.without(self._tokenizer, size, self.path))
        return found

    def continuing(self, cue: str = "") -> "Vocabulary":
        """As Vocabulary.continuing; a tokenizer that puts a space before every text needs none before a target, and none before the cue."""
        if not self._spaced:
            return super().continuing(cue)
        tokens = self.encode(cue)
        if tokens[:1] == [self._lone_space] and not cue.startswith(" "):
            tokens = tokens[1:]
        return self._continuing(tuple(tokens), "")

    def text_of(self, ids: Iterable[int]) -> str:
        return self.decode(ids).removeprefix(" ")

    def encode(self, text: str) -> list[int]:
        with pieces.library(self.path):
            return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        with pieces.library(self.path):
            kept = [token for token in _until_end(ids, self.ends) if token != self.pad_id]
            return self._tokenizer.decode(kept, skip_special_tokens=True)

    def special_ids(self) -> list[int]:
        """Ids of the tokens that no answer's text shows, ascending."""
        return sorted(number for number, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    def token(self, number: int) -> str | None:
        """The text of a token."""
        return self._tokenizer.id_to_token(number)

    def to_json(self) -> str:
        """The tokenizer as a tokenizer.json."""
        return self._tokenizer.to_str()


def load_vocabulary(path: str | Path, extra_ids: int | None = None) -> Vocabulary:
    """The vocabulary in `path`: a SentencePiece file, a Hugging Face tokenizer.json or vocab.json, a folder with one, or "bytes".

    `extra_ids`: number of sentinels; None is 100 (T5) or 0 for a model that holds them, 125 for "bytes" (ByT5), what a
    tokenizer.json has. Raises UserError if the file is missing or damaged, if its padding and end of sequence are not 0 and 1,
    or if a Hugging Face folder around it adds tokens to it.
    """
    if extra_ids is not None and not 0 <= extra_ids <= MOST_EXTRA_IDS:
        raise UserError(f"extra_ids = {extra_ids}: must be in 0 .. {MOST_EXTRA_IDS}")
    if str(path) == BYTES:
        return ByteVocabulary(BYTE_SENTINELS if extra_ids is None else extra_ids)
    file = Path(path)
    if file.is_dir():
        file = file / next((name for name in FILES if os.path.lexists(file / name)), FILES[0])
    if is_pieces(file):
        return PiecesVocabulary(str(file))
    return SentencePieceVocabulary(str(file), extra_ids)


def is_pieces(file: str | Path) -> bool:
    """Whether a vocabulary's file says ids of padding and end itself, other than T5's. UserError for a damaged tokenizer.json."""
    name = Path(file).name
    return pieces.is_gguf(name) or name == byte_pairs.NAME or (name == tokenizer_json.NAME and not tokenizer_json.is_t5(file))


def seqio_vocabulary(vocabulary: Vocabulary) -> "seqio.Vocabulary":
    """The SeqIO vocabulary with the same ids; imports SeqIO and TensorFlow."""
    import seqio

    if isinstance(vocabulary, ByteVocabulary):
        return seqio.ByteVocabulary(vocabulary.extra_ids)
    if isinstance(vocabulary, PiecesVocabulary):
        from mpt_jax.data.seqio_pieces import SeqioPieces

        return SeqioPieces(vocabulary)
    assert isinstance(vocabulary, SentencePieceVocabulary)
    return seqio.SentencePieceVocabulary(vocabulary.model_file(), vocabulary.extra_ids)


def _until_end(ids: Iterable[int], ends: tuple[int, ...]) -> list[int]:
    """`ids` as Python integers before the first that is an end."""
    return list(itertools.takewhile(lambda token: token not in ends, map(int, ids)))


def _object_of(folder: Path, name: str) -> Mapping[str, Any]:
    """The JSON object of a file of a folder; empty if it is not there."""
    if not os.path.lexists(folder / name):
        return {}
    value = parse_json(read_regular(folder / name, tokenizer_json.MOST_BYTES), str(folder / name))
    if not isinstance(value, dict):
        raise UserError(f"{folder / name} holds a {type(value).__name__}, not a JSON object.")
    return value


def _read_model(path: str) -> tuple[bytes, int | None]:
    """A serialised SentencePiece model and the number of sentinels to add to it, None where the file does not say."""
    if Path(path).name == tokenizer_json.NAME:
        return tokenizer_json.sentencepiece_model(path)
    return read_regular(path, MOST_BYTES), None


def _parse_model(path: str, content: bytes):
    """The model's protocol buffer. Raises UserError if it is none, or a piece has no text or no number for a score."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    except DecodeError as error:
        raise UserError(f"vocabulary {path!r} is not a SentencePiece model, or damaged ({error})") from error
    wrong = next((piece for piece in model.pieces if not isinstance(piece.piece, str) or not math.isfinite(piece.score)), None)
    if wrong is not None:
        raise UserError(f"vocabulary {path!r} is damaged: it has the piece {shown(wrong.piece)} with score {wrong.score}")
    return model


def _load_pieces(path: str, model, extra_ids: int):
    """The SentencePiece processor of a model with sentinels added in SeqIO's order, last one first."""
    import sentencepiece

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
            "train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1. Of a decoder-only model give the tokenizer.json instead"
        )
    return pieces
