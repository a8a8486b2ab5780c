"""What the study runs, as rows: source stages, how targets start, and cells: what one process does, in the order of worth.

A cell of targets trains all draws and rates of one way to start, on targets of like length, in one program. Rates are searched on the
first two draws with 16 shots (dev rows decide, see choices.py); the other draws and shots train with the rates found.
"""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study.data import CUE, GROUPS, ROWS, SOURCES, TARGETS, TOPICS
from mpt_jax.config import (
    BackboneSettings,
    DataSettings,
    DistillationSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    TrainSettings,
)
from mpt_jax.methods.attempt import AttemptSettings
from mpt_jax.methods.dept import DeptSettings
from mpt_jax.methods.method import MethodSettings

BACKBONE = os.environ.get("STUDY_BACKBONE", "smollm2")
LENGTH = 20  # prompt vectors
LENGTHS = {"inputs": 96, "targets": 2}  # tokens; every label is one token and an end
DEV_ROWS = int(os.environ.get("STUDY_DEV_ROWS", "64"))  # of a target that choose its step
ACCELERATOR = os.environ.get("STUDY_ACCELERATOR") == "1"  # big batches in bfloat16, teachers beside
ROWS_AT_ONCE, BUCKETS = (48, (96,)) if ACCELERATOR else (8, (24, 32, 48, 64))
DTYPE = os.environ.get("STUDY_DTYPE", "bfloat16" if ACCELERATOR else "float32")
TEACHER = "beside" if ACCELERATOR else "cached"
SCALE = float(os.environ.get("STUDY_SCALE", "1"))  # of all numbers of steps, for trials
SEARCH_DRAWS, OTHER_DRAWS = (1, 2), (3, 4, 5)
DRAWS = SEARCH_DRAWS + OTHER_DRAWS
STEPS = {4: 30, 16: 40, 32: 60, 0: 300}  # by shots of each label; 0 = all rows
# targets that train in one program: those with two labels, with three, and topics
PARTS = {
    "two": ("rte", "cola", "subjectivity", "tweet_irony", "answer_selection", "boolq_small"),
    "three": ("cb",),
    "topics": tuple(TOPICS),
}
SEARCHED = ("two", "three")  # what rates were searched on
SOURCE_NAMES = tuple(SOURCES)
TEACHER_STEPS, SOURCE_STEPS = 300, 1000

LOW, HIGH = (0.001, 0.003, 0.01), (0.003, 0.01, 0.03)


class Way(NamedTuple):
    """How a target starts and trains: the source run it starts from ('' = none), fields of PromptSettings, rates to search."""

    source: str
    prompt: dict[str, Any]
    rates: tuple[float, ...]
    factor_rates: tuple[float, ...] = (0.0,)
    nearest: bool = False  # starts from the one source task whose prompt answers the target's dev rows best without training
    like: str = ""  # the way whose rates are taken instead of a search
    method: str = "prompt"  # METHOD
    own: MethodSettings | None = None  # settings of the method's own; None: its defaults
    longer: int = 1  # times the steps of STEPS

    @property
    def one_rate(self) -> bool:
        """Whether there is nothing to search."""
        return not self.like and len(self.rates) == len(self.factor_rates) == 1


