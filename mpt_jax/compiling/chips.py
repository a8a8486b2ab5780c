"""Devices that are not there: topologies by name, and the data sheets of their chips."""

import importlib.util
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from mpt_jax.errors import UserError


class Chip(NamedTuple):
    """A chip's data sheet: bfloat16 FLOP/s, bytes of HBM, bytes/s of HBM, bytes/s it can send to its neighbours over all links."""

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    ici_bandwidth: float


GIB = 2**30

# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Of the links' bandwidth, which those pages give for both directions together
# (v5e 400 GB/s, v5p 1200 GB/s) or in bits (v6e 3200 Gbit/s), one direction; v4: 6 links of 50 GB/s, arXiv 2304.01433 table 4.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
}


class Topology(NamedTuple):
    """Devices to compile for, and the share of a chip that each is (v4 shows its two cores); chip is None for pretend CPU devices."""

    name: str
    devices: list[Any]
    chip: Chip | None


def prepare(name: str) -> None:
    """Sets what JAX reads when it starts, for ``topology(name)`` later on. Raises UserError where the TPU's compiler is not installed."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # no device is asked for
    kind, _, shape = name.partition(":")
    if kind == "cpu" and shape.isdigit():
        flags = os.environ.get("XLA_FLAGS", "")
        if "host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={shape}".strip()
        return
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        raise UserError(f"TOPOLOGY = {name!r} needs the TPU's compiler, a Python package: pip install \"mpt_jax[tpu]\" (libtpu).")
    os.environ.setdefault("TPU_LIBRARY_PATH", str(Path(found.origin).parent / "libtpu.so"))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server outside of Google's cloud
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def topology(name: str) -> Topology:
    """Devices of 'v5e:4x4', 'v4:2x2x2' and the like, or 'cpu:8'. Raises UserError for what is not known; call ``prepare`` first."""
    import jax
    from jax.experimental import topologies

    kind, _, shape = name.partition(":")
    if kind == "cpu":
        devices = jax.devices("cpu")
        if not shape.isdigit() or not 0 < int(shape) <= len(devices):
            raise UserError(f"TOPOLOGY = {name!r}: there are {len(devices)} CPU devices; XLA_FLAGS sets another number.")
        return Topology(name, devices[: int(shape)], None)
    if kind not in CHIPS or not all(side.isdigit() for side in shape.split("x")):
        raise UserError(f"TOPOLOGY = {name!r} is not GENERATION:SHAPE, as v5e:4x4 or v5p:2x2x2; generations: {', '.join(CHIPS)}, or cpu:8.")
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"TOPOLOGY = {name!r}: {' '.join(str(error).split())}") from error
    devices = list(described.devices)
    share = math.prod(map(int, shape.split("x"))) / len(devices)
    return Topology(name, devices, Chip(*(value * share for value in CHIPS[kind])))
