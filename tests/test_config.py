"""Settings check types, choices and ranges (checks.py, computation.py), whatever gin hands them."""

import dataclasses
import json

import pytest

from mpt_jax.config import (
    BackboneSettings,
    Computation,
    DataSettings,
    DistillationSettings,
    EvalSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    TaskSettings,
    TrainSettings,
)  # fmt: skip
from mpt_jax.errors import UserError


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PromptSettings(length="100"), r"PromptSettings.length = '100' is of type str"),
        (lambda: PromptSettings(length=True), "is of type bool"),
        (lambda: PromptSettings(length=0), r"PROMPT_LENGTH\) = 0 is outside 1"),
        (lambda: PromptSettings(length=10**9), r"PROMPT_LENGTH\) = 1000000000 is outside 1 .. 10000"),
        (lambda: PromptSettings(rank=10**9), r"PROMPT_RANK\) = 1000000000 is outside 0 .. 1000"),
        (lambda: PromptSettings(length=10**5000), "= a value of type int is outside"),
        (lambda: PromptSettings(init_vocabulary_rows=0), "init_vocabulary_rows = 0 is outside 1"),
        (lambda: PromptSettings(init="zeros"), "'zeros' is not one of 'vocabulary'"),
        (lambda: PromptSettings(init_file="x.npy"), "init_file = .*x.npy' is given, and .*init = 'vocabulary' does not read it: add --gin"),
        (lambda: PromptSettings(init="file", init_text="a"), "init_text = 'a' is given, and .*init = 'file' does not read it"),
        (lambda: PromptSettings(init="file"), "init = 'file' needs a file: set PromptSettings.init_file"),
        (lambda: PromptSettings(transfer="task"), "needs PromptSettings.transfer_task"),
        (lambda: DistillationSettings(temperature=0), "temperature = 0 is outside"),
        (lambda: OptimizerSettings(name="sgd"), "'sgd' is not one of 'adamw', 'adafactor'"),
        (lambda: OptimizerSettings(learning_rate=[0.1, "x"]), "a learning rate is a number"),
        (lambda: OptimizerSettings(learning_rate=[]), r"learning_rate = \[\]: it takes a number, or a list of at least one"),
        (lambda: OptimizerSettings(factor_learning_rate=()), r"factor_learning_rate = \(\)"),
        (lambda: OptimizerSettings(learning_rate=[0.1, 0.1]), "0.1 is there twice"),
        (lambda: OptimizerSettings(learning_rate=True), "is of type bool"),
        (lambda: OptimizerSettings(learning_rate=[True]), "a learning rate is a number"),
        (lambda: OptimizerSettings(weight_decay=float("inf")), "weight_decay = inf is not a finite number"),
        (lambda: OptimizerSettings(b1=1.0), "b1 = 1.0 is outside 0 .. 1, 1 not included"),
        (lambda: OptimizerSettings(clip_norm=float("nan")), "clip_norm = nan is not a finite number"),
        (lambda: OptimizerSettings(clip_norm=10**400), "clip_norm = 1000.* is more than float32 holds"),
        (lambda: OptimizerSettings(weight_decay=1e39), "weight_decay = 1e\\+39 is more than float32 holds"),
        (lambda: DistillationSettings(temperature=10**40), "temperature = 1000.* is more than float32 holds"),
        (lambda: PromptSettings(init="text", init_text={"a": "\udce9"}), "init_text = .* is not UTF-8 text; type it again"),
        (lambda: DataSettings(cue="\udce9"), "CUE. = .* is not UTF-8 text; type it again"),
        (lambda: DataSettings(feature_lengths={"inputs": 5, "targets": 1}), "number of tokens >= 2"),
        (lambda: DataSettings(feature_lengths={"inputs": True, "targets": 8}), "number of tokens >= 2"),
        (lambda: DataSettings(feature_lengths={"inputs": 10**9, "targets": 8}), "number of tokens >= 2 and <= 131,072"),
        (lambda: DataSettings(batch_size=10**9), "DataSettings.batch_size = 1000000000 is outside 1 .. 65536"),
        (lambda: DataSettings(micro_batch_size=10**9), "micro_batch_size = 1000000000 is outside 1 .. 65536"),
        (lambda: DataSettings(prefetch=10**9), "DataSettings.prefetch = 1000000000 is outside 1 .. 1000"),
        (lambda: DataSettings(input_buckets=[0]), r"input_buckets = \[0\]: 0 is not a whole number in 1"),
        (lambda: DataSettings(input_buckets=(16, -5)), "-5 is not a whole number"),
        (lambda: DataSettings(target_buckets=[16.5]), "16.5 is not a whole number"),
        (lambda: DataSettings(target_buckets=["8"]), "'8' is not a whole number"),
        (lambda: DataSettings(target_buckets=[True]), "True is not a whole number"),
        (lambda: DataSettings(target_buckets=[8, 8]), "8 is there twice"),
        (lambda: EvalSettings("x", batch_size=10**9), r"EVAL_BATCH_SIZE\) = 1000000000 is outside 1 .. 65536"),
        (lambda: TaskSettings(names="sst2"), "TaskSettings.names = 'sst2' is of type str"),
        (lambda: TaskSettings(names=["a"], mixture_or_task_name="b"), "keep one"),
        (lambda: TaskSettings(names=["a", "a"]), "'a' is there twice"),
        (lambda: TrainSettings("teacher", "x", train_steps=10**9), "train_steps = 1000000000 is outside 1 .. 100000000"),
        (lambda: TrainSettings("teacher", "x", train_steps=1e9), "train_steps = 1000000000.0 is of type float; it takes int"),
        (lambda: TrainSettings("teacher", "x", seeds=[]), r"\(SEED\) = \[\]: it takes a whole number, or a list of at least one"),
        (lambda: TrainSettings("teacher", "x", seeds=-1), "-1 is not a whole number in 0 .. 4294967295"),
        (lambda: TrainSettings("teacher", "x", seeds=2**32), "4294967296 is not a whole number"),
        (lambda: TrainSettings("teacher", "x", seeds=[1.5]), "1.5 is not a whole number"),
        (lambda: TrainSettings("teacher", "x", seeds=[1, True]), "True is not a whole number"),
        (lambda: TrainSettings("teacher", "x", seeds=["1"]), "'1' is not a whole number"),
        (lambda: TrainSettings("teacher", "x", seeds=[[1]]), r"\[1\] is not a whole number"),
        (lambda: TrainSettings("teacher", "x", seeds=[1, 2, 1]), r"SEED\) = \[1, 2, 1\]: 1 is there twice"),
        (lambda: TrainSettings("teacher", "x", dropout_rate=1.0), r"DROPOUT_RATE\) = 1.0 is outside 0.0 .. 0.99"),
        (lambda: TrainSettings("training", "x"), "'training' is not one of 'teacher'"),
        (lambda: Computation(dtype="float16"), r"DTYPE. = 'float16' is not one of 'float32', 'bfloat16'"),
        (lambda: Computation(dropout_rate=1.0), "DROPOUT_RATE. = 1.0 is outside"),
        (lambda: BackboneSettings(""), "BACKBONE is empty"),
        (lambda: BackboneSettings(remat="all"), r"REMAT. = 'all' is not one of 'none', 'layers'"),
        (lambda: BackboneSettings(attention="flash"), r"ATTENTION. = 'flash' is not one of 'auto', 'einsum', 'fused'"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_dropout_is_a_setting_of_training_and_answers_have_none():
    assert Settings(TrainSettings("teacher")).computation().dropout_rate == 0.0
    chosen = Settings(TrainSettings("teacher", dropout_rate=0.3))
    assert chosen.computation() == Computation(dropout_rate=0.3) and chosen.backbone.computation.dropout_rate == 0.0


def test_whole_numbers_serve_as_decimals_and_one_name_as_a_list():
    assert OptimizerSettings(clip_norm=1).clip_norm == 1
    assert TaskSettings(mixture_or_task_name="glue").chosen == ["glue"]
    assert TrainSettings("teacher", "x", seeds=3).seed_list == (3,)


def test_a_shape_and_how_it_is_computed_are_apart():
    """Training keeps or recomputes activations as it is told; answers keep nothing. A bias that trains needs plain attention."""
    backbone = BackboneSettings("x", dtype="bfloat16", remat="layers")
    assert backbone.computation == Computation("bfloat16", "none", "auto")
    assert Settings(TrainSettings("target"), backbone).computation() == Computation("bfloat16", "layers", "auto")
    assert Settings(TrainSettings("finetune"), backbone).computation() == Computation("bfloat16", "layers", "einsum")
    with pytest.raises(UserError, match="ATTENTION = 'fused' gives the position bias no gradient, and stage 'pretrain' trains it; set"):
        Settings(TrainSettings("pretrain"), BackboneSettings(attention="fused")).computation()
    assert Settings(TrainSettings("target"), BackboneSettings(attention="fused")).computation().attention == "fused"


def test_settings_describe_themselves_as_plain_values():
    described = json.loads(json.dumps(Settings(TrainSettings("target", "x"), BackboneSettings("y")).describe()))
    assert described["backbone"]["path"] == "y" and described["train"]["model_dir"] == "x" and described["mesh"]["fsdp"] == 1


def test_lengths_that_are_not_given_are_the_default_and_known_not_to_be_given():
    assert DataSettings().feature_lengths == {"inputs": 256, "targets": 128} == DataSettings(feature_lengths={}).feature_lengths
    assert not DataSettings().lengths_given and DataSettings(feature_lengths={"inputs": 256, "targets": 128}).lengths_given
    assert DataSettings() == DataSettings(feature_lengths={"inputs": 256, "targets": 128})
    assert "lengths_given" not in dataclasses.asdict(DataSettings())
