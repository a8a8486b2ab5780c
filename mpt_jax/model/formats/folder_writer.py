"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Callable

from mpt_jax.errors import UserError


def write_folder(dest: str, write: Callable[[str], None]) -> list[str]:
    """Runs write(folder) on a temporary folder beside dest and renames it to dest. Returns the written files.

    Raises UserError if dest exists and is not an empty folder, or cannot be written.
    """
    dest = os.path.abspath(dest)
    if os.path.exists(dest) and (not os.path.isdir(dest) or os.listdir(dest)):
        raise UserError(f"{dest} is there already; give another --output or remove it.")
    temporary = f"{dest}.tmp-{os.getpid()}"
    try:
        os.makedirs(temporary)
        write(temporary)
        if os.path.isdir(dest):
            os.rmdir(dest)
        os.rename(temporary, dest)
    except OSError as error:
        raise UserError(f"{dest} cannot be written: {error.strerror or error}. Give another --output.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(os.path.join(root, name) for root, _, files in os.walk(dest) for name in files)
