"""The commands of ``mpt-jax``: from arguments and gin to the function that does the work, and what is printed. Code is imported on use."""

import argparse

from mpt_jax import buckets, tasks
from mpt_jax.config import BackboneSettings, CompileSettings, DataSettings, EvalSettings, MeshSettings, TaskSettings
from mpt_jax.data.cache import cached_names
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.errors import UserError
from mpt_jax.gin_settings import configured, operative, stage_settings


def import_module(chosen: TaskSettings) -> None:
    """Imports the user's module, which may register tasks, scores, methods and families."""
    tasks.paper.configure(chosen.data_dir, chosen.download)
    tasks.import_module(_brought("MIXTURE_OR_TASK_MODULE", chosen.module) or None)


def task_names(required: bool = True, of_run: bool = False) -> tuple[str, ...]:
    """The tasks that TASKS or MIXTURE_OR_TASK_NAME names; mixtures become their tasks. The user's module is imported first.

    of_run: a name that is not registered here may be a task of the run, which says what it knows.
    """
    chosen = configured(TaskSettings)
    import_module(chosen)
    if not chosen.chosen and required:
        raise UserError("no task is named: type --tasks NAME,NAME; `mpt-jax tasks` lists them.")
    try:
        names = tasks.expand(chosen.chosen, cached_names(cache_folder(configured(DataSettings).cache_dir)))
    except tasks.UnknownTask:
        if not of_run:
            raise
        return tuple(chosen.chosen)
    return tuple(tasks.paper.variant_of(name, chosen.label_targets, chosen.as_published) for name in names)


def _brought(setting: str, path: str) -> str:
    """A path, or the place here of what is at an address in a bucket."""
    if not buckets.is_address(path):
        return path
    from mpt_jax.bucket_run import brought

    return brought(setting, path)


def _print_first(text: str) -> None:
    """A command's result, printed by the first process."""
    from mpt_jax.distributed import is_first

    if is_first():
        print(text, end="")


def command_train(arguments: argparse.Namespace) -> None:
    """Trains one stage, or says what it would do."""
    from mpt_jax import distributed
    from mpt_jax.train.run import run_train

    settings = stage_settings()
    if arguments.dry_run:
        from mpt_jax.compiling.dry_run import dry_run

        _print_first(dry_run(settings, task_names()))
        return
    with distributed.Preemption() as preemption:
        folder = run_train(settings, task_names(), operative(), preemption.reached)
    in_bucket = buckets.is_address(settings.train.model_dir)
    _print_first(f"{settings.train.model_dir if in_bucket else folder}\n")


def command_eval(arguments: argparse.Namespace) -> None:
    """Scores tasks with a run's prompts."""
    from mpt_jax.infer.commands import run_eval

    names = task_names(required=False)
    settings, data, mesh = configured(EvalSettings), configured(DataSettings), configured(MeshSettings)
    _print_first(run_eval(settings, data, mesh, names, arguments.backbone))


def command_infer(arguments: argparse.Namespace) -> None:
    """Predicts for rows of a file."""
    from mpt_jax.infer.commands import run_infer

    names = task_names(required=False, of_run=True)
    settings, data, mesh = configured(EvalSettings), configured(DataSettings), configured(MeshSettings)
    source = _brought("--input", arguments.input)
    _print_first(run_infer(settings, data, mesh, names, source, arguments.output, arguments.score, arguments.backbone))


def command_cache(arguments: argparse.Namespace) -> None:
    """Writes token caches."""
    from mpt_jax.infer.commands import run_cache

    names = task_names()
    for line in run_cache(configured(BackboneSettings), configured(DataSettings), names, arguments.splits, arguments.overwrite):
        print(line)


def command_tasks(arguments: argparse.Namespace) -> None:
    """Lists tasks, or shows one."""
    from mpt_jax.infer.commands import list_tasks, show_task
    from mpt_jax.infer.similarity import nearest

    if arguments.nearest:
        print(nearest(arguments.nearest, arguments.name), end="")
        return
    task_names(required=False)
    if arguments.name:
        print(show_task(arguments.name, configured(BackboneSettings), configured(DataSettings), arguments.rows))
    else:
        print(list_tasks())


def command_compile(arguments: argparse.Namespace) -> None:
    """Compiles a stage from shapes alone, for devices that need not be there."""
    from mpt_jax.compiling import chips

    topology = configured(CompileSettings).topology
    chips.prepare(topology)
    from mpt_jax.compiling.command import run_compile

    settings, rows = stage_settings(), configured(EvalSettings).batch_size
    names, decode = task_names(required=False), not arguments.train_only
    print(run_compile(settings, topology, names, rows, arguments.json, arguments.measure, decode), end="")


def command_convert(arguments: argparse.Namespace) -> None:
    """Converts backbones and prompts."""
    from mpt_jax.convert import convert
    from mpt_jax.model.formats.files import Folder, is_remote

    def usable(source: str) -> str:
        is_brought = Folder(source).exists("run.json") if is_remote(source) else buckets.is_address(source)
        return _brought("--from", source) if is_brought else source  # of all else the readers bring what they need

    sources = [usable(source) for source in arguments.source]
    written = convert(sources, arguments.to, arguments.output, arguments.task, arguments.backbone, arguments.combine)
    print("\n".join(written) if len(written) <= 8 else f"{arguments.output}: {len(written)} files")


def command_report(arguments: argparse.Namespace) -> None:
    """Makes tables, plots and a page from run folders."""
    from mpt_jax.bucket_run import made_in
    from mpt_jax.infer.report import report

    output = arguments.output or arguments.run_dirs[0]
    with made_in(output) as folder:
        written = report([_brought("run folder", path) for path in arguments.run_dirs], folder)
    for path in written:
        print(f"{output.rstrip('/')}/{path.name}" if buckets.is_address(output) else path)


def command_quickstart(arguments: argparse.Namespace) -> None:
    """Runs the whole method on embedded data."""
    from mpt_jax.quickstart import quickstart

    print(quickstart(arguments.model_dir, arguments.backbone))


def command_serve(arguments: argparse.Namespace) -> None:
    """Answers over HTTP."""
    from mpt_jax.serving.command import run_serve
    from mpt_jax.serving.settings import settings_of

    if not arguments.run:
        raise UserError("serve needs a run folder; type mpt-jax serve --run runs/target.")
    run_serve(arguments.run, settings_of(arguments))


RUN = {
    "quickstart": command_quickstart, "train": command_train, "eval": command_eval, "infer": command_infer, "cache": command_cache,
    "tasks": command_tasks, "compile": command_compile, "convert": command_convert, "report": command_report,
    "serve": command_serve,
}  # fmt: skip
