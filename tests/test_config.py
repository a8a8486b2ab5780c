"""Settings check types, choices and ranges, whatever gin hands them."""

import pytest

from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, T5Config, TaskSettings, TrainSettings
from mpt_jax.errors import UserError


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PromptSettings(length="100"), r"PromptSettings.length = '100' is of type str"),
        (lambda: PromptSettings(length=True), "is of type bool"),
        (lambda: PromptSettings(length=0), r"PROMPT_LENGTH\) = 0 is outside 1"),
        (lambda: PromptSettings(init="zeros"), "'zeros' is not one of 'vocabulary'"),
        (lambda: PromptSettings(transfer="task"), "needs PromptSettings.transfer_task"),
        (lambda: DistillationSettings(temperature=0), "temperature = 0 is outside"),
        (lambda: OptimizerSettings(name="sgd"), "'sgd' is not one of 'adamw', 'adafactor'"),
        (lambda: OptimizerSettings(learning_rate=[0.1, "x"]), "a learning rate is a number"),
        (lambda: DataSettings(feature_lengths={"inputs": 5, "targets": 1}), "number of tokens >= 2"),
        (lambda: TaskSettings(names="sst2"), "TaskSettings.names = 'sst2' is of type str"),
        (lambda: TaskSettings(names=["a"], mixture_or_task_name="b"), "keep one"),
        (lambda: TrainSettings("training", "x"), "'training' is not one of 'teacher'"),
        (lambda: T5Config("x", 8, 4, 1, 4, 4, 1, 1, ("swish",)), "mlp_activations"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_whole_numbers_serve_as_decimals_and_one_name_as_a_list():
    assert OptimizerSettings(clip_norm=1).clip_norm == 1
    assert TaskSettings(mixture_or_task_name="glue").chosen == ["glue"]
    assert TrainSettings("teacher", "x", seeds=3).seed_list == (3,)
