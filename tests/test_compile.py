"""``mpt-jax compile`` (compiling/): what the products need (operations.py, t5_operations.py), what programs say (programs.py, hlo.py),
data sheets (chips.py), which mesh fits (fitting.py), running it (measure.py), and the command for devices that are not there
(compiling/command.py, compiling/report.py)."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import types

import jax
import pytest
from stand_ins import ROOT
from tiny_data import sized_cache
from tiny_methods import CAUSAL, FAMILIES, NAMES, settings_of
from tiny_model import CONFIG, tiny, weights

from benchmarks import slices
from mpt_jax.compiling import fitting, hlo
from mpt_jax.compiling.chips import CHIPS, GIB, chip_of, prepare, topology
from mpt_jax.compiling.command import compile_report, roofline, run_compile, shape_of
from mpt_jax.compiling.programs import DoesNotFit, Stage, decode_arguments, make_mesh, make_stage, micro_batch
from mpt_jax.compiling.report import render
from mpt_jax.config import (
    BackboneSettings,
    Computation,
    DataSettings,
    DistillationSettings,
    MeshSettings,
    PromptSettings,
    Settings,
    TrainSettings,
)  # fmt: skip
from mpt_jax.data.batches import make_batch
from mpt_jax.errors import UserError
from mpt_jax.methods.method import BACKBONE, TEACHERS
from mpt_jax.model import attention, formats
from mpt_jax.model.families import t5, t5_operations
from mpt_jax.model.families.t5_config import T5_SIZES
from mpt_jax.train.plan import make_streams
from mpt_jax.train.step import weighted_loss
from mpt_jax.train.terms import terms

ROWS, PROMPT, INPUTS, TARGETS = 2, 3, 5, 4
WIDE = tiny(d_model=48, num_heads=6, d_ff=96, num_encoder_layers=2, num_decoder_layers=2)
TIED = tiny(logits_via_embedding=True, mlp_activations=("relu",), num_encoder_layers=3, num_decoder_layers=2)


def stage_of(config, stage="source", weight=0.9, remat="none", targets=TARGETS) -> Stage:
    settings = Settings(
        TrainSettings(stage, "x"),
        BackboneSettings(remat=remat),
        PromptSettings(length=PROMPT),
        DistillationSettings(weight=weight),
        data=DataSettings(batch_size=ROWS, micro_batch_size=ROWS, feature_lengths={"inputs": INPUTS, "targets": targets}),
    )
    return make_stage(settings, config, ["a", "b"], make_mesh(settings.mesh, topology("here").devices), 2)


def product_operations(jaxpr) -> float:
    """Operations of all dot_general of a program, inner ones too."""
    total = 0.0
    for equation in jaxpr.eqns:
        for inner in _inner(equation):
            total += product_operations(inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    return total


def _inner(equation):
    for value in equation.params.values():
        for candidate in value if isinstance(value, list | tuple) else (value,):
            if hasattr(candidate, "eqns"):
                yield candidate
            elif hasattr(candidate, "jaxpr"):
                yield candidate.jaxpr


def gradient_of(stage):
    program, targets = stage.program, stage.settings.data.target_length
    batch = {"inputs_BL": (ROWS, INPUTS), "targets_BT": (ROWS, targets)}
    batch |= dict.fromkeys(("input_length_B", "target_length_B", "task_id_B"), (ROWS,))
    batch = {name: jax.ShapeDtypeStruct(shape, "int32") for name, shape in batch.items()}
    groups = (program.plan.num_groups,)
    totals = {term.name: jax.ShapeDtypeStruct(groups, "float32") for term in terms(program.objective) if term.weight}
    function = jax.grad(lambda *arguments: weighted_loss(program.objective, *arguments), has_aux=True)
    return function, (program.trainable, program.frozen, batch, totals)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["gated", "relu_tied"])
@pytest.mark.parametrize("weight, remat, targets", [(0.9, "none", 4), (0.0, "none", 4), (0.9, "layers", 4), (0.9, "layers", 2)])
def test_products_of_the_step_are_those_that_are_needed(config, weight, remat, targets):
    stage = stage_of(config, weight=weight, remat=remat, targets=targets)
    function, arguments = gradient_of(stage)
    counted = product_operations(jax.make_jaxpr(function)(*arguments).jaxpr) / ROWS
    assert (TEACHERS in stage.program.frozen) == (weight > 0)
    parts = t5.FAMILY.prompt_step(stage.program.network, PROMPT, INPUTS, targets, weight > 0)
    assert t5_operations.attends_to_states(config, targets) == (targets == 2)
    assert parts["teacher"] == (parts["forward"] if weight else 0) and bool(parts["recomputed"]) == (remat == "layers")
    assert counted == sum(parts.values())


@pytest.mark.parametrize(
    ("method", "stage", "config", "batch_size", "slots"),
    [
        ("lora", "teacher", CONFIG, 4, 4),  # three tasks in one micro-batch
        ("lora", "teacher", CONFIG, 32, 1),  # two micro-batches a task
        ("lora", "teacher", CONFIG, 24, 2),  # the second of five has rows of two
        ("prompt", "source", CAUSAL, 12, 4),
        ("prompt", "teacher", CONFIG, 4, None),  # each row takes its own prompt
    ],
)
def test_the_arrays_that_are_compiled_are_those_of_training_and_of_decoding(method, stage, config, batch_size, slots, tmp_path):
    names, data = ["a", "b", "c"], {"inputs": INPUTS, "targets": TARGETS}
    settings = Settings(
        TrainSettings(stage, "x", method=method), BackboneSettings(), PromptSettings(length=PROMPT), DistillationSettings(weight=0.0),
        data=DataSettings(batch_size, 16, feature_lengths=data, input_buckets=(INPUTS,), target_buckets=(TARGETS,), mixing="equal"),
    )  # fmt: skip
    made = make_stage(settings, config, names, make_mesh(settings.mesh, topology("here").devices), 4)
    caches = {name: sized_cache(tmp_path, 20, name) for name in names}
    streams, spec = make_streams(made.program.plan, caches, settings.data), made.program.spec
    shapes = {name: (leaf.shape, leaf.dtype) for name, leaf in micro_batch(made).items()}
    real = [
        {name: (array.shape, array.dtype) for name, array in micro.items()}
        for step in range(9) for micro in make_batch(streams, step, spec, len(names)).micro
    ]  # fmt: skip
    assert shapes in real and spec.by_task == (slots is not None)
    assert max(shape["task_U"][0][0] if slots else 0 for shape in real) == (slots or 0)
    _, _, own, rows = decode_arguments(made)
    assert {leaf.shape[0] for leaf in own.values()} == {4} and (rows.slot_B is None) == (slots is None)


def test_textbook_operations_keep_keys_and_values_however_few_the_targets():
    few, many = 2, 16
    assert t5_operations.attends_to_states(CONFIG, few) and not t5_operations.attends_to_states(CONFIG, many)
    for targets in (few, many):
        ours, textbook = t5_operations.forward(CONFIG, INPUTS, targets), t5_operations.forward(CONFIG, INPUTS, targets, textbook=True)
        keys_values = 2 * 2 * INPUTS * CONFIG.d_model * CONFIG.num_heads * CONFIG.head_dim * CONFIG.num_decoder_layers
        cross = 2 * 2 * targets * INPUTS * CONFIG.num_heads * CONFIG.num_decoder_layers
        projected = 2 * 2 * targets * CONFIG.d_model * CONFIG.num_heads * CONFIG.head_dim * CONFIG.num_decoder_layers
        saved = keys_values - projected - cross * (CONFIG.d_model - CONFIG.head_dim)
        assert textbook.forward - ours.forward == (saved if targets == few else 0)


def products_like_weights(stage) -> int:
    """Products of the gradient's program, before the compiler, with the shape of one of the backbone's weights."""
    function, arguments = gradient_of(stage)
    weights = (stage.program.frozen | stage.program.trainable).items()
    kernels = [leaf.shape for path, leaf in weights if path.startswith(BACKBONE) and path.endswith(("kernel", "embedding"))]
    return hlo.products_like(jax.jit(function).lower(*arguments).as_text(), kernels)


def test_weight_gradients_would_be_seen():
    for name, seen in (("source", False), ("finetune", True)):
        assert (products_like_weights(stage_of(CONFIG, name)) > 0) == seen


def stage_of_method(name: str, mesh) -> Stage:
    """A method's stage for three tasks, from shapes alone, in sizes that no slot, rank or length shares with a weight."""
    settings = settings_of(name)
    data = dataclasses.replace(settings.data, batch_size=4, micro_batch_size=4)
    backbone = BackboneSettings(attention="einsum", vocabulary="bytes")
    return make_stage(settings._replace(backbone=backbone, data=data), WIDE, ["a", "b", "c"], mesh, 4)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in ("lora:all", "prefix") else pytest.mark.long) for name in NAMES])
