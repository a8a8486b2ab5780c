"""A run from its settings: what the objective takes from them, and what it is made from."""

import dataclasses

import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import CONFIG, LENGTH, new_bank

from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.prompted_t5 import init_backbone
from mpt_jax.train import plan, run
from mpt_jax.train.run import Settings


def settings(stage: str = "teacher", data: DataSettings | None = None, **changes) -> Settings:
    prompt = PromptSettings(length=LENGTH, rank=0, transfer="none")
    train = TrainSettings(stage, "/somewhere", **changes)
    return Settings(train, prompt, DistillationSettings(), OptimizerSettings(), data or DataSettings())


@pytest.mark.parametrize("kind", ["own", "hf", "t5x"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_is_the_setting_whatever_format_the_backbone_has(tmp_path, kind, rate):
    in_file = dataclasses.replace(CONFIG, dropout_rate=0.2)
    formats.write_backbone(kind, str(tmp_path / "backbone"), in_file, init_backbone(CONFIG, 0), "bytes")
    given = settings(backbone=str(tmp_path / "backbone"), vocabulary="bytes", dropout_rate=rate)
    backbone = load_backbone(given.train.backbone, vocabulary="bytes")
    runs = plan.plan_runs(given.train, given.prompt, given.optimizer, ("a",))
    _, _, objective = run.make_parameters(given, runs, backbone, backbone.vocabulary(), {})
    assert objective.config.dropout_rate == rate


def test_few_shots_need_a_number_of_rows():
    with pytest.raises(UserError, match="K_SHOT = 0 in the stage 'fewshot'"):
        run.check_together(settings("fewshot"))
    run.check_together(settings("fewshot", DataSettings(k_shot=4)))
    run.check_together(settings("target"))


def test_a_run_is_made_from_its_first_prompts_its_teachers_and_its_rows(tmp_path):
    bank, cache = new_bank(1, 2), sized_cache(tmp_path, 40)
    trainable = {f"bank/{name}": array for name, array in bank.trainable().items()}
    frozen = {"teacher/prompts": np.ones((2, LENGTH, CONFIG.d_model), np.float32)}
    found = run.made_from(trainable, frozen, [cache])
    assert found.keys() == {"prompts at the start", "prompts of the teachers", "rows of toy, train"}
    assert found["rows of toy, train"] == cache.fingerprint
    other = run.made_from(trainable | {"bank/cols": -trainable["bank/cols"]}, {"teacher/prompts": frozen["teacher/prompts"] + 1})
    assert other["prompts at the start"] != found["prompts at the start"]
    assert other["prompts of the teachers"] != found["prompts of the teachers"]
    assert run.made_from({"backbone/x": np.ones(3)}, {}) == {}  # trained weights start as the backbone's, which has its fingerprint
