"""The command line ``mpt-jax COMMAND …``: commands, flags, help, and what a mistyped one gets. Imports neither JAX nor gin.

Settings are flags in snake case (``--train_steps 500``) or gin's own (``--gin.TRAIN_STEPS=500``, ``--gin_file=F``); both may be mixed.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from mpt_jax import buckets, paths
from mpt_jax.bindings import Binding
from mpt_jax.config import STAGES, EvalSettings
from mpt_jax.errors import EXIT_CODES, UserError
from mpt_jax.macros import FIELD, GIN_FOLDER, Macro, defaults, macros, stages
from mpt_jax.serving import settings as serving

TRAIN = (
    "TrainSettings", "TaskSettings", "BackboneSettings", "PromptSettings", "DistillationSettings", "OptimizerSettings", "DataSettings",
    "MeshSettings",
)  # fmt: skip
ROWS = ("TaskSettings", "DataSettings.feature_lengths", "DataSettings.cache_dir", "DataSettings.trust_caches")
VOCABULARY = ("BackboneSettings.path", "BackboneSettings.vocabulary", "DataSettings.cue")
# --input says which rows
ANSWERS = tuple(f"EvalSettings.{field.name}" for field in dataclasses.fields(EvalSettings) if field.name not in ("split", "max_rows"))


class Command(NamedTuple):
    """What a command does, the settings it reads, and the gin file it starts from."""

    meaning: str
    reads: tuple[str, ...] = ()  # settings classes, or single fields
    gin: str | None = None  # None: it takes no settings. '': it needs a stage
    joins: bool = False  # whether several processes may run it together


COMMANDS = {
    "quickstart": Command("run the whole method on embedded data and the shipped backbone"),
    "train": Command("train one stage", TRAIN, "", joins=True),
    "eval": Command("score tasks with a run's prompts", ("EvalSettings", "MeshSettings", *ROWS), "eval.gin", joins=True),
    "infer": Command("predict for rows of a file", (*ANSWERS, "MeshSettings", *ROWS), "eval.gin", joins=True),
    "cache": Command("write token caches", (*ROWS, *VOCABULARY), "cache.gin"),
    "tasks": Command("list tasks, or show one", (*ROWS, *VOCABULARY), "cache.gin"),
    "compile": Command(
        "compile a stage for a TPU or GPU topology you don't have; report memory, operations and time",
        (*TRAIN, "EvalSettings.batch_size", "CompileSettings"), "",
    ),
    "convert": Command("convert backbones and prompts between formats"),
    "report": Command("make tables, plots and a page from run folders"),
    "serve": Command("answer over HTTP from any number of run folders on one backbone"),
}  # fmt: skip
PATHS: dict[str, tuple[str, tuple[str, ...]]] = {  # arguments that are paths: flag, and the addresses that it takes as well
    "source": ("--from", buckets.SCHEMES), "backbone": ("--backbone", buckets.READ_IN_PLACE), "input": ("--input", buckets.SCHEMES),
    "output": ("--output", ()), "json": ("--json", ()), "nearest": ("--nearest", ()), "run": ("--run", ()),
    "run_dirs": ("run folder", buckets.SCHEMES), "model_dir": ("--model_dir", ()), "gin_file": ("--gin_file", ()),
}  # fmt: skip


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; type one, for example 3") from error


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


PROCESSES: list[tuple[str, dict[str, Any]]] = [
    ("--coordinator_address", {"metavar": "HOST:PORT", "help": "of the first process (default: what the environment says)"}),
    ("--num_processes", {"type": _whole, "metavar": "N", "help": "number of processes"}),
    ("--process_id", {"type": _whole, "metavar": "N", "help": "0 .. num_processes - 1"}),
]
BACKBONE = ("--backbone", {"default": "", "metavar": "FOLDER", "help": "where the run's backbone is now, if it has moved"})
OWN: dict[str, list[tuple[str, dict[str, Any]]]] = {  # flags that are no settings
    "quickstart": [
        ("--model_dir", {"default": "mpt_quickstart", "help": "folder of everything it writes (default: %(default)s)"}),
        ("--backbone", {"default": "nano", "choices": ("nano", "smollm2"), "help": "frozen model (default: %(default)s)"}),
    ],
    "train": [("--dry_run", {"action": "store_true", "help": "print tasks, rows, parameters, steps and memory, and stop"})],
    "eval": [BACKBONE],
    "infer": [
        BACKBONE,
        ("--input", {"required": True, "help": "JSONL with the task's fields or with 'inputs' in each row, or TASK:SPLIT"}),
        ("--output", {"required": True, "help": "JSONL: each row with inputs and prediction"}),
        ("--score", {
            "nargs": "?", "const": True, "default": False, "type": _yes_or_no, "metavar": "True",
            "help": "also the log-probability of each label",
        }),
    ],
    "cache": [
        ("--splits", {"default": "train,validation", "help": "splits to cache (default: %(default)s)"}),
        ("--overwrite", {"action": "store_true", "help": "write again what is cached already"}),
    ],
    "tasks": [
        ("name", {"nargs": "?", "help": "task to show"}),
        ("--rows", {"type": _whole, "default": 3, "metavar": "N", "help": "rows to show (default: %(default)s)"}),
        ("--nearest", {
            "action": "append", "metavar": "MODEL_DIR", "help": "which tasks a run's tasks are like, among its own and further runs'",
        }),
    ],
    "compile": [
        ("--json", {"default": "", "help": "file for everything as JSON"}),
        ("--train_only", {"action": "store_true", "help": "leave out decoding, which is the same in all stages"}),
        ("--measure", {"type": _whole, "default": 0, "metavar": "N", "help": "also run N updates with random weights (--topology here)"}),
    ],
    "convert": [
        ("--from", {
            "dest": "source", "action": "append",
            "help": "run folder, checkpoint folder of any format, or a backbone's name; several for --to tokens and --combine",
        }),
        ("--model_dir", {"dest": "source", "action": "append", "help": "the same as --from, for a run folder"}),
        ("--to", {
            "required": True, "help": "t5x | t5x_scanned | orbax | hf | own | peft | peft_single | npz | npy | t5x_bank | tokens | run",
        }),
        ("--output", {"required": True, "help": "folder or file to write"}),
        ("--task", {"help": "one task of a bank (default: all)"}),
        ("--backbone", {"help": "backbone of the prompts, where the source does not name it"}),
        ("--combine", {"help": "one prompt made of several: --combine 'mine = 0.5*sst2 + 0.5*mrpc'"}),
    ],
    "report": [
        ("run_dirs", {"nargs": "*", "metavar": "MODEL_DIR", "help": "run folders"}),
        ("--model_dir", {"action": "append", "default": [], "help": "a run folder, as a flag"}),
        ("--output", {"help": "folder to write to (default: the first run folder)"}),
    ],
    "serve": serving.flags(),
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(_plain(message, self.prog))


def _plain(message: str, command: str) -> str:
    """What argparse says, with what to type instead."""
    message = message.removeprefix("argument ")
    missing = message.removeprefix("the following arguments are required: ")
    if missing != message:
        return f"{command} needs {missing}; `{command} --help` says what they take."
    extra = message.removeprefix("unrecognized arguments: ")
    if extra != message:
        word = next(iter(extra.split()), "")
        if not word:
            return f"an empty word is one too many for {command}: is a variable of the shell empty?"
        if "=" in word:
            return f"{word!r} is not a flag; type --{word.partition('=')[0].lower()}={word.partition('=')[2]}."
        return f"{word!r} is one word too many for {command}; separate the values of a list by commas without blanks: --tasks sst2,mrpc."
    return f"{message}."


def version() -> str:
    """The version of this package, as pip knows it."""
    from importlib import metadata  # a third of the time of --help, which does not need it

    try:
        return metadata.version("mpt_jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def exit_codes() -> str:
    """The exit codes, a line each."""
    return "\n".join(["exit codes:", *(f"  {code:<5} {meaning}" for code, meaning in EXIT_CODES.items())])


def _overview() -> str:
    lines = [
        "usage: mpt-jax COMMAND [STAGE] [--flag value …]", "", "Multitask prompt tuning for frozen language models in JAX.", "",
        "commands:",
        *(f"  {name:<11} {command.meaning}" for name, command in COMMANDS.items()), "", "stages of train:",
        *_stage_lines(), "", "`mpt-jax COMMAND --help` lists the flags of a command, `mpt-jax train STAGE --help` those of a stage.",
        "example: mpt-jax train source --tasks sst2,mrpc --teacher_dir runs/teachers --model_dir runs/source",
        "--version prints the version.", "", exit_codes(),
    ]  # fmt: skip
    return "\n".join(lines)


def _stage_lines() -> list[str]:
    return [
        textwrap.fill(meaning, 118, initial_indent=f"  {stage:<11} ", subsequent_indent=" " * 14) for stage, meaning in stages().items()
    ]


def macros_of(command: str) -> dict[str, Macro]:
    """The settings that a command reads, by flag."""
    return {macro.flag: macro for macro in macros().values() if _reads(command, macro.fields)}


def _reads(command: str, fields: Sequence[str]) -> bool:
    """Whether a command reads one of the fields, 'TrainSettings.train_steps'."""
    return any(field == read or field.startswith(f"{read}.") for field in fields for read in COMMANDS[command].reads)


def _parser(command: str, stage: str) -> tuple[_Parser, dict[str, argparse.Action]]:
    """The parser of a command and its flags by name; settings are in it for help alone."""
    row = COMMANDS[command]
    options: dict[str, argparse.Action] = {}
    needs_stage = row.gin == ""
    about = [f"{row.meaning[0].upper()}{row.meaning[1:]}.", *(["", "stages:", *_stage_lines()] if needs_stage else [])]
    more = exit_codes() if row.gin is None else f"A list is separated by commas, a text needs no quotes.\n\n{exit_codes()}"
    parser = _Parser(
        f"mpt-jax {command}", description="\n".join(about), epilog=more, allow_abbrev=False,
        usage=f"mpt-jax {command}{' STAGE' if needs_stage else ''} [--flag value …]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip

    def add(group, flag: str, **known: Any) -> None:
        options[flag] = group.add_argument(flag, **known)

    if needs_stage:
        parser.add_argument("stage", nargs="?", metavar="STAGE", help="one of the stages, or a gin file such as paper/glue")
    own = OWN.get(command, []) + (PROCESSES if row.joins else [])
    for flag, known in own:
        add(parser, flag, **known)
    if row.gin is not None:
        add(parser, "--gin_file", action="append", default=[], metavar="FILE", help="gin file, by path or name; may be repeated")
        add(parser, "--gin_search_paths", default="", metavar="FOLDERS", help="more folders to find gin files in")
        parser.add_argument("--gin.NAME", dest="_gin_help", metavar="VALUE", help="a gin binding: --gin.OptimizerSettings.clip_norm=0.5")
    groups: dict[str, Any] = {}
    differs = defaults(stage)
    for flag, macro in macros_of(command).items():
        if macro.heading not in groups:
            groups[macro.heading] = parser.add_argument_group(macro.heading.lower())
        default = differs.get(macro.name, macro.default)
        text = f"{macro.meaning} (default: {default})" if default not in ("", [], {}, None) else macro.meaning
        add(groups[macro.heading], flag, metavar=macro.value, nargs="?" if macro.switch else None, help=text.replace("%", "%%"))
    return parser, options


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; settings are collected in ``gin_bindings``. Prints help or the version and ends where they are asked for.

    Raises UserError for whatever is wrong, in one line with what to type instead.
    """
    if not argv:
        raise UserError(f"no command is given; type mpt-jax COMMAND, one of {', '.join(COMMANDS)}.")
    if argv[0] in ("-h", "--help", "--version"):
        print(f"mpt-jax {version()}" if argv[0] == "--version" else _overview())
        sys.exit(0)
    command, rest = _command(argv[0]), list(argv[1:])
    stage = rest[0].removesuffix(".gin") if COMMANDS[command].gin == "" and rest and not rest[0].startswith("-") else ""
    parser, options = _parser(command, stage)
    words, bindings = _scan(rest, command, options)
    arguments = parser.parse_args(words)
    arguments.command, arguments.gin_bindings = command, bindings
    if COMMANDS[command].gin is not None:
        _choose_files(arguments, command)
    if command == "report":
        arguments.run_dirs += vars(arguments).pop("model_dir")
    if command in ("report", "convert") and not (arguments.run_dirs if command == "report" else arguments.source):
        raise UserError(f"{command} needs a run folder; type {'mpt-jax report runs/target' if command == 'report' else '--from FOLDER'}.")
    for name, (flag, remote) in PATHS.items():
        remote = buckets.SCHEMES if (name, command) in (("output", "report"), ("backbone", "eval"), ("backbone", "infer")) else remote
        given = getattr(arguments, name, None)
        if isinstance(given, list):
            setattr(arguments, name, [paths.local(flag, path, remote) for path in given])
        elif given:
            setattr(arguments, name, paths.local(flag, given, remote))
    return arguments