def test_no_method_takes_gradients_of_frozen_weights(name):
    stage = stage_of_method(name, make_mesh(MeshSettings(), topology("here").devices))
    assert products_like_weights(stage) == 0
    whole = t5_operations.forward(CONFIG, PROMPT + INPUTS, TARGETS)
    assert t5.FAMILY.weight_gradients(CONFIG, PROMPT, INPUTS, TARGETS) == whole.weights > whole.attention


def test_collectives_of_a_program():
    text = """
  %all-gather.1 = bf16[128,768]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}
  %ag = (f32[16,64]{1,0}, f32[64,64]{1,0:T(8,128)}) all-gather-start(%p1), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %agd = f32[64,64]{1,0} all-gather-done(%ag)
  %ar = (f32[10]{0}, s32[]) all-reduce(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %rs = f32[2,4]{1,0} reduce-scatter(%c), replica_groups=[2,4]<=[8], dimensions={0}
  %cp = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%d), source_target_pairs={{0,1},{1,0}}
  %use = f32[8]{0} fusion(%all-gather.1), kind=kLoop, calls=%fused
"""
    found = hlo.collectives(text, 8)
    assert [(one.kind, one.result_bytes, one.group) for one in found] == [
        ("all-gather", 128 * 768 * 2, 2),
        ("all-gather", 64 * 64 * 4, 4),
        ("all-reduce", 44, 8),
        ("reduce-scatter", 32, 4),
        ("collective-permute", 32, 8),
    ]
    assert [one.sent_bytes for one in found] == [128 * 768, 64 * 64 * 3, 2 * 44 * 7 / 8, 96, 32]
    row = hlo.by_kind(found)["all-gather"]
    assert row["count"] == 2 and row["bytes"] == 128 * 768 * 2 + 64 * 64 * 4
    assert row["largest"] == 128 * 768 * 2 and row["sent"] == 128 * 768 + 64 * 64 * 3
    assert hlo.gathered_weights(found, [(768, 128), (5, 5)]) == 128 * 768


