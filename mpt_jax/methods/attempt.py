"""ATTEMPT (arXiv 2205.11961): the task's own prompt and frozen source prompts, mixed for each input by a small attention network.

prompt(x) = P_target + sum_j a_j(x) P_j over the sources and the target itself; a = softmax(max over positions of P_j · g(x) / temperature),
g(x) = LayerNorm(up silu(down max over x's tokens)) [modeling_t5.py, attn_method 'sub']. SOURCE_DIR is a run of prompts, a task each
(stage 'teacher'); they are kept in the checkpoint. T5-Base: 76,800 + 155,136 = 232K; with PromptSettings.shared_over_targets the targets of
a seed share the network: 96K each for 8. LEARNING_RATE is the prompt's, FACTOR_LEARNING_RATE the network's.
N tasks (runs), G groups, B examples, L input tokens, P prompt positions, D model width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import checks
from mpt_jax.methods import prompt
from mpt_jax.methods.method import FROZEN, GROUP, KEPT, MUST, TASK, Method, MethodSettings, Part, Start
from mpt_jax.methods.source_prompts import source_prompts
from mpt_jax.model.families.family import Adaptation, Adapted

PROMPT, SOURCES, TEMPERATURE = "attempt/prompt", "attempt/sources", "attempt/temperature"
NETWORK = "attempt/network/"
EPSILON = 1e-5  # of the layer norm [torch.nn.LayerNorm]


@dataclasses.dataclass(frozen=True)
class AttemptSettings(MethodSettings):
    """The attention network."""

    hidden: int = 100  # width between its matrices [ATTEMPT, modeling_t5.py]
    temperature: float = 2087.0  # of its softmax, D e for T5-Base [ATTEMPT, configs/attempt/sinlge_task.json]

    def __post_init__(self):
        super().__post_init__()
        checks.check_range("AttemptSettings.hidden", self.hidden, 1, 65_536)
        checks.check_range("AttemptSettings.temperature", self.temperature, 1e-3, 1e9)


def init(start: Start) -> dict[str, Any]:
    """A prompt of each task as prompt tuning starts, the network N(0, 0.02) [ours], and the source run's prompts of the same seed."""
    settings, width = start.settings.method, start.network.config.d_model
    groups = []
    for seed in start.seed_G:
        rng = np.random.default_rng([seed, 0x61747470])
        groups.append({
            f"{NETWORK}down": rng.normal(0.0, 0.02, (width, settings.hidden)),
            f"{NETWORK}up": rng.normal(0.0, 0.02, (settings.hidden, width)),
            f"{NETWORK}norm_scale": np.ones(width), f"{NETWORK}norm_bias": np.zeros(width),
            SOURCES: source_prompts(start, seed), TEMPERATURE: np.array(settings.temperature),
        })  # fmt: skip
    arrays = {path: np.stack([group[path] for group in groups]).astype(np.float32) for path in groups[0]}
    return arrays | {PROMPT: jnp.stack([prompt.fresh(start, int(group)) for group in start.group_N])}


def adapt(own: Mapping[str, jax.Array], embedded_BLD, real_BL) -> Adapted:
    """The mixed prompt of each input in front of it."""
    target_BPD = own[PROMPT]
    # every candidate counts its positions' highest numbers: the sources (axis 1), and the target
    all_prompts = jnp.concatenate([own[SOURCES], target_BPD[:, None]], axis=1)
    scores = jnp.einsum("bmd,bd->bm", all_prompts.max(axis=2), _query(own, embedded_BLD, real_BL))
    weights = jax.nn.softmax(scores / own[TEMPERATURE][:, None], axis=-1)
    return Adapted(target_BPD + jnp.einsum("bm,bmpd->bpd", weights, all_prompts), embedded_BLD)


def _query(own: Mapping[str, jax.Array], embedded_BLD, real_BL):
    """What prompts are compared with: (B, D) float32."""
    network = {path.removeprefix(NETWORK): array for path, array in own.items() if path.startswith(NETWORK)}
    embedded_BLD = embedded_BLD.astype(jnp.float32)
    highest_BD = jnp.max(jnp.where(real_BL[..., None], embedded_BLD, -jnp.inf), axis=1, initial=-jnp.inf)
    highest_BD = jnp.where(jnp.isfinite(highest_BD), highest_BD, 0.0)  # of a row that fills a batch up
    hidden = jax.nn.silu(jnp.einsum("bd,bdh->bh", highest_BD, network["down"]))
    made_BD = jnp.einsum("bh,bhd->bd", hidden, network["up"])
    centred_BD = made_BD - made_BD.mean(axis=-1, keepdims=True)
    normed_BD = centred_BD * jax.lax.rsqrt(jnp.mean(jnp.square(centred_BD), axis=-1, keepdims=True) + EPSILON)
    return normed_BD * network["norm_scale"] + network["norm_bias"]


METHOD = Method(
    "attempt",
    (
        Part(PROMPT, TASK, "prompt"),
        Part(f"{NETWORK}.*", GROUP, "factors"),
        Part(f"{SOURCES}|{TEMPERATURE}", GROUP, KEPT),
        Part("teacher/prompts", TASK, FROZEN),
        Part("backbone/.*", None, FROZEN),
    ),
    init, Adaptation(adapt), AttemptSettings,
    factor_learning_rate=0.1,  # [ATTEMPT: attention learning rate]
    from_source=MUST,
    prefix_length=prompt.METHOD.prefix_length,
)  # fmt: skip
