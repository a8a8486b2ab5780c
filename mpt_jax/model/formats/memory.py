"""Host memory of arrays being read: large ones get pages of their own, and what is freed goes back to the system."""

import contextlib
import ctypes
import math
import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mpt_jax.errors import UserError

OWN_PAGES_BYTES = 2**20
# Parameters of glibc's mallopt (malloc.h), and the values at which its own adjustment of them ends (mallopt(3))
MMAP_THRESHOLD, MMAP_THRESHOLD_MAX = -3, 32 * 2**20
TRIM_THRESHOLD, TRIM_THRESHOLD_MAX = -1, 64 * 2**20


def empty(shape: tuple[int, ...], dtype: Any, source: str = "An array") -> np.ndarray:
    """Memory for an array; large ones get pages of their own. UserError naming `source` if there is not enough.

    Those go back to the system at once when the array is gone, where malloc would keep them, and being aligned they
    become jax arrays on CPU without a copy.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    try:
        if size < OWN_PAGES_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
            return np.empty(shape, dtype)
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError, OverflowError, ValueError) as error:
        raise UserError(f"{source} needs {size:,} bytes of memory for shape {shape}; this machine does not give that.") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Meanwhile large buffers of every library go back to the system when freed.

    glibc raises the size from which they do with each one freed, to 32 MiB, and then keeps several arrays' size for each thread
    that reads. Afterwards the thresholds are what that adjustment ends at. Does nothing under another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        yield
        return
    mallopt(MMAP_THRESHOLD, OWN_PAGES_BYTES)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, MMAP_THRESHOLD_MAX)
        mallopt(TRIM_THRESHOLD, TRIM_THRESHOLD_MAX)
