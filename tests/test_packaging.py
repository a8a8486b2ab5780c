"""What goes into a wheel: every package of the checkout, the gin files, and the shipped backbones."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_package_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [path.parent.relative_to(ROOT) for top in ("launch", "mpt_jax", "tasks") for path in (ROOT / top).rglob("__init__.py")]
    gin = {"mpt_jax.gin_files": "gin", "mpt_jax.gin_files.paper": "gin/paper", "mpt_jax.gin_files.t5x": "gin/t5x"}
    shipped = {f"mpt_jax.backbones.{path.name}" for path in (ROOT / "mpt_jax" / "backbones").iterdir()}
    assert set(settings["packages"]) == {".".join(folder.parts) for folder in folders} | set(gin) | shipped
    assert all(settings["package-data"][package] == ["*"] for package in shipped)
    assert settings["package-dir"] == {"mpt_jax.gin_files": "gin"}  # and what is below it
    assert all(settings["package-data"][package] == ["*.gin"] for package in gin)
    assert {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "gin").rglob("*.gin")} == set(gin.values())
    assert not list((ROOT / "gin").rglob("__init__.py"))  # it would hide the gin-config package
