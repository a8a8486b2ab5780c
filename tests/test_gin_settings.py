"""Whose learning rate is used: a method's own, unless the user gives one, however a gin file writes it."""

import pytest

from mpt_jax.bindings import Binding
from mpt_jax.config import OptimizerSettings
from mpt_jax.gin_settings import configured, parse_gin

LORA = Binding("METHOD", "'lora'", "--method")


def rate(files=("teacher.gin",), bindings=(LORA,), folders=()):
    parse_gin(files, bindings, folders)
    return configured(OptimizerSettings).learning_rate


@pytest.mark.parametrize("line", ["LEARNING_RATE = 0.5", "LEARNING_RATE=0.5", "LEARNING_RATE  =  0.5"])
def test_a_rate_that_is_given_stands_instead_of_the_methods(line, tmp_path, monkeypatch):
    assert rate() == 3e-4 and rate(bindings=()) == 0.3
    assert rate(bindings=(LORA, Binding("LEARNING_RATE", "0.7", "--learning_rate"))) == 0.7
    (tmp_path / "mine.gin").write_text(f"include 'teacher.gin'\n{line}\n")
    assert rate(files=("mine.gin",), folders=(str(tmp_path),)) == 0.5
    assert rate(bindings=(Binding("TrainSettings.method", "'lora'", "--gin.TrainSettings.method"),)) == 3e-4
    (tmp_path / "outer.gin").write_text("include 'mine.gin'\n")
    assert rate(files=("outer.gin",), folders=(str(tmp_path),)) == 0.5
    monkeypatch.chdir(tmp_path)  # a file of one's own that is called as a stage
    (tmp_path / "teacher.gin").write_text(f"include 'base.gin'\n{line}\n")
    assert rate() == 0.5
