"""Shapes of the cases by name, the rows that they read, and the operations that a step over these rows needs.

B examples, U different tasks among them, L input tokens, P prompt positions, T target tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.accelerator.cases import NEW_TOKENS, TASKS, Scale
from mpt_jax.compiling.chips import chip_of
from mpt_jax.data.cache import TokenCache
from mpt_jax.model.families import family_of
from mpt_jax.model.families.causal_config import CAUSAL_SIZES, CausalConfig
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import T5_SIZES, T5Config

TINY_T5 = T5Config("tiny", 512, 64, 4, 16, 128, 1, 1, ("relu",), True)
TINY_CAUSAL = CausalConfig("tiny_causal", 512, 64, 2, 4, 2, 16, 128)


def config_of(size: str, tiny: bool) -> T5Config | CausalConfig:
    """The shape of a case."""
    if size == "smollm2":
        return TINY_CAUSAL if tiny else CAUSAL_SIZES["smollm2_135m"]
    return TINY_T5 if tiny else T5_SIZES[size]


def caches_of(folder: Path, scale: Scale) -> list[TokenCache]:
    """Token caches of the source tasks."""
    return [rows.token_cache(folder, scale.rows, f"task{n}", scale.cached_rows, n) for n in range(TASKS)]


def operations(
    network: Network, prompt: int, micro: Sequence[Mapping[str, Any]], beside: bool, decode: bool = False, textbook: bool = False
) -> dict[str, float]:
    """Operations of matrix products over micro-batches: 'computed', padding included, and 'useful', of each row's own length.

    Forward and gradients of inputs are 2 operations each for every multiplication and addition; nothing is counted twice.
    """
    step, found = family_of(network.config).prompt_step, {"computed": 0.0, "useful": 0.0}

    def count(L: int, T: int, share: float) -> float:
        parts = step(network, prompt, L, NEW_TOKENS if decode else T, beside, textbook, share)
        return parts["forward"] if decode else sum(parts.values()) - parts["recomputed"]

    for part in micro:
        (B, L), T = part["inputs_BL"].shape, part["targets_BT"].shape[1]
        share = len(part.get("task_U", part["task_id_B"])) / B
        found["computed"] += B * count(L, T, share)
        lengths = zip(part["input_length_B"], part["target_length_B"], strict=True)
        found["useful"] += sum(count(int(inputs), int(targets), share) for inputs, targets in lengths if inputs)
    return found


def tokens(micro: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Input positions of micro-batches, padding included, and input tokens in them."""
    padded, real = (part["inputs_BL"].size for part in micro), (int(part["input_length_B"].sum()) for part in micro)
    return {"computed": sum(padded), "useful": sum(real)}


def rates(kind: str, needed: Mapping[str, float], seconds: float, reachable: float | None) -> dict[str, Any]:
    """Shares of the data sheet's peak for a device's kind and of the rate that a large product reached (operations a second)."""
    chip, found = chip_of(kind), {"tflops": {name: round(value / seconds / 1e12, 3) for name, value in needed.items()}}
    for name, rate in (("share_of_peak", chip and chip.flops), ("share_of_reachable", reachable)):
        if rate:
            found[name] = {part: round(value / seconds / rate, 4) for part, value in needed.items()}
    return found
