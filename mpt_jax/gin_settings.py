"""Settings read from gin: files, bindings, and the dataclasses that they fill. The only file that imports gin."""

import difflib
import logging
import os
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gin
from mpt_jax import paths
from mpt_jax.bindings import Binding, as_gin
from mpt_jax.config import (
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

if typing.TYPE_CHECKING:
    from mpt_jax.methods.method import Method

SETTINGS = {
    cls: gin.external_configurable(cls, name=cls.__name__)
    for cls in (
        TaskSettings, TrainSettings, BackboneSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings, MeshSettings,
        EvalSettings, CompileSettings,
    )  # fmt: skip
}
MACRO = re.compile(r"\b[A-Z][A-Z_]+\b")


def parse_gin(
    files: Sequence[str],
    bindings: Sequence[Binding],
    search_paths: Sequence[str] = (),
    import_module: Callable[[TaskSettings], None] | None = None,
) -> None:
    """Reads gin files (found by name from any folder) and bindings. Raises UserError for unknown names and files.

    import_module: imports the module that TaskSettings names, before the settings of the methods that it may add are read.
    """
    folders = [paths.local("--gin_search_paths", folder) for folder in search_paths] + [str(GIN_FOLDER)]
    for folder in folders:
        gin.add_config_file_search_path(folder)
    for file in files:
        if not any(os.path.isfile(os.path.join(folder, file)) for folder in [os.curdir, *folders]):
            found = {path.relative_to(folder) for folder in folders for path in Path(folder).rglob("*.gin")}
            known = sorted(path.as_posix() for path in found if path.parts[0] != "t5x")  # those are for T5X's own commands
            raise UserError(f"--gin_file={file}: no such file here or in {', '.join(folders)}. Known: {', '.join(known)}.")
    try:
        logging.disable(logging.ERROR)  # gin logs every folder in which it did not find a file
        if import_module:
            _read(files, [binding for binding in bindings if _of_tasks(binding.name)], folders, skip_unknown=True)
            logging.disable(logging.NOTSET)
            import_module(configured(TaskSettings))
            logging.disable(logging.ERROR)
        _add_methods()
        _read(files, bindings, folders)
        with gin_errors(SETTINGS, ""):
            gin.finalize()
    finally:
        logging.disable(logging.NOTSET)
    _check_macros({name: flag for name, _, flag in bindings})


def _of_tasks(name: str) -> bool:
    """Whether a field or a macro is of TaskSettings."""
    fields = macros()[name].fields if name in macros() else (name,)
    return any(field.startswith(f"{TaskSettings.__name__}.") for field in fields)


def _read(files: Sequence[str], bindings: Sequence[Binding], folders: Sequence[str], skip_unknown: bool = False) -> None:
    """Files and bindings, and nothing that was read before. skip_unknown: settings that no class has are passed over."""
    gin.clear_config()
    read: dict[str, str] = {}
    for file in files:
        with gin_errors(SETTINGS, f"--gin_file={file}: "):
            (found,) = gin.parse_config_files_and_bindings([file], [], False, skip_unknown, print_includes_and_imports=False)
        names = list(_with_includes(found, folders))
        twice = next((name for name in names if name in read), None)
        if twice:
            name = os.path.basename(twice)
            message = f"--gin_file={file} reads {name} again after {read[twice]}, which would undo the settings of {read[twice]}"
            raise UserError(f"{message}: take its include out of {file}, or leave {read[twice]} out.")
        read |= dict.fromkeys(names, file)
    hints = _hints(gin.config_str())
    for name, text, flag in bindings:
        value = as_gin(flag, text, hints.get(name.rpartition("/")[2]))
        with gin_errors(SETTINGS, f"{flag}={text}: "):
            gin.parse_config([f"{name} = {value}"], skip_unknown)


def _with_includes(read: Any, folders: Sequence[str]) -> Iterator[str]:
    """The real paths of a gin file and of all that it includes, where they are found."""
    places = (os.path.join(folder, read.filename) for folder in (os.curdir, *folders))
    yield os.path.realpath(next(filter(os.path.isfile, places), read.filename))
    for inner in read.includes:
        yield from _with_includes(inner, folders)


def _add_methods() -> None:
    """Makes the settings of every method known to gin. Not as this module is imported: the table of methods imports JAX.

    Raises UserError where two classes of settings have one name.
    """
    from mpt_jax.methods.table import METHODS

    for method in METHODS.values():
        if method.settings is None or method.settings in SETTINGS:
            continue
        name = method.settings.__name__
        if name in {known.__name__ for known in SETTINGS}:
            raise UserError(f"METHOD = {method.name!r} has settings of the class name {name}, which is taken: give the class another name.")
        SETTINGS[method.settings] = gin.external_configurable(method.settings, name=name, module=__package__)


def _given_settings(method: "Method") -> typing.Any:
    """The settings of a method's own, or those of another method where such are given; None where neither is so."""
    from mpt_jax.methods.table import METHODS

    config = gin.config_str()
    given = [row.settings for row in METHODS.values() if row.settings and re.search(rf"^{row.settings.__name__}\.", config, re.M)]
    others = [settings for settings in given if settings is not method.settings]
    chosen = others[0] if others else method.settings
    return configured(chosen) if chosen else None


def _hints(config: str) -> dict[str, object]:
    """Types of the fields by name, ``PromptSettings.length``, and of the macros that fill one in the given bindings."""
    hints = {f"{cls.__name__}.{name}": hint for cls in SETTINGS for name, hint in typing.get_type_hints(cls, include_extras=True).items()}
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
    """Everything a stage is made from. Raises UserError for an unknown METHOD, and where another method's settings are given."""
    from mpt_jax.methods.table import method_of, own_settings

    train = configured(TrainSettings)
    method = method_of(train)
    settings = Settings(
        train=train,
        backbone=configured(BackboneSettings),
        prompt=configured(PromptSettings),
        distillation=configured(DistillationSettings),
        optimizer=configured(OptimizerSettings),
        data=configured(DataSettings),
        mesh=configured(MeshSettings),
        method=_given_settings(method),
    )
    return own_settings(settings, method)


def operative() -> str:
    """The settings that were read so far, as a gin file."""
    return gin.operative_config_str()
