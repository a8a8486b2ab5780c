"""What a training program holds: a run for each row of the prompt bank, their groups, where their prompts start, their rows.

N tasks (runs) in the bank, G groups that share a P*, P prompt positions, D model width.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from mpt_jax.checkpoint import Loaded, bank_alone, load
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, TrainSettings
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.sampler import Stream, few_shot_rows
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.prompt_bank import PromptBank, compose_all, init_factors, init_prompt, select, stack_groups, transfer
from mpt_jax.run_folder import require
from mpt_jax.sharding import to_host

MOST_RUNS = 10_000  # of one program; a bank of so many float32 prompts of T5-Base takes 3 GB [ours]
ONE_STREAM = ("source", "finetune", "pretrain")  # stages whose tasks are trained together


@dataclasses.dataclass(frozen=True)
class Run:
    """Row n of the bank: one task under one seed and learning rate; runs of the same group share a P*."""

    task: str
    seed: int
    group: int
    learning_rate: float
    factor_learning_rate: float
    few_shot: tuple[int, ...] = ()  # training rows of a few-shot run; empty: all


def _as_list(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def plan_runs(train: TrainSettings, prompt: PromptSettings, optimizer: OptimizerSettings, tasks: Sequence[str]) -> list[Run]:
    """All combinations of seed, learning rates and task. Raises UserError where a stage trains one run only and several are asked for."""
    together = train.stage in ONE_STREAM or prompt.shared_over_targets
    rates = (_as_list(rate) for rate in (optimizer.learning_rate, optimizer.factor_learning_rate))
    count = math.prod(map(len, (train.seed_list, tasks, *rates)))
    if count > MOST_RUNS:
        raise UserError(f"SEED, LEARNING_RATE, FACTOR_LEARNING_RATE and TASKS make {count:,} runs; one program takes {MOST_RUNS:,}.")
    runs, group = [], 0
    for seed in train.seed_list:
        for rate in _as_list(optimizer.learning_rate):
            for factor_rate in _as_list(optimizer.factor_learning_rate):
                for task in tasks:
                    runs.append(Run(task, int(seed), group, float(rate), float(factor_rate)))
                    group += not together
                group += together
    if train.stage in ("finetune", "pretrain") and group > 1:
        raise UserError(f"stage {train.stage!r} trains one set of weights: give one seed and one learning rate, not {group} combinations.")
    return runs


def rates(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Learning rates (G,) float32 of each parameter group, by the first run of each group of tasks."""
    first = {run.group: run for run in reversed(runs)}
    of = lambda name: np.array([getattr(first[group], name) for group in sorted(first)], np.float32)  # noqa: E731
    return {"prompt": of("learning_rate"), "weights": of("learning_rate"), "factors": of("factor_learning_rate")}


def draw_few_shot(runs: list[Run], caches: dict[str, TokenCache], data: DataSettings) -> list[Run]:
    """Adds to each run the rows it may train on (K_SHOT); the draw depends on task and seed alone."""
    if not data.k_shot:
        return runs
    draw = lambda run: few_shot_rows(caches[run.task], data.k_shot, run.seed, data.k_per_class)  # noqa: E731
    return [dataclasses.replace(run, few_shot=tuple(int(row) for row in draw(run))) for run in runs]


def make_streams(runs: list[Run], caches: dict[str, TokenCache], data: DataSettings) -> list[Stream]:
    """A stream of rows for each group; a group of several tasks mixes them."""
    streams = []
    for group in sorted({run.group for run in runs}):
        members = [n for n, run in enumerate(runs) if run.group == group]
        streams.append(
            Stream(
                seed=runs[members[0]].seed,
                caches=tuple(caches[runs[n].task] for n in members),
                bank_index=tuple(members),
                batch_size=data.batch_size,
                mixing=data.mixing,
                cap=data.mixing_cap,
                subset=tuple(np.array(runs[n].few_shot) if runs[n].few_shot else None for n in members),
            )
        )
    return streams


def make_bank(runs: list[Run], train: TrainSettings, prompt: PromptSettings, backbone: Backbone, vocabulary: Vocabulary) -> PromptBank:
    """The bank before training: transferred from SOURCE_DIR in the target stages, fresh otherwise."""
    embedding_VD = to_host(backbone.params["token_embedder"]["embedding"]).astype(np.float32)
    text_ids = vocabulary.encode(prompt.init_text) if prompt.init == "text" else None
    source = None
    if train.stage in ("target", "fewshot") and prompt.transfer != "none":
        source = _read_source(train, prompt, backbone)
    banks = []
    for group in sorted({run.group for run in runs}):
        members = [run for run in runs if run.group == group]
        seed = members[0].seed
        if source is not None:
            bank, names = _source_group(*source, seed)
            banks.append(transfer(bank, names, prompt, len(members), seed))
            continue
        shared_GPD = init_prompt(prompt, embedding_VD, seed, text_ids)[None]
        factors = init_factors(prompt, len(members), shared_GPD.shape[2], seed) if prompt.rank else (None, None)
        banks.append(PromptBank(shared_GPD, *factors, np.zeros(len(members), np.int32)))
    return stack_groups(banks)


def _read_source(train: TrainSettings, prompt: PromptSettings, backbone: Backbone) -> tuple[PromptBank, dict]:
    if not train.source_dir:
        message = f"PromptSettings.transfer = {prompt.transfer!r} starts from a source run: give --gin.SOURCE_DIR=\"'folder'\""
        raise UserError(f"{message}, or train prompts from scratch with --gin.PromptSettings.transfer=\"'none'\".")
    return read_prompts(train.source_dir, "SOURCE_DIR", backbone, train.allow_unfinished)


