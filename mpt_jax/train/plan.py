"""What a training program holds: a run for each row of the prompt bank, their groups, what they start from, their rows.

N tasks (runs) in the program, G groups of tasks that share parameters, P prompt positions, D model width.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpt_jax.bucket_run import brought
from mpt_jax.checkpoint import Loaded, load
from mpt_jax.config import TARGET_STAGES, WEIGHT_STAGES, DataSettings, Settings, scoring_steps
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.sampler import Stream, few_shot_rows
from mpt_jax.distributed import say
from mpt_jax.errors import UserError
from mpt_jax.infer.history import best_dev, chosen_settings, tried
from mpt_jax.methods.bank import PromptBank, compose_all, select
from mpt_jax.methods.method import BACKBONE, MUST, NEVER, Method, check_counts, no_prefix
from mpt_jax.methods.prompt import METHOD, bank_alone, bank_of, paths_of
from mpt_jax.methods.source_prompts import chosen_sources
from mpt_jax.methods.table import method_named, method_of
from mpt_jax.model.backbone import Backbone
from mpt_jax.run_folder import require

MOST_RUNS = 10_000  # of one program; a bank of so many float32 prompts of T5-Base takes 3 GB [ours]
BANKS = Path(__file__).parent.parent / "banks"  # run folders that the package brings, by the name of their backbone
TOGETHER = ("source", *WEIGHT_STAGES)  # stages whose tasks are trained together


@dataclasses.dataclass(frozen=True)
class Run:
    """Row n of the program: one task under one seed and learning rate; runs of the same group share parameters."""

    task: str
    seed: int
    group: int
    learning_rate: float
    factor_learning_rate: float
    few_shot: tuple[int, ...] = ()  # training rows of a few-shot run; empty: all
    source: str = ""  # the source task whose prompt it starts from, where runs differ in it

    def describe(self) -> dict:
        """As run.json has it."""
        found = dataclasses.asdict(self)
        return found if self.source else {name: value for name, value in found.items() if name != "source"}


class Plan(NamedTuple):
    """The runs of a program, in groups that follow one another."""

    runs: tuple[Run, ...]

    @property
    def group_N(self) -> np.ndarray:
        """Group of each run, int32."""
        return np.array([row.group for row in self.runs], np.int32)

    @property
    def num_groups(self) -> int:
        """G."""
        return self.runs[-1].group + 1

    def members(self, group: int) -> list[int]:
        """Numbers of a group's runs."""
        return [n for n, row in enumerate(self.runs) if row.group == group]

    @property
    def first_runs(self) -> list[Run]:
        """The first run of each group."""
        first = {row.group: row for row in reversed(self.runs)}
        return [first[group] for group in range(self.num_groups)]

    def described(self) -> list[dict]:
        """The runs as run.json names them."""
        return [row.describe() for row in self.runs]

    def rates(self) -> dict[str, np.ndarray]:
        """Learning rates (G,) float32 of each parameter group."""
        rate_G = np.array([row.learning_rate for row in self.first_runs], np.float32)
        factor_rate_G = np.array([row.factor_learning_rate for row in self.first_runs], np.float32)
        return {"prompt": rate_G, "weights": rate_G, "factors": factor_rate_G}


def _as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def plan_runs(settings: Settings, tasks: Sequence[str]) -> Plan:
    """All combinations of seed, learning rates and task, of settings that give rates. Raises UserError for more than one program takes."""
    train, optimizer = settings.train, settings.optimizer
    together = train.stage in TOGETHER or settings.prompt.shared_over_targets
    rates = _as_list(optimizer.learning_rate), _as_list(optimizer.factor_learning_rate)
    count = math.prod(map(len, (train.seed_list, tasks, *rates)))
    if count > MOST_RUNS:
        raise UserError(f"SEED, LEARNING_RATE, FACTOR_LEARNING_RATE and TASKS make {count:,} runs; one program takes {MOST_RUNS:,}.")
    runs = []
    for combination, (seed, rate, factor_rate) in enumerate(itertools.product(train.seed_list, *rates)):
        for number, task in enumerate(tasks):
            group = combination if together else combination * len(tasks) + number
            runs.append(Run(task, int(seed), group, float(rate), float(factor_rate)))
    return Plan(tuple(runs))


