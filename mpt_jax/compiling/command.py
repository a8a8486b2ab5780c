"""``mpt-jax compile``: compiles a stage for a topology and reports memory, operations, collectives and a time estimate for a device."""

import contextlib
import dataclasses
import json
import math
from typing import Any

from mpt_jax import distributed, sharding
from mpt_jax.compiling import fitting, hlo
from mpt_jax.compiling.chips import GIB, HERE, Chip, Topology, topology
from mpt_jax.compiling.measure import measure
from mpt_jax.compiling.programs import Compiled, DoesNotFit, Stage, decode_programs, make_mesh, make_stage, micro_batch, train_programs
from mpt_jax.compiling.report import render
from mpt_jax.config import Settings
from mpt_jax.errors import UserError
from mpt_jax.methods.method import TEACHERS
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder
from mpt_jax.model.families import FAMILIES, family_of
from mpt_jax.model.families.family import tasks_of
from mpt_jax.output import descriptor, kept_in_part
from mpt_jax.sharding import whole_rows

TRIES = 3  # other meshes compiled where the one that was asked for does not fit
SOURCES = 6  # tasks of the paper's source stage


def shape_of(name: str) -> Any:
    """The shape of a named size (t5_xl is t5_1_1_xl), or of a backbone's folder, of which no weights are read."""
    sizes = {size: config for family in FAMILIES.values() for size, config in family.sizes.items()}
    if name.startswith("t5_") and name not in sizes:
        name = name.replace("t5_", "t5_1_1_", 1) if name.replace("t5_", "t5_1_1_", 1) in sizes else name
    if name in sizes:
        return sizes[name]
    try:
        return formats.read_backbone(backbone_folder(name))[0]
    except UserError as error:
        raise UserError(f"{error} Sizes that need no folder: {', '.join(sizes)}.") from error


def run_compile(
    settings: Settings,
    topology_name: str,
    tasks: tuple[str, ...],
    decode_rows: int,
    json_path: str = "",
    updates: int = 0,
    decode: bool = True,
) -> str:
    """Compiles, writes the JSON file if asked to, and returns the text. Raises UserError for what the user can mend.

    updates > 0: also runs so many with random weights and tokens, on devices that are there, and measures them. decode: decoding as well,
    which is the same program in all stages.
    """
    where = topology(topology_name)
    if updates and where.devices[0].platform == "tpu" and where.name != HERE:
        raise UserError(f"--measure {updates}: the devices of TOPOLOGY = {where.name!r} are not there; TOPOLOGY = 'here' are.")
    named = list(tasks) or [f"task_{n}" for n in range(SOURCES if settings.train.stage in ("teacher", "source") else 1)]
    stage = make_stage(settings, shape_of(settings.backbone.path), named, make_mesh(settings.mesh, where.devices), decode_rows)
    # opened before the work, which would be lost
    with kept_in_part(json_path, "--json") if json_path else contextlib.nullcontext() as file:
        report = compile_report(stage, where, updates, decode)
        if file:
            file.write(f"{json.dumps(report, indent=2)}\n".encode())
    if descriptor(json_path) != 1:
        return render(report)
    distributed.say(render(report).rstrip("\n"))  # the JSON is what stdout holds
    return ""


def compile_report(stage: Stage, where: Topology, updates: int = 0, decode: bool = True) -> dict[str, Any]:
    """Everything the command reports, as plain JSON values; numbers are those of one device."""
    mesh = stage.mesh
    report = _header(stage, where, mesh)
    try:
        programs = train_programs(stage)
    except DoesNotFit as error:
        return report | {"fits": False, "why": str(error), "needed_bytes": error.needed, "would_fit": _would_fit(stage, where, mesh, error)}
    report["train"] = _train(stage, where, mesh, programs)
    if updates:
        report["train"]["measured"] = _measured(where, report, measure(stage, programs, report["train"]["micro_batches"], updates))
    if decode:
        try:
            report["decode"] = _decode(stage, where, mesh, *decode_programs(stage))
        except DoesNotFit as error:
            return report | {"fits": False, "why": str(error), "needed_bytes": error.needed, "would_fit": "a smaller EVAL_BATCH_SIZE"}
    parts = [report[name] for name in ("train", "decode") if name in report]
    live = max(program["memory"]["live"] for part in parts for program in part["programs"].values())
    # what lies on the device while another program runs: the optimiser's state
    live += report["train"]["programs"]["update"]["memory"]["argument"]
    fits = where.chip is None or live <= where.chip.hbm_bytes
    report |= {"fits": fits, "live_bytes": live}
    if not fits:
        report["would_fit"] = _would_fit(stage, where, mesh, None, live)
    return report


def _header(stage: Stage, where: Topology, mesh) -> dict[str, Any]:
    data, program = stage.settings.data, stage.program
    config, computation = program.backbone.config, program.network.computation
    with sharding.use(mesh):
        kernels = [fitting.kernel_of(computation, stack) for stack in fitting.stacks_of(stage)]
    return {
        "stage": stage.settings.train.stage,
        "backbone": config.name,
        "parameters": config.num_parameters(),
        "topology": where.name,
        "devices": len(where.devices),
        "mesh": dict(mesh.shape),
        "dtype": computation.dtype,
        "remat": computation.remat,
        "attention": kernels[0] if kernels else "einsum",
        "hbm_bytes": where.chip.hbm_bytes if where.chip else None,
        "tasks": len(program.plan.runs),
        "examples": stage.examples,
        "micro_batch": program.spec.micro_batch_size,
        "lengths": {"prompt": stage.prompt_length, "inputs": data.input_length, "targets": data.target_length},
    }


