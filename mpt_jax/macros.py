"""What the shipped gin files say of settings, read as text: macros with default and meaning, the fields they fill, and the stages.

The first part of gin/base.gin is the one table of macros; stage files start with a sentence on what the stage does.
"""

import ast
import functools
import re
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from mpt_jax.config import STAGES

GIN_FOLDERS = (Path(__file__).parent.parent / "gin", Path(__file__).parent / "gin_files")  # in a checkout, in a wheel
# in site-packages, the gin/ next to this package is gin-config
GIN_FOLDER = next(folder for folder in GIN_FOLDERS if (folder / "base.gin").is_file())
MACRO = re.compile(r"([A-Z][A-Z0-9_]*) = (.*?)(?:\s+#\s+(.*))?")
FIELD = re.compile(r"\b[A-Z]\w*Settings\.\w+")
FILLED = re.compile(r"(\w+\.\w+) = %(\w+)")
HEADING = re.compile(r"# (\w[\w ]*)")
EXAMPLES = {
    "TASKS": "sst2,mrpc", "TASK_FEATURE_LENGTHS": "inputs=256,targets=128", "TOPOLOGY": "v5e:4x4", "SEED": "1,2,3",
    "LEARNING_RATE": "0.3", "FACTOR_LEARNING_RATE": "0.3",
}  # fmt: skip


class Macro(NamedTuple):
    """A setting that commands take as a flag."""

    name: str
    default: Any
    meaning: str
    heading: str
    fields: tuple[str, ...]  # 'TrainSettings.train_steps'

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.lower()}"

    @property
    def switch(self) -> bool:
        """Whether the flag alone means True."""
        return isinstance(self.default, bool)

    @property
    def value(self) -> str:
        """What stands for its value in help."""
        if isinstance(self.default, str):
            return "FOLDER" if self.name.endswith("_DIR") else "TEXT"
        return {bool: "True", list: "A,B", dict: "inputs=N,targets=N", int: "N", float: "X", NoneType: "X"}[type(self.default)]

    @property
    def example(self) -> str:
        """The flag with a value that it takes."""
        value = EXAMPLES.get(self.name) or str(self.default) or ("FOLDER" if self.name.endswith("_DIR") else "TEXT")
        return self.flag if self.switch else f"{self.flag} {value}"


def _lines(file: str) -> list[str]:
    return (GIN_FOLDER / file).read_text(encoding="utf-8").splitlines()


@functools.cache
def macros() -> dict[str, Macro]:
    """The macros of base.gin by name."""
    lines = _lines("base.gin")
    fields: dict[str, list[str]] = {}
    for filled in filter(None, map(FILLED.fullmatch, lines)):
        fields.setdefault(filled[2], []).append(filled[1])
    rows: dict[str, Macro] = {}
    heading = ""
    for line in lines:
        title, found = HEADING.fullmatch(line), MACRO.fullmatch(line)
        if title:
            heading = title[1]
        elif found:
            rows[found[1]] = Macro(found[1], ast.literal_eval(found[2]), found[3], heading, tuple(fields.get(found[1], ())))
    return rows


@functools.cache
def macro_of() -> dict[str, Macro]:
    """The macro that fills a field, by the field."""
    return {field: macro for macro in macros().values() for field in macro.fields}


def stages() -> dict[str, str]:
    """What each stage does, in a sentence."""
    return {stage: _lines(f"{stage}.gin")[0].removeprefix("# ") for stage in STAGES}


def defaults(stage: str) -> dict[str, Any]:
    """The macros that a stage's file sets, with its values; of a file that is not shipped none."""
    if stage not in STAGES:
        return {}
    found = [match for match in map(MACRO.fullmatch, _lines(f"{stage}.gin")) if match]
    return {match[1]: ast.literal_eval(match[2]) for match in found}
