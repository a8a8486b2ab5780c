"""Names to tasks: a user's module, mixtures, and the way of a task of the table into SeqIO's registry.

SeqIO and TensorFlow are imported inside functions only.
"""

import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mpt_jax.tasks import seqio_tasks
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.scoring import scorer
from mpt_jax.tasks.sources import rows
from mpt_jax.tasks.table import MIXTURES, TABLE, Task, unknown_name

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

CHUNK = 256  # rows that go to TensorFlow together: one by one it takes a millisecond each


def import_module(module: str | None) -> None:
    """Imports MIXTURE_OR_TASK_MODULE: a dotted name (the current folder counts) or the path of a .py file.

    In the module ``import tasks`` is this package, as ``from mpt_jax import tasks`` is. None does nothing; the same module again does
    nothing. Raises TaskError if there is no such module; errors inside the module come out as they are.
    """
    if not module:
        return
    sys.modules.setdefault("tasks", sys.modules[__package__])
    if not module.endswith(".py") and "" in module.split("."):
        raise TaskError(f"MIXTURE_OR_TASK_MODULE = {module!r}: give a dotted name or the path of a .py file")
    if module.endswith(".py"):
        _import_file(Path(module).expanduser().resolve())
        return
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if module == "tasks":  # the user's own file of that name
        _import_file(Path.cwd() / "tasks.py")
        return
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise TaskError(
            f"MIXTURE_OR_TASK_MODULE: there is no module {module!r} (looked in {os.getcwd()} and the "
            "installed packages): give a dotted name or the path of a .py file"
        ) from error


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise TaskError(f"MIXTURE_OR_TASK_MODULE: there is no file {path}")
    name = f"mpt_task_module_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def expand(names: str | Sequence[str], cached: Collection[str] = ()) -> tuple[str, ...]:
    """Task names for names of tasks and mixtures, each once, in order; one name may come as it is.

    `cached` are names whose token cache stands in for their registration. Raises TaskError with the nearest
    names for an unknown one.
    """
    seqio_names, mixtures = seqio_tasks.names()
    found: dict[str, None] = {}
    for name in (names,) if isinstance(names, str) else names:
        check_one_meaning(name)
        if name in TABLE or name in seqio_names or name in cached:
            found[name] = None
        elif members := table_mixture(name):
            found |= dict.fromkeys(members)
        elif name in mixtures:
            found |= dict.fromkeys(seqio_tasks.mixture_tasks(name))
        else:
            raise unknown_name(name, [*TABLE, *MIXTURES, *seqio_names, *mixtures, *cached])
    return tuple(found)


def check_one_meaning(name: str) -> None:
    """Raises TaskError for a name that a user's SeqIO task or mixture shares with a task or mixture of the table."""
    seqio_names, mixtures = seqio_tasks.names()
    task, mixture = name in TABLE and TABLE[name].kind != "cached", bool(table_mixture(name))
    theirs = "task" if name in seqio_names else "mixture" if name in mixtures else ""
    if not theirs or not (task or mixture) or theirs == "task" and isinstance(seqio_tasks.get(name).source, _source_class()):
        return
    ours = "task" if task else f"mixture of {', '.join(table_mixture(name))}"
    raise TaskError(f"{name!r} is a SeqIO {theirs} and also a {ours} of the table (`mpt-jax tasks`): give the SeqIO {theirs} another name")


def table_mixture(name: str) -> tuple[str, ...]:
    """The tasks of a mixture of the table, none for another name; MIXTURE:VARIANT is the variant of those that have it."""
    if name in MIXTURES:
        return MIXTURES[name]
    mixture, _, variant = name.rpartition(":")
    variants = [f"{member}:{variant}" for member in MIXTURES.get(mixture, ())]
    if not any(varied in TABLE for varied in variants):
        return ()
    return tuple(varied if varied in TABLE else varied.rpartition(":")[0] for varied in variants)


