"""gin/paper: each file is found by name, parses, and builds its settings; a few steps of each end in a report."""

import json
from pathlib import Path

import pytest
from mpt_jax.tasks.paper import location, reading
from paper_files import write_published
from tiny_model import CONFIG, weights

from mpt_jax import commands, gin_settings, main, tasks
from mpt_jax.bindings import Binding
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, TaskSettings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.macros import GIN_FOLDER
from mpt_jax.model import formats

FOLDER = GIN_FOLDER / "paper"
FILES = sorted(path.stem for path in FOLDER.glob("*.gin"))
WANTED = {
    *("sources", "teachers", "glue", "superglue", "mrqa", "others", "fewshot", "nlg", "multi_target"),
    *("no_distillation", "no_decomposition", "sampling", "prompt_length", "rank"),
}
# a column of the tables each: METHOD, and what its rate is
BASELINES = {
    "prompt_tuning": ("prompt", 0.3), "lora": ("lora", 3e-4), "bitfit": ("bitfit", 3e-4), "adapters": ("adapter", 3e-4),
    "adapter_drop": ("adapter", 3e-4), "spot": ("spot", 0.3), "attempt": ("attempt", 0.3), "dept": ("dept", 0.3),
    "vectors": ("vectors", 0.3), "finetune": ("prompt", 3e-4), "multi_finetune": ("prompt", 3e-4), "multi_attempt": ("attempt", 0.3),
}  # fmt: skip


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin_settings.gin.clear_config()


def test_a_file_for_each_table():
    assert set(FILES) == WANTED | set(BASELINES)


@pytest.mark.parametrize("name", FILES)
def test_files_build_settings(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found by name from any folder
    gin_settings.parse_gin([f"paper/{name}.gin"], [Binding.of("MODEL_DIR = 'x'")])
    classes = (TrainSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings)
    train, prompt, distillation, _, data = (gin_settings.configured(cls) for cls in classes)
    chosen = tasks.expand(gin_settings.configured(TaskSettings).chosen)
    assert set(chosen) <= set(tasks.paper.SETS)
    expected = {
        "teachers": train.stage == "teacher" and prompt.rank == 0 and len(chosen) == 6,
        "no_distillation": distillation.weight == 0 and prompt.rank == 1,
        "no_decomposition": distillation.weight > 0 and prompt.rank == 0,
        "sampling": data.mixing == "proportional",
        "prompt_length": prompt.length == 300,
        "rank": prompt.rank == 4,
        "multi_target": prompt.shared_over_targets and data.mixing == "proportional",
        "fewshot": train.stage == "fewshot" and data.k_shot == 16 and len(train.seed_list) == 10,
        "sources": train.stage == "source" and data.mixing == "stochastic" and distillation.weight > 0,
    }
    if name in BASELINES:
        settings = gin_settings.stage_settings()
        assert (train.method, settings.optimizer.learning_rate) == BASELINES[name]
        assert (settings.method is None) == (train.method in ("prompt", "spot"))
        return
    assert expected.get(name, train.stage == "target" and len(train.seed_list) == 3)


@pytest.mark.parametrize("name", FILES)
def test_files_say_what_to_run_and_to_expect(name):
    text = (FOLDER / f"{name}.gin").read_text()
    head = text.partition("include 'base.gin'")[0]
    assert f"mpt-jax train paper/{name} " in head
    assert all(part in head for part in ("# Hardware:", "time: not measured", "# To expect:"))
    assert text.count("include") == 1


def test_settings_choose_variants_and_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(location.DATA_FOLDER, "")
    bindings = list(map(Binding.of, ["MODEL_DIR = 'x'", f"TASK_DATA_DIR = {str(tmp_path)!r}"]))
    gin_settings.parse_gin(["paper/glue.gin"], [*bindings, Binding.of("TaskSettings.label_targets = 'indices'")])
    assert commands.task_names()[3:5] == ("sst2:index", "stsb")
    with pytest.raises(tasks.TaskError, match=f"no SST-2/train.tsv and no SST-2/dev.tsv in {tmp_path}"):
        next(tasks.rows("sst2:index", "train"))
    gin_settings.parse_gin(["paper/mrqa.gin"], [*bindings, Binding.of("TaskSettings.as_published = True")])
    assert commands.task_names() == tuple(f"{name}:published" for name in tasks.paper.MIXTURES["mrqa"])


def test_an_unknown_file_is_told_with_the_known_ones():
    with pytest.raises(UserError, match=r"paper/glew\.gin: no such file.*paper/glue\.gin"):
        gin_settings.parse_gin(["paper/glew.gin"], [])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """All sets with 8 rows a file, a random T5 over bytes, and the folder of the runs."""
    folder = tmp_path_factory.mktemp("paper")
    write_published(folder / "data")
    formats.write_backbone("own", str(folder / "t5"), CONFIG, weights(CONFIG), "bytes")
    return folder


def run(world, command, name, **macros):
    settings = {
        "MODEL_DIR": str(world / name), "BACKBONE": str(world / "t5"), "CACHE_DIR": str(world / "cache"), "DTYPE": "float32",
        "TASK_DATA_DIR": str(world / "data"), "TASK_FEATURE_LENGTHS": {"inputs": 16, "targets": 24}, **macros,
    }  # fmt: skip
    return main.main([*command, *(f"--gin.{key.replace('__', '.')}={value!r}" for key, value in settings.items())])


def train(world, name, **macros):
    """Two steps of a file, once; its folder."""
    if (world / name / "run.json").is_file():
        return str(world / name)
    few = {"TRAIN_STEPS": 2, "BATCH_SIZE": 4, "SEED": 42, "TrainSettings__eval_steps": 2}
    few["PROMPT_LENGTH"] = 5 if name == "prompt_length" else 3
    assert run(world, ["train", f"--gin_file=paper/{name}.gin"], name, **few, **macros) == 0
    return str(world / name)


LONG = ("fewshot", "glue", "no_decomposition", "rank", "mrqa", "prompt_length", "nlg")  # stages and settings that other files train, too


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in sorted(WANTED)])
def test_some_steps_of_each_file_end_in_a_report(name, world, monkeypatch, capfd):
    monkeypatch.setattr(reading, "DEV_ROWS", 2)
    monkeypatch.setenv(location.DATA_FOLDER, "")  # what the command sets is taken back
    stages = {"teachers": {}}
    if name not in ("teachers", "no_distillation"):
        stages = {name: {"TEACHER_DIR": train(world, "teachers")}}
    if name in ("glue", "superglue", "mrqa", "others", "fewshot", "nlg", "multi_target"):
        stages = {name: {"SOURCE_DIR": train(world, "sources", TEACHER_DIR=train(world, "teachers"))}}
        stages[name] |= {"K_SHOT": 4} if name == "fewshot" else {}
    folder = train(world, name, **stages.get(name, {}))
    assert run(world, ["eval"], name, SPLIT="test", EvalSettings__method="rank") == 0
    assert main.main(["report", folder]) == 0
    table = (Path(folder) / "table.md").read_text()
    assert "next to published numbers" in table and f"ours: {name}" in table
    if name == "fewshot":
        draws = [row["few_shot"] for row in json.loads((Path(folder) / "run.json").read_text())["runs"]]
        assert len(draws) == 3 and all(len(draw) == 4 for draw in draws)
    if name == "glue":
        assert "No row of ours is missing" in table
    capfd.readouterr()
