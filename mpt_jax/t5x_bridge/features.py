"""From a SeqIO example to the arrays of a batch: T5X's encoder-decoder features, and the task id beside them.

Ids count from 1, so that 0, which padding is made of, is never a task.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from mpt_jax.errors import UserError

TASK_ID = "task_id"  # int32 [1], 1 .. N


class TaskIdFeatureConverter(seqio.EncDecFeatureConverter):
    """seqio.EncDecFeatureConverter with the feature `task_id` (int32 [1]) passed on. Raises UserError if rows are to be packed."""

    _ID = {TASK_ID: seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)}
    TASK_FEATURES = {**seqio.EncDecFeatureConverter.TASK_FEATURES, **_ID}
    MODEL_FEATURES = {**seqio.EncDecFeatureConverter.MODEL_FEATURES, **_ID}

    def __init__(self, pack: bool = False, **settings):
        if pack:
            message = "DatasetConfig.pack = True would join rows of different tasks under one prompt"
            raise UserError(f"{message}; set it to False (as the files of gin/t5x do).")
        super().__init__(pack=False, **settings)

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        """As the parent's; lengths need not mention the id. Raises UserError if the dataset brings none."""
        if TASK_ID not in ds.element_spec:
            message = f"the dataset has no feature {TASK_ID!r}, which says whose prompt a row gets (it has {', '.join(ds.element_spec)})"
            raise UserError(f"{message}; name its tasks by mixtures.with_task_ids, as the files of gin/t5x do.")
        return super().__call__(ds, {**task_feature_lengths, TASK_ID: 1})

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        positive = tf.debugging.assert_positive(features[TASK_ID], message=f"{TASK_ID} counts from 1: 0 is padding")
        with tf.control_dependencies([positive]):
            return {**super()._convert_example(features), TASK_ID: tf.identity(features[TASK_ID])}

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        """Lengths of the model's features; the id has length 1."""
        return {**super().get_model_feature_lengths(task_feature_lengths), TASK_ID: 1}
