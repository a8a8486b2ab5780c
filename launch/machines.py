"""The table of machine types: TPU slices (TPU VM and GKE) and hosts with GPUs.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} for topologies, accelerator types and chips of a VM;
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus for GKE's labels; cloud.google.com/tpu/docs/runtimes for runtime versions.
"""

from math import prod
from typing import NamedTuple

from mpt_jax.launch.calls import LaunchError


class Generation(NamedTuple):
    """A TPU generation as gcloud and GKE name it. ``cores`` a chip: v4 and v5p count TensorCores in the accelerator type."""

    gcloud: str
    cores: int
    runtime: str
    gke_accelerator: str
    whole_host: int  # chips of the largest single-host VM; larger slices have 4 chips a VM
    topologies: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4, _CUBES),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 8, _FLAT),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 4, _CUBES),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 8, _FLAT),
}


class Slice(NamedTuple):
    """A TPU slice: what to ask gcloud and GKE for, and how many hosts of how many chips it has."""

    accelerator_type: str
    runtime: str
    gke_accelerator: str
    topology: str
    chips: int
    hosts: int

    @property
    def chips_per_host(self) -> int:
        """Chips of each host."""
        return self.chips // self.hosts


class GpuHost(NamedTuple):
    """A host with GPUs: how many, and GKE's label of their kind."""

    gpus: int
    gke_accelerator: str


GPU_HOSTS = {  # cloud.google.com/compute/docs/gpus: a2-highgpu, a2-ultragpu, a3-highgpu, a3-ultragpu, g2-standard
    "a100x8": GpuHost(8, "nvidia-tesla-a100"),
    "a100_80gx8": GpuHost(8, "nvidia-a100-80gb"),
    "h100x8": GpuHost(8, "nvidia-h100-80gb"),
    "h200x8": GpuHost(8, "nvidia-h200-141gb"),
    "l4x4": GpuHost(4, "nvidia-l4"),
    "l4x1": GpuHost(1, "nvidia-l4"),
}


def tpu_slice(name: str) -> Slice:
    """The slice 'GENERATION:TOPOLOGY', for example 'v5e:4x4'. Raises LaunchError naming the known ones."""
    generation, _, topology = name.partition(":")
    row = GENERATIONS.get(generation)
    if row is None or topology not in row.topologies:
        known = f"v5e:4x4; {generation}: {', '.join(row.topologies)}" if row else f"generations {', '.join(GENERATIONS)}, as in v5e:4x4"
        raise LaunchError(f"--type {name!r} is not a TPU slice; known: {known}.")
    chips = prod(int(side) for side in topology.split("x"))
    hosts = 1 if chips <= row.whole_host else chips // 4
    return Slice(f"{row.gcloud}-{chips * row.cores}", row.runtime, row.gke_accelerator, topology, chips, hosts)


def gpu_host(name: str) -> GpuHost:
    """The host with GPUs of that name. Raises LaunchError naming the known ones."""
    if name not in GPU_HOSTS:
        raise LaunchError(f"--type {name!r} is not a host with GPUs; known: {', '.join(GPU_HOSTS)}.")
    return GPU_HOSTS[name]
