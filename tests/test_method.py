"""What a method is (methods/method.py), and the table of methods (table.py, weights.py): whose parameters are whose."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from tiny_model import CONFIG, new_bank, tiny_backbone

from mpt_jax import sharding
from mpt_jax.config import STAGES, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt, weights
from mpt_jax.methods.method import (
    FROZEN,
    GROUP,
    HEAD,
    KEPT,
    TASK,
    TEACHERS,
    Part,
    backbone_of,
    check_counts,
    kept_of,
    own_of,
    part_of,
    places_for,
    slots_of,
    split,
    take,
)
from mpt_jax.methods.table import METHODS, method_named, method_of, register

PROMPTS = prompt.METHOD.parts
PATHS = ("bank/shared", "bank/cols", "bank/rows", "backbone/encoder/layers_0/mlp/wo/kernel", "backbone/decoder/decoder_norm/scale")


def test_prompt_stages_train_the_bank_alone():
    trainable, frozen = split(dict.fromkeys((*PATHS, TEACHERS)), PROMPTS)
    assert sorted(trainable) == ["bank/cols", "bank/rows", "bank/shared"]
    assert sorted(frozen) == sorted([*PATHS[3:], TEACHERS])


def test_what_a_method_keeps_is_frozen_and_told_apart():
    parts = (Part("own/scale", GROUP, KEPT), Part("own/.*", GROUP, "weights"), Part("backbone/.*", None, FROZEN))
    trainable, frozen = split(dict.fromkeys(("own/scale", "own/down", PATHS[3])), parts)
    assert list(trainable) == ["own/down"] and sorted(frozen) == sorted(["own/scale", PATHS[3]])
    assert list(kept_of(frozen, parts)) == ["own/scale"]


def test_first_row_that_matches_wins():
    parts = (Part(".*/scale", None, "weights"), Part("backbone/.*", None, FROZEN), Part("bank/.*", None, FROZEN))
    trainable, _ = split(dict.fromkeys(PATHS), parts)
    assert list(trainable) == ["backbone/decoder/decoder_norm/scale"]


def test_an_uncovered_parameter_is_an_error():
    with pytest.raises(UserError, match="'head/kernel' is covered by no row"):
        split({"head/kernel": 0}, PROMPTS)


def test_an_unknown_parameter_group_and_nothing_to_train_are_errors():
    with pytest.raises(UserError, match="'slow' of row"):
        part_of("bank/shared", (Part(".*", None, "slow"),))
    with pytest.raises(UserError, match="freezes? every parameter"):
        split(dict.fromkeys(PATHS), (Part(".*", None, FROZEN),))


@pytest.mark.parametrize(
    "groups, shapes, message",
    [
        ([0, 0, 1], {"bank/shared": (2, 3, 4), "bank/cols": (3, 3, 1)}, None),
        ([0, 0, 1], {"bank/shared": (1, 3, 4)}, "names 3 runs in 2 groups, 'bank/shared' of the checkpoint has shape .1, 3, 4."),
        ([0, 0, 1], {"bank/shared": (2, 3, 4), "bank/rows": ()}, "'bank/rows' of the checkpoint has shape .."),
        ([0, 0, 2], {"bank/shared": (2, 3, 4)}, r"the groups in run.json are \[0, 0, 2\], not 0 and on"),
        ([], {"bank/shared": (1, 3, 4)}, r"the groups in run.json are \[\]"),
        ([], {}, None),
    ],
)
def test_arrays_hold_what_run_json_names(groups, shapes, message):
    own = {path: np.zeros(shape) for path, shape in shapes.items()}
    if message is None:
        check_counts(own, PROMPTS, np.array(groups, np.int32))
        return
    with pytest.raises(UserError, match=message):
        check_counts(own, PROMPTS, np.array(groups, np.int32))


def test_every_stage_has_a_method():
    found = {stage: method_of(TrainSettings(stage)) for stage in STAGES}
    expected = dict.fromkeys(("teacher", "source", "target", "fewshot"), prompt.METHOD)
    assert found == expected | dict.fromkeys(("finetune", "pretrain"), weights.METHOD)
    assert [method.trains_backbone for method in found.values()] == [TrainSettings(stage).trains_backbone for stage in STAGES]


def test_fine_tuning_trains_every_weight_and_the_head_and_leaves_the_network_as_it_is():
    trainable, frozen = split(dict.fromkeys((*PATHS[3:], HEAD)), weights.METHOD.parts)
    assert sorted(trainable) == sorted((*PATHS[3:], HEAD)) and not frozen
    assert weights.METHOD.adaptation is None and weights.METHOD.init(None) == {}


def test_methods_are_found_by_name_and_a_user_may_add_one():
    assert method_of(TrainSettings("target", method="prompt")) is prompt.METHOD
    with pytest.raises(UserError, match="METHOD = 'lorra' is not one of prompt, weights, lora"):
        method_named("lorra")
    before = dict(METHODS)
    try:
        register(weights.METHOD._replace(name="mine"))
        assert method_of(TrainSettings("target", method="mine")).name == "mine"
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_the_page_names_the_rates_of_every_method():
    """docs/methods.md, first table: LEARNING_RATE, then FACTOR_LEARNING_RATE, then the latter in the target stages where it differs."""
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, row in METHODS.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        factors = any(part.param_group == "factors" for part in row.parts)
        expected = [row.learning_rate, *([row.factor_learning_rate, row.target_factor_learning_rate] if factors else [])]
        found = [float(number) for number in re.findall(r"\d[\d.]*(?:e-\d+)?", line.split("|")[4])]
        assert found == [rate for rate in expected if rate is not None], name


def test_each_example_takes_the_arrays_of_its_task_and_group():
    bank = new_bank(2, 3)
    parameters = prompt.paths_of(bank) | {"bank/all": np.arange(5)}
    parts = (*PROMPTS[:2], Part("bank/all", None, "prompt"))
    task_id_B = np.array([4, 0, 4])
    taken = take(parameters, parts, bank.group_N, task_id_B)
    np.testing.assert_array_equal(taken["bank/shared"], np.asarray(bank.shared_GPD)[[1, 0, 1]])
    np.testing.assert_array_equal(taken["bank/cols"], np.asarray(bank.cols_NPR)[task_id_B])
    np.testing.assert_array_equal(taken["bank/all"], np.arange(5))


def test_slots_of_a_group():
    group_N = np.array([0, 0, 1, 1])
    parts = (Part("a", TASK, "factors"), Part("b", GROUP, "prompt"), Part("c", None, "weights"))
    arrays = {"a": np.arange(4), "b": np.arange(2), "c": np.arange(3)}
    found = {path: np.atleast_1d(array[slots_of(path, parts, 1, group_N)]).tolist() for path, array in arrays.items()}
    assert found == {"a": [2, 3], "b": [1], "c": [0, 1, 2]}


def test_parameters_come_apart_into_backbone_and_the_methods_own():
    backbone = tiny_backbone()
    parameters = backbone.flat() | prompt.paths_of(new_bank(1, 2)) | {TEACHERS: 0, HEAD: 0}
    assert sorted(own_of(parameters)) == ["bank/cols", "bank/rows", "bank/shared"]
    assert jax.tree.structure(backbone_of(parameters)) == jax.tree.structure(backbone.params)


def test_places_of_a_method_and_its_backbone():
    """Task axes for the method's arrays and the family's rows for weights; a path of neither is refused."""
    places = places_for(AbstractMesh((2, 2, 2), sharding.AXES), prompt.METHOD, CONFIG)
    assert places.axes_of("bank/cols") == places.axes_of("bank/shared") == places.axes_of(TEACHERS) == sharding.TASK_AXES
    assert places.sharding("backbone/decoder/layers_0/mlp/wo/kernel", (32, 16)).spec == P(("tensor",), ("fsdp",))
    with pytest.raises(UserError, match="parameter 'lora/a' has no row in the table of axes"):
        places.sharding("lora/a", (2, 2))
