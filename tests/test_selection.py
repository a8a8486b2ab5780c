"""Dev-split scores while training (train/selection.py) are the scores that evaluation gives."""

import numpy as np
import pytest
from tiny_data import text_cache
from tiny_model import LENGTH, tiny_backbone

from mpt_jax import tasks
from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs
from mpt_jax.infer.requests import Model, inference_spec
from mpt_jax.methods.method import backbone_of
from mpt_jax.model.families.family import Network
from mpt_jax.train.program import assemble
from mpt_jax.train.selection import dev_scores

NAMES = ("a", "b")


@pytest.fixture
def caches(table, tmp_path):
    for name in NAMES:
        tasks.add(tasks.Task(name, "generated", ("validation",), "{t}", labels=("no", "yes"), generate=lambda _: [], version="1"))
    texts = ["".join(np.random.default_rng(n).choice(list("abc d"), 9)) for n in range(7)]
    return {name: text_cache(tmp_path, texts, ["yes" if text[0] == name else "no" for text in texts], name) for name in NAMES}


@pytest.mark.parametrize("stage", ["teacher", "finetune"])
def test_dev_scores_are_those_of_evaluation(caches, stage):
    """Of the prompts, or weights, as they are while training; nothing is kept for a backward pass."""
    settings = Settings(
        TrainSettings(stage, eval_rows=5), BackboneSettings("tiny", remat="layers"), PromptSettings(length=LENGTH, transfer="none"),
        data=DataSettings(feature_lengths={"inputs": 12, "targets": 6}),
    )  # fmt: skip
    program = assemble(settings, NAMES, tiny_backbone())
    rng = np.random.default_rng(0)
    changed = {path: np.asarray(rng.normal(size=array.shape), np.float32) for path, array in program.trainable.items()}
    found = dev_scores(program, caches)(changed)
    network = Network(program.network.config, settings.backbone.computation, program.method.adaptation)
    own = {} if stage == "finetune" else changed
    model = Model(
        network, backbone_of(program.frozen | changed), tiny_backbone().vocabulary(), own, program.method.parts, program.plan.group_N,
    )  # fmt: skip
    runs = [EvalRun(caches[run.task], n, 5) for n, run in enumerate(program.plan.runs)]
    expected = evaluate_runs(model, runs, inference_spec(12, 6, 64))
    assert [scores for scores, _ in found] == [result.scores for result in expected]
    for (scores, selects), result in zip(found, expected, strict=True):
        assert selects == scores[tasks.main_score(result.task)] and len(result.predictions) == 5