def _command(word: str) -> str:
    if word in COMMANDS:
        return word
    if word.startswith("-"):
        raise UserError(f"{word}: a command comes first, for example mpt-jax train {word}; commands: {', '.join(COMMANDS)}.")
    raise UserError(f"{word!r} is not a command; {_near(word, COMMANDS) or 'commands: ' + ', '.join(COMMANDS)}.")


def _near(word: str, known: Sequence[str] | dict, cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(word, list(known), 1, cutoff)
    return f"did you mean {near[0]}?" if near else ""


def _scan(words: list[str], command: str, options: dict[str, argparse.Action]) -> tuple[list[str], list[Binding]]:
    """(the words that argparse is to read, each flag joined with its value; the settings in their order)."""
    settings, kept, bindings = macros_of(command), [], []
    while words:
        word = words.pop(0)
        if word.startswith("--gin."):
            bindings.append(_gin_binding(word, command))
        elif not word.startswith("--"):
            if word.startswith("-") and word != "-h" and len(word) > 1:
                raise UserError(f"{word}: a flag starts with two dashes; type -{word}.")
            kept.append(word)
        elif word == "--help":
            kept.append(word)
        else:
            flag, equals, text = word.partition("=")
            flag = _flag(flag, command, options)
            switch = options[flag].nargs in (0, "?")
            if not equals and switch and words and words[0].lower() in ("true", "false"):
                text, equals = words.pop(0), "="
            elif not equals and not switch:
                text, equals = _value(flag, words, settings), "="
            if flag in settings:
                bindings.append(Binding(settings[flag].name, text if equals else "True", flag))
            elif equals and options[flag].nargs == 0:
                kept += [flag] if _yes_or_no_of(flag, text) else []
            else:
                kept.append(f"{flag}{equals}{text}")
    return kept, bindings


def _gin_binding(word: str, command: str) -> Binding:
    if COMMANDS[command].gin is None:
        raise UserError(f"{word}: {command} takes no gin bindings; `mpt-jax {command} --help` lists its flags.")
    name, equals, text = word.removeprefix("--gin.").partition("=")
    if not equals:
        macro = macros().get(name)
        raise UserError(f"{word}: a binding is --gin.NAME=VALUE" + (f", or {macro.example}." if macro else "."))
    name = name.strip()
    fields = macros()[name].fields if name in macros() else (name,) if FIELD.fullmatch(name) else ()
    known = {read.partition(".")[0] for row in COMMANDS.values() for read in row.reads}  # a method's own settings are gin_settings.py's
    read_elsewhere = any(field.partition(".")[0] in known for field in fields)
    if read_elsewhere and not _reads(command, fields):  # no error: bindings are often given to several commands alike
        print(f"--gin.{name}: {command} does not read this setting, it changes nothing here", file=sys.stderr)
    return Binding(name, text, f"--gin.{name}")


def _flag(typed: str, command: str, options: dict[str, argparse.Action]) -> str:
    """The flag that is meant: capitals, as gin writes its macros, and dashes between words are taken as well."""
    words = typed[2:].replace("-", "_")
    flag = f"--{words.lower() if words.isupper() else words}"
    if flag in options:
        return flag
    others = [name for name in COMMANDS if flag in macros_of(name)]
    if others:
        raise UserError(f"{typed}: {command} has no such flag, it is one of {', '.join(others)}; leave it out.")
    hint = _near(flag, options) or f"`mpt-jax {command} --help` lists its flags."
    raise UserError(f"{typed}: {command} has no such flag; {hint}")


def _value(flag: str, words: list[str], settings: dict[str, Macro]) -> str:
    if not words or words[0].startswith("--"):
        example = settings[flag].example if flag in settings else f"{flag} VALUE"
        found = f", not the flag {words[0]}" if words else ""
        raise UserError(f"{flag} needs a value{found}; type {example}.")
    return words.pop(0)


def _yes_or_no_of(flag: str, text: str) -> bool:
    try:
        return _yes_or_no(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{flag}={text}: {error}; type {flag} alone for True.") from error


def _choose_files(arguments: argparse.Namespace, command: str) -> None:
    """Sets ``gin_file`` to the files to read: the stage's first. Raises UserError for a stage that is missing or unknown."""
    start = COMMANDS[command].gin
    if start:
        arguments.gin_file = arguments.gin_file or [start]
        return
    if arguments.stage is None and not arguments.gin_file:
        raise UserError(f"{command} needs a stage: mpt-jax {command} {' | '.join(STAGES)}")
    if arguments.stage is not None:
        name = arguments.stage.removesuffix(".gin")
        folders = [".", *filter(None, arguments.gin_search_paths.split(",")), str(GIN_FOLDER)]
        if not any(os.path.isfile(f"{folder}/{name}.gin") for folder in folders):
            if "=" in name:
                raise UserError(_plain(f"unrecognized arguments: {name}", f"mpt-jax {command}"))
            near = _near(name, [*STAGES, *(f"paper/{path.stem}" for path in (GIN_FOLDER / "paper").glob("*.gin"))])
            raise UserError(f"{name!r} is not a stage; {near + ' ' if near else ''}stages: {', '.join(STAGES)}.")
        arguments.gin_file = [f"{name}.gin", *arguments.gin_file]