WIDTH = 576  # of the backbone
INSIDE = (3e-4, 1e-3, 3e-3)  # from the methods' published rate on; a target has few steps
PLAIN = {"rank": 0, "transfer": "none"}
MEAN = {"rank": 1, "transfer": "mean"}
NEAREST = {"rank": 1, "transfer": "task"}
NEAREST_PROMPT = {"rank": 0, "transfer": "task"}
WAYS: dict[str, Way] = {
    "prompt tuning, vocabulary": Way("", PLAIN, HIGH),
    "prompt tuning, text": Way("", {"rank": 0, "transfer": "none", "init": "text"}, LOW),
    # one rate: what both searches above chose; factors as in the source stage
    "SPoT": Way("teachers", NEAREST_PROMPT, (0.01,), nearest=True),
    "MPT, mean": Way("source_0", MEAN, (0.01,), (0.03,)),
    "MPT, nearest": Way("source_0", NEAREST, (0.01,), (0.03,), nearest=True),
    # with those rates good starts lose in the first ten steps: is it the rates?
    "SPoT, lower rate": Way("teachers", NEAREST_PROMPT, (0.003,), nearest=True),
    "MPT, mean, lower rates": Way("source_0", MEAN, (0.003,), (0.01,)),
    "MPT, nearest, lower rates": Way("source_0", NEAREST, (0.003,), (0.01,), nearest=True),
    # on topics all ways still rise at the last step: has prompt tuning the right rate and length?
    "prompt tuning, vocabulary, higher rate": Way("", PLAIN, (0.03,)),
    "prompt tuning, text, higher rate": Way("", {"rank": 0, "transfer": "none", "init": "text"}, (0.03,)),
    "prompt tuning, vocabulary, longer": Way("", PLAIN, (0.01,), longer=3),
    "MPT, mean, longer": Way("source_0", MEAN, (0.01,), (0.03,), longer=3),
    "SPoT, longer": Way("teachers", NEAREST_PROMPT, (0.01,), nearest=True, longer=3),
    "MPT without distillation": Way("undistilled_0", MEAN, (), like="MPT, mean"),
    "MPT without decomposition": Way("undecomposed_0", {"rank": 0, "transfer": "shared"}, (0.01,)),
    "MPT, mean, seed 1": Way("source_1", MEAN, (), like="MPT, mean"),
    "MPT, nearest, seed 1": Way("source_1", NEAREST, (), nearest=True, like="MPT, nearest"),
    "MPT, P* alone": Way("source_0", {"rank": 1, "transfer": "shared"}, (), like="MPT, mean"),
}  # fmt: skip
OTHERS: dict[str, Way] = {  # other methods, at 16 shots and on all rows
    "LoRA": Way("", PLAIN, INSIDE, method="lora"),
    "BitFit": Way("", PLAIN, INSIDE, method="bitfit"),
    "adapters": Way("", PLAIN, INSIDE, method="adapter"),
    # as large as LENGTH prompt vectors: 12 vectors, and 7 (tokens of an input + WIDTH) numbers
    "DePT": Way("", {**PLAIN, "length": 12}, HIGH, (5e-4, 5e-3), method="dept", own=DeptSettings(rank=7)),
    # D e is ATTEMPT's temperature for T5-Base
    "ATTEMPT": Way("teachers", {"rank": 0}, HIGH, (0.01, 0.1), method="attempt", own=AttemptSettings(temperature=WIDTH * math.e)),
    "prompt vectors": Way("teachers_vocabulary", {"rank": 0}, HIGH, method="vectors"),
}
WAYS |= OTHERS


class Source(NamedTuple):
    """A source stage: its tasks, and what differs from the first row."""

    seed: int = 0
    tasks: tuple[str, ...] = tuple(SOURCES)
    rank: int = 1
    weight: float = 0.9
    temperature: float = 1.0
    hidden: str = "last"
    steps: int = SOURCE_STEPS
    rate: float = 0.01


STAGES: dict[str, Source] = {
    "source_0": Source(),
    "source_1": Source(seed=1),
    "undistilled_0": Source(weight=0.0),
    "undecomposed_0": Source(rank=0),
}
ABLATIONS: dict[str, Source] = {
    "three_related": Source(tasks=("sick", "mnli_small", "snli_small")),
    "three_unrelated": Source(tasks=("ag_news", "tweet_emotion", "clinc_domain")),
    "steps_250": Source(steps=250),
    "rank_4": Source(rank=4),
    "weight_0.3": Source(weight=0.3),
    "temperature_2": Source(temperature=2.0),
    "no_hidden": Source(hidden="none"),
}
STAGES |= ABLATIONS
WAYS |= {
    f"ablation: {name}": Way(name, {"rank": stage.rank, "transfer": "mean"}, (), like="MPT, mean") for name, stage in ABLATIONS.items()
}
MAIN = ("prompt tuning, vocabulary", "prompt tuning, text", "SPoT", "MPT, mean", "MPT, nearest")
MORE = (  # rates and lengths, on topics alone
    "prompt tuning, vocabulary, higher rate", "prompt tuning, text, higher rate", "prompt tuning, vocabulary, longer",
    "MPT, mean, longer", "SPoT, longer",
)  # fmt: skip
LOWER = ("SPoT, lower rate", "MPT, mean, lower rates", "MPT, nearest, lower rates")  # at 16 shots alone


class Cell(NamedTuple):
    """What one process does at a time. needs: names of cells whose lines or folders it reads."""

    kind: str  # a row of work.KINDS
    name: str
    needs: tuple[str, ...] = ()
    way: str = ""
    part: str = ""
    shots: int = 16
    draws: tuple[int, ...] = ()
    search: bool = False


def _targets(way: str, shots: int, draws: tuple[int, ...], search: bool = False) -> Iterator[Cell]:
    for part in SEARCHED:
        label = "search" if search else f"draws{draws[0]}{draws[-1]}"
        needs = (() if search else _rates(way)) + _start(way, "")
        yield Cell("targets", f"{way}-{shots or 'all'}-{label}-{part}", needs, way, part, shots, draws, search)


