"""Dev-split scores while training, which choose each run's best prompts."""

from collections.abc import Callable, Sequence

import numpy as np
from flax.traverse_util import unflatten_dict

import tasks
from mpt_jax.infer.evaluate import BATCH_SIZE, EvalRun, evaluate_runs
from mpt_jax.infer.requests import Model, inference_spec
from mpt_jax.model.prompt_bank import bank_from


def make_evaluate(scene) -> Callable[[dict], Sequence[tuple[dict[str, float], float]]]:
    """Evaluator of a training run (``scene``: train.run.Scene): trainable tree -> for each run (scores, the one that selects)."""
    settings = scene.settings
    spec = inference_spec(settings.data.input_length, settings.data.target_length, BATCH_SIZE)
    runs = [EvalRun(scene.dev_caches[run.task], n, settings.train.eval_rows) for n, run in enumerate(scene.runs)]

    def evaluate(trainable: dict) -> list[tuple[dict[str, float], float]]:
        tree = unflatten_dict({**scene.frozen, **trainable}, sep="/")
        bank = bank_from(tree["bank"], np.asarray(scene.group_N)) if "bank" in tree else None
        results = evaluate_runs(Model(scene.backbone.config, tree["backbone"], bank, scene.mesh), runs, scene.vocabulary, spec)
        return [(result.scores, result.scores[tasks.main_score(result.task)]) for result in results]

    return evaluate
