"""Which mesh would fit: an estimate of the memory of a training step for every arrangement of the devices.

The estimate counts what the step keeps (weights, activations for the backward pass, logits) and is scaled by what the compiler
found for the mesh that was asked for.
"""

import math
from typing import NamedTuple

from mpt_jax.compiling.programs import Stage
from mpt_jax.config import Computation, MeshSettings
from mpt_jax.model.attention import kernel_for
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import LOGITS_BYTES, StackSize

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


def stacks_of(stage: Stage) -> tuple[StackSize, ...]:
    """Sizes of the network's stacks with the stage's lengths."""
    config, data = stage.program.backbone.config, stage.settings.data
    return family_of(config).stacks(config, stage.prompt_length + data.input_length, data.target_length)


def kernel_of(computation: Computation, stack: StackSize) -> str:
    """The row of attention.KERNELS that a stack takes."""
    return kernel_for(computation, stack.num_heads, stack.head_dim, stack.queries, stack.keys) if stack.kernel else "einsum"


def estimate(stage: Stage, arrangement: Arrangement) -> float:
    """Bytes of a device."""
    program, data, stacks = stage.program, stage.settings.data, stacks_of(stage)
    computation = program.network.computation
    size = 2 if computation.dtype == "bfloat16" else 4
    parts, t = arrangement.data * arrangement.fsdp, arrangement.tensor
    rows = math.ceil(data.micro_batch_size / parts)
    weights = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in (program.frozen | program.trainable).values())
    layer = weights / max(sum(stack.layers for stack in stacks), 1)
    kept = weights / (arrangement.fsdp * t) + (2 * layer / t if arrangement.fsdp > 1 else 0.0)

    def inside(stack: StackSize) -> float:
        width, heads = stack.num_heads * stack.head_dim / t, stack.num_heads / t
        columns = 4 * stack.d_model + stack.attentions * 4 * width + (3 if stack.gated else 2) * stack.d_ff / t
        written = kernel_of(computation, stack) == "einsum"  # logits and weights
        return stack.queries * size * columns + heads * stack.queries * stack.keys * (4 + size) * written

    if arrangement.remat == "layers":
        between = sum(stack.layers * stack.queries * stack.d_model * size for stack in stacks)
        activations = between + max(map(inside, stacks), default=0.0)
    else:
        activations = sum(stack.layers * inside(stack) for stack in stacks)
    logits = min(4 * data.micro_batch_size * data.target_length * program.backbone.config.vocab_size, LOGITS_BYTES) / (parts * t)
    return kept + rows * activations + logits * (4 if program.objective.distillation else 2)


def arrangements(stage: Stage, devices: int) -> list[Arrangement]:
    """All that divide the devices and the network, those that send least first."""
    stacks, width = stacks_of(stage), stage.program.backbone.config.d_model
    found = []
    for tensor in range(1, devices + 1):
        if devices % tensor or any(stack.num_heads % tensor or stack.d_ff % tensor for stack in stacks):
            continue
        for fsdp in range(1, devices // tensor + 1):
            if devices // tensor % fsdp or any(size % fsdp for size in {width, *(stack.d_model for stack in stacks)}):
                continue
            found += [Arrangement(devices // tensor // fsdp, fsdp, tensor, remat) for remat in REMATS]
    return sorted(found, key=lambda one: (one.fsdp * one.tensor, one.remat != "none", one.tensor))


def candidates(stage: Stage, asked: Arrangement, needed: float | None, hbm_bytes: float) -> list[Arrangement]:
    """Arrangements that should fit, best first; ``needed`` bytes of the one that was asked for, where the compiler told them."""
    scale = max(needed / estimate(stage, asked), 0.5) if needed else 1.0
    devices = asked.data * asked.fsdp * asked.tensor
    fits = [one for one in arrangements(stage, devices) if one != asked and scale * estimate(stage, one) <= 0.9 * hbm_bytes]
    return fits or sorted(arrangements(stage, devices), key=lambda one: estimate(stage, one))[:1]