def each_source(plan: Plan, run: Mapping[str, Any], settings: Settings) -> Plan:
    """The plan with every group once for each task of a source run (its run.json), or for those chosen. Raises UserError for others."""
    sources = chosen_sources(settings, list(dict.fromkeys(row["task"] for row in run["runs"])))
    if len(plan.runs) * len(sources) > MOST_RUNS:
        raise UserError(f"{len(plan.runs):,} runs from each of {len(sources)} sources; one program takes {MOST_RUNS:,}.")
    runs = []
    for number, source in enumerate(sources):
        runs += [dataclasses.replace(row, source=source, group=row.group + number * plan.num_groups) for row in plan.runs]
    return Plan(tuple(runs))


def draw_few_shot(plan: Plan, caches: Mapping[str, TokenCache], data: DataSettings) -> Plan:
    """Adds to each run the rows it may train on (K_SHOT); the draw depends on task and seed alone."""
    if not data.k_shot:
        return plan
    drawn = [few_shot_rows(caches[row.task], data.k_shot, row.seed, data.k_per_class) for row in plan.runs]
    return Plan(tuple(dataclasses.replace(row, few_shot=tuple(map(int, rows))) for row, rows in zip(plan.runs, drawn, strict=True)))


def make_streams(plan: Plan, caches: Mapping[str, TokenCache], data: DataSettings) -> list[Stream]:
    """A stream of rows for each group; a group of several tasks mixes them."""
    streams = []
    for group in range(plan.num_groups):
        members = plan.members(group)
        runs = [plan.runs[n] for n in members]
        streams.append(
            Stream(
                seed=runs[0].seed,
                caches=tuple(caches[row.task] for row in runs),
                bank_index=tuple(members),
                batch_size=data.batch_size,
                mixing=data.mixing,
                cap=data.mixing_cap,
                subset=tuple(np.array(row.few_shot) if row.few_shot else None for row in runs),
            )
        )
    return streams


def starts_from_source(settings: Settings, method: Method) -> bool:
    """Whether a run starts from SOURCE_DIR."""
    return method.from_source != NEVER and settings.train.stage in TARGET_STAGES and settings.prompt.transfer != "none"


def is_distilled(settings: Settings) -> bool:
    """Whether a run learns from TEACHER_DIR."""
    return settings.train.stage == "source" and bool(settings.distillation.weight)


def check_folders(settings: Settings, method: Method) -> None:
    """Raises UserError where a SOURCE_DIR, source tasks in it or a TEACHER_DIR are given that nothing would read."""
    train, prompt = settings.train, settings.prompt
    starts = starts_from_source(settings, method)
    if method.from_source == MUST and not starts:
        message = f"METHOD = {method.name!r} starts from prompts of SOURCE_DIR, which stage {train.stage!r} with PromptSettings.transfer"
        raise UserError(f"{message} = {prompt.transfer!r} does not read: take stage target or fewshot, with a transfer.")
    if train.source_dir and not starts:
        raise UserError(f"SOURCE_DIR = {train.source_dir!r} is given, and {_why_no_source(settings, method)}.")
    if train.teacher_dir and not is_distilled(settings):
        why = f"stage {train.stage!r} has no teachers: leave it out"
        if train.stage == "source":
            why = f"DistillationSettings.weight = {settings.distillation.weight} takes nothing from teachers: leave one of them out"
        raise UserError(f"TEACHER_DIR = {train.teacher_dir!r} is given, and {why}.")
    if method.from_source == MUST and prompt.transfer == "shared":
        message = f"METHOD = {method.name!r} takes prompts of source tasks, and PromptSettings.transfer = 'shared' takes none of them"
        raise UserError(f"{message}: leave it out, or name tasks with --gin.PromptSettings.transfer_task=A,B.")
    if prompt.init != "vocabulary" and (not method.reads_init or method.prefix_length is no_prefix):
        why = "starts from prompts of SOURCE_DIR" if method.from_source == MUST else "has no prompt"
        raise UserError(f"PromptSettings.init = {prompt.init!r} is given, and METHOD = {method.name!r} {why}: leave it out.")
    if starts and method.from_source != MUST and prompt.init != "vocabulary":
        message = f"PromptSettings.init = {prompt.init!r} is given, and stage {train.stage!r} starts from SOURCE_DIR"
        raise UserError(f"{message}: leave it out, or take --gin.PromptSettings.transfer=none.")
    for name in ("init_text", "transfer_task"):
        if isinstance(getattr(prompt, name), dict) and (train.stage in TOGETHER or prompt.shared_over_targets):
            why = "PromptSettings.shared_over_targets" if train.stage not in TOGETHER else f"stage {train.stage!r}"
            message = f"PromptSettings.{name} = {getattr(prompt, name)!r} is given by task, and with {why} all tasks start from one prompt"
            raise UserError(f"{message}: give one for all.")
    if prompt.transfer_task and not (starts and (prompt.transfer == "task" or method.from_source == MUST)):
        message = f"PromptSettings.transfer_task = {prompt.transfer_task!r} is given, and stage {train.stage!r} with transfer"
        raise UserError(f"{message} = {prompt.transfer!r} does not read it: add --gin.PromptSettings.transfer=task, or leave it out.")


