"""Outputs of a teacher for rows of a task, computed once and read with the rows in every later epoch.

CACHE_DIR/teachers/<task>/<key>/part-…/ holds `rows.npy` (int64 row numbers) and flat arrays over the tokens of these rows, as the row is
cut in training: hidden states in a file for each stack of the network (`encoder.npy`, `decoder.npy`), `logp.npy`, `ids.npy`, `tail.npy`
(log-probabilities of the most likely tokens, their ids, and all other tokens together). The key is a hash of everything that went into
them: weights, prompt, rows, lengths, settings. A part is there whole or not at all.
B examples, L input tokens, P prompt positions, T target tokens, Y positions of a stack, D model width, A log-probabilities kept.
"""

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpt_jax.data.checked_folder import (
    META,
    checked_meta,
    clear_left_overs,
    damaged,
    file_sums,
    key_name,
    map_array,
    whole_or_not_at_all,
    write_meta,
)
from mpt_jax.errors import UserError

FORMAT = 2  # raise when files or their meaning change
# file: array of a micro-batch; states have a file each, named as in the network's outputs
BATCH_NAMES = {"logp": "teacher_logp_BTA", "ids": "teacher_ids_BTA", "tail": "teacher_tail_BT"}
STATES_NAME = "teacher_{}_BYD"


def batch_name(file: str) -> str:
    """The array of a micro-batch that a file's entries go into."""
    return BATCH_NAMES.get(file, STATES_NAME.format(file))


@dataclass(frozen=True)
class Layout:
    """What is kept of a row. states: names of the hidden states. width: D of all, or of each of them. prefix: prompt positions whose
    encoder states come before the input's.

    top: A, 0 = no log-probabilities. whole: they are the whole vocabulary's, without ids or a tail. dtype: of hidden states.
    """

    states: tuple[str, ...]
    width: int | tuple[int, ...]
    prefix: int
    top: int
    whole: bool
    dtype: str

    def files(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape of a token's entry and dtype, by file."""
        widths = self.width if isinstance(self.width, tuple) else (self.width,) * len(self.states)
        found: dict[str, tuple[tuple[int, ...], str]] = {
            name: ((width,), self.dtype) for name, width in zip(self.states, widths, strict=True)
        }
        if self.top:
            found["logp"] = ((self.top,), "float32")
        if self.top and not self.whole:
            found |= {"ids": ((self.top,), "int32"), "tail": ((), "float32")}
        return found

    def tokens(self, file: str, inputs, targets):
        """Entries of a row of so many input and target tokens."""
        return inputs + self.prefix if file == "encoder" else targets

    def shapes(self, B: int, L: int, T: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of the arrays of a micro-batch, by name."""
        return {batch_name(file): ((B, self.tokens(file, L, T), *shape), dtype) for file, (shape, dtype) in self.files().items()}

    def row_bytes(self, inputs: np.ndarray, targets: np.ndarray) -> int:
        """Bytes on disk of rows of these lengths (tokens)."""
        entry = {file: int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize for file, (shape, dtype) in self.files().items()}
        return sum(int(np.sum(self.tokens(file, inputs, targets))) * size for file, size in entry.items())


class TeacherOutputs:
    """What parts on disk hold of a task's rows, memory-mapped; safe to read from several threads."""

    def __init__(self, folder: Path, key: dict, layout: Layout, num_rows: int):
        """Opens the parts that are there. Raises UserError naming a damaged file."""
        self.folder = folder / key_name(key)
        self.key, self.layout = key, layout
        self._parts: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
        self._part = np.full(num_rows, -1, np.int32)
        self._line = np.zeros(num_rows, np.int64)
        clear_left_overs(self.folder)
        for part in sorted(self.folder.glob("part-*")):
            self._open(part)

    def missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that no part holds, ascending."""
        rows = np.unique(rows)
        return rows[self._part[rows] < 0]

    def _open(self, part: Path) -> None:
        files = self.layout.files()
        meta = checked_meta(part, tuple(f"{file}.npy" for file in (*files, "rows", "inputs", "targets")))
        if meta["key"] != self.key:
            raise damaged(part / META, "is of other outputs")
        arrays = {file: map_array(part / f"{file}.npy", dtype, 1 + len(shape)) for file, (shape, dtype) in files.items()}
        rows, *lengths = (map_array(part / f"{file}.npy", "int64") for file in ("rows", "inputs", "targets"))
        fit = len(rows) == len(lengths[0]) == len(lengths[1]) and np.all((rows >= 0) & (rows < len(self._part)))
        if not fit or any(np.any(length < 0) for length in lengths):
            raise damaged(part / "rows.npy", "does not fit the other files")
        offsets = {}
        for file, (shape, _) in files.items():
            offsets[file] = np.concatenate([[0], np.cumsum(self.layout.tokens(file, *lengths))]).astype(np.int64)
            if arrays[file].shape != (offsets[file][-1], *shape):
                raise damaged(part / f"{file}.npy", "does not fit the other files")
        self._part[rows], self._line[rows] = len(self._parts), np.arange(len(rows))
        self._parts.append((arrays, offsets))

    def write(self, rows: np.ndarray, inputs: np.ndarray, targets: np.ndarray, computed: Iterable[tuple[int, dict]]) -> None:
        """Writes a part of these rows, of so many input and target tokens, and opens it.

        ``computed``: (row, padded arrays by file) in any order, each row once. Raises UserError for states that the dtype cannot hold.
        """
        name = f"part-{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}"
        number_of = {int(row): n for n, row in enumerate(rows)}
        with whole_or_not_at_all(self.folder / name) as temporary:
            for file, values in (("rows", rows), ("inputs", inputs), ("targets", targets)):
                np.save(temporary / f"{file}.npy", values.astype(np.int64), allow_pickle=False)
            arrays, starts = {}, {}
            for file, (shape, dtype) in self.layout.files().items():
                counts = self.layout.tokens(file, inputs, targets)
                starts[file] = np.concatenate([[0], np.cumsum(counts)])
                total = (int(starts[file][-1]), *shape)
                arrays[file] = _reserved(temporary / f"{file}.npy", dtype, total)
            for row, lines in computed:
                for file, array in arrays.items():
                    first, end = starts[file][number_of[row] : number_of[row] + 2]
                    array[first:end] = self._finite(lines[file][: end - first], row)
            for array in arrays.values():
                array.flush()
            meta = {"key": self.key, "rows": len(rows), "fingerprint": key_name(self.key), "files": file_sums(temporary)}
            write_meta(temporary, meta)
        self._open(self.folder / name)

    def _finite(self, values: np.ndarray, row: int) -> np.ndarray:
        if np.isfinite(values).all():
            return values
        message = f"task {self.key['task']!r}, row {row}: an output of its teacher is not finite in {self.layout.dtype}"
        raise UserError(f"{message}; set DistillationSettings.cached_dtype to 'float32', or look at the teacher.")

    def fill(self, micro: dict[str, np.ndarray], slot: int, row: int) -> None:
        """Writes a row's outputs into line ``slot`` of a micro-batch's arrays; the line stays zero after them."""
        arrays, offsets = self._parts[self._part[row]]
        line = self._line[row]
        for file in self.layout.files():
            first, end = offsets[file][line : line + 2]
            micro[batch_name(file)][slot, : end - first] = arrays[file][first:end]


def _reserved(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A new array file, mapped for writing. A full disk is an OSError here; in a page of a file with holes it would end the process."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise  # others: the file system cannot reserve
    return array
