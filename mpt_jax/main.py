"""The command ``mpt-jax``: reads gin, builds settings, calls one function for each command. The only file that imports gin."""

import argparse
import contextlib
import difflib
import logging
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import gin
from mpt_jax import paths, tasks
from mpt_jax.bindings import as_gin
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
from mpt_jax.data.cache import cached_names
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.errors import EXIT_INTERRUPTED, EXIT_PIPE_CLOSED, EXIT_PREEMPTED, Preempted, UserError
from mpt_jax.gin_messages import gin_errors
from mpt_jax.launched import end_with_launcher

SETTINGS = {
    cls: gin.external_configurable(cls, name=cls.__name__)
    for cls in (
        TaskSettings, TrainSettings, BackboneSettings, PromptSettings, DistillationSettings, OptimizerSettings, DataSettings, MeshSettings,
        EvalSettings, CompileSettings,
    )  # fmt: skip
}
GIN_FOLDERS = (Path(__file__).parent.parent / "gin", Path(__file__).parent / "gin_files")  # in a checkout, in a wheel
# beside an installed package, gin/ is the package gin-config
GIN_FOLDER = next(folder for folder in GIN_FOLDERS if (folder / "base.gin").is_file())
PATHS: dict[str, tuple[str, tuple[str, ...]]] = {  # arguments that are paths: flag, and the addresses that it takes as well
    "source": ("--from", paths.BUCKETS), "backbone": ("--backbone", paths.BUCKETS), "input": ("--input", ()), "output": ("--output", ()),
    "json": ("--json", ()), "run_dirs": ("run folder", ()), "model_dir": ("--model_dir", ()), "gin_file": ("--gin_file", ()),
}  # fmt: skip


def parse_gin(files: Sequence[str], bindings: Sequence[str], search_paths: Sequence[str]) -> None:
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
    try:
        logging.disable(logging.ERROR)  # gin logs every folder in which it did not find a file
        for file in files:
            with gin_errors(SETTINGS, f"--gin_file={file}: "):
                gin.parse_config_files_and_bindings([file], [], finalize_config=False, print_includes_and_imports=False)
        hints = _hints(gin.config_str())
        for binding in bindings:
            name, _, text = (part.strip() for part in binding.partition("="))
            value = as_gin(name, text, hints.get(name.rpartition("/")[2]))
            with gin_errors(SETTINGS, f"--gin.{binding}: "):
                gin.parse_config([f"{name} = {value}"])
        with gin_errors(SETTINGS, ""):
            gin.finalize()
    finally:
        logging.disable(logging.NOTSET)
    _check_macros()


def _hints(config: str) -> dict[str, object]:
    """Types of the fields by name, ``PromptSettings.length``, and of the macros that fill one in the given bindings."""
    hints = {f"{cls.__name__}.{name}": hint for cls in SETTINGS for name, hint in typing.get_type_hints(cls).items()}
    filled = re.findall(r"^(?:.*/)?(\w+\.\w+) = (?:\\\n\s*)?%(\w+)$", config, re.M)
    return hints | {macro: hints[field] for field, macro in filled if field in hints}