def _rates(way: str) -> tuple[str, ...]:
    """The cells that search a way's rates; none where it has one."""
    return () if WAYS[way].one_rate else tuple(f"{WAYS[way].like or way}-16-search-{part}" for part in SEARCHED)


def _start(way: str, group: str) -> tuple[str, ...]:
    """The cells that a way starts from: its source run, and which of its tasks is nearest to the targets of a group."""
    row = WAYS[way]
    return ((row.source,) if row.source else ()) + ((_named(f"screen {row.source}", group),) if row.nearest else ())


def _named(name: str, group: str) -> str:
    """The name of a cell for a group of targets."""
    return f"{name} {group}".rstrip()


def _topics() -> Iterator[Cell]:
    """The topic targets: a draw is a cell, so that all ways have the first ones early. Prompt tuning alone has more than one rate there."""
    for run in ("teachers", "source_0"):
        yield Cell("screen", _named(f"screen {run}", "topics"), (run,), part="topics")
    yield from _untrained("dev", "topics")
    rows = [(DRAWS[0], 16, way) for way in (*MAIN, *MORE)]
    rows += [row for row in itertools.product(DRAWS, (16, 4), MAIN) if row not in rows]
    for draw, shots, way in rows:
        yield Cell("targets", f"{way}-{shots}-draw{draw}-topics", _rates(way) + _start(way, "topics"), way, "topics", shots, (draw,))


def _untrained(split: str, group: str = "") -> list[Cell]:
    return [Cell(kind, _named(f"{kind} {split}", group), part=group) for kind in ("instruction", "majority")]


def _of_way(way: str, shots: int) -> Iterator[Cell]:
    searched = shots == 16 and not WAYS[way].like
    if searched:
        yield from _targets(way, 16, SEARCH_DRAWS, search=True)
    for draws in _draws(way, shots, searched):
        yield from _targets(way, shots, draws)


def _draws(way: str, shots: int, searched: bool) -> tuple[tuple[int, ...], ...]:
    """Draws of a way's cells after its search; those that start from a source run are cut, so that a table has all of them early."""
    if not shots:
        return (SEARCH_DRAWS,)
    if searched:
        return (OTHER_DRAWS,)
    return (SEARCH_DRAWS, OTHER_DRAWS) if WAYS[way].source else (DRAWS,)


def _source(name: str) -> Iterator[Cell]:
    needs = ("teachers",) if STAGES[name].weight else ()
    yield Cell("source", name, needs)
    yield Cell("screen", f"screen {name}", (name,))


def cells(peft: bool = True) -> list[Cell]:
    """All cells, the most telling first."""
    found = [Cell("teachers", "teachers"), Cell("screen", "screen teachers", ("teachers",))]
    found += itertools.chain(*map(_source, ("source_0", "undistilled_0", "undecomposed_0")))
    if peft:
        found += [Cell("peft_source", f"peft source {rate}", way=str(rate)) for rate in PEFT_RATES]
    for way in (*MAIN, *LOWER):
        found += _of_way(way, 16)
    found += _untrained("dev")
    for way in MAIN:
        found += _of_way(way, 4)
    trained = [cell for cell in found if cell.kind == "targets" and WAYS[cell.way].source and cell.shots == 4]
    found += [cell._replace(kind="answers", name=f"answers {cell.name}", needs=(cell.name, *cell.needs)) for cell in trained]
    found += _topics()
    if peft:
        found += _peft(16, SEARCH_DRAWS, True)
    found += itertools.chain(*(_of_way(way, 16) for way in ("MPT without distillation", "MPT without decomposition")))
    if peft:
        found += [*_peft(16, OTHER_DRAWS, False), *_peft(4, DRAWS, False)]
    found += _source("source_1")
    for way in ("MPT, mean, seed 1", "MPT, nearest, seed 1"):
        found += [*_of_way(way, 16), *_of_way(way, 4)]
    for shots in (32, 0):
        for way in MAIN:
            found += _of_way(way, shots)
    found += _of_way("MPT, P* alone", 16)
    found += [Cell("teachers", "teachers_vocabulary")]
    for way, shots in itertools.product(OTHERS, (16, 0)):
        found += _of_way(way, shots)
    for name in ABLATIONS:
        found += [*_source(name), *_of_way(f"ablation: {name}", 16)]
    return found


PEFT = "PEFT's MPT"  # its way
PEFT_RATES = (0.03, 0.3)


