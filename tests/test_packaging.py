"""What goes into a wheel: every package of the checkout, the gin files, and the shipped backbones."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for top in ("launch", "mpt_jax", "tasks") for path in (ROOT / top).rglob("__init__.py")]
    gin = {"mpt_jax.gin_files": "gin", "mpt_jax.gin_files.paper": "gin/paper", "mpt_jax.gin_files.t5x": "gin/t5x"}
    shipped = {f"mpt_jax.backbones.{path.name}" for path in (ROOT / "mpt_jax" / "backbones").iterdir()}
    banks = {f"mpt_jax.banks.{path.name}" for path in (ROOT / "mpt_jax" / "banks").iterdir()}
    below = {f"{bank}.checkpoints" for bank in banks}  # setuptools warns of folders that could be packages and are not listed
    names = {".".join(folder.parts if folder.parts[0] == "mpt_jax" else ("mpt_jax", *folder.parts)) for folder in folders}
    # `tasks` at the top is an old name that nothing of the package uses, so that a user's tasks.py may stand before it
    assert set(settings["packages"]) == names | set(gin) | shipped | banks | below | {"tasks"}
    assert all(settings["package-data"][package] == ["*"] for package in shipped)
    assert all(settings["package-data"][package] == ["**/*"] for package in banks)
    beside = {"mpt_jax.gin_files": "gin", "mpt_jax.launch": "launch", "mpt_jax.tasks": "tasks", "tasks": "compat/tasks"}
    assert settings["package-dir"] == beside  # and what is below them
    assert all(settings["package-data"][package] == ["*.gin"] for package in gin)
    assert {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "gin").rglob("*.gin")} == set(gin.values())
    assert not list((ROOT / "gin").rglob("__init__.py"))  # it would hide the gin-config package


def test_the_project_says_its_licence_its_changes_and_no_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0" and "Apache License" in (ROOT / project["license-files"][0]).read_text()[:200]
    assert project["authors"] and "urls" not in project and not any("License ::" in line for line in project["classifiers"])
    changes = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", changes, re.M)
    assert versions[0] == project["version"] and versions == sorted(versions, reverse=True) and "## [Unreleased]" in changes
    assert set(re.findall(r"^### (\w+)", changes, re.M)) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_extra_of_the_tests_brings_what_they_run():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras["serve"], *extras["docs"]} < set(extras["test"])


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


def command_of(folder: Path, *argv: str | Path) -> subprocess.CompletedProcess:
    """A command in a folder; of this checkout's own paths it knows nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(list(map(str, argv)), cwd=folder, env=environment, capture_output=True, text=True)


def install(kind: str, folder: Path) -> Path:
    """This checkout's copy, installed into an environment that sees this interpreter's packages; where its programs are."""
    beside = [path for path in dict.fromkeys(sys.path) if Path(path).name == "site-packages"]
    if kind == "editable" and any((Path(path) / "mpt_jax" / "__init__.py").is_file() for path in beside):
        pytest.skip("mpt_jax is installed here as a wheel, which an editable installation would stand behind")
    copy, programs = folder / "copy", folder / "env" / "bin"
    copy.mkdir()
    for name in ("mpt_jax", "tasks", "launch", "gin", "compat"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    venv.create(folder / "env", with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
    (site / "beside.pth").write_text("\n".join(beside) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    given = ["-e", copy]
    if kind == "wheel":
        made = command_of(folder, *pip, "wheel", *offline, "-w", folder / "wheels", copy)
        assert made.returncode == 0, made.stderr
        given = list((folder / "wheels").glob("*.whl"))
    # the package may be among what the environment sees: this copy goes in front of it
    made = command_of(folder, *pip, "install", "--ignore-installed", *offline, *given)
    assert made.returncode == 0, made.stderr
    return programs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.long)])
def test_installed_too_a_users_tasks_and_launch_are_not_in_the_way(tmp_path, kind):
    """The user's tasks.py is what MIXTURE_OR_TASK_MODULE='tasks' means; in a task module ``import tasks`` is ours."""
    for tool, oldest in (("pip", 23), ("setuptools", 77)):
        if not importlib.util.find_spec(tool) or int(importlib.metadata.version(tool).split(".")[0]) < oldest:
            pytest.skip(f"{tool} {oldest} or newer is needed to build the package here")
    programs, mine = install(kind, tmp_path), tmp_path / "mine"
    mine.mkdir()
    (mine / "launch.py").write_text("raise SystemExit('the user launch ran')\n")
    (mine / "x.jsonl").write_text('{"a": "one", "b": "1"}\n')
    (mine / "tasks.py").write_text("import tasks\ntasks.jsonl('mine', files={'train': 'x.jsonl'}, template='{a}', target='{b}')\n")
    found = command_of(mine, programs / "python", "-c", "import mpt_jax; print(mpt_jax.__file__)")
    assert found.stdout.startswith(str(tmp_path)), found
    for argv, said in (
        ([programs / "mpt-jax", "tasks", "mine", "--gin.MIXTURE_OR_TASK_MODULE=tasks"], "inputs:  one"),
        ([programs / "python", "-m", "mpt_jax.launch", "--help"], "usage: python -m mpt_jax.launch"),
    ):
        found = command_of(mine, *argv)
        assert found.returncode == 0 and said in found.stdout, found.stderr
    alone = tmp_path / "alone"  # a task module of another name, with no tasks.py beside it
    alone.mkdir()
    (alone / "x.jsonl").write_text('{"a": "two", "b": "2"}\n')
    (alone / "own.py").write_text((mine / "tasks.py").read_text())
    code = "from mpt_jax import tasks; tasks.import_module('own'); print(*tasks.rows('mine', 'train'))"  # as a command imports it
    found = command_of(alone, programs / "python", "-c", code)
    assert found.returncode == 0 and "two" in found.stdout, found.stderr
