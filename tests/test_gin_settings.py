"""Settings from gin: a method's own rates where the user gives none, and what a method in a module of the user's own brings."""

import pytest

from mpt_jax import commands, gin_settings
from mpt_jax.bindings import Binding
from mpt_jax.errors import UserError
from mpt_jax.gin_settings import parse_gin, stage_settings
from mpt_jax.methods.table import METHODS

LORA = Binding("METHOD", "'lora'", "--method")
MODULE = """
import dataclasses
from mpt_jax.methods import prompt
from mpt_jax.methods.method import MethodSettings
from mpt_jax.methods.table import register

@dataclasses.dataclass(frozen=True)
class NAME(MethodSettings):
    start: float = 1.0
    places: list | tuple = ("inputs",)

register(prompt.METHOD._replace(name="scale", settings=NAME, learning_rate=0.05))
"""


def rates(files=("teacher.gin",), bindings=(LORA,), folders=()):
    parse_gin(files, bindings, folders)
    optimizer = stage_settings().optimizer
    return optimizer.learning_rate, optimizer.factor_learning_rate


def rate(*arguments, **more):
    return rates(*arguments, **more)[0]


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
    (tmp_path / "teacher.gin").write_text(f"include 'base.gin'\nTrainSettings.stage = 'teacher'\n{line}\n")
    assert rate() == 0.5


def test_a_rate_that_a_field_or_a_quoted_file_gives_stands(tmp_path):
    """Gin reads these; a search of the text for assignments would not."""
    (tmp_path / "field.gin").write_text("include 'teacher.gin'\nOptimizerSettings.learning_rate = 0.6\nMETHOD = \"lora\"\n")
    (tmp_path / "scoped.gin").write_text("include 'teacher.gin'\nLEARNING_RATE = \\\n  0.8\n")
    assert rate(files=("field.gin",), bindings=(), folders=(str(tmp_path),)) == 0.6
    assert rate(files=("scoped.gin",), folders=(str(tmp_path),)) == 0.8


@pytest.mark.parametrize(
    "stage, method, expected",
    [
        *((stage, "prompt", (0.3, 0.3)) for stage in ("teacher", "source")),
        *((stage, "prompt", (0.3, 0.4)) for stage in ("target", "fewshot")),
        ("target", "dept", (0.3, 5e-4)), ("target", "attempt", (0.3, 0.1)), ("source", "prefix", (5e-5, 0.3)),
        ("finetune", "prompt", (3e-4, 0.3)), ("pretrain", "prompt", (7e-4, 0.3)),
    ],
)  # fmt: skip
def test_each_stage_and_method_has_its_rates(stage, method, expected):
    assert rates((f"{stage}.gin",), (Binding("METHOD", method, "--method"),)) == expected


@pytest.fixture
def own_module(tmp_path):
    """A file that registers the method 'scale', by the name of its settings."""
    methods, known = dict(METHODS), dict(gin_settings.SETTINGS)

    def write(name: str) -> Binding:
        file = tmp_path / f"{name}-method.py"
        file.write_text(MODULE.replace("NAME", name))
        return Binding("MIXTURE_OR_TASK_MODULE", str(file), "--mixture_or_task_module")

    yield write
    for table, before in ((METHODS, methods), (gin_settings.SETTINGS, known)):
        table.clear()
        table.update(before)


def test_a_method_of_a_users_module_has_its_settings_and_rates(own_module):
    scale, module = Binding("METHOD", "scale", "--method"), own_module("ScaleSettings")
    start = Binding.of("ScaleSettings.start = 2")
    places = Binding.of("ScaleSettings.places = a,b")
    parse_gin(("teacher.gin",), (module, scale, start, places), (), commands.import_module)
    settings = stage_settings()
    assert (settings.method.start, list(settings.method.places)) == (2, ["a", "b"]) and settings.optimizer.learning_rate == 0.05
    assert "ScaleSettings.start = 2" in gin_settings.operative()
    parse_gin(("teacher.gin",), (module, start), (), commands.import_module)
    with pytest.raises(UserError, match="ScaleSettings is set, and METHOD = 'prompt' does not read it: type --method scale"):
        stage_settings()
    with pytest.raises(UserError, match="ScaleSettings has no field 'begin'; it has start, places|did you mean"):
        parse_gin(("teacher.gin",), (module, scale, Binding.of("ScaleSettings.begin = 2")), (), commands.import_module)


def test_settings_of_a_users_method_need_a_name_of_their_own(own_module):
    with pytest.raises(UserError, match="METHOD = 'scale' has settings of the class name LoraSettings, which is taken"):
        parse_gin(("teacher.gin",), (own_module("LoraSettings"),), (), commands.import_module)


def test_settings_of_another_method_are_refused_before_anything_is_loaded():
    parse_gin(("teacher.gin",), (LORA, Binding.of("AdapterSettings.reduction = 8")))
    with pytest.raises(UserError, match="AdapterSettings is set, and METHOD = 'lora' does not read it: type --method adapter"):
        stage_settings()
