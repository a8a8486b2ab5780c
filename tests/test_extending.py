"""docs/extending.md: each example runs as it stands, through the installed commands, and changes no file of the package."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from tiny_world import start

from mpt_jax.checkpoint import load_trainable
from mpt_jax.model import families, formats

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
SMALL = ["--train_steps=2", "--batch_size=4", "--prompt_length=3", "--gin.TrainSettings.eval_rows=8"]


def example(file: str) -> str:
    """The code block that follows a file's name in the page."""
    return re.search(r"`" + re.escape(file) + r"`.*?```python\n(.*?)```", PAGE, re.S)[1]


def commands(file: str) -> list[list[str]]:
    """Arguments of the page's commands that name a file."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if file in line]
    return [shlex.split(line)[1:] for line in lines]


def run(folder: Path, arguments: list[str]) -> None:
    process = start([*arguments, *(SMALL if arguments[0] == "train" else ["--gin.EvalSettings.max_rows=8"])], folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.parametrize("file", ["my_task.py", "my_method.py", "my_family.py"])
def test_no_example_has_sixty_lines_of_code(file):
    assert len([line for line in example(file).splitlines() if line.strip()]) < 60


@pytest.mark.slow
def test_a_task_with_a_score_of_its_own_trains(tmp_path):
    (tmp_path / "my_task.py").write_text(example("my_task.py"))
    rows = [{"word": "ant" if n % 2 else "whale", "label": "small" if n % 2 else "large"} for n in range(12)]
    (tmp_path / "sizes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arguments in commands("my_task.py"):
        run(tmp_path, arguments)
    lines = [json.loads(line) for line in (tmp_path / "runs/sizes/metrics.jsonl").read_text().splitlines()]
    assert any("first_letter" in line for line in lines if line["split"] == "dev")


@pytest.mark.slow
def test_a_method_that_scales_the_input_trains_and_is_scored(tmp_path):
    (tmp_path / "my_method.py").write_text(example("my_method.py"))
    for arguments in commands("my_method.py"):
        run(tmp_path, arguments)
    trained, description = load_trainable(tmp_path / "runs/scale")
    assert description["method"] == "scale" and list(trained) == ["scale/inputs"]
    scale = trained["scale/inputs"]
    assert scale.shape == (1, 192) and np.abs(scale - 0.9).max() < 0.3 and not np.allclose(scale, 0.9)  # from 0.9 on, in two steps
    assert description["settings"]["method"] == {"start": 0.9} and description["runs"][0]["learning_rate"] == 0.05
    assert list((tmp_path / "runs/scale/eval").glob("*.json"))


@pytest.mark.slow
def test_a_family_of_ones_own_trains_a_prompt_and_is_scored(tmp_path, monkeypatch):
    (tmp_path / "my_family.py").write_text(example("my_family.py"))
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    names: dict = {}
    exec(compile(example("my_family.py"), "my_family.py", "exec"), names)
    config = names["MeanConfig"]("mean", 384, 16)
    formats.write_backbone("own", str(tmp_path / "mean_backbone"), config, families.family_of(config).init(config, 0), "bytes")
    for arguments in commands("my_family.py"):
        run(tmp_path, arguments)
    trained, description = load_trainable(tmp_path / "runs/mean")
    assert description["backbone"]["parameters"] == 384 * 16 and trained["bank/shared"].shape == (1, 3, 16)
