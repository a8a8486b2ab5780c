"""Settings read from gin: files, bindings, and the dataclasses that they fill. The only file that imports gin."""

import difflib
import logging
import os
import re
import typing
from collections.abc import Sequence
from pathlib import Path

import gin
from mpt_jax import paths
from mpt_jax.bindings import Binding, as_gin
from mpt_jax.config import (
    STAGES,
    BackboneSettings,
    CompileSettings,
    DataSettings,
    DistillationSettings,
    EvalSettings,
    MeshSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    TaskSettings,
    TrainSettings,
)
from mpt_jax.errors import UserError
from mpt_jax.gin_messages import gin_errors
from mpt_jax.macros import FIELD, GIN_FOLDER, macro_of, macros

SETTINGS = {
    cls: gin.external_configurable(cls, name=cls.__name__)
    for cls in (
        TaskSettings, TrainSettings, BackboneSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings, MeshSettings,
        EvalSettings, CompileSettings,
    )  # fmt: skip
}
MACRO = re.compile(r"\b[A-Z][A-Z_]+\b")


def parse_gin(files: Sequence[str], bindings: Sequence[Binding], search_paths: Sequence[str] = ()) -> None:
    """Reads gin files (found by name from any folder) and bindings. Raises UserError for unknown names and files."""
    gin.clear_config()
    folders = [paths.local("--gin_search_paths", folder) for folder in search_paths] + [str(GIN_FOLDER)]
    for folder in folders:
        gin.add_config_file_search_path(folder)
    for file in files:
        if not any((Path(folder) / file).is_file() for folder in [os.curdir, *folders]):
            found = {path.relative_to(folder) for folder in folders for path in Path(folder).rglob("*.gin")}
            known = sorted(path.as_posix() for path in found if path.parts[0] != "t5x")  # those are for T5X's own commands
            raise UserError(f"--gin_file={file}: no such file here or in {', '.join(folders)}. Known: {', '.join(known)}.")
    _add_methods()
    try:
        logging.disable(logging.ERROR)  # gin logs every folder in which it did not find a file
        for file in files:
            with gin_errors(SETTINGS, f"--gin_file={file}: "):
                gin.parse_config_files_and_bindings([file], [], finalize_config=False, print_includes_and_imports=False)
        hints = _hints(gin.config_str())
        for name, text, flag in bindings:
            value = as_gin(flag, text, hints.get(name.rpartition("/")[2]))
            with gin_errors(SETTINGS, f"{flag}={text}: "):
                gin.parse_config([f"{name} = {value}"])
        gin.parse_config(_rates_of_method({name for name, _, _ in bindings} | _assigned(files, folders)))
        with gin_errors(SETTINGS, ""):
            gin.finalize()
    finally:
        logging.disable(logging.NOTSET)
    _check_macros({name: flag for name, _, flag in bindings})


def _add_methods() -> None:
    """Makes the settings of every method known to gin. Not as this module is imported: the table of methods imports JAX."""
    from mpt_jax.methods.table import METHODS

    for method in METHODS.values():
        if method.settings and method.settings not in SETTINGS:
            SETTINGS[method.settings] = gin.external_configurable(method.settings, name=method.settings.__name__)


def _assigned(files: Sequence[str], folders: Sequence[str]) -> set[str]:
    """Names that the given files assign, and those that they include, other than the package's own stages and their base."""
    shipped = {GIN_FOLDER / f"{name}.gin" for name in (*STAGES, "base")}
    found, seen, left = set(), set(), list(files)
    while left:
        file = left.pop()
        path = next((path for folder in [os.curdir, *folders] if (path := Path(folder) / file).is_file()), None)
        if path is None or path in shipped | seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^(\w+)\s*=", text, re.M))
        left += re.findall(r"""^include\s+['"]([^'"]+)['"]""", text, re.M)
    return found


