"""The table of parameter groups."""

import pytest

from mpt_jax.errors import UserError
from mpt_jax.train.groups import PROMPTS_ONLY, STAGE_TABLES, group_of, split

PATHS = ("bank/shared", "bank/cols", "bank/rows", "backbone/encoder/layers_0/mlp/wo/kernel", "backbone/decoder/decoder_norm/scale")


def test_prompt_stages_train_the_bank_alone():
    trainable, frozen = split(dict.fromkeys(PATHS), PROMPTS_ONLY)
    assert sorted(trainable) == ["bank/cols", "bank/rows", "bank/shared"]
    assert all(path.startswith("backbone/") for path in frozen) and len(frozen) == 2


def test_first_row_that_matches_wins():
    table = ((".*/scale", "weights"), ("backbone/.*", "frozen"), ("bank/.*", "frozen"))
    trainable, _ = split(dict.fromkeys(PATHS), table)
    assert list(trainable) == ["backbone/decoder/decoder_norm/scale"]


def test_an_uncovered_parameter_is_an_error():
    with pytest.raises(UserError, match="'head/kernel' is covered by no row"):
        split({"head/kernel": 0}, PROMPTS_ONLY)


def test_an_unknown_group_and_nothing_to_train_are_errors():
    with pytest.raises(UserError, match="'slow' of row"):
        group_of("bank/shared", ((".*", "slow"),))
    with pytest.raises(UserError, match="freezes every parameter"):
        split(dict.fromkeys(PATHS), ((".*", "frozen"),))


def test_every_stage_has_a_table():
    from mpt_jax.config import STAGES

    assert set(STAGE_TABLES) == set(STAGES)
