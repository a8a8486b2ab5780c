"""Prompt tuning and MPT: vectors in front of the embedded input, composed from the prompt bank (bank.py).

N tasks (runs), G groups, P prompt positions, D model width, R rank, B examples, L input tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax.config import PromptSettings
from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK, PromptBank, bank_from, compose_all, product, select, stack_groups
from mpt_jax.methods.method import BACKBONE, FROZEN, GROUP, TASK, Method, Part, Start, check_counts
from mpt_jax.model.families.family import Adaptation, Adapted
from mpt_jax.model.formats import prompts
from mpt_jax.run_folder import require
from mpt_jax.sharding import to_host


def bank_of(trainable: Mapping[str, Any], group_N) -> PromptBank | None:
    """The prompt bank among arrays by path; None where no prompt is."""
    found = {path.removeprefix(BANK): array for path, array in trainable.items() if path.startswith(BANK)}
    return bank_from(found, group_N) if found else None


def bank_alone(trained: Mapping[str, Any], run: Mapping[str, Any], run_dir: str) -> PromptBank | None:
    """The bank of a run whose prompts are used on the frozen backbone; None where it has no prompts.

    Raises UserError where run.json does not fit the bank, or where the run trained weights as well: its prompts alone are of no use.
    """
    require(run, run_dir, "runs")
    group_N = np.array([row["group"] for row in run["runs"]], np.int32)
    bank = bank_of(trained, group_N)
    if bank is None:
        return None
    check_counts(paths_of(bank), METHOD.parts, group_N)
    others = [path for path in trained if not path.startswith(BANK)]
    if others:
        what = "weights of the backbone" if others[0].startswith(BACKBONE) else repr(others[0])
        message = f"run {run_dir!r} trained {what} together with its prompts"
        raise UserError(f"{message}, which are of no use without them: it can be evaluated, and not be taken apart.")
    return bank


def paths_of(bank: PromptBank) -> dict[str, Any]:
    """The bank's arrays by path, as they train."""
    return {BANK + name: array for name, array in bank.trainable().items()}


def adapt(own: Mapping[str, jax.Array], embedded_BLD, real_BL) -> Adapted:
    """Each task's prompt in front of its inputs."""
    factors = (own.get(f"{BANK}{name}") for name in ("cols", "rows"))
    return Adapted(product(own[f"{BANK}shared"], *factors), embedded_BLD)


def _given(own: Mapping[str, jax.Array], embedded_BLD, real_BL) -> Adapted:
    return Adapted(own["prompt"], embedded_BLD)


GIVEN = Adaptation(_given, prefix_only=True)  # prompts (U, P, D) that are there already, as teachers have them


def init(start: Start) -> dict[str, Any]:
    """The bank before training: transferred from SOURCE_DIR where there is one, fresh otherwise."""
    banks = []
    for group, (seed, task) in enumerate(zip(start.seed_G, start.task_G, strict=True)):
        settings = settings_of_task(start.settings.prompt, task)
        members = int(np.sum(start.group_N == group))
        if start.source is not None:
            bank, names = source_runs(*start.source, seed)
            banks.append(transfer(bank, names, settings, members, seed))
            continue
        shared_GPD = fresh(start, group)[None]
        factors = _factors(settings, members, shared_GPD.shape[2], seed)
        banks.append(PromptBank(shared_GPD, *factors, np.zeros(members, np.int32)))
    return paths_of(stack_groups(banks))


def fresh(start: Start, group: int) -> np.ndarray:
    """The prompt (P, D) with which a group starts where nothing is transferred."""
    settings = settings_of_task(start.settings.prompt, start.task_G[group])
    scale = prompts.peft_facts(start.network.config)["prompt_scale"]
    text_ids = start.text_ids[str(settings.init_text)] if start.text_ids else None
    return init_prompt(settings, start.backbone["token_embedder"]["embedding"], start.seed_G[group], text_ids, scale)


