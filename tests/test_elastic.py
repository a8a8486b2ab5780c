"""A run goes on with other processes, devices and meshes: the same rows at every step, the same bank."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_world import arguments, end_of, start_together, write_world

from mpt_jax.checkpoint import load_trainable
from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.sampler import Stream
from mpt_jax.errors import EXIT_PREEMPTED
from mpt_jax.main import main
from mpt_jax.metrics import read_metrics

SIZES = {"one": 23, "two": 57, "three": 101, "four": 9}  # training rows
MODULE = """
from pathlib import Path
from mpt_jax import tasks

HERE = Path(__file__).parent
for name in ("one", "two", "three", "four"):
    tasks.jsonl(name, files={"train": HERE / f"{name}.jsonl"}, template="word: {word}", labels=("no", "yes"))
"""
STEPS = 24


@pytest.mark.parametrize("mixing", ["proportional", "stochastic", "equal"])
def test_which_rows_are_drawn_depends_on_no_mesh(tmp_path, mixing):
    """Micro-batches rounded up to a mesh, and processes that gather a part of the rows, draw the rows of one process in their order."""
    caches = tuple(sized_cache(tmp_path, size, name) for name, size in SIZES.items())
    stream = Stream(seed=3, caches=caches, bank_index=(0, 1, 2, 3), batch_size=10, mixing=mixing)
    alone = BatchSpec(input_length=32, target_length=8, micro_batch_size=3)
    of_mesh = dataclasses.replace(alone, micro_batch_size=8, local_rows=(2, 3))
    found = [make_batch([stream], step, alone, 4).rows for step in range(40)]
    assert len(set(found)) == 40
    assert [make_batch([stream], step, of_mesh, 4).rows for step in range(40)] == found
    assert make_batch([dataclasses.replace(stream, seed=4)], 0, alone, 4).rows != found[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, macros): a backbone, four tasks of unequal size and their teachers."""
    folder, rng = tmp_path_factory.mktemp("world"), random.Random(1)
    macros = write_world(folder)
    (folder / "four_tasks.py").write_text(MODULE)
    for name, size in SIZES.items():
        words = ["".join(rng.choices("abcdeiou123", k=rng.randint(3, 6))) for _ in range(size)]
        rows = [json.dumps({"word": word, "label": int(word[0] in "aeiou")}) + "\n" for word in words]
        (folder / f"{name}.jsonl").write_text("".join(rows))
    macros |= {"MIXTURE_OR_TASK_MODULE": str(folder / "four_tasks.py"), "TASKS": list(SIZES), "TrainSettings.score_tasks": False}
    macros |= {"LEARNING_RATE": 0.02, "FACTOR_LEARNING_RATE": 0.02}
    return folder, macros


def rows_by_step(run: Path) -> dict[int, str]:
    return {line["step"]: line["rows"] for line in read_metrics(run) if "rows" in line}


STOCHASTIC = [(1, 8, (2, 2)), (2, 4, (1, 1)), (4, 2, (4, 1)), (1, 1, (1, 1))]
PROPORTIONAL = [*STOCHASTIC, (4, 2, (1, 2)), (2, 4, (2, 2))]  # five switches


@pytest.mark.parametrize(
    "mixing, layouts",
    [pytest.param("stochastic", STOCHASTIC, marks=pytest.mark.slow), pytest.param("proportional", PROPORTIONAL, marks=pytest.mark.long)],
)
def test_a_run_goes_on_with_other_processes_devices_and_meshes(world, table, mixing, layouts):
    """layouts: processes, devices of each, (fsdp, tensor). Switched at random steps; rows equal, bank within 1e-5 in float32."""
    folder, macros = world
    if not (folder / "teachers").exists():
        assert main(arguments("train", "teacher.gin", macros, MODEL_DIR=str(folder / "teachers"))) == 0
    changes = {"TEACHER_DIR": str(folder / "teachers"), "TRAIN_STEPS": STEPS, "DataSettings__mixing": mixing}
    changes |= {"TrainSettings__log_steps": 1, "TrainSettings__checkpoint_steps": STEPS}

    def command(name: str) -> list[str]:
        return arguments("train", "source.gin", macros, MODEL_DIR=str(folder / f"{mixing}_{name}"), **changes)

    assert main(command("whole")) == 0
    switched = sorted(random.Random(mixing).sample(range(1, STEPS), len(layouts) - 1))
    for (processes, devices, (fsdp, tensor)), last in zip(layouts, [*switched, STEPS], strict=True):
        argv = [str(last), *command("switched"), f"--gin.MESH_FSDP={fsdp}", f"--gin.MESH_TENSOR={tensor}"]
        program = (str(Path(__file__).parent / "run_until.py"),)
        codes, said = end_of(start_together(argv, folder, processes, devices, program), folder, 900.0)
        assert codes == [0 if last == STEPS else EXIT_PREEMPTED] * processes, said
    whole, run = folder / f"{mixing}_whole", folder / f"{mixing}_switched"
    rows = rows_by_step(run)
    assert list(rows) == list(range(1, STEPS + 1)) and rows == rows_by_step(whole)
    expected, found = (load_trainable(each, "last")[0] for each in (whole, run))
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], atol=1e-5)