def _why_no_source(settings: Settings, method: Method) -> str:
    stage = settings.train.stage
    if method.from_source == NEVER:
        return f"METHOD = {method.name!r} starts from no source run: leave it out"
    if stage not in TARGET_STAGES:
        return f"stage {stage!r} starts from no source run: leave it out, or take one of {', '.join(TARGET_STAGES)}"
    return "PromptSettings.transfer = 'none' takes nothing from a source run: leave one of them out"


def read_source(settings: Settings, backbone: Backbone, method: Method = METHOD) -> tuple[dict[str, np.ndarray], dict] | None:
    """The trained arrays and run.json of SOURCE_DIR, in the target stages; None where nothing is transferred.

    Raises UserError where SOURCE_DIR is needed and not given.
    """
    train, prompt = settings.train, settings.prompt
    if not starts_from_source(settings, method):
        return None
    if not train.source_dir:
        message = f"PromptSettings.transfer = {prompt.transfer!r} starts from a source run: type --source_dir FOLDER"
        raise UserError(f"{message}, or train prompts from scratch with --gin.PromptSettings.transfer=none.")
    return read_prompts(source_folder(train.source_dir), "SOURCE_DIR", backbone, train.allow_unfinished)


def source_folder(name: str) -> str:
    """A run folder, or the bank of that name that the package brings (mpt_jax/banks) where there is no such folder."""
    shipped = BANKS / name
    return str(shipped) if name == shipped.name and not os.path.exists(name) and (shipped / "run.json").is_file() else name


def read_prompts(
    run_dir: str, setting: str, backbone: Backbone, allow_unfinished: bool = False
) -> tuple[dict[str, np.ndarray], dict]:
    """A run's best arrays and run.json; of several learning rates or sources those that did best (``_of_best_settings``).

    Raises UserError if it is not finished, was trained on another backbone, or trained a backbone itself.
    """
    here = brought(setting, run_dir)
    loaded = load(here)
    trained, run = loaded.trainable, loaded.run
    require(run, run_dir, "backbone.name", "backbone.fingerprint", "runs")
    bank = bank_alone(trained, run, run_dir)
    if any(path.startswith(BACKBONE) for path in trained):
        raise UserError(f"{setting} = {run_dir!r} trained a backbone, not prompts.")
    if bank is None:
        check_counts(trained, method_named(run["method"]).parts, np.array([row["group"] for row in run["runs"]], np.int32))
    if not allow_unfinished and not is_finished(loaded):
        total = run["settings"]["train"]["train_steps"]
        message = f"{setting} = {run_dir!r} is not finished: step {loaded.step} of {total}"
        raise UserError(f"{message}. Let its training go on to the end, or type --allow_unfinished.")
    width = backbone.config.d_model if bank is None else bank.shared_GPD.shape[2]
    if width != backbone.config.d_model:
        message = f"{setting} = {run_dir!r} holds prompts of width {width}, the backbone {backbone.name!r} has width"
        raise UserError(f"{message} {backbone.config.d_model}; set BACKBONE to the one they were trained on.")
    backbone.check_same(run, f"{setting} = {run_dir!r}", "set BACKBONE to the same weights")
    return (trained, run) if bank is None else _of_best_settings(bank, trained, run, here, f"{setting} = {run_dir!r}")