def test_memory_that_the_compiler_lacks_is_read():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    error = DoesNotFit("accumulate", message)
    assert error.needed == 20.5 * GIB and error.available == 15.75 * GIB
    assert DoesNotFit("accumulate", "something else").needed is None


def test_arrangements_that_should_fit():
    stage = stage_of(T5_SIZES["t5_1_1_xl"])
    asked = fitting.Arrangement(16, 1, 1, "none")
    every = fitting.arrangements(stage, 16)
    assert all(one.data * one.fsdp * one.tensor == 16 for one in every) and every[0] == asked and len(set(every)) == len(every)
    assert not any(one.tensor == 16 for one in fitting.arrangements(stage_of(CONFIG), 16))  # it has fewer heads
    weights = 4 * T5_SIZES["t5_1_1_xl"].num_parameters()
    assert fitting.estimate(stage, asked) > weights > fitting.estimate(stage, fitting.Arrangement(1, 1, 16, "none"))
    assert fitting.estimate(stage, asked._replace(remat="layers")) < fitting.estimate(stage, asked)
    found = fitting.candidates(stage, asked, None, 8 * GIB)
    assert asked not in found and found[0].fsdp * found[0].tensor == 2  # 11 GiB of float32 weights, halved
    more = fitting.candidates(stage, asked, 3 * fitting.estimate(stage, asked), 8 * GIB)
    assert more[0].fsdp * more[0].tensor > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_another_mesh_where_one_does_not_fit(family):
    stage, here = stage_of(FAMILIES[family], targets=64), topology("here")
    report = compile_report(stage, here, decode=False)
    assert report["fits"] and report["attention"] == "einsum"
    small = here._replace(chip=CHIPS["v5e"]._replace(hbm_bytes=report["live_bytes"] - 1))
    report = compile_report(stage, small, decode=False)
    assert not report["fits"] and "would_fit" in report and "DOES NOT FIT" in render(report)
    asked = fitting.Arrangement(4, 1, 1, "none")
    memory = 0.8 * fitting.estimate(stage, asked)
    found = fitting.candidates(stage, asked, None, memory)
    assert len(found) > 1 and all(fitting.estimate(stage, one) <= 0.9 * memory for one in found)


