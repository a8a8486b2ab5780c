"""Small decoder-only models, one for each variant of the family, with weights drawn so that every part of them matters."""

import dataclasses

import numpy as np

from mpt_jax.config import Computation
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.model.families.causal_config import CausalConfig, Rotary
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.formats import names
from mpt_jax.model.formats.arrays import unflatten

_SIZE = {"vocab_size": 96, "d_model": 32, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 64}
_GEMMA = {"activation": "gelu", "norm_epsilon": 1e-6, "norm_plus_one": True, "scaled_embedding": True}
_GEMMA_2 = _GEMMA | {"post_norms": True, "query_scale": 0.25, "window": 6}


def _config(**facts) -> CausalConfig:
    return CausalConfig("custom", **_SIZE, **facts)


CONFIGS: dict[str, CausalConfig] = {
    "llama": _config(logits_via_embedding=False),
    "llama31": _config(rotary=Rotary(500_000.0, 8.0, 1.0, 4.0, 64)),
    "linear": _config(rotary=Rotary(10_000.0, 4.0)),
    "mistral": _config(window=6, layer_kinds=("window",) * 4),
    "qwen2": _config(query_key_value_bias=True, norm_epsilon=1e-6, rotary=Rotary(1e6)),
    "qwen3": _config(query_key_norm=True, norm_epsilon=1e-6, rotary=Rotary(1e6)),
    "gemma": _config(**_GEMMA),
    "gemma2": _config(**_GEMMA_2, attention_cap=5.0, logits_cap=3.0, layer_kinds=("window", "full") * 2),
    "gemma3": _config(
        **_GEMMA_2, query_key_norm=True, layer_kinds=("window", "window", "full", "window"), rotary=Rotary(1e6, 8.0),
        window_rotary=Rotary(1e4),
    ),
}  # fmt: skip


def flat_params(config: CausalConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by path; norms around what multiplies by one."""
    rng = np.random.default_rng(seed)
    one = 0.0 if config.norm_plus_one else 1.0
    return {
        entry.ours: rng.normal(0, 0.3, entry.shape).astype(np.float32) + (one if entry.ours.endswith("scale") else 0)
        for entry in names.entries(config)
    }


def params(config: CausalConfig, seed: int = 0) -> dict:
    """The same, nested as a network takes them."""
    return unflatten(flat_params(config, seed).items())


def smaller(name: str, **changes) -> CausalConfig:
    """A variant with other sizes; with another number of layers all of them see everything."""
    kinds = {"layer_kinds": ()} if "num_layers" in changes else {}
    return dataclasses.replace(CONFIGS[name], **kinds | changes)


def given(config: CausalConfig, **computation) -> Network:
    """A network whose examples bring their prompts, ``own(prompts)``."""
    return Network(config, Computation(**computation), GIVEN)


def own(prompts_UPD) -> dict:
    """The parameters of tasks with these prompts."""
    return {"prompt": prompts_UPD}


def rows(seed: int = 0, input_lengths=(5, 9, 3), target_lengths=(4, 2, 3), slots=None) -> Rows:
    """Random tokens of unequal lengths; past a row's end there are real tokens too, which nobody may see."""
    rng = np.random.default_rng(seed)
    inputs, targets = (rng.integers(3, 96, (len(sizes), max(sizes))).astype(np.int32) for sizes in (input_lengths, target_lengths))
    slot_B = None if slots is None else np.array(slots, np.int32)
    return Rows(inputs, np.array(input_lengths, np.int32), targets, np.array(target_lengths, np.int32), slot_B)


def prompts(number: int = 2, length: int = 6, width: int = 32) -> np.ndarray:
    """Random prompts (U, P, D), some in the range of embeddings."""
    return np.random.default_rng(9).normal(0, 0.5, (number, length, width)).astype(np.float32)
