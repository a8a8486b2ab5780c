"""The parts of a GGUF file (llama.cpp): what it says of itself, and its arrays, by the library `gguf`."""

import functools
import os
import struct
from typing import Any

from mpt_jax.errors import UserError
from mpt_jax.regular_files import check_regular, open_regular

MAGIC = b"GGUF"
# what a file's bytes can make the library raise
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, MemoryError, OSError)


def parts(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metadata by key, the library's tensors by name). Raises UserError for what is not a whole GGUF file."""
    size = check_regular(path)
    return _parts_once(os.path.abspath(path), size, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=1)  # weights and vocabulary are asked for one after the other, and parsing takes seconds
def _parts_once(path: str, size: int, modified: int) -> tuple[dict[str, Any], dict[str, Any]]:
    import gguf

    with open_regular(path) as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{path} is not a GGUF file: it does not begin with {MAGIC.decode()}.")
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or cut short ({type(error).__name__}: {str(error)[:120]}). Copy it again.") from error
    if end > size:
        raise UserError(f"{path} is cut short: its arrays end at byte {end:,}, the file has {size:,}. Copy it again.")
    return fields, tensors