def _peft(shots: int, draws: tuple[int, ...], search: bool) -> Iterator[Cell]:
    needs = tuple(f"peft source {rate}" for rate in PEFT_RATES)
    needs += () if search else tuple(f"peft-16-search-{target}" for target in TARGETS)
    for target in TARGETS:
        label = "search" if search else f"draws{draws[0]}{draws[-1]}"
        yield Cell("peft", f"peft-{shots}-{label}-{target}", needs, PEFT, target, shots, draws, search)


def test_cells(done: list[Cell]) -> list[Cell]:
    """The final evaluation of cells that are done, on test rows: those of the tables, not of the ablations."""
    tables = [cell for cell in done if cell.kind in ("targets", "peft") and not cell.way.startswith("ablation")]
    untrained = itertools.chain(*(_untrained("test", group) for group in GROUPS))
    return list(untrained) + [cell._replace(kind="test", name=f"test {cell.name}") for cell in tables]


def steps(number: int) -> int:
    """A number of steps at the scale of this process."""
    return max(2, round(number * SCALE))


def _settings(folder: Path, train: TrainSettings, prompt: PromptSettings, rates, factor_rates, **data: Any) -> Settings:
    distillation = data.pop("distillation", DistillationSettings(weight=0.0))
    return Settings(
        train,
        BackboneSettings(BACKBONE, dtype=DTYPE),
        prompt=prompt,
        distillation=distillation,
        optimizer=OptimizerSettings(learning_rate=rates, factor_learning_rate=factor_rates, warmup_steps=10),
        data=DataSettings(
            feature_lengths=LENGTHS,
            input_buckets=BUCKETS,
            cue=CUE,
            cache_dir=str(folder / "cache"),
            micro_batch_size=data.pop("rows", ROWS_AT_ONCE),
            **data,
        ),
    )


def _train(stage: str, model_dir: Path, train_steps: int, scorings: int, **fields: Any) -> TrainSettings:
    number = steps(train_steps)
    each = max(number // scorings, 1)
    return TrainSettings(
        stage, str(model_dir), train_steps=number, eval_steps=each, eval_rows=DEV_ROWS, eval_method="rank",
        checkpoint_steps=each, eval_batch_size=256 if ACCELERATOR else 32, **fields,
    )  # fmt: skip


def teacher_settings(folder: Path, name: str = "teachers") -> Settings:
    """A prompt for each source task, from the tokens of its instruction; of ``teachers_vocabulary`` all from the same vectors."""
    start = {"init": "text", "init_text": {task: row.instruction for task, row in SOURCES.items()}} if name == "teachers" else {}
    prompt = PromptSettings(length=LENGTH, rank=0, transfer="none", **start)
    train = _train("teacher", folder / name, TEACHER_STEPS, 6, seeds=0, score_start=True)
    return _settings(folder, train, prompt, 0.01, 0.3, batch_size=16)


def source_settings(folder: Path, name: str) -> tuple[Settings, tuple[str, ...]]:
    """A source stage from a vocabulary start, and its tasks."""
    row = STAGES[name]
    teachers = str(folder / "teachers") if row.weight else ""
    train = _train("source", folder / name, row.steps, 10, seeds=row.seed, teacher_dir=teachers)
    distillation = DistillationSettings(row.weight, row.temperature, hidden=row.hidden, teacher_mode=TEACHER, cached_dtype="float16")
    prompt = PromptSettings(length=LENGTH, rank=row.rank)
    return _settings(folder, train, prompt, row.rate, 0.03, batch_size=24, rows=min(24, ROWS_AT_ONCE), distillation=distillation), row.tasks


def target_settings(folder: Path, cell: Cell, rates, factor_rates, nearest: dict[str, str]) -> Settings:
    """Training of a cell of targets with some rates; ``nearest``: the source task that each target starts from, where one is chosen."""
    way, names = WAYS[cell.way], PARTS[cell.part]
    prompt = {"length": LENGTH, **way.prompt}
    if way.nearest:
        prompt["transfer_task"] = {name: nearest[name] for name in names}
    if prompt.get("init") == "text":
        prompt["init_text"] = {name: ROWS[name].instruction for name in names}
    train = _train(
        "fewshot" if cell.shots else "target", folder / "runs" / cell.name.replace(", ", "_").replace(" ", "_").replace(":", ""),
        way.longer * STEPS[cell.shots], way.longer * (4 if cell.shots else 6), seeds=cell.draws,
        source_dir=str(folder / way.source) if way.source else "", score_start=True, method=way.method,
    )  # fmt: skip
    shots = cell.shots * len(ROWS[names[0]].labels)
    settings = _settings(folder, train, PromptSettings(**prompt), list(rates), list(factor_rates), batch_size=8, k_shot=shots)
    return settings._replace(method=way.own)
