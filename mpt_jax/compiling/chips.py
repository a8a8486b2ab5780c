"""Devices to compile for: topologies that are not there by name, or this machine's own, and the data sheets of their chips."""

import importlib.util
import os
import re
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
HERE = "here"  # TOPOLOGY of the devices that this machine has

# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Of the links' bandwidth, which those pages give for both directions together
# (v5e 400 GB/s, v5p 1200 GB/s) or in bits (v6e 3200 Gbit/s), one direction; v4: 6 links of 50 GB/s, arXiv 2304.01433 table 4.
CHIPS = {
    "v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
}

# by words of the device's kind as JAX gives it, the first row that fits: NVIDIA's data sheets, dense bfloat16, SXM where no other form
# is named; NVLink in one direction
GPUS = {
    "H200 NVL": Chip(835e12, 141e9, 4800e9, 450e9),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "H100 NVL": Chip(835e12, 94e9, 3900e9, 300e9),
    "H100 PCIe": Chip(756e12, 80e9, 2000e9, 300e9),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "A100-SXM4-80GB": Chip(312e12, 80e9, 2039e9, 300e9),
    "A100 80GB": Chip(312e12, 80e9, 1935e9, 300e9),
    "A100": Chip(312e12, 40e9, 1555e9, 300e9),
    "L4": Chip(121e12, 24e9, 300e9, 32e9),
}
MOST_CPUS = 1024  # pretend devices [ours]
KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}  # device kinds of TPUs


def chip_of(kind: str) -> Chip | None:
    """The data sheet of a device that is there, by JAX's name of its kind; None if there is none here."""
    if kind in KINDS:
        return CHIPS[KINDS[kind]]
    return next((chip for part, chip in GPUS.items() if re.search(rf"(?<!\w){re.escape(part)}(?!\w)", kind)), None)


class Topology(NamedTuple):
    """Devices to compile for, each a whole chip; chip is None for pretend CPU devices."""

    name: str
    devices: list[Any]
    chip: Chip | None


def _parts(name: str) -> tuple[str, str]:
    """(generation, shape) of a topology's name. Raises UserError for one that no compiler knows."""
    kind, _, shape = name.partition(":")
    sides = shape.split("x")
    whole = all(side.isascii() and side.isdigit() and 0 < int(side[:9]) for side in sides)
    if name != HERE and not (whole and (kind in CHIPS or (kind == "cpu" and len(sides) == 1))):
        known = f"generations: {', '.join(CHIPS)}; or cpu:8, here"
        raise UserError(f"TOPOLOGY = {name!r} is not GENERATION:SHAPE, as v5e:4x4 or v5p:2x2x2; {known}.")
    if kind == "cpu" and int(shape[:9]) > MOST_CPUS:
        raise UserError(f"TOPOLOGY = {name!r}: at most {MOST_CPUS:,} CPU devices are made; each takes memory and threads.")
    return kind, shape


def prepare(name: str) -> None:
    """Sets what JAX reads when it starts, for ``topology(name)`` later on. Raises UserError where the TPU's compiler is not installed."""
    import jax

    kind, shape = _parts(name)
    if kind == HERE:
        return
    jax.config.update("jax_platforms", "cpu")  # no device is asked for
    if kind == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")
        if "host_platform_device_count" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={shape}".strip()
        return
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        raise UserError(f"TOPOLOGY = {name!r} needs the TPU's compiler, a Python package: pip install \"mpt_jax[tpu]\" (libtpu).")
    jax.config.update("jax_enable_compilation_cache", False)  # without the devices nothing of it can be read back
    os.environ.setdefault("TPU_LIBRARY_PATH", str(Path(found.origin).parent / "libtpu.so"))
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several compilations at once: no device is taken
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server outside of Google's cloud
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "none")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def topology(name: str) -> Topology:
    """Devices of 'v5e:4x4', 'v4:2x2x2' and the like, 'cpu:8' or 'here'. Raises UserError for what is not known; call ``prepare`` first."""
    import jax
    from jax.experimental import topologies

    kind, shape = _parts(name)
    if kind == HERE:
        return Topology(name, jax.devices(), chip_of(jax.devices()[0].device_kind))
    if kind == "cpu":
        devices = jax.devices("cpu")
        if int(shape) > len(devices):
            raise UserError(f"TOPOLOGY = {name!r}: there are {len(devices)} CPU devices; XLA_FLAGS sets another number.")
        return Topology(name, devices[: int(shape)], None)
    try:
        # v4 has two cores a chip, which meshes take as one device
        more: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
        if set(shape.split("x")) == {"1"}:  # a host of one chip
            more["chips_per_host_bounds"] = (1, 1, 1)
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"TOPOLOGY = {name!r}: {' '.join(str(error).split())}") from error
    return Topology(name, list(described.devices), CHIPS[kind])