def _of_best_settings(
    bank: PromptBank, trained: dict[str, np.ndarray], run: dict, run_dir: str, given: str
) -> tuple[dict[str, np.ndarray], dict]:
    """The runs under the learning rates, and from the source, that did best on the dev split, as ``eval`` and ``infer`` take them.

    Tasks that share parameters take the same. Where not all were scored the first ones are taken, and a line says so.
    """
    rows = run["runs"]
    tasks_of: dict[int, set[str]] = {}
    for row in rows:
        tasks_of.setdefault(row["group"], set()).add(row["task"])
    shared, names = any(len(found) > 1 for found in tasks_of.values()), dict.fromkeys(row["task"] for row in rows)
    sets = [list(range(len(rows)))] if shared else [[n for n, row in enumerate(rows) if row["task"] == name] for name in names]
    several = [numbers for numbers in sets if len({tried(rows[n]) for n in numbers}) > 1]
    if not several:
        return trained, run
    best = best_dev(run_dir)
    unscored = [numbers for numbers in several if any(n not in best for n in numbers)]
    for numbers in unscored:
        first = ", ".join(str(value) for value in tried(rows[numbers[0]]) if value is not None)
        of = "" if shared else f" for task {rows[numbers[0]]['task']!r}"
        say(f"{given}: no dev scores tell which of its learning rates or sources is best{of}; the first is taken ({first})")
    kept: list[int] = []
    for numbers in sets:
        of_first = [n for n in numbers if tried(rows[n]) == tried(rows[numbers[0]])]
        kept += of_first if numbers in unscored else chosen_settings(rows, numbers, best)
    kept.sort()
    chosen = select(bank, kept)
    rows = [rows[n] | {"group": int(group)} for n, group in zip(kept, chosen.group_N, strict=True)]
    return paths_of(chosen), run | {"runs": rows}


def is_finished(loaded: Loaded) -> bool:
    """Whether a run came to its last step, or to where every group had no better score for as long as its patience lasts.

    True where run.json does not say how many steps were wanted, and for a bank that `mpt-jax convert` wrote.
    """
    train = (loaded.run.get("settings") or {}).get("train") or {}
    total, eval_steps, patience = (train.get(name) or 0 for name in ("train_steps", "eval_steps", "patience"))
    if loaded.step >= total or loaded.run.get("converted"):
        return True
    stopped = stopped_groups(loaded.best_step_G, loaded.step, scoring_steps(total, eval_steps), patience)
    return bool(stopped) and loaded.best_step_G is not None and len(stopped) == len(loaded.best_step_G)


def stopped_groups(best_step_G: np.ndarray | None, step: int, eval_steps: int, patience: int) -> frozenset[int]:
    """Groups whose best score is ``patience`` scorings old by ``step``; a function of what a checkpoint holds, so resuming agrees."""
    if best_step_G is None or not patience:
        return frozenset()
    last_scored = step // eval_steps * eval_steps
    return frozenset(np.flatnonzero(last_scored - best_step_G >= patience * eval_steps).tolist())


def teacher_prompts(plan: Plan, settings: Settings, backbone: Backbone) -> np.ndarray | None:
    """Each run's teacher prompt (N, P, D): its task's prompt of the same seed in TEACHER_DIR, or else its task's first.

    None where nothing is distilled. Raises UserError naming the tasks that have no teacher.
    """
    train, distillation = settings.train, settings.distillation
    if not is_distilled(settings):
        return None
    teacher_dir = train.teacher_dir
    if not teacher_dir:
        message = "the source stage distils from teachers: type --teacher_dir FOLDER"
        raise UserError(f"{message}, or train without them with --gin.DistillationSettings.weight=0.0.")
    trained, description = read_prompts(teacher_dir, "TEACHER_DIR", backbone, train.allow_unfinished)
    rows = description["runs"]
    missing = sorted({row.task for row in plan.runs} - {teacher["task"] for teacher in rows})
    if missing:
        there = ", ".join(sorted({row["task"] for row in rows}))
        message = f"TEACHER_DIR = {teacher_dir!r} has no teacher for source task {', '.join(missing)} (it has {there})"
        raise UserError(f"{message}; train it: mpt-jax train teacher --tasks {','.join(missing)}.")
    bank = bank_of(trained, np.array([row["group"] for row in rows], np.int32))
    if bank is None:
        raise UserError(f"TEACHER_DIR = {teacher_dir!r} holds no prompts; train teachers with METHOD = 'prompt'.")
    chosen = []
    for row in plan.runs:
        of_task = [n for n, teacher in enumerate(rows) if teacher["task"] == row.task]
        same_seed = [n for n in of_task if rows[n]["seed"] == row.seed]
        chosen.append((same_seed or of_task)[0])
    prompts_NPD = np.asarray(compose_all(bank))[chosen]
    same_length = distillation.hidden_positions == "all" and distillation.hidden != "none"
    length = method_of(train).prefix_length(settings)
    if same_length and prompts_NPD.shape[1] != length:
        message = f"DistillationSettings.hidden_positions = 'all' compares prompts of one length; teachers have {prompts_NPD.shape[1]}"
        raise UserError(f"{message}, method {train.method!r} puts {length} in front (PROMPT_LENGTH); take 'inputs'.")
    return prompts_NPD
