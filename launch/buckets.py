"""Buckets as folders, and what a command says of settings: a run's folder and its caches must be seen by all hosts and outlive them.

``gs://BUCKET/PATH`` in a command becomes a path below a folder where the hosts mount the bucket with Cloud Storage FUSE. Renaming folders,
which ends the writing of a checkpoint, is off there unless --rename-dir-limit allows it (cloud.google.com/storage/docs/cloud-storage-fuse).
"""

import re
from collections.abc import Iterator, Sequence

from mpt_jax.macros import macro_of, macros

MOUNT_OPTIONS = ("implicit-dirs", "rename-dir-limit=200000")
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]*[a-z0-9])")


def mounted(command: Sequence[str], below: str) -> tuple[list[str], list[str]]:
    """(the command with paths instead of gs:// addresses, the buckets to mount as folders of their names in ``below``)."""
    buckets = sorted({bucket for argument in command for bucket in _BUCKET.findall(argument)})
    return [_BUCKET.sub(lambda found: f"{below}/{found[1]}", argument) for argument in command], buckets


def called(name: str) -> str:
    """A setting's macro, by any name that mpt-jax takes: model_dir, model-dir, MODEL_DIR, TrainSettings.model_dir; without one the name."""
    macro = name.replace("-", "_").upper()
    return macro if macro in macros() else macro_of()[name].name if name in macro_of() else name


def _settings(command: Sequence[str]) -> Iterator[tuple[list[str], str, str | None]]:
    """(words, setting, value) of each piece of a command, by the rules of mpt_jax/command_line.py; setting '' for what is not a flag."""
    words = list(command)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        setting = called(flag[2:].removeprefix("gin.")) if flag.startswith("--") else ""
        taken = []
        if setting and not equals and words and not words[0].startswith("--"):
            switch = setting in macros() and macros()[setting].switch
            if not switch or words[0].lower() in ("true", "false"):
                taken = [words.pop(0)]
        yield [word, *taken], setting, value if equals else next(iter(taken), None)


def without(command: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The command without what it says of some settings, by whichever of their names."""
    unwanted = {called(name) for name in settings}
    return [word for words, setting, _ in _settings(command) if setting not in unwanted for word in words]


def model_dir(command: Sequence[str]) -> str | None:
    """The value of MODEL_DIR in a command, the last one that is given there."""
    found = [value for _, setting, value in _settings(command) if setting == "MODEL_DIR" and value is not None]
    return found[-1].strip().strip("'\"") if found else None
