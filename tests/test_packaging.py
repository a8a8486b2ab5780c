"""What goes into a wheel: every package of the checkout, the gin files, and the shipped backbones."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for top in ("launch", "mpt_jax", "tasks") for path in (ROOT / top).rglob("__init__.py")]
    gin = {"mpt_jax.gin_files": "gin", "mpt_jax.gin_files.paper": "gin/paper", "mpt_jax.gin_files.t5x": "gin/t5x"}
    shipped = {f"mpt_jax.backbones.{path.name}" for path in (ROOT / "mpt_jax" / "backbones").iterdir()}
    banks = {f"mpt_jax.banks.{path.name}" for path in (ROOT / "mpt_jax" / "banks").iterdir()}
    names = {".".join(folder.parts if folder.parts[0] == "mpt_jax" else ("mpt_jax", *folder.parts)) for folder in folders}
    # `tasks` at the top is an old name that nothing of the package uses, so that a user's tasks.py may stand before it
    assert set(settings["packages"]) == names | set(gin) | shipped | banks | {"tasks"}
    assert all(settings["package-data"][package] == ["*"] for package in shipped)
    assert all(settings["package-data"][package] == ["**/*"] for package in banks)
    beside = {"mpt_jax.gin_files": "gin", "mpt_jax.launch": "launch", "mpt_jax.tasks": "tasks", "tasks": "compat/tasks"}
    assert settings["package-dir"] == beside  # and what is below them
    assert all(settings["package-data"][package] == ["*.gin"] for package in gin)
    assert {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "gin").rglob("*.gin")} == set(gin.values())
    assert not list((ROOT / "gin").rglob("__init__.py"))  # it would hide the gin-config package


def test_a_users_tasks_and_launch_are_not_in_the_way(tmp_path):
    """Commands start beside them, MIXTURE_OR_TASK_MODULE='tasks' is the user's file, and in it ``import tasks`` is ours."""
    (tmp_path / "launch.py").write_text("raise SystemExit('the user launch ran')\n")
    (tmp_path / "x.jsonl").write_text('{"a": "one", "b": "1"}\n')
    (tmp_path / "tasks.py").write_text("import tasks\ntasks.jsonl('mine', files={'train': 'x.jsonl'}, template='{a}', target='{b}')\n")
    for command, said in (
        (["mpt_jax", "tasks", "mine", "--gin.MIXTURE_OR_TASK_MODULE=tasks"], "inputs:  one"),
        (["mpt_jax.launch", "--help"], "usage: python -m mpt_jax.launch"),
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        found = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert found.returncode == 0 and said in found.stdout, found.stderr