def settings_of_task(settings: PromptSettings, task: str) -> PromptSettings:
    """The settings with a task's own text and source tasks. Raises UserError for a task that has none among those given by task."""
    changes = {}
    for name in ("init_text", "transfer_task"):
        value = getattr(settings, name)
        if isinstance(value, dict):
            if task not in value:
                raise UserError(f"PromptSettings.{name} has nothing for task {task!r}: it has {', '.join(map(str, value))}.")
            changes[name] = value[task]
    return dataclasses.replace(settings, **changes)


def source_runs(arrays: Mapping[str, np.ndarray], run: Mapping[str, Any], seed: int) -> tuple[PromptBank, list[str]]:
    """The source run's prompts of the same seed, or else of its first, and the names of their tasks.

    run: of one learning rate for each task, as train.plan.read_prompts gives it.

    A group where they share parameters, as the source stage has them; one for each task where each has its own, as teachers have.
    """
    rows = run["runs"]
    bank = bank_of(arrays, np.array([row["group"] for row in rows], np.int32))
    if bank is None:
        raise UserError(f"SOURCE_DIR holds no prompts: its run trained {run.get('method')!r}. Name a run of METHOD = 'prompt'.")
    seed = seed if any(row["seed"] == seed for row in rows) else rows[0]["seed"]
    members = [n for n, row in enumerate(rows) if row["seed"] == seed]
    return select(bank, members), [rows[n]["task"] for n in members]


def init_prompt(settings: PromptSettings, embedding_VD, seed: int, text_ids: Sequence[int] | None = None, scale: float | None = None):
    """One prompt (P, D) float32 by ``settings.init``; text_ids are the tokens of ``settings.init_text`` without EOS.

    scale: what a PEFT adapter's prompt is multiplied by (formats/prompts.py).

    'vocabulary': rows drawn without repetition from the first ``init_vocabulary_rows`` [ATTEMPT modeling_t5.py:1759].
    """
    rng = np.random.default_rng([seed, 0x70726F6D])
    length, width = settings.length, embedding_VD.shape[1]
    if settings.init == "uniform":
        scale = settings.init_uniform_scale
        return rng.uniform(-scale, scale, (length, width)).astype(np.float32)
    if settings.init == "file":
        return read_prompt_array(settings.init_file, length, width, scale)
    if settings.init == "text":
        if not text_ids:
            raise UserError("PromptSettings.init = 'text' needs a text: set PromptSettings.init_text.")
        return _embedded(embedding_VD, np.resize(np.array(text_ids), length))
    rows = min(settings.init_vocabulary_rows, len(embedding_VD))
    index = rng.choice(rows, size=length, replace=length > rows)
    return _embedded(embedding_VD, index)


def _embedded(embedding_VD, tokens_P):
    return to_host(jnp.take(jnp.asarray(embedding_VD), tokens_P, axis=0).astype(jnp.float32))


def read_prompt_array(path: str, length: int, width: int, scale: float | None = None) -> np.ndarray:
    """A (P, D) float32 prompt from a file of any format with one prompt: .npy, .npz, PEFT adapter, T5X checkpoint.

    Raises UserError for several prompts, another shape or a missing file.
    """
    try:
        held = prompts.read(path, scale=scale)
    except UserError as error:
        raise UserError(f"PromptSettings.init_file: {error}") from error
    if len(held.task_names) != 1:
        message = f"PromptSettings.init_file = {path!r} holds {len(held.task_names)} prompts ({', '.join(held.task_names)})"
        raise UserError(f"{message}; write one of them to a file: mpt-jax convert --from {path} --to npy --task TASK --output FILE.")
    with jax.ensure_compile_time_eval():  # numbers, also where a program is traced for its shapes alone
        prompt_PD = held.compose()[0]
    if prompt_PD.shape != (length, width):
        message = f"PromptSettings.init_file = {path!r} holds a prompt of shape {prompt_PD.shape}; PROMPT_LENGTH and backbone need"
        raise UserError(f"{message} {(length, width)}.")
    return prompt_PD


