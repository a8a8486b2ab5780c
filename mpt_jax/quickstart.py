"""The method on embedded data: 16-shot targets from P*, and plain prompt tuning of the same targets to compare with.

A row of RECIPES for each backbone. The shipped nano runs every stage, teachers and source stage included; SmolLM2 starts from the source
bank that ships. Both use the same stages and settings as the commands; a recipe holds what differs from their defaults.
"""

import dataclasses
import logging
import time
import warnings
from pathlib import Path

import numpy as np

from mpt_jax import tasks
from mpt_jax.config import BackboneSettings, DataSettings, OptimizerSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.data.cache import open_cache
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.distributed import say
from mpt_jax.folder_lock import locked
from mpt_jax.infer.evaluate import EvalRun, evaluate_runs, majority
from mpt_jax.infer.figures import draw_quickstart
from mpt_jax.infer.predictor import load
from mpt_jax.infer.report import quickstart_table
from mpt_jax.methods.table import method_of
from mpt_jax.model.backbone import load_backbone
from mpt_jax.paths import expanded, writable_run
from mpt_jax.run_folder import write_json, write_text, writes
from mpt_jax.train.plan import is_distilled, starts_from_source
from mpt_jax.train.run import run_train

# what the backbone can do when it is asked in words, and new tasks that need the same skills (docs/nano.md)
NANO_SOURCES = ("word_valence", "word_class", "name_kind", "science_topic", "past_tense", "number_words")
NANO_TARGETS = ("definition_valence", "module_topic", "plural", "ordinal_words")
SEEDS = (1, 2, 3)
SHOTS = 16

PROMPT = PromptSettings(length=10)
PLAIN = PromptSettings(length=10, rank=0, transfer="none")
DATA = DataSettings(feature_lengths={"inputs": 48, "targets": 14}, micro_batch_size=16, input_buckets=(16,), target_buckets=(4, 14))
SHOT_DATA = dataclasses.replace(DATA, batch_size=8, micro_batch_size=24, k_shot=SHOTS)
# what the source bank of SmolLM2 was trained with (mpt_jax/banks/smollm2/README.md)
BANK_PROMPT = PromptSettings(length=20)
BANK_PLAIN = PromptSettings(length=20, rank=0, transfer="none")
BANK_DATA = DataSettings(
    feature_lengths={"inputs": 96, "targets": 4}, micro_batch_size=8, input_buckets=(24, 32, 48, 64), target_buckets=(4,), cue="\nAnswer:",
    batch_size=8, k_shot=SHOTS,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run of the quickstart."""

    stage: str
    folder: str
    tasks: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]
    prompt: PromptSettings
    data: DataSettings
    rate: float | tuple[float, ...]
    factor_rate: float | tuple[float, ...] = 0.0
    evaluations: int = 4
    eval_rows: int = 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the quickstart runs on a backbone: its stages in order.

    bank: the shipped source bank that targets start from ('' = the recipe's own source stage). method: how rows are answered, of
    config.ANSWERS. test_rows: of each task; 0 = all.
    """

    stages: tuple[Stage, ...]
    bank: str = ""
    method: str = "decode"
    test_rows: int = 0

    def tasks(self, *folders: str) -> tuple[str, ...]:
        """Tasks of the first stage that writes one of these folders; none where no stage does."""
        return next((stage.tasks for stage in self.stages if stage.folder in folders), ())


NANO = Recipe((
    Stage("teacher", "teachers", NANO_SOURCES, 60, (0,), PLAIN, dataclasses.replace(DATA, batch_size=8), 0.3),
    Stage("source", "source", NANO_SOURCES, 100, (0,), PROMPT, dataclasses.replace(DATA, batch_size=32), 0.1, 0.1),
    Stage("fewshot", "mpt", NANO_TARGETS, 40, SEEDS, PROMPT, SHOT_DATA, 0.3, 0.1),
    Stage("fewshot", "prompt_tuning", NANO_TARGETS, 40, SEEDS, PLAIN, SHOT_DATA, 0.3),
))  # fmt: skip
SMOLLM2_TARGETS = ("definition_valence", "purchase_check")
SMOLLM2 = Recipe((
    Stage("fewshot", "mpt", SMOLLM2_TARGETS, 24, (1, 2), BANK_PROMPT, BANK_DATA, 0.01, 0.03, evaluations=2, eval_rows=48),
    Stage("fewshot", "prompt_tuning", SMOLLM2_TARGETS, 24, (1, 2), BANK_PLAIN, BANK_DATA, 0.01, evaluations=2, eval_rows=48),
), bank="smollm2", method="rank", test_rows=128)  # fmt: skip
BACKBONE = "nano"
RECIPES = {BACKBONE: NANO, "smollm2": SMOLLM2}


def recipe_of(backbone: str) -> Recipe:
    """The recipe of a backbone; the nano's for any other name or folder."""
    return RECIPES.get(backbone, NANO)


def settings_of(stage: Stage, model_dir: Path, backbone: str) -> Settings:
    """Settings of a stage, in the folder of the quickstart."""
    recipe = recipe_of(backbone)
    every = max(stage.steps // stage.evaluations, 1)
    train = TrainSettings(
        stage.stage, str(model_dir / stage.folder), train_steps=stage.steps, seeds=stage.seeds, eval_steps=every, eval_rows=stage.eval_rows,
        eval_method=recipe.method,
    )  # fmt: skip
    optimizer = OptimizerSettings(learning_rate=stage.rate, factor_learning_rate=stage.factor_rate)
    settings = Settings(train, BackboneSettings(backbone), prompt=stage.prompt, optimizer=optimizer, data=stage.data)
    folders = {}
    if is_distilled(settings):
        folders["teacher_dir"] = str(model_dir / "teachers")
    if starts_from_source(settings, method_of(train)):
        folders["source_dir"] = recipe.bank or str(model_dir / "source")
    return settings._replace(train=dataclasses.replace(train, **folders))


def test_scores(run_dir: Path, split: str, recipe: Recipe) -> dict[str, list[float]]:
    """Selecting score of each task on a split with the run's best prompts, a number for each seed."""
    predictor = load(run_dir)
    caches = {name: open_cache(name, split, predictor.vocabulary, cache_folder()) for name in predictor.tasks}
    runs = [EvalRun(caches[row["task"]], n, limit_rows=recipe.test_rows) for n, row in enumerate(predictor.run["runs"])]
    scores: dict[str, list[float]] = {}
    for result in evaluate_runs(predictor.model, runs, predictor.spec, method=recipe.method):
        scores.setdefault(result.task, []).append(result.scores[tasks.main_score(result.task)])
    return scores


def majority_scores(names: tuple[str, ...], split: str, vocabulary) -> dict[str, float]:
    """Score of the most frequent training answer on a split."""
    found = {}
    for name in names:
        caches = [open_cache(name, part, vocabulary, cache_folder()) for part in ("train", split)]
        found[name] = majority(*caches, vocabulary)[tasks.main_score(name)]
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (population)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values))}


