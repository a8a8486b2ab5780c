"""Which mesh would fit: an estimate of the memory of a training step for every arrangement of the devices.

The estimate counts what the step keeps (weights, activations for the backward pass, logits) and is scaled by what the compiler
found for the mesh that was asked for. S encoder positions, T target tokens, V vocabulary.
"""

import math
from typing import NamedTuple

from mpt_jax.compiling.programs import Stage
from mpt_jax.config import MeshSettings
from mpt_jax.model.attention import kernel_for

REMATS = ("none", "layers")


class Arrangement(NamedTuple):
    """Devices along each axis, and rematerialisation."""

    data: int
    fsdp: int
    tensor: int
    remat: str

    @property
    def mesh(self) -> MeshSettings:
        """As settings."""
        return MeshSettings(self.data, self.fsdp, self.tensor)

    def bindings(self) -> str:
        """As one would type it."""
        mesh = f"--mesh_data {self.data} --mesh_fsdp {self.fsdp} --mesh_tensor {self.tensor}"
        return f"{mesh} --remat {self.remat}"


def estimate(stage: Stage, arrangement: Arrangement) -> float:
    """Bytes of a device."""
    program, data = stage.program, stage.settings.data
    config, computation = program.backbone.config, program.network.computation
    size = 2 if computation.dtype == "bfloat16" else 4
    parts, t = arrangement.data * arrangement.fsdp, arrangement.tensor
    rows = math.ceil(data.micro_batch_size / parts)
    S, T = stage.prompt_length + data.input_length, data.target_length
    weights = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in (program.frozen | program.trainable).values())
    layer = weights / (config.num_encoder_layers + config.num_decoder_layers)
    kept = weights / (arrangement.fsdp * t) + (2 * layer / t if arrangement.fsdp > 1 else 0.0)

    def inside(queries: int, keys: int, attentions: int) -> float:
        width, heads = config.num_heads * config.head_dim / t, config.num_heads / t
        streams = queries * size * (4 * config.d_model + attentions * 4 * width + (3 if config.gated else 2) * config.d_ff / t)
        written = kernel_for(computation, config.num_heads, config.head_dim, queries, keys) == "einsum"  # logits and weights
        return streams + heads * queries * keys * (4 + size) * attentions * written

    per_layer = ((config.num_encoder_layers, S, inside(S, S, 1)), (config.num_decoder_layers, T, inside(T, S, 2)))
    if arrangement.remat == "layers":
        between = sum(layers * queries * config.d_model * size for layers, queries, _ in per_layer)
        activations = between + max(whole for *_, whole in per_layer)
    else:
        activations = sum(layers * whole for layers, _, whole in per_layer)
    logits = T * config.vocab_size / t * 4 * (4 if program.objective.distillation else 2)
    return kept + rows * (activations + logits)


def arrangements(stage: Stage, devices: int) -> list[Arrangement]:
    """All that divide the devices and the network, those that send least first."""
    config = stage.program.backbone.config
    found = []
    for tensor in range(1, devices + 1):
        if devices % tensor or config.num_heads % tensor or config.d_ff % tensor:
            continue
        for fsdp in range(1, devices // tensor + 1):
            if devices // tensor % fsdp or config.d_model % fsdp:
                continue
            found += [Arrangement(devices // tensor // fsdp, fsdp, tensor, remat) for remat in REMATS]
    return sorted(found, key=lambda one: (one.fsdp * one.tensor, one.remat != "none", one.tensor))


def candidates(stage: Stage, asked: Arrangement, needed: float | None, hbm_bytes: float) -> list[Arrangement]:
    """Arrangements that should fit, best first; ``needed`` bytes of the one that was asked for, where the compiler told them."""
    scale = max(needed / estimate(stage, asked), 0.5) if needed else 1.0
    devices = asked.data * asked.fsdp * asked.tensor
    fits = [one for one in arrangements(stage, devices) if one != asked and scale * estimate(stage, one) <= 0.9 * hbm_bytes]
    return fits or sorted(arrangements(stage, devices), key=lambda one: estimate(stage, one))[:1]
