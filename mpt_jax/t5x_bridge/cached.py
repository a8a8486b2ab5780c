"""T5X's trainer over the token cache: the rows that our own trainer draws at the same step.

A batch is a pure function of (seed, step), so a run that continues sees the batches it would have seen. B examples, L input tokens,
T target tokens.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

import numpy as np
from clu.data import dataset_iterator

from mpt_jax.config import DataSettings
from mpt_jax.data.batches import BatchSpec, batch_iterator
from mpt_jax.data.cache import open_cache
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.data.spelling import spelling
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.families.family import shift_right
from mpt_jax.t5x_bridge.features import TASK_ID
from mpt_jax.t5x_bridge.model import PromptedModel
from mpt_jax.train import plan


def token_cache_batches(
    cfg, shard_id: int, num_shards: int, feature_converter_cls=None, num_epochs=None, *, model: PromptedModel, data: DataSettings, **_
) -> "CachedBatches":
    """A get_dataset_fn for t5x.train: training batches from the token caches of the model's tasks, which are written first if missing.

    data: how tasks are mixed, as for our own trainer; batch_size is shared by the groups of tasks, each of which draws for itself.
    Raises UserError where groups or hosts do not divide it.
    """
    del feature_converter_cls, num_epochs  # rows come as features already, without end
    planned = plan.Plan(tuple(plan.Run(**row) for row in model.description["runs"]))
    runs, groups = planned.runs, planned.num_groups
    if cfg.batch_size % groups or cfg.batch_size % num_shards:
        raise UserError(f"BATCH_SIZE = {cfg.batch_size} does not divide by the {groups} groups of tasks and {num_shards} hosts.")
    vocabulary = load_vocabulary(model.description["vocabulary"]["path"])
    folder = cache_folder(data.cache_dir)
    for row in runs:
        spelling(row.task, vocabulary, data.target_length)
    caches = {row.task: open_cache(row.task, cfg.split, vocabulary, folder, trust=data.trust_caches) for row in runs}
    streams = plan.make_streams(planned, caches, dataclasses.replace(data, batch_size=cfg.batch_size // groups))
    inputs, targets = data.input_length, data.target_length
    spec = BatchSpec(inputs, targets, cfg.batch_size, (inputs,), (targets,))
    rows = cfg.batch_size // num_shards
    return CachedBatches(lambda step: batch_iterator(streams, spec, len(runs), step), spec, slice(shard_id * rows, (shard_id + 1) * rows))


class CachedBatches(dataset_iterator.DatasetIterator):
    """The batches of steps 0, 1, ... as T5X's features; ``rows`` of each are this host's."""

    def __init__(self, batches_from, spec: BatchSpec, rows: slice):
        self._batches_from, self._spec, self._rows = batches_from, spec, rows
        self._batches = batches_from(0)

    def __next__(self) -> dict[str, np.ndarray]:
        (micro,) = next(self._batches).micro
        targets_BT = micro["targets_BT"]
        features = {  # seqio.EncDecFeatureConverter
            "encoder_input_tokens": micro["inputs_BL"],
            "decoder_target_tokens": targets_BT,
            "decoder_input_tokens": np.asarray(shift_right(targets_BT)),
            "decoder_loss_weights": (np.arange(targets_BT.shape[1]) < micro["target_length_B"][:, None]).astype(np.int32),
            TASK_ID: micro["task_id_B"][:, None] + 1,
        }
        return {name: array[self._rows] for name, array in features.items()}

    @property
    def element_spec(self) -> Mapping[str, dataset_iterator.ArraySpec]:
        """Shapes and types of the features."""
        lengths = dict.fromkeys(("decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights"), self._spec.target_length)
        lengths |= {"encoder_input_tokens": self._spec.input_length, TASK_ID: 1}
        rows = self._rows.stop - self._rows.start
        return {name: dataset_iterator.ArraySpec(np.dtype(np.int32), (rows, length)) for name, length in lengths.items()}

    def reset(self) -> None:
        """Back to step 0."""
        self._go_to(0)

    def save(self, filename) -> None:
        """Nothing is written: the number of the checkpoint says all."""

    def restore(self, filename) -> None:
        """On from the step of the checkpoint that the file's path names."""
        self._go_to(int(re.findall(r"checkpoint_(\d+)", os.fspath(filename))[-1]))

    def _go_to(self, step: int) -> None:
        self._batches.close()
        self._batches = self._batches_from(step)
