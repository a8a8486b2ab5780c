"""The benchmark of one accelerator: what it counts, what it leaves out, and that it runs to lines of JSON."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.accelerator import cases, programs, sizes
from benchmarks.accelerator.jax_side import Side
from mpt_jax.config import Computation
from mpt_jax.model.families.family import Network


def _micro(lengths: list[int], bucket: int) -> dict[str, np.ndarray]:
    count = len(lengths)
    return {
        "inputs_BL": np.zeros((count, bucket), np.int32), "input_length_B": np.array(lengths), "task_id_B": np.zeros(count, np.int32),
        "targets_BT": np.zeros((count, 8), np.int32), "target_length_B": np.array([8 if length else 0 for length in lengths]),
    }  # fmt: skip


@pytest.mark.parametrize("size", ["t5_base", "smollm2"])
def test_padding_is_computed_and_not_useful(size):
    network = Network(sizes.config_of(size, False), Computation("bfloat16"))
    full = sizes.operations(network, 100, [_micro([256, 256], 256)], beside=False)
    assert full["useful"] == full["computed"] > 0
    padded = sizes.operations(network, 100, [_micro([256, 0], 256)], beside=False)
    assert padded["computed"] == full["computed"] and padded["useful"] == pytest.approx(full["computed"] / 2, rel=1e-6)
    assert sizes.tokens([_micro([3, 5], 16)]) == {"computed": 32, "useful": 8}


def test_a_weight_costs_four_operations_for_each_multiply_add():
    """The encoder of T5-Large: 12 D^2 weights a layer (F = 4 D), at 356 positions; nothing else is as large."""
    network = Network(sizes.config_of("t5_large", False), Computation("bfloat16"))
    needed = sizes.operations(network, 100, [_micro([256], 256)], beside=False)["computed"]
    encoder = 4 * 24 * 12 * 1024**2 * 356
    assert encoder < needed < 1.2 * encoder


def test_peak_and_reached_rate_give_shares():
    found = sizes.rates("NVIDIA H100 80GB HBM3", {"computed": 989e12, "useful": 494.5e12}, 2.0, 700e12)
    assert found["share_of_peak"] == {"computed": 0.5, "useful": 0.25}
    assert found["share_of_reachable"]["computed"] == pytest.approx(989 / 1400, abs=1e-4)
    assert sizes.rates("a new chip", {"computed": 1e12}, 1.0, None) == {"tflops": {"computed": 1.0}}


def test_only_takes_cases_by_parts_of_their_names():
    waves, peft = cases.chosen("t5_large, decode")
    assert [case.name for wave in waves for case in wave] == [
        "t5_large source cached", "t5_large attention", "t5_large dense", "t5_large source cached fused",
        "t5_base decode", "smollm2 decode", "t5_large source beside",
    ]  # fmt: skip
    assert [case.name for case in peft] == ["t5_large target peft"]


def test_what_does_not_fit_the_budget_is_told_and_left_out(tmp_path, capsys, monkeypatch):
    side = Side(tmp_path, cases.TINY._replace(tiny=False), 50.0)
    monkeypatch.setattr(side, "left", lambda: 50.0)
    wave = [cases.Case("long", "jax", "step", 60.0), cases.Case("short", "jax", "step", 20.0)]
    assert [case.name for case in side.fits(wave)] == ["short"]
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["case"] == "long" and line["skipped"] == "takes about 60 s, and 50 s are left"


def test_made_up_teachers_name_different_tokens():
    ids_BTA = programs._made_up("teacher_ids_BTA", (2, 3, 64), "int32", 100)
    assert all(len(set(line)) == 64 for line in ids_BTA.reshape(-1, 64)) and ids_BTA.max() < 100
    total_BT = np.exp(programs._made_up("teacher_logp_BTA", (2, 3, 64), "float32", 100)).sum(axis=-1)
    assert (total_BT < 1).all()


@pytest.mark.long
def test_a_case_trains_and_is_measured(tmp_path, capsys):
    side = Side(tmp_path, cases.TINY._replace(buckets=(16,)), 100.0)
    case = cases.Case("t5_base source cached", "jax", "step", 1.0, "t5_base", "cached")
    made = side.prepare(case)
    before = jax.device_get(made.state.trainable)
    for job in made.jobs():
        job()
    side.measure(case, made)
    after = jax.device_get(made.state.trainable)
    assert all(np.isfinite(array).all() and not np.array_equal(array, before[path]) for path, array in after.items())
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line["examples"] == cases.TINY.batch and line["examples_per_s"] == pytest.approx(line["examples"] / line["seconds"], rel=0.01)
    assert line["input_tokens"]["useful"] < line["input_tokens"]["computed"] and line["memory_gib"]["live"] > 0


@pytest.mark.slow
def test_every_case_runs_in_tiny_sizes(tmp_path):
    pytest.importorskip("peft")
    arguments = ["--json", tmp_path / "out.jsonl", "--tiny", "--folder", tmp_path, "--budget", 2000]
    subprocess.run([sys.executable, "-m", "benchmarks.accelerator", *map(str, arguments)], check=True)
    lines = {line["case"]: line for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    wanted = [case for wave in cases.WAVES for case in wave if case.kind in ("step", "decode")] + list(cases.PEFT)
    fused = [case for case in wanted if case.attention == "fused"]
    assert fused and all("a kernel of GPUs and TPUs" in lines[case.name]["skipped"] for case in fused)
    wanted = [case for case in wanted if case not in fused]
    assert all(lines[case.name]["examples_per_s"] > 0 for case in wanted)
    assert lines["t5_base population against one by one"]["ratio_to_one_by_one"] > 0