def _check_macros() -> None:
    """Raises UserError for a macro that nothing reads: it would be a silently ignored setting."""
    defined = set(re.findall(r"^([A-Za-z_]\w*) = ", gin.config_str(), re.M))
    used = set(re.findall(r"%([A-Za-z_]\w*)", gin.config_str()))
    for name in sorted(defined - used):
        near = difflib.get_close_matches(name, sorted(used), 1, 0.5)
        known = f"known: {', '.join(sorted(used))}" if used else "the given files read none"
        raise UserError(f"unknown gin name {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"{known}."))


def configured(cls, **fixed):
    """A settings dataclass filled from gin. Raises UserError for a parameter that it does not have or a missing one."""
    try:
        return SETTINGS[cls](**fixed)
    except UserError as error:
        raise UserError(str(error).split("\n")[0]) from error  # gin adds lines on where it was called
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{cls.__name__}: {' '.join(str(error).split())}") from error


def task_names(required: bool = True) -> tuple[str, ...]:
    """The tasks that TASKS or MIXTURE_OR_TASK_NAME names; mixtures become their tasks. The user's module is imported first."""
    chosen = configured(TaskSettings)
    tasks.paper.configure(chosen.data_dir, chosen.download)
    tasks.import_module(chosen.module or None)
    if not chosen.chosen and required:
        ways = "--gin.TASKS=\"['task', ...]\" or --gin.MIXTURE_OR_TASK_NAME=\"'task'\""
        raise UserError(f"no task is named: give {ways}; `mpt-jax tasks` lists them.")
    names = tasks.expand(chosen.chosen, cached_names(cache_folder(configured(DataSettings).cache_dir)))
    return tuple(tasks.paper.variant_of(name, chosen.label_targets, chosen.as_published) for name in names)


def stage_settings() -> Settings:
    """Everything a stage is made from."""
    return Settings(
        train=configured(TrainSettings),
        backbone=configured(BackboneSettings),
        prompt=configured(PromptSettings),
        distillation=configured(DistillationSettings),
        optimizer=configured(OptimizerSettings),
        data=configured(DataSettings),
        mesh=configured(MeshSettings),
    )


def command_train(arguments: argparse.Namespace) -> int:
    """Trains one stage."""
    from mpt_jax import distributed
    from mpt_jax.train.run import run_train

    settings = stage_settings()
    with distributed.Preemption() as preemption:
        folder = run_train(settings, task_names(), gin.operative_config_str(), preemption.reached)
    _print_first(f"{folder}\n")
    return 0


def _print_first(text: str) -> None:
    """A command's result, printed by the first process."""
    from mpt_jax.distributed import is_first

    if is_first():
        print(text, end="")


def command_eval(arguments: argparse.Namespace) -> int:
    """Scores tasks with a run's prompts."""
    from mpt_jax.infer.commands import run_eval

    names = task_names(required=False)
    _print_first(run_eval(configured(EvalSettings), configured(DataSettings), configured(MeshSettings), names))
    return 0


def command_infer(arguments: argparse.Namespace) -> int:
    """Predicts for rows of a file."""
    from mpt_jax.infer.commands import run_infer

    names = task_names(required=False)
    settings, data, mesh = configured(EvalSettings), configured(DataSettings), configured(MeshSettings)
    _print_first(run_infer(settings, data, mesh, names, arguments.input, arguments.output, arguments.score))
    return 0


def command_cache(arguments: argparse.Namespace) -> int:
    """Writes token caches."""
    from mpt_jax.infer.commands import run_cache

    names = task_names()
    for line in run_cache(configured(BackboneSettings), configured(DataSettings), names, arguments.splits, arguments.overwrite):
        print(line)
    return 0


def command_tasks(arguments: argparse.Namespace) -> int:
    """Lists tasks, or shows one."""
    from mpt_jax.infer.commands import list_tasks, show_task

    task_names(required=False)
    if arguments.name:
        print(show_task(arguments.name, configured(BackboneSettings), configured(DataSettings), arguments.rows))
    else:
        print(list_tasks())
    return 0


def command_compile(arguments: argparse.Namespace) -> int:
    """Compiles a stage from shapes alone, for devices that need not be there; reports memory, operations, collectives, time."""
    from mpt_jax.compiling import chips

    topology = configured(CompileSettings).topology
    chips.prepare(topology)
    from mpt_jax.compiling.command import run_compile

    settings, rows = stage_settings(), configured(EvalSettings).batch_size
    names, decode = task_names(required=False), not arguments.train_only
    print(run_compile(settings, topology, names, rows, arguments.json, arguments.measure, decode), end="")
    return 0


def command_convert(arguments: argparse.Namespace) -> int:
    """Converts backbones and prompts."""
    from mpt_jax.convert import convert

    written = convert(arguments.source, arguments.to, arguments.output, arguments.task, arguments.backbone)
    print("\n".join(written) if len(written) <= 8 else f"{arguments.output}: {len(written)} files")
    return 0


def command_report(arguments: argparse.Namespace) -> int:
    """Makes tables, plots and a page from run folders."""
    from mpt_jax.infer.report import report

    for path in report(arguments.run_dirs, arguments.output or arguments.run_dirs[0]):
        print(path)
    return 0


def command_quickstart(arguments: argparse.Namespace) -> int:
    """Runs the whole method on embedded data."""
    from mpt_jax.quickstart import quickstart

    print(quickstart(arguments.model_dir))
    return 0


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mpt-jax", description="Multitask prompt tuning for frozen T5 models in JAX.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, function, gin_default: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=function.__doc__.strip(), description=function.__doc__.strip(), allow_abbrev=False)
        command.set_defaults(function=function, gin_default=gin_default, gin_file=[], gin_search_paths="", gin_bindings=[])
        if gin_default is not None:
            command.add_argument("--gin_file", action="append", help="gin file, by path or by the name of a shipped one; may be repeated")
            command.add_argument("--gin_search_paths", help="more folders to find gin files in, separated by commas")
            command.add_argument("--gin.NAME=VALUE", dest="_gin_help", nargs="?", help="a gin binding, for example --gin.TRAIN_STEPS=500")
        return command

    quick = add("quickstart", command_quickstart)
    quick.add_argument("--model_dir", default="mpt_quickstart", help="folder of everything it writes (default: %(default)s)")
    train, evaluate = add("train", command_train, ""), add("eval", command_eval, "eval.gin")
    infer = add("infer", command_infer, "eval.gin")
    infer.add_argument("--input", required=True, help="JSONL: rows with the task's fields, or with 'inputs'")
    infer.add_argument("--output", required=True, help="JSONL: each row with inputs and prediction")
    infer.add_argument("--score", nargs="?", const=True, default=False, type=_yes_or_no, help="also the log-probability of each label")
    for command in (train, evaluate, infer):
        command.set_defaults(joins=True)
        group = command.add_argument_group("several processes (default: what the environment says; mpt_jax/distributed.py)")
        group.add_argument("--coordinator_address", help="host:port of the first process")
        group.add_argument("--num_processes", type=int)
        group.add_argument("--process_id", type=int, help="0 .. num_processes - 1")
    cache = add("cache", command_cache, "cache.gin")
    cache.add_argument("--splits", default="train,validation", help="splits to cache (default: %(default)s)")
    cache.add_argument("--overwrite", action="store_true", help="write caches anew that exist")
    show = add("tasks", command_tasks, "cache.gin")
    show.add_argument("name", nargs="?", help="task to show")
    show.add_argument("--rows", type=int, default=3, help="rows to show (default: %(default)s)")
    compiling = add("compile", command_compile, "")
    compiling.add_argument("--json", default="", help="file for everything as JSON")
    compiling.add_argument("--train_only", action="store_true", help="leave out decoding, which is the same in all stages")
    compiling.add_argument("--measure", type=int, default=0, metavar="N", help="also run N updates with random weights (TOPOLOGY 'here')")
    convert = add("convert", command_convert)
    convert.add_argument("--from", dest="source", required=True, help="run folder, checkpoint folder of any format, or a backbone's name")
    convert.add_argument("--to", required=True, help="t5x | t5x_scanned | orbax | hf | own | peft | peft_single | npz | npy | t5x_bank")
    convert.add_argument("--output", required=True)
    convert.add_argument("--task", default=None, help="one task of a bank (default: all)")
    convert.add_argument("--backbone", default=None, help="of the prompts, where the source does not name it")
    report = add("report", command_report)
    report.add_argument("run_dirs", nargs="+", help="run folders")
    report.add_argument("--output", default=None, help="folder to write to (default: the first run folder)")
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; ``--gin.NAME=VALUE`` are collected in ``gin_bindings``."""
    bindings = [argument.removeprefix("--gin.") for argument in argv if argument.startswith("--gin.")]
    wrong = [binding for binding in bindings if "=" not in binding]
    if wrong:
        raise UserError(f"--gin.{wrong[0]}: a binding is --gin.NAME=VALUE.")
    arguments = _parser().parse_args([argument for argument in argv if not argument.startswith("--gin.")])
    if bindings and arguments.gin_default is None:
        raise UserError(f"{arguments.command} takes no gin bindings (--gin.{bindings[0]}).")
    if arguments.gin_default == "" and not arguments.gin_file:
        stages = " | ".join(f"{stage}.gin" for stage in STAGES)
        raise UserError(f"{arguments.command} needs a stage: --gin_file={stages}")
    arguments.gin_bindings = bindings
    for name, (flag, remote) in PATHS.items():
        given = getattr(arguments, name, None)
        if isinstance(given, list):
            setattr(arguments, name, [paths.local(flag, path, remote) for path in given])
        elif given:
            setattr(arguments, name, paths.local(flag, given, remote))
    return arguments


def _say(text: str) -> None:
    """A last line."""
    with contextlib.suppress(OSError):
        print(f"mpt-jax: {text}", file=sys.stderr, flush=True)


def _prepare() -> None:
    """Process-wide settings, before JAX starts: compiled programs are kept on disk; TensorFlow stays quiet where tasks need it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:  # JAX keeps none that compiled within a second
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small ones make up a second of a start [ours]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; prints a UserError as one line and returns 2."""
    leave, first = int, True  # of the exit code; with several processes it ends them
    try:
        _prepare()
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        if getattr(arguments, "joins", False):
            from mpt_jax import distributed

            end_with_launcher()
            distributed.start(vars(arguments), trains=arguments.function is command_train)
            leave, first = distributed.leave, distributed.is_first()
        if arguments.gin_default is not None:
            files = arguments.gin_file or ([arguments.gin_default] if arguments.gin_default else [])
            parse_gin(files, arguments.gin_bindings, [part for part in arguments.gin_search_paths.split(",") if part])
        code = arguments.function(arguments)
        sys.stdout.flush()
        return code
    except (UserError, tasks.TaskError) as error:
        _say(" ".join(str(error).split()))
        return leave(2)
    except Preempted as told:
        if first:
            _say(str(told))
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        _say("interrupted; what was saved stays, the same command continues")
        return leave(EXIT_INTERRUPTED)
    except OSError as error:
        if error.filename is not None:  # not the output, then
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again as it ends
        if isinstance(error, BrokenPipeError):
            return leave(EXIT_PIPE_CLOSED)
        _say(f"the output cannot be written: {error.strerror}.")
        return leave(2)


if __name__ == "__main__":
    sys.exit(main())
