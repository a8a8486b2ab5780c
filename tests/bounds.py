"""A limit on what a test may take, for hostile files."""

import contextlib
import gc
import resource
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS, MEMORY = 2.0, 2**30


@contextlib.contextmanager
def within_bounds() -> Iterator[None]:
    """Meanwhile the process gets at most 1 GiB more memory; afterwards at most 2 s of CPU have gone by.

    What the process holds before is not the code's under test: the garbage collector, which would walk it again and again, leaves it alone.
    """
    gc.freeze()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        gc.unfreeze()
    assert time.process_time() - start < SECONDS
