"""What the study runs, as rows: source stages, methods, and groups of few-shot runs in the order in which they are worth having."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study.data import CUE, SOURCES, TARGETS
from mpt_jax.config import (
    BackboneSettings,
    DataSettings,
    DistillationSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    TrainSettings,
)

BACKBONE = "smollm2"
LENGTH = 20  # prompt vectors
LENGTHS = {"inputs": 96, "targets": 2}  # tokens; every label is one token and an end
BUCKETS = (24, 32, 48, 64)
SOURCE_SEEDS = (0, 1)
DRAWS = (1, 2, 3, 4, 5)
SHOTS = (16, 4, 32, 0)  # of each label, in the order of worth; 0 = all rows
STEPS = {4: 30, 16: 40, 32: 60, 0: 200}
ALL_DRAWS = (1, 2)  # seeds where all rows are used: draws differ in their order alone


class Method(NamedTuple):
    """How a target starts and trains: the source run it starts from ('' = none), fields of PromptSettings, rates."""

    source: str
    prompt: dict[str, Any]
    rate: float
    factor_rate: float = 0.0


# rates, start and length of prompt tuning were searched on the dev splits: `python -m benchmarks.study search`
METHODS: dict[str, Method] = {
    "prompt tuning": Method("", {"rank": 0, "transfer": "none"}, 0.01),
    "MPT": Method("source_{seed}", {"rank": 1, "transfer": "mean"}, 0.01, 0.03),
    "SPoT": Method("teachers", {"rank": 0, "transfer": "task"}, 0.01),
    "MPT without distillation": Method("undistilled_{seed}", {"rank": 1, "transfer": "mean"}, 0.01, 0.03),
    "MPT without decomposition": Method("undecomposed_{seed}", {"rank": 0, "transfer": "shared"}, 0.01),
}
# which of them answer which question first
FIRST = ("prompt tuning", "MPT", "SPoT")


class Group(NamedTuple):
    """Few-shot runs of one method on one target that train in one program: a run for each draw."""

    method: str
    target: str
    shots: int
    draws: tuple[int, ...]
    source_seed: int = 0

    @property
    def folder(self) -> str:
        """Name of its run folder."""
        method = self.method.replace(" ", "_")
        return f"{method}-{self.target}-{self.shots or 'all'}-source{self.source_seed}"


def groups() -> Iterator[Group]:
    """All groups, the most telling first."""
    for shots in SHOTS:
        draws = DRAWS if shots else ALL_DRAWS
        for method in FIRST:
            yield from (Group(method, target, shots, draws) for target in TARGETS)
    for method in ("MPT without distillation", "MPT without decomposition"):
        yield from (Group(method, target, 16, DRAWS) for target in TARGETS)
    for shots in (16, 4):
        yield from (Group("MPT", target, shots, DRAWS, 1) for target in TARGETS)


def _settings(folder: Path, train: TrainSettings, prompt: PromptSettings, rate: float, factor_rate: float, **data: Any) -> Settings:
    return Settings(
        train,
        BackboneSettings(BACKBONE),
        prompt=prompt,
        distillation=DistillationSettings(weight=data.pop("distillation", 0.0), teacher="cached", cached_dtype="float16"),
        optimizer=OptimizerSettings(learning_rate=rate, factor_learning_rate=factor_rate, warmup_steps=10),
        data=DataSettings(feature_lengths=LENGTHS, input_buckets=BUCKETS, cue=CUE, cache_dir=str(folder / "cache"), **data),
    )


def teacher_settings(folder: Path) -> Settings:
    """A prompt for each source task."""
    train = TrainSettings(
        "teacher", str(folder / "teachers"), train_steps=80, seeds=0, eval_steps=40, eval_rows=64, checkpoint_steps=10, eval_method="rank"
    )
    return _settings(folder, train, PromptSettings(length=LENGTH, rank=0, transfer="none"), 0.01, 0.3, batch_size=8)


def source_settings(folder: Path, name: str, seed: int) -> Settings:
    """The source stage, or a variant of it, from a vocabulary start."""
    rank = 0 if name == "undecomposed" else 1
    train = TrainSettings(
        "source", str(folder / f"{name}_{seed}"), train_steps=300, seeds=seed, eval_steps=100, eval_rows=64, checkpoint_steps=10,
        teacher_dir=str(folder / "teachers"), eval_method="rank",
    )  # fmt: skip
    weight = 0.0 if name == "undistilled" else 0.9
    prompt = PromptSettings(length=LENGTH, rank=rank)
    return _settings(folder, train, prompt, 0.01, 0.03, batch_size=12, distillation=weight)


def group_settings(folder: Path, group: Group, best_source: str, **changes: Any) -> Settings:
    """A group's few-shot training; ``best_source``: the single source task that SPoT starts from. changes: of METHODS' row, or steps."""
    steps = changes.pop("steps", STEPS[group.shots])
    method = METHODS[group.method]._replace(**changes)
    source = method.source.format(seed=group.source_seed)
    prompt = dict(method.prompt) | ({"transfer_task": best_source} if method.prompt["transfer"] == "task" else {})
    train = TrainSettings(
        "fewshot", str(folder / "runs" / group.folder), train_steps=steps, seeds=group.draws, eval_steps=10, eval_rows=64,
        eval_method="rank", source_dir=str(folder / source) if source else "", patience=4 if group.shots else 6,
    )  # fmt: skip
    shots = group.shots * len(TARGETS[group.target].labels)
    return _settings(folder, train, PromptSettings(length=LENGTH, **prompt), method.rate, method.factor_rate, batch_size=8, k_shot=shots)


SOURCE_STAGES = [("source", 0), ("undistilled", 0), ("source", 1), ("undecomposed", 0)]
SOURCE_NAMES = tuple(SOURCES)
