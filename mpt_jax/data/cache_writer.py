"""Writes a token cache: the only file of the package that runs SeqIO and TensorFlow."""

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpt_jax import tasks
from mpt_jax.data.checked_folder import file_sums, whole_or_not_at_all, write_meta
from mpt_jax.data.vocabulary import PiecesVocabulary, Vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError

if TYPE_CHECKING:
    import seqio

Progress = Callable[[int], None]
FEATURES = ("inputs", "targets")
READ_ROWS = 256  # rows that leave TensorFlow together: one by one costs five times the time


def write(
    key: dict,
    examples: Iterable[dict],
    vocabulary: Vocabulary,
    folder: Path,
    progress: Progress | None = None,
) -> None:
    """Writes the cache of `key` at `folder` from examples, by way of a temporary folder beside it."""
    with whole_or_not_at_all(folder) as temporary:
        arrays = _collect(examples, key, temporary / "extra.bin", progress)
        _check_tokens(arrays, key, vocabulary)
        _write_files(arrays, key, temporary)


def examples_of(name: str, split: str, vocabulary: Vocabulary) -> Iterator[dict]:
    """All examples of a task split in source order: from the table directly, or by SeqIO where only it knows the task."""
    if name in tasks.TABLE:
        return table_examples(name, split, vocabulary)
    return seqio_examples(name, split, vocabulary)


def table_examples(name: str, split: str, vocabulary: Vocabulary) -> Iterator[dict]:
    """Examples of a task of the table, the same as SeqIO makes of it: without TensorFlow."""
    task = tasks.TABLE[name]
    for number, row in enumerate(tasks.rows(name, split)):
        fields = dict(row)
        example = {"embedding": fields.pop("embedding")} if task.embedding_size else {}
        for feature in FEATURES:
            if task.tokens:
                example[feature] = fields.pop(f"{feature}_tokens")
            else:
                if not vocabulary.encode(fields[feature]):
                    text = f"{feature!r} is {fields[feature]!r:.60}, of which vocabulary {vocabulary.path!r} can write nothing"
                    raise UserError(f"task {name!r}, split {split!r}, row {number}: {text}: correct or remove the row")
                tokens = vocabulary.input_tokens if feature == "inputs" else vocabulary.target_tokens
                example[feature] = tokens(fields[feature])
                example[f"{feature}_pretokenized"] = fields.pop(feature)
        yield example | {tasks.ROW_FIELD: tasks.fields_as_json(fields, f"task {name!r}")}


def seqio_examples(name: str, split: str, vocabulary: Vocabulary) -> Iterator[dict]:
    """All examples of a task split in source order, untrimmed, as numpy values."""
    import seqio
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has started already and keeps what it holds
        tf.config.set_visible_devices([], "GPU")  # or it would take the accelerator's memory from JAX
    task = tasks.register(name, seqio_vocabulary(vocabulary))
    if split not in task.splits:
        raise UserError(f"task {name!r} has no split {split!r}, only {', '.join(task.splits)}")
    for feature in FEATURES:
        if feature not in task.output_features:
            found = ", ".join(task.output_features)
            raise UserError(
                f"task {name!r} has features {found}; inputs and targets are needed"
            )
        _check_vocabulary(name, feature, task.output_features[feature].vocabulary, vocabulary)
    # A function source need not take a seed; others seed random preprocessors, so that the cache repeats.
    seed = None if isinstance(task.source, seqio.FunctionDataSource) else 0
    try:
        dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, seed=seed, num_epochs=1)
    except (OSError, ValueError, tf.errors.OpError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"SeqIO task {name!r}, split {split!r}: its rows cannot be read: {first:.300}") from error
    options = tf.data.Options()
    options.deterministic = True
    dataset = dataset.with_options(options)
    specs = tf.nest.flatten(dataset.element_spec)
    if all(isinstance(spec, tf.TensorSpec) and spec.shape.rank is not None for spec in specs):
        rows = _rows_of_batches(tasks.examples(task, dataset.ragged_batch(READ_ROWS)))
    else:
        rows = tasks.examples(task, dataset)
    texts = [name for name in FEATURES if not isinstance(task.output_features[name].vocabulary, seqio.PassThroughVocabulary)]
    return (_framed(row, texts, vocabulary) for row in rows) if vocabulary.continues else rows


def _framed(row: dict, texts: Iterable[str], vocabulary: Vocabulary) -> dict:
    """A row of a SeqIO task as a decoder-only model has it: what stands around inputs and targets is put there.

    Tokens that are those of the row's text become what table_examples makes of the text; others stay, without an end of the input.
    """
    made = dict(row)
    for feature in texts:
        ids = np.asarray(row[feature]).tolist()
        while ids and ids[-1] in vocabulary.ends:
            ids.pop()
        text = row.get(f"{feature}_pretokenized")
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if isinstance(text, str) and vocabulary.encode(text) == ids:
            made[feature] = vocabulary.input_tokens(text) if feature == "inputs" else vocabulary.target_tokens(text)
        elif feature == "inputs":
            made[feature] = [*vocabulary.frame.input_start, *ids, *vocabulary.frame.input_end]
        else:
            made[feature] = [*ids, *vocabulary.frame.target_end]
    return made


def _rows_of_batches(batches: Iterable[dict]) -> Iterator[dict]:
    """The examples in SeqIO's ragged batches, one by one."""
    for batch in batches:
        yield from _split(batch)