def read_prompts(run_dir: str, setting: str, backbone: Backbone, allow_unfinished: bool = False) -> tuple[PromptBank, dict]:
    """A run's best bank and run.json.

    Raises UserError if it is not finished, was trained on another backbone, or holds no prompts.
    """
    loaded = load(run_dir)
    run, bank = loaded.run, bank_alone(loaded, run_dir)
    if bank is None:
        raise UserError(f"{setting} = {run_dir!r} trained a backbone, not prompts.")
    require(run, run_dir, "backbone.name", "backbone.fingerprint", "runs")
    if not allow_unfinished and not is_finished(loaded):
        total = run["settings"]["train"]["train_steps"]
        message = f"{setting} = {run_dir!r} is not finished: step {loaded.step} of {total}"
        raise UserError(f"{message}. Let its training go on to the end, or give --gin.ALLOW_UNFINISHED=True.")
    width = bank.shared_GPD.shape[2]
    if width != backbone.config.d_model:
        message = f"{setting} = {run_dir!r} holds prompts of width {width}, the backbone {backbone.name!r} has width"
        raise UserError(f"{message} {backbone.config.d_model}; set BACKBONE to the one they were trained on.")
    if run["backbone"]["fingerprint"] != backbone.fingerprint:
        there = f"{run['backbone']['name']} ({run['backbone']['fingerprint']})"
        message = f"{setting} = {run_dir!r} was trained on backbone {there}, this run uses {backbone.name} ({backbone.fingerprint})"
        raise UserError(f"{message}; set BACKBONE to the same weights.")
    return bank, run


def is_finished(loaded: Loaded) -> bool:
    """Whether a run came to its last step, or to where every group had no better score for as long as its patience lasts.

    True where run.json does not say how many steps were wanted, and for a bank that `mpt-jax convert` wrote.
    """
    train = loaded.run.get("settings", {}).get("train", {})
    total, patience = train.get("train_steps", 0), train.get("patience", 0)
    if loaded.step >= total or loaded.run.get("converted"):
        return True
    stopped = stopped_groups(loaded.best_step_G, loaded.step, train.get("eval_steps") or max(total // 10, 1), patience)
    return bool(stopped) and len(stopped) == len(loaded.best_step_G)


def stopped_groups(best_step_G: np.ndarray | None, step: int, eval_steps: int, patience: int) -> frozenset[int]:
    """Groups whose best score is ``patience`` scorings old by ``step``; a function of what a checkpoint holds, so resuming agrees."""
    if best_step_G is None or not patience:
        return frozenset()
    last_scored = step // eval_steps * eval_steps
    return frozenset(np.flatnonzero(last_scored - best_step_G >= patience * eval_steps).tolist())


def _source_group(bank: PromptBank, run: dict, seed: int) -> tuple[PromptBank, list[str]]:
    """The source run's group of the same seed, or else its first."""
    rows = run["runs"]
    same_seed = [row["group"] for row in rows if row["seed"] == seed]
    group = same_seed[0] if same_seed else rows[0]["group"]
    members = [n for n, row in enumerate(rows) if row["group"] == group]
    return select(bank, members), [rows[n]["task"] for n in members]


def teacher_prompts(
    runs: list[Run], train: TrainSettings, distillation: DistillationSettings, prompt: PromptSettings, backbone: Backbone
) -> np.ndarray | None:
    """Each run's teacher prompt (N, P, D): its task's prompt of the same seed in TEACHER_DIR, or else its task's first.

    None where nothing is distilled. Raises UserError naming the tasks that have no teacher.
    """
    if train.stage != "source" or not distillation.weight:
        return None
    teacher_dir = train.teacher_dir
    same_length = distillation.hidden_positions == "all" and distillation.hidden != "none"
    if not teacher_dir:
        message = "the source stage distils from teachers: give --gin.TEACHER_DIR=\"'folder'\""
        raise UserError(f"{message}, or train without them with --gin.DistillationSettings.weight=0.0.")
    bank, run = read_prompts(teacher_dir, "TEACHER_DIR", backbone, train.allow_unfinished)
    rows = run["runs"]
    missing = sorted({run.task for run in runs} - {row["task"] for row in rows})
    if missing:
        there = ", ".join(sorted({row["task"] for row in rows}))
        message = f"TEACHER_DIR = {teacher_dir!r} has no teacher for source task {', '.join(missing)} (it has {there})"
        raise UserError(f"{message}; train it: mpt-jax train --gin_file=teacher.gin --gin.TASKS=\"{missing}\".")
    chosen = []
    for run_ in runs:
        candidates = [n for n, row in enumerate(rows) if row["task"] == run_.task]
        same_seed = [n for n in candidates if rows[n]["seed"] == run_.seed]
        chosen.append((same_seed or candidates)[0])
    prompts_NPD = np.asarray(compose_all(bank))[chosen]
    if same_length and prompts_NPD.shape[1] != prompt.length:
        message = f"DistillationSettings.hidden_positions = 'all' compares prompts of one length; teachers have {prompts_NPD.shape[1]}"
        raise UserError(f"{message}, PROMPT_LENGTH is {prompt.length}.")
    return prompts_NPD
