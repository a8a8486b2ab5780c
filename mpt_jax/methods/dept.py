"""DePT (arXiv 2309.05173): a short prompt, and a low-rank product added to the embedded input, a row for each position.

T5-Base with PROMPT_LENGTH 60, rank 30 and inputs of 256 tokens: 76,800, as plain prompt tuning with 100 vectors. Two learning rates:
LEARNING_RATE of the prompt, FACTOR_LEARNING_RATE of the product (and of MPT's factors, with PROMPT_RANK 1 or more). Positions past the
longest input of training (TASK_FEATURE_LENGTHS) are left as they are. The product is of positions, not of tokens, so no embedding table can
hold it.
N tasks (runs), G groups, L input tokens, R rank, D model width, B examples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpt_jax import checks
from mpt_jax.config import MOST_RANK
from mpt_jax.methods import prompt
from mpt_jax.methods.method import GROUP, Method, MethodSettings, Part, Start
from mpt_jax.model.families.family import Adaptation, Adapted

DOWN, UP = "dept/down", "dept/up"  # (G, L, R) and (G, R, D)


@dataclasses.dataclass(frozen=True)
class DeptSettings(MethodSettings):
    """The low-rank product."""

    rank: int = 30  # R [DePT, train.py: r]

    def __post_init__(self):
        super().__post_init__()
        checks.check_range("DeptSettings.rank", self.rank, 1, MOST_RANK)


def init(start: Start) -> dict[str, Any]:
    """The prompt as in prompt tuning; the product is zero: ``down`` uniform within 1 / sqrt(R) [ours], ``up`` zeros [DePT, train.py]."""
    settings, (groups, width) = start.settings.method, (len(start.seed_G), start.network.config.d_model)
    shape, bound = (start.settings.data.input_length, settings.rank), settings.rank**-0.5
    down = [np.random.default_rng([seed, 0x64657074]).uniform(-bound, bound, shape) for seed in start.seed_G]
    product = {DOWN: np.stack(down).astype(np.float32), UP: np.zeros((groups, settings.rank, width), np.float32)}
    return prompt.init(start) | product


def adapt(own: Mapping[str, jax.Array], embedded_BLD, real_BL) -> Adapted:
    """The prompt in front of inputs with the product's rows added."""
    found, length = prompt.adapt(own, embedded_BLD, real_BL), embedded_BLD.shape[1]
    down_BLR = own[DOWN][:, :length]
    added_BLD = jnp.einsum("blr,brd->bld", down_BLR, own[UP])
    added_BLD = jnp.pad(added_BLD, ((0, 0), (0, length - down_BLR.shape[1]), (0, 0)))
    return found._replace(embedded_BLD=embedded_BLD + added_BLD.astype(embedded_BLD.dtype))


METHOD = Method(
    "dept", (Part("dept/.*", GROUP, "factors"), *prompt.METHOD.parts), init, Adaptation(adapt), DeptSettings,
    factor_learning_rate=5e-4,  # [DePT 4.1: 1e-4 .. 5e-4]
    prefix_length=prompt.METHOD.prefix_length,
)  # fmt: skip
