"""SeqIO tasks and mixtures whose examples carry the number of their prompt."""

import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from mpt_jax import tasks
from mpt_jax.data.spelling import spelling
from mpt_jax.data.vocabulary import load_vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.t5x_bridge.features import TASK_ID

SUFFIX = ".mpt"  # of the names under which tasks with ids are registered
MIXINGS = ("proportional", "equal")


def expand(names: str | Sequence[str], module: str | None = None) -> tuple[str, ...]:
    """The tasks of a name or of a list of names of tasks and mixtures; ``module`` registers a user's own (MIXTURE_OR_TASK_MODULE)."""
    tasks.import_module(module)
    return tasks.expand(names)


def with_task_ids(
    names: str | Sequence[str],
    vocabulary: str,
    module: str | None = None,
    ids: Mapping[str, int] | None = None,
    mixing: str = "proportional",
    cap: int = 2**18,
) -> str:
    """Registers a SeqIO mixture of tasks whose examples have the feature `task_id`, and returns its name.

    names: as for TASKS or MIXTURE_OR_TASK_NAME. vocabulary: a SentencePiece model, or 'bytes'. ids: number from 1 of each task; None
    counts them in order. mixing: rates of the tasks, 'proportional' to their rows up to ``cap`` or 'equal'; a single SeqIO mixture
    keeps its own rates. Each task is registered anew as NAME.mpt; SeqIO's evaluator reports under that name. Raises UserError or
    TaskError for a task that has no id or is unknown.
    """
    if mixing not in MIXINGS:
        raise UserError(f"with_task_ids.mixing = {mixing!r} is none of {', '.join(MIXINGS)}.")
    members = expand(names, module)
    ids = {name: number for number, name in enumerate(members, 1)} if ids is None else ids
    without = [name for name in members if name not in ids]
    if without:
        known = ", ".join(f"{name} ({number})" for name, number in ids.items())
        message = f"no prompt is known for task {', '.join(without)}; there are {known}"
        raise UserError(f"{message}. Name one of them with TASK_IDS = {{task: id}}.")
    theirs = seqio.MixtureRegistry.get(names) if isinstance(names, str) and names in seqio.MixtureRegistry.names() else None
    rate = functools.partial(seqio.mixing_rate_num_examples, maximum=cap) if mixing == "proportional" else 1.0
    shares, loaded = [], load_vocabulary(vocabulary)
    for name in members:
        spelling(name, loaded)
        task = tasks.register(name, seqio_vocabulary(loaded))
        shares.append((_register(task, ids[name], max(ids.values())), theirs.get_rate(task) if theirs else rate))
    title = (names if isinstance(names, str) else "tasks" if len(members) > 1 else members[0]) + SUFFIX + ".mixture"
    if title in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(title)
    seqio.MixtureRegistry.add(title, shares)
    return title


def cut_before_eos(dataset: tf.data.Dataset, output_features, sequence_length=None) -> tf.data.Dataset:
    """A preprocessor: rows beyond ``sequence_length`` are cut so that they still end with their end of sequence, as our cache cuts them."""
    with_eos = [name for name, feature in output_features.items() if feature.add_eos]
    lengths = {name: length for name, length in (sequence_length or {}).items() if name in with_eos}

    def cut(example: dict) -> dict:
        kept = {name: tf.concat([example[name][: length - 1], example[name][length - 1 :][-1:]], 0) for name, length in lengths.items()}
        return {**example, **kept}

    return dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE)


def _register(task: seqio.Task, number: int, last: int) -> str:
    """Registers the task with ids under NAME.mpt, instead of an earlier one."""

    def add_id(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return dataset.map(lambda example: {**example, TASK_ID: tf.constant([number], tf.int32)}, num_parallel_calls=tf.data.AUTOTUNE)

    name = task.name + SUFFIX
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    feature = seqio.Feature(seqio.PassThroughVocabulary(last + 1), add_eos=False, dtype=tf.int32)
    copy = task.replace(
        name=name, preprocessors=[*task.preprocessors, cut_before_eos, add_id], output_features={**task.output_features, TASK_ID: feature}
    )  # fmt: skip
    seqio.TaskRegistry.add_provider(name, copy)
    return name