def _rates_of_method(given: set[str]) -> list[str]:
    """Assignments of the learning rates that METHOD has of its own, where none are given; the stages' are those of prompts."""
    from mpt_jax.methods.table import METHODS

    config = gin.config_str()
    named = re.search(r"^TrainSettings\.method = '([^']+)'", config, re.M) or re.search(r"^METHOD = '([^']+)'", config, re.M)
    method = METHODS.get(named[1]) if named else None
    if method is None or method.name in ("prompt", "weights"):
        return []
    rates = {"LEARNING_RATE": method.learning_rate, "FACTOR_LEARNING_RATE": method.factor_learning_rate}
    return [f"{name} = {rate}" for name, rate in rates.items() if name not in given and re.search(rf"^{name} = ", config, re.M)]


def _own_settings(train: TrainSettings) -> typing.Any:
    """The settings of the method's own, None where it has none. Raises UserError where another method's are given."""
    from mpt_jax.methods.table import METHODS

    config, own = gin.config_str(), None
    for method in METHODS.values():
        if method.settings and method.name == train.method:
            own = configured(method.settings)
        elif method.settings and re.search(rf"^{method.settings.__name__}\.", config, re.M):
            message = f"{method.settings.__name__} is set, and METHOD = {train.method!r} does not read it"
            raise UserError(f"{message}: set --method {method.name}, or leave it out.")
    return own


def _hints(config: str) -> dict[str, object]:
    """Types of the fields by name, ``PromptSettings.length``, and of the macros that fill one in the given bindings."""
    hints = {f"{cls.__name__}.{name}": hint for cls in SETTINGS for name, hint in typing.get_type_hints(cls).items()}
    filled = re.findall(r"^(?:.*/)?(\w+\.\w+) = (?:\\\n\s*)?%(\w+)$", config, re.M)
    return hints | {macro: hints[field] for field, macro in filled if field in hints}


def _check_macros(flags: dict[str, str]) -> None:
    """Raises UserError for a macro that nothing reads: it would be a silently ignored setting. flags: how macros were typed."""
    config = gin.config_str()
    defined = set(re.findall(r"^([A-Za-z_]\w*) = ", config, re.M))
    used = set(re.findall(r"%([A-Za-z_]\w*)", config))
    bound = {macro.name: field for field, macro in macro_of().items() if re.search(rf"^{re.escape(field)} = ", config, re.M)}
    for name in sorted(defined - used):
        flag = flags.get(name, "")
        if name in bound and not flag:  # the field has a value of its own instead of the shipped macro's
            continue
        if name in bound:
            raise UserError(f"{flag} is not read, because {bound[name]} is given too; keep one of them.")
        if flag and not flag.startswith("--gin."):
            raise UserError(f"{flag}: the given gin files do not read {name}; add include 'base.gin' to them.")
        near = difflib.get_close_matches(name, sorted(used), 1, 0.5)
        known = f"known: {', '.join(sorted(used))}" if used else "the given files read none"
        raise UserError(f"unknown gin name {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"{known}."))


def configured(cls, **fixed):
    """A settings dataclass filled from gin. Raises UserError for a parameter that it does not have or a missing one."""
    try:
        return SETTINGS[cls](**fixed)
    except UserError as error:
        raise UserError(_with_flag(str(error).split("\n")[0])) from error  # gin adds lines on where it was called
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{cls.__name__}: {' '.join(str(error).split())}") from error


def _with_flag(message: str) -> str:
    """The message, with what to type where it names a field and says nothing of that."""
    if "--" in message:
        return message
    field = FIELD.search(message)
    named = [macros()[name] for name in MACRO.findall(message) if name in macros()]
    macro = macro_of().get(field[0]) if field else next(iter(named), None)
    if macro:
        return f"{message.rstrip('.')}. Type {macro.example}"
    return f"{message.rstrip('.')}. Type --gin.{field[0]}=VALUE" if field else message


def stage_settings() -> Settings:
    """Everything a stage is made from."""
    train = configured(TrainSettings)
    return Settings(
        train=train,
        backbone=configured(BackboneSettings),
        prompt=configured(PromptSettings),
        distillation=configured(DistillationSettings),
        optimizer=configured(OptimizerSettings),
        data=configured(DataSettings),
        mesh=configured(MeshSettings),
        method=_own_settings(train),
    )


def operative() -> str:
    """The settings that were read so far, as a gin file."""
    return gin.operative_config_str()