def register(name: str, vocabulary: "seqio.Vocabulary") -> "seqio.Task":
    """The SeqIO task of a name, with features `inputs` and `targets` in the vocabulary's ids.

    A task of the table is put into SeqIO's registry, again if it or the vocabulary has changed since. Its
    datasets also hold inputs_pretokenized, targets_pretokenized, `row_json` (the row's other fields) and, if
    the task has it, `embedding` (float32 [E]); a task of tokens holds its own ids as they are. An ordinary
    SeqIO task is returned as it is. Raises TaskError for an unknown name and for a name of the table taken
    in SeqIO.
    """
    import seqio

    task = TABLE.get(name)
    if task is None:
        return seqio_tasks.get(name)
    source_class = _source_class()
    if name in seqio.TaskRegistry.names():
        there = seqio.TaskRegistry.get(name)
        if not isinstance(there.source, source_class):
            raise TaskError(
                f"task {name!r} is in the table and also added to SeqIO by other code: rename one"
            )
        if there.source.task == task and there.output_features["inputs"].vocabulary == vocabulary:
            return there
        seqio.TaskRegistry.remove(name)
    feature = seqio.Feature(vocabulary, add_eos=True)
    steps = [
        functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=True),
        seqio.preprocessors.append_eos,
    ]

    def written(text: str) -> str:
        return vocabulary.decode(vocabulary.encode(text))

    def scores(targets, predictions):
        return scorer(name, written)(targets, predictions)

    return seqio.TaskRegistry.add(
        name,
        source=source_class(task),
        preprocessors=[] if task.tokens else steps,
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_row_or_text,
        metric_fns=[] if task.tokens else [scores],
    )


def _row_or_text(text: str, example: dict | None = None, is_target: bool = False) -> Any:
    """SeqIO's postprocessing for tasks of the table: their scores take rows and predicted texts."""
    return seqio_tasks.row_of_example(example) if is_target else text


@functools.lru_cache
def _source_class() -> type:
    """SeqIO's data source over `rows` of a task; defined here since SeqIO may not be imported earlier."""
    import seqio
    import tensorflow as tf

    class TableSource(seqio.FunctionDataSource):
        def __init__(self, task: Task):
            self.task = task
            self.error: TaskError | None = None  # TensorFlow would turn it into a text of its own
            super().__init__(self._dataset, splits=task.splits)

        def _dataset(self, split: str, shuffle_files: bool = False, seed: int | None = None):
            chunks = tf.data.Dataset.from_generator(
                functools.partial(self._chunks, split), output_signature=_signature(self.task, tf)
            )
            return chunks.unbatch().map(_ids, num_parallel_calls=2) if self.task.tokens else chunks.unbatch()

        def _chunks(self, split: str) -> Iterator[dict]:
            self.error = None
            try:
                found = rows(self.task.name, split)
                while chunk := [_example(self.task, row) for row in islice(found, CHUNK)]:
                    yield {key: [example[key] for example in chunk] for key in chunk[0]}
            except TaskError as error:
                self.error = error
                raise

        def num_input_examples(self, split: str) -> int:
            return sum(1 for _ in rows(self.task.name, split))

    def _ids(example: dict) -> dict:
        return example | {key: tf.io.decode_raw(example[key], tf.int32) for key in ("inputs", "targets")}

    return TableSource


def _signature(task: Task, tf: Any) -> dict:
    """Of a chunk of examples; ids travel as bytes since their number differs."""
    keys = ("inputs", "targets", seqio_tasks.ROW_FIELD)
    signature = {key: tf.TensorSpec([None], tf.string) for key in keys}
    if task.embedding_size:
        signature["embedding"] = tf.TensorSpec([None, task.embedding_size], tf.float32)
    return signature


def _example(task: Task, row: dict) -> dict:
    row = dict(row)
    if task.tokens:
        ids = {key: row.pop(f"{key}_tokens") for key in ("inputs", "targets")}
        example = {key: np.asarray(value, np.int32).tobytes() for key, value in ids.items()}
    else:
        example = {key: row.pop(key) for key in ("inputs", "targets")}
    if task.embedding_size:
        example["embedding"] = row.pop("embedding")
    example[seqio_tasks.ROW_FIELD] = fields_as_json(row, f"task {task.name!r}")
    return example


def fields_as_json(row: dict, where: str) -> bytes:
    """A row's own fields as JSON, half of a surrogate pair as it is. Raises TaskError for a value that JSON does not have."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(f"{where}: a row's fields must be JSON values: {error}") from error


def examples(task: "seqio.Task", dataset: "tf.data.Dataset") -> Iterator[dict]:
    """The examples of a dataset of a registered task, as NumPy values.

    A bad row raises the TaskError that names it; iterating the dataset itself raises TensorFlow's error
    about it. So does what TensorFlow cannot read.
    """
    import tensorflow as tf

    iterator = dataset.as_numpy_iterator()
    while True:
        try:
            example = next(iterator, None)
        except tf.errors.OpError as error:
            cause = getattr(task.source, "error", None)
            first = str(error).strip().partition("\n")[0]
            raise cause or TaskError(f"SeqIO task {task.name!r}: its rows cannot be read: {first:.300}") from error
        if example is None:
            return
        yield example