def _split(column) -> list:
    """The values of a batched feature (array, ragged array or dict of features), row by row."""
    if isinstance(column, dict):
        parts = {name: _split(inner) for name, inner in column.items()}
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
    if not hasattr(column, "row_splits"):
        return list(column)
    if isinstance(column.values, np.ndarray):
        return np.split(column.values, column.row_splits[1:-1])
    return column.to_list()


def _check_vocabulary(name: str, feature: str, found: "seqio.Vocabulary", vocabulary: Vocabulary) -> None:
    """UserError if a SeqIO task makes other ids of text than the backbone knows; ids as such pass."""
    import seqio

    expected = seqio_vocabulary(vocabulary)
    if isinstance(found, seqio.PassThroughVocabulary) or found == expected:
        return
    # of pieces there is one vocabulary alone that is equal
    same = type(found) is type(expected) and found.extra_ids in (0, expected.extra_ids) and not isinstance(vocabulary, PiecesVocabulary)
    if same and isinstance(found, seqio.SentencePieceVocabulary):  # another path may hold the same model
        ours = seqio.SentencePieceVocabulary(vocabulary.path, found.extra_ids)
        same = found.sp_model == ours.sp_model
    if not same:
        raise UserError(
            f"task {name!r} has its {feature!r} in another vocabulary ({found}) than the backbone "
            f"({vocabulary}): register the task with the backbone's"
        )


def _collect(
    examples: Iterable[dict], key: dict, extra_file: Path, progress: Progress | None
) -> dict[str, np.ndarray]:
    """Tokens, offsets and embeddings of all rows, in memory; other fields go to `extra_file`."""
    where = f"task {key['task']!r}, split {key['split']!r}"
    tokens = {feature: array("i") for feature in FEATURES}
    offsets = {feature: array("q", [0]) for feature in (*FEATURES, "extra")}
    embedding, width, count = array("f"), None, 0
    with open(extra_file, "wb") as file:
        for example in examples:
            for feature in FEATURES:
                tokens[feature].frombytes(np.asarray(example[feature], np.int32).tobytes())
                offsets[feature].append(len(tokens[feature]))
            if offsets["inputs"][-1] == offsets["inputs"][-2]:
                raise UserError(f"{where}, row {count}: the input has no tokens; drop such rows in the task")
            vector = np.asarray(example.get("embedding", ()), np.float32)
            if count and len(vector) != width:
                raise UserError(f"{where}, row {count}: embedding width {len(vector)}, before it {width}")
            width = len(vector)
            embedding.frombytes(vector.tobytes())
            offsets["extra"].append(offsets["extra"][-1] + file.write(_fields(example, where, count)))
            count += 1
            if progress and count % READ_ROWS == 0:
                progress(count)
    if not count:
        raise UserError(f"{where} has no rows")
    if progress and count % READ_ROWS:
        progress(count)
    arrays: dict[str, np.ndarray] = {name: np.frombuffer(ids, np.int32) for name, ids in tokens.items()}
    for feature, name in (("inputs", "input"), ("targets", "target"), ("extra", "extra")):
        arrays[f"{name}_offsets"] = np.frombuffer(offsets[feature], np.int64)
    if width:
        with np.errstate(over="ignore"):
            arrays["embedding"] = np.frombuffer(embedding, np.float32).astype(np.float16).reshape(count, width)
        wrong = np.flatnonzero(~np.isfinite(arrays["embedding"]).all(axis=1))
        if len(wrong):
            raise UserError(f"{where}, row {wrong[0]}: its embedding is not finite, or beyond what float16 holds (65504)")
    return arrays


def _fields(example: dict, where: str, row: int) -> bytes:
    """The row's own fields and texts as JSON."""
    return tasks.fields_as_json(tasks.row_of_example(example), f"{where}, row {row}")


def _check_tokens(arrays: dict[str, np.ndarray], key: dict, vocabulary: Vocabulary) -> None:
    """UserError for ids that the backbone has no embedding for, and for padding inside a row."""
    for feature, name in (("inputs", "input_offsets"), ("targets", "target_offsets")):
        ids = arrays[feature]
        wrong = np.flatnonzero((ids < vocabulary.first_id) | (ids >= vocabulary.size))
        if len(wrong):
            row = int(np.searchsorted(arrays[name], wrong[0], side="right")) - 1
            allowed = f"{vocabulary.first_id}..{vocabulary.size - 1}" + (" (0 is padding)" if vocabulary.first_id else "")
            raise UserError(
                f"task {key['task']!r}, split {key['split']!r}, row {row}: "
                f"{feature!r} has id {ids[wrong[0]]}, allowed are {allowed}: check the task's vocabulary"
            )


def _write_files(arrays: dict[str, np.ndarray], key: dict, folder: Path) -> None:
    """Array files and, last, `meta.json`; everything is on disk when it returns."""
    for name, values in arrays.items():
        with open(os.path.join(folder, f"{name}.npy"), "wb") as file:
            np.save(file, values, allow_pickle=False)
    files = file_sums(folder)
    content = json.dumps([key["task"], key["split"], key["vocabulary"], files], sort_keys=True)
    meta = {
        "key": key,
        "fingerprint": hashlib.sha256(content.encode()).hexdigest()[:16],
        "rows": len(arrays["input_offsets"]) - 1,
        "input_tokens": len(arrays["inputs"]),
        "target_tokens": len(arrays["targets"]),
        "longest_input": int(np.diff(arrays["input_offsets"]).max()),
        "longest_target": int(np.diff(arrays["target_offsets"]).max()),
        "files": files,
        "outline": tasks.outline(key["task"]),
    }
    write_meta(folder, meta)
