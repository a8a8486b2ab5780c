"""Buckets as folders: a run's folder and its token caches must be seen by all hosts and outlive them.

``gs://BUCKET/PATH`` in a command becomes a path below a folder where the hosts mount the bucket with Cloud Storage FUSE. Renaming folders,
which ends the writing of a checkpoint, is off there unless --rename-dir-limit allows it (cloud.google.com/storage/docs/cloud-storage-fuse).
"""

import re
from collections.abc import Sequence

MOUNT_OPTIONS = ("implicit-dirs", "rename-dir-limit=200000")
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]*[a-z0-9])")


def mounted(command: Sequence[str], below: str) -> tuple[list[str], list[str]]:
    """(the command with paths instead of gs:// addresses, the buckets to mount as folders of their names in ``below``)."""
    buckets = sorted({bucket for argument in command for bucket in _BUCKET.findall(argument)})
    return [_BUCKET.sub(lambda found: f"{below}/{found[1]}", argument) for argument in command], buckets


def without(command: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The command without what it says of some settings: --NAME VALUE, --NAME=VALUE, --gin.NAME=VALUE."""
    unwanted, kept, arguments = {name.lower() for name in settings}, [], iter(command)
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not name.startswith("--") or name.removeprefix("--").removeprefix("gin.").lower() not in unwanted:
            kept.append(argument)
        elif not equals:
            next(arguments, None)
    return kept


def model_dir(command: Sequence[str]) -> str | None:
    """The value of MODEL_DIR in a command, if it is given there."""
    for place, argument in enumerate(command):
        name, equals, value = argument.partition("=")
        if name in ("--model_dir", "--gin.MODEL_DIR"):
            return (value if equals else "".join(command[place + 1 : place + 2])).strip("'\"")
    return None