def test_the_kernel_is_named_for_the_stacks_that_can_have_it(monkeypatch):
    monkeypatch.setattr(attention, "target_device", lambda: types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite"))
    kernels = {name: {fitting.kernel_of(Computation(), stack) for stack in fitting.stacks_of(stage_of(c))} for name, c in FAMILIES.items()}
    assert kernels == {name: {"fused" if name in ("t5", "umt5") else "einsum"} for name in FAMILIES}


def test_the_longest_of_three_times_bounds():
    chip = CHIPS["v5e"]
    assert roofline(chip, 197e12, 0, 0)["seconds"] == 1 and roofline(chip, 0, 819e9, 0)["bound"] == "memory"
    assert roofline(chip, 1, 1, 200e9)["bound"] == "links" and roofline(None, 1, 1, 1) == {}


def test_data_sheets_of_devices_that_are_there():
    assert chip_of("NVIDIA H100 80GB HBM3").flops == 989e12 and chip_of("NVIDIA A100-SXM4-80GB").hbm_bytes == 80e9
    assert chip_of("NVIDIA A100 80GB PCIe").hbm_bytes == 80e9 and chip_of("NVIDIA A100-PCIE-40GB").hbm_bytes == 40e9
    assert chip_of("NVIDIA H100 NVL").hbm_bytes == 94e9 and chip_of("NVIDIA L4").hbm_bytes == 24e9
    assert chip_of("NVIDIA L40S") is chip_of("NVIDIA L40") is chip_of("NVIDIA GH200 480GB") is None
    assert chip_of("TPU v5 lite") is CHIPS["v5e"] and chip_of("TPU v5") is CHIPS["v5p"] and chip_of("cpu") is None


def test_names():
    assert shape_of("t5_xl") is T5_SIZES["t5_1_1_xl"] and shape_of("t5_base") is T5_SIZES["t5_base"]
    with pytest.raises(UserError, match="'t5_xxxl' is neither.*t5_1_1_xl"):
        shape_of("t5_xxxl")
    prepare("cpu:1")
    assert len(topology("cpu:1").devices) == 1
    assert [device.platform for device in topology("here").devices] == ["cpu"]
    with pytest.raises(UserError, match="'cpu:999': there are 1 CPU devices"):
        topology("cpu:999")
    for name in ("v9:2x2", "v5e:large", "v5e:0x4", "v5e:²", "cpu:many", "cpu:0", "cpu:1x2", "cpu", "tpu", "here:2"):
        for function in (topology, prepare):  # whether the TPU's compiler is installed or not
            with pytest.raises(UserError, match=f"TOPOLOGY = '{name}' is not GENERATION:SHAPE"):
                function(name)
    with pytest.raises(UserError, match="at most 1,024 CPU devices"):
        prepare("cpu:1000000")


def test_a_file_that_cannot_be_written_is_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("mpt_jax.compiling.command.compile_report", None)
    formats.write_backbone("own", str(tmp_path / "backbone"), CONFIG, weights(CONFIG), "bytes")
    settings = Settings(TrainSettings("teacher", "x"), BackboneSettings(str(tmp_path / "backbone")), PromptSettings(length=PROMPT))
    for path, message in ((str(tmp_path), "is a folder"), ("/proc/x", "cannot be written")):
        with pytest.raises(UserError, match=f"--json '.*' {message}"):
            run_compile(settings, "here", ["a"], 2, path)


def compiled(folder, topology_name, config, *more):
    """The command in a process of its own; the JSON and what it printed."""
    formats.write_backbone("own", str(folder / "backbone"), config, weights(config), "bytes")
    bindings = {"BACKBONE": str(folder / "backbone"), "TOPOLOGY": topology_name, "PROMPT_LENGTH": 4}
    bindings |= {"TASK_FEATURE_LENGTHS": {"inputs": 12, "targets": 4}, "EVAL_BATCH_SIZE": 8}
    argv = ["compile", "--gin_file=source.gin", *(f"--gin.{name}={value!r}" for name, value in bindings.items()), *more]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(
        [sys.executable, "-m", "mpt_jax", *argv, "--json", str(folder / "r.json")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "r.json").read_text()), done.stdout


@pytest.mark.slow
def test_the_command_for_pretend_devices(tmp_path):
    report, text = compiled(tmp_path, "cpu:8", CONFIG, "--gin.MESH_TENSOR=2", "--measure", "1")
    assert report["mesh"] == {"data": 4, "fsdp": 1, "tensor": 2} and report["tasks"] == 6 and report["examples"] == 32
    assert report["train"]["micro_batches"] == 4 and report["fits"] and "fits: " in text
    measured = report["train"]["measured"]
    assert measured["examples_per_second"] == 32 / measured["seconds"] and "measured: " in text
    accumulate = report["train"]["programs"]["accumulate"]
    assert accumulate["memory"]["argument"] > 0 and accumulate["collectives"]["all-reduce"]["count"] > 0
    assert report["train"]["products_with_the_shape_of_a_weight"] == 0
    assert report["train"]["gathered_share_of_backbone"] < 0.5 and {"decode", "encode"} == set(report["decode"]["programs"])


@pytest.mark.long
def test_teachers_that_ran_before_are_no_part_of_the_step(tmp_path):
    report, _ = compiled(tmp_path, "cpu:2", CONFIG, "--gin.DistillationSettings.teacher_mode='cached'", "--train_only", "--measure", "1")
    parts = report["train"]["need"]["flops"]
    assert parts["teacher"] == 0 < parts["forward"] and report["train"]["measured"]["seconds"] > 0


libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'mpt_jax[tpu]'")


@libtpu
@pytest.mark.slow
def test_the_command_for_a_tpu_slice(tmp_path, capsys):
    report, text = compiled(tmp_path, "v5e:2x2", CONFIG, "--gin.MESH_TENSOR=2", "--gin.DTYPE='bfloat16'")
    assert report["devices"] == 4 and report["hbm_bytes"] == 16 * GIB and report["fits"]
    assert report["train"]["examples_per_second"] > 0 and report["decode"]["seconds_per_token"] > 0
    assert "at least" in text and "examples/s of all devices" in text and "attention fused" in text
    slices.main([str(tmp_path / "r.json")])
    head, rule, row, *_, decoded = capsys.readouterr().out.splitlines()
    assert len(head.split(" | ")) == len(rule.split("|")) - 2 == len(row.split(" | "))
    assert decoded.startswith("| tiny, v5e:2x2, 2 × 2 | 8 |")


@libtpu
@pytest.mark.slow
def test_a_slice_that_is_too_small_gets_another_mesh(tmp_path):
    """Shapes alone: 10 thousand million weights in one layer do not fit beside one another, and do in four parts."""
    settings = Settings(
        TrainSettings("target", "x"),
        BackboneSettings(dtype="bfloat16"),
        PromptSettings(length=4),
        data=DataSettings(batch_size=4, micro_batch_size=4, feature_lengths={"inputs": 12, "targets": 4}),
    )
    wide = dataclasses.replace(T5_SIZES["t5_1_1_xxl"], num_encoder_layers=1, num_decoder_layers=1, d_ff=2**18 + 2**17)
    prepare("v5e:2x2")
    where = topology("v5e:2x2")
    report = compile_report(make_stage(settings, wide, ["a"], make_mesh(MeshSettings(), where.devices), 4), where)
    assert not report["fits"] and report["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    other = report["would_fit"]
    assert other["live_bytes"] < 16 * GIB and "--mesh_data 4 --mesh_fsdp 1 --mesh_tensor 1" not in other["settings"]
    assert "DOES NOT FIT in 16 GiB" in render(report) and other["settings"] in render(report)


@libtpu
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_method_compiles_for_a_tpu_slice(name):
    prepare("v5e:2x2")
    where = topology("v5e:2x2")
    report = compile_report(stage_of_method(name, make_mesh(MeshSettings(fsdp=2), where.devices)), where, decode=False)
    assert report["fits"] and report["train"]["products_with_the_shape_of_a_weight"] == 0
