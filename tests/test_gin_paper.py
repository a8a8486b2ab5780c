"""gin/paper: each file is found by name, parses, and builds its settings; a few steps of each end in a report."""

from pathlib import Path

import pytest

import tasks
from mpt_jax import main
from mpt_jax.config import DataSettings, DistillationSettings, OptimizerSettings, PromptSettings, TaskSettings, TrainSettings

FOLDER = Path(main.__file__).parent.parent / "gin" / "paper"
FILES = sorted(path.stem for path in FOLDER.glob("*.gin"))
WANTED = {
    *("sources", "teachers", "glue", "superglue", "mrqa", "others", "fewshot", "nlg", "multi_target"),
    *("no_distillation", "no_decomposition", "sampling", "prompt_length", "rank"),
}


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    main.gin.clear_config()


def test_a_file_for_each_table():
    assert set(FILES) == WANTED


@pytest.mark.parametrize("name", FILES)
def test_files_build_settings(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found by name from any folder
    main.parse_gin([f"paper/{name}.gin"], ["MODEL_DIR = 'x'"], [])
    classes = (TrainSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings)
    train, prompt, distillation, _, data = (main.configured(cls) for cls in classes)
    chosen = tasks.expand(main.configured(TaskSettings).chosen)
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
    assert expected.get(name, train.stage == "target" and len(train.seed_list) == 3)


@pytest.mark.parametrize("name", FILES)
def test_files_say_what_to_run_and_to_expect(name):
    text = (FOLDER / f"{name}.gin").read_text()
    head = text.partition("include 'base.gin'")[0]
    assert f"mpt-jax train --gin_file=paper/{name}.gin" in head
    assert all(part in head for part in ("# Hardware:", "time: not measured", "# To expect:"))
    assert text.count("include") == 1


def test_an_unknown_file_is_told_with_the_known_ones():
    from mpt_jax.errors import UserError

    with pytest.raises(UserError, match=r"paper/glew\.gin: no such file.*paper/glue\.gin"):
        main.parse_gin(["paper/glew.gin"], [], [])
