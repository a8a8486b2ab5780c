"""Task prompt vectors (arXiv 2408.01119) as DTVG (arXiv 2503.18063) groups them: a target takes what similar sources learned.

A vector is a tuned prompt minus the prompt that it started from. The target's prompt is that start, plus its own change, plus the vectors
of its group, each times a learned number for every position. The group is found anew in every step: in the order of their similarity
(cosine) to the target's own change, sources join that are similar to it and to all that joined. How DTVG's authors do it in detail was
not readable; parts marked [ours] are choices. SOURCE_DIR is a run of prompts from one common start (stage 'teacher', one seed); start and
vectors are kept in the checkpoint. T5-Base with 6 sources: 76,800 + 600 = 77.4K, 0.035 % as DTVG's.
N tasks (runs), G groups, U different tasks (runs), P prompt positions, D model width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import checks
from mpt_jax.config import PromptSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt
from mpt_jax.methods.method import FROZEN, GROUP, KEPT, MUST, TASK, Method, MethodSettings, Part, Start
from mpt_jax.methods.source_prompts import source_prompts
from mpt_jax.model.families.family import Adaptation, Adapted

CHANGE, SCALE = "vectors/change", "vectors/scale"  # (N, P, D), (N, sources, P)
BEGIN, SOURCES, THRESHOLD = "vectors/start", "vectors/sources", "vectors/threshold"  # (G, P, D), (G, sources, P, D), (G,)


@dataclasses.dataclass(frozen=True)
class VectorSettings(MethodSettings):
    """When sources join, and what they count at first."""

    threshold: float = 0.0  # the cosine from which on two vectors are similar [ours]
    scale_init: float = 0.0  # of a source's vector [ours: joining changes nothing at first]

    def __post_init__(self):
        super().__post_init__()
        checks.check_range("VectorSettings.threshold", self.threshold, -1.0, 1.0)
        checks.check_range("VectorSettings.scale_init", self.scale_init, -1e3, 1e3)


def init(start: Start) -> dict[str, Any]:
    """The common start of the sources, their vectors, and a change of zeros."""
    settings, tasks = start.settings.method, len(start.group_N)
    begins = [common_start(start, seed) for seed in start.seed_G]
    vectors = [source_prompts(start, seed) - begin for seed, begin in zip(start.seed_G, begins, strict=True)]
    number, length, width = vectors[0].shape
    arrays = {
        BEGIN: np.stack(begins), SOURCES: np.stack(vectors), THRESHOLD: np.full(len(begins), settings.threshold),
        CHANGE: np.zeros((tasks, length, width)), SCALE: np.full((tasks, number, length), settings.scale_init),
    }  # fmt: skip
    return {path: array.astype(np.float32) for path, array in arrays.items()}


def common_start(start: Start, seed: int) -> np.ndarray:
    """The prompt (P, D) that the source run's prompts of a seed started from. Raises UserError where they had none in common."""
    if start.source is None:  # shapes alone
        return np.zeros((start.settings.prompt.length, start.network.config.d_model), np.float32)
    run = start.source[1]
    known, told = {field.name for field in dataclasses.fields(PromptSettings)}, (run.get("settings") or {}).get("prompt") or {}
    settings = PromptSettings(**{name: value for name, value in told.items() if name in known})
    if settings.rank and settings.factor_init != "ones":
        message = f"METHOD = 'vectors': the prompts of SOURCE_DIR started from factors by factor_init {settings.factor_init!r}"
        raise UserError(f"{message}, each from a prompt of its own; take sources with factor_init 'ones', or rank 0.")
    if settings.transfer != "none" or settings.init not in ("vocabulary", "uniform"):
        message = f"METHOD = 'vectors': the prompts of SOURCE_DIR started from init {settings.init!r} with transfer {settings.transfer!r}"
        raise UserError(f"{message}; take those of stage 'teacher' with init 'vocabulary' or 'uniform', which start from one prompt.")
    seeds = [row["seed"] for row in run["runs"]]
    return prompt.init_prompt(settings, start.backbone["token_embedder"]["embedding"], seed if seed in seeds else seeds[0])


def adapt(own: Mapping[str, jax.Array], embedded_BLD, real_BL) -> Adapted:
    """Each task's prompt in front of its inputs."""
    members = jax.lax.stop_gradient(group_of(own[CHANGE], own[SOURCES], own[THRESHOLD]))
    added = jnp.einsum("um,ump,umpd->upd", members, own[SCALE], own[SOURCES])
    return Adapted(own[BEGIN] + own[CHANGE] + added, embedded_BLD)


def group_of(change_UPD, sources, threshold_U):
    """Which sources (U, sources, P, D) are of a task's group: 1 or 0 (U, sources) float32."""
    whole = jnp.concatenate([change_UPD[:, None], sources], axis=1)
    flat = whole.reshape(*whole.shape[:2], -1)
    length = jnp.sqrt(jnp.sum(jnp.square(flat), axis=-1, keepdims=True))
    unit = flat / jnp.where(length > 0, length, 1.0)
    similar = jnp.sum(unit[:, :, None] * unit[:, None], axis=-1)  # of two each, the target the first
    to_target, between = similar[:, 0, 1:], similar[:, 1:, 1:]
    order = jnp.argsort(-to_target, axis=-1)
    members = jnp.zeros_like(to_target)
    for place in range(sources.shape[1]):
        here = jax.nn.one_hot(order[:, place], sources.shape[1])
        fits = jnp.sum(here * to_target, axis=-1) > threshold_U
        others = jnp.sum(here[:, :, None] * between, axis=1)
        fits &= jnp.all((members == 0) | (others > threshold_U[:, None]), axis=-1)
        members = members + here * fits[:, None]
    return members


METHOD = Method(
    "vectors",
    (
        Part(f"{CHANGE}|{SCALE}", TASK, "prompt"),
        Part(f"{BEGIN}|{SOURCES}|{THRESHOLD}", GROUP, KEPT),
        Part("teacher/prompts", TASK, FROZEN),
        Part("backbone/.*", None, FROZEN),
    ),
    init, Adaptation(adapt, prefix_only=True), VectorSettings,
    from_source=MUST, reads_init=False, prefix_length=prompt.METHOD.prefix_length,
)  # fmt: skip