def init_factors(settings: PromptSettings, num_tasks: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors cols (N, P, R) and rows (N, R, D) of one group.

    'ones': the first rank is all ones, so P_k = P* and the gradient to P* has full scale; further ranks start with a zero column and
    small random rows, so that they add nothing yet but can learn. 'normal': N(0, scale) for both [PEFT].
    """
    rng = np.random.default_rng([seed, 0x66616374])
    cols = rng.normal(0.0, settings.factor_init_scale, (num_tasks, settings.length, settings.rank))
    rows = rng.normal(0.0, settings.factor_init_scale, (num_tasks, settings.rank, width))
    if settings.factor_init == "ones":
        cols[:], cols[:, :, 0] = 0.0, 1.0
        rows[:, 0, :] = 1.0
    return cols.astype(np.float32), rows.astype(np.float32)


def _factors(settings: PromptSettings, num_tasks: int, width: int, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    return init_factors(settings, num_tasks, width, seed) if settings.rank else (None, None)


def transfer(source: PromptBank, source_names: list[str], settings: PromptSettings, num_targets: int, seed: int) -> PromptBank:
    """The bank (one group, ``num_targets`` tasks) from which targets start, given a source bank.

    Source tasks that share no P* (several groups) are prompts of their own, and what is shared is their mean.

    'mean': P* and the mean of the source factors [MPT 3.2]; 'task': the same of one source task, or of some; 'shared': P* with fresh
    factors.
    A source bank without factors, or rank 0 for the target, gives the composed prompts' mean, one prompt, or the shared one.
    Raises UserError when length, rank or the named task do not fit.
    """
    if len(source.shared_GPD) > 1:
        prompts_NPD = np.asarray(compose_all(source))
        source = PromptBank(prompts_NPD, None, None, np.arange(len(prompts_NPD), dtype=np.int32))
    shared_GPD = np.asarray(source.shared_GPD)
    length, width = shared_GPD.shape[1:]
    if length != settings.length:
        message = f"PROMPT_LENGTH = {settings.length}, but SOURCE_DIR holds prompts of length {length}"
        raise UserError(f"{message}; set --gin.PROMPT_LENGTH={length}.")
    group_N = np.zeros(num_targets, np.int32)
    chosen = list(range(source.num_tasks))
    if settings.transfer == "task":
        named = [settings.transfer_task] if isinstance(settings.transfer_task, str) else list(settings.transfer_task)
        for name in named:
            if name not in source_names:
                raise UserError(f"PromptSettings.transfer_task = {name!r} is not a task of SOURCE_DIR: {', '.join(source_names)}.")
        chosen = [source_names.index(name) for name in named]
    if source.cols_NPR is None or settings.rank == 0:
        prompts_NPD = np.asarray(compose_all(source))[chosen]
        shared = shared_GPD if settings.transfer == "shared" and len(shared_GPD) == 1 else prompts_NPD.mean(axis=0, keepdims=True)
        return PromptBank(shared.astype(np.float32), *_factors(settings, num_targets, width, seed), group_N)
    if settings.transfer == "shared":
        return PromptBank(shared_GPD, *init_factors(settings, num_targets, width, seed), group_N)
    cols, rows = np.asarray(source.cols_NPR)[chosen], np.asarray(source.rows_NRD)[chosen]
    if cols.shape[2] != settings.rank:
        message = f"PromptSettings.rank = {settings.rank}, but SOURCE_DIR's factors have rank {cols.shape[2]}"
        raise UserError(f"{message}; set --gin.PromptSettings.rank={cols.shape[2]}.")
    return PromptBank(shared_GPD, _repeated_mean(cols, num_targets), _repeated_mean(rows, num_targets), group_N)


def _repeated_mean(factors: np.ndarray, times: int) -> np.ndarray:
    """The mean over tasks, float32, for so many tasks."""
    return np.repeat(factors.mean(axis=0, keepdims=True), times, axis=0).astype(np.float32)


METHOD = Method(
    "prompt",
    (
        Part(f"{BANK}shared", GROUP, "prompt"),
        Part(f"{BANK}(cols|rows)", TASK, "factors"),
        Part("teacher/prompts", TASK, FROZEN),
        Part("backbone/.*", None, FROZEN),
    ),
    init,
    Adaptation(adapt, prefix_only=True),
    target_factor_learning_rate=0.4,  # [MPT, low confidence]
    prefix_length=lambda settings: settings.prompt.length,
)
