"""Dev-split scores while training, which choose each run's best prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from mpt_jax import tasks
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.spelling import writer
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs
from mpt_jax.infer.requests import Model, inference_spec
from mpt_jax.methods.method import backbone_of, own_of
from mpt_jax.train.program import Program


def check_scores(task: str, dev: EvalRun, vocabulary: Vocabulary) -> None:
    """Scores the right answers to the dev rows, so that a task that cannot be scored is known before the first step.

    Raises TaskError for one without a score, or with rows that its score is not defined for.
    """
    tasks.main_score(task)
    rows = dev.described_rows(vocabulary)
    tasks.scorer(task, writer(vocabulary))(rows, [tasks.scoring.target_text(row) for row in rows])


def dev_scores(program: Program, caches: Mapping[str, TokenCache]) -> Callable[[dict], Sequence[tuple[dict[str, float], float]]]:
    """Evaluator of a program: trainable arrays by path -> for each run (scores, the one that selects)."""
    settings, plan = program.settings, program.plan
    data = settings.data
    spec = inference_spec(data.input_length, data.target_length, settings.train.eval_batch_size, data.input_buckets)
    runs = [EvalRun(caches[row.task], n, settings.train.eval_rows) for n, row in enumerate(plan.runs)]
    network = dataclasses.replace(program.network, computation=settings.backbone.computation)
    vocabulary = program.backbone.vocabulary(settings.data.cue)

    def evaluate(trainable: dict) -> list[tuple[dict[str, float], float]]:
        parameters = {**program.frozen, **trainable}
        model = Model(
            network, backbone_of(parameters), vocabulary, own_of(parameters), program.method.parts, plan.group_N, program.places.devices,
        )  # fmt: skip
        results = evaluate_runs(model, runs, spec, method=settings.train.eval_method)
        return [(result.scores, result.scores[tasks.main_score(result.task)]) for result in results]

    return evaluate