def roofline(chip: Chip | None, flops: float, bytes_accessed: float, sent: float) -> dict[str, Any]:
    """Seconds by what could bound a program, and the longest of them; {} without a data sheet."""
    if chip is None:
        return {}
    seconds = {"flops": flops / chip.flops, "memory": bytes_accessed / chip.hbm_bandwidth, "links": sent / chip.ici_bandwidth}
    bound = max(seconds, key=seconds.get)
    return {"by": seconds, "bound": bound, "seconds": seconds[bound]}


def _program(where: Topology, compiled: Compiled) -> dict[str, Any]:
    found = hlo.collectives(compiled.hlo, len(where.devices))
    table = hlo.by_kind(found)
    sent = sum(row["sent"] for row in table.values())
    return {
        "memory": compiled.memory,
        "flops": compiled.flops,
        "bytes": compiled.bytes_accessed,
        "collectives": table,
        "time": roofline(where.chip, compiled.flops, compiled.bytes_accessed, sent),
        "compile_seconds": compiled.seconds,
    }


def _train(stage: Stage, where: Topology, mesh, programs: list[Compiled]) -> dict[str, Any]:
    accumulate, update = programs
    rows, devices = stage.program.spec.micro_batch_size, len(where.devices)
    micro_batches = math.ceil(stage.examples / rows)
    named = {compiled.name: _program(where, compiled) for compiled in programs}
    result: dict[str, Any] = {"programs": named, "micro_batches": micro_batches}
    kernels = [leaf.shape for path, leaf in stage.program.frozen.items() if path.endswith(("kernel", "embedding"))]
    if kernels:
        gathered = hlo.gathered_weights(hlo.collectives(accumulate.hlo, devices), kernels)
        result["gathered_share_of_backbone"] = gathered / sum(map(math.prod, kernels))
        result["products_with_the_shape_of_a_weight"] = hlo.products_like(accumulate.stablehlo, kernels)
    if stage.prompt_length:
        family, network, data = family_of(stage.program.backbone.config), stage.program.network, stage.settings.data
        P, L, T = stage.prompt_length, data.input_length, data.target_length
        prompts = tasks_of(micro_batch(stage)).shape[0] / rows
        keys_values = stage.settings.backbone.int8 and not family.decoder_only  # see t5.MultiHeadAttention.states
        parts = family.prompt_step(network, P, L, T, TEACHERS in stage.program.frozen, textbook=keys_values, prompts=prompts)
        parts = {name: value * rows / devices for name, value in parts.items()}
        result["need"] = {
            "flops": parts,
            "ratio": accumulate.flops / sum(parts.values()),
            "weight_gradients_would_add": family.weight_gradients(network.config, P, L, T) * rows / devices,
        }
    if where.chip:
        times = [result["programs"][name]["time"]["seconds"] for name in ("accumulate", "update")]
        seconds = micro_batches * times[0] + times[1]
        result |= {"seconds": seconds, "examples_per_second": stage.examples / seconds}
        result["share_of_peak"] = _needed(result) / seconds / where.chip.flops or None
    return result


def _measured(where: Topology, report: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Adds rates to measured seconds."""
    needed = _needed(report["train"])
    measured["examples_per_second"] = report["examples"] / measured["seconds"]
    if where.chip and needed:
        measured["share_of_peak"] = needed / measured["seconds"] / where.chip.flops
    return measured


def _needed(train: dict[str, Any]) -> float:
    """Operations of an update that the products need, without what is computed twice."""
    parts = train.get("need", {}).get("flops", {})
    return train["micro_batches"] * sum(value for name, value in parts.items() if name != "recomputed")


def _decode(stage: Stage, where: Topology, mesh, decode: Compiled, encode: Compiled) -> dict[str, Any]:
    """The compiler counts a loop's body once: decoding less its encoder is one token of every row."""
    result: dict[str, Any] = {"programs": {decode.name: _program(where, decode), encode.name: _program(where, encode)}}
    rows = result["rows"] = whole_rows(mesh, stage.decode_rows)
    if where.chip:
        sent = [sum(row["sent"] for row in result["programs"][name]["collectives"].values()) for name in ("decode", "encode")]
        differences = (decode.flops - encode.flops, decode.bytes_accessed - encode.bytes_accessed, sent[0] - sent[1])
        token = roofline(where.chip, *(max(value, 0.0) for value in differences))["seconds"]
        seconds = result["programs"]["encode"]["time"]["seconds"] + stage.settings.data.target_length * token
        result |= {"seconds_per_token": token, "seconds": seconds, "examples_per_second": rows / seconds}
    return result


def _would_fit(stage: Stage, where: Topology, mesh, error: DoesNotFit | None, live: float | None = None) -> dict[str, Any] | None:
    """The first arrangement that the compiler finds to fit, or None."""
    asked = fitting.Arrangement(*mesh.shape.values(), stage.program.network.computation.remat)
    needed = live if error is None else error.needed
    hbm = where.chip.hbm_bytes if where.chip else math.inf
    with sharding.use(mesh):
        arrangements = fitting.candidates(stage, asked, needed, hbm)[:TRIES]
    for arrangement in arrangements:
        backbone = dataclasses.replace(stage.settings.backbone, remat=arrangement.remat)
        settings = stage.settings._replace(backbone=backbone, mesh=arrangement.mesh)
        tasks, config = [row.task for row in stage.program.plan.runs], stage.program.backbone.config
        other = make_stage(settings, config, tasks, make_mesh(arrangement.mesh, where.devices), stage.decode_rows)
        try:
            accumulate, update = train_programs(other)
        except DoesNotFit:
            continue
        live = accumulate.memory["live"] + update.memory["argument"]
        if live <= hbm:
            return {"settings": arrangement.bindings(), "live_bytes": live, "of_gib": hbm / GIB}
    return None