def summarise(model_dir: Path, seconds: float, backbone_name: str) -> dict:
    """The content of summary.json: scores on the test splits, in percent."""
    backbone = load_backbone(BackboneSettings(backbone_name))
    vocabulary = backbone.vocabulary()
    recipe = recipe_of(backbone_name)
    scores = {stage.folder: test_scores(model_dir / stage.folder, "test", recipe) for stage in recipe.stages}
    sources, targets = recipe.tasks("source"), recipe.tasks("mpt")
    least = majority_scores(sources + targets, "test", vocabulary)
    run = load(model_dir / "mpt").run
    target = {t: {"majority": least[t]} | {name: spread(scores[name][t]) for name in ("prompt_tuning", "mpt")} for t in targets}
    means = [{key: value["mean"] if isinstance(value, dict) else value for key, value in row.items()} for row in target.values()]
    return {
        "seconds": seconds,
        "backbone": {"name": backbone_name, "parameters": backbone.num_parameters, "fingerprint": backbone.fingerprint},
        "parameters": {key: run["parameters"][key] for key in ("per_task", "fraction_of_backbone")},
        "source": {t: {"majority": least[t], "teacher": scores["teachers"][t][0], "mpt": scores["source"][t][0]} for t in sources},
        "target": target,
        "target_mean": {key: float(np.mean([row[key] for row in means])) for key in ("majority", "prompt_tuning", "mpt")},
    }


def quickstart(model_dir: str, backbone: str = BACKBONE) -> str:
    """Trains all stages (or continues), writes summary.json, table.md and report.png in ``model_dir``, and returns the table."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of libraries; errors still come
    folder = Path(expanded("--model_dir", model_dir))
    with locked(writable_run("--model_dir", model_dir), "--model_dir"):
        return _quickstart(folder, backbone)


def _quickstart(folder: Path, backbone: str) -> str:
    began, stages = time.monotonic(), recipe_of(backbone).stages
    for number, stage in enumerate(stages, 1):
        title = {"mpt": "16-shot targets from P*", "prompt_tuning": "16-shot targets, plain prompt tuning"}.get(stage.folder, stage.folder)
        say(f"[{number}/{len(stages)}] {title}: {', '.join(stage.tasks)}")
        run_train(settings_of(stage, folder, backbone), stage.tasks)
    say("scoring the test splits")
    summary = summarise(folder, 0.0, backbone)
    summary["seconds"] = round(time.monotonic() - began, 1)
    table = quickstart_table(summary)
    with writes(folder, "--model_dir"):
        write_json(folder / "summary.json", summary)
        write_text(folder / "table.md", table)
        draw_quickstart(summary, folder / "report.png")
    return f"{table}\nwritten: {folder}/summary.json, table.md, report.png"
