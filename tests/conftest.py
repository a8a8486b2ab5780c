"""What tests share."""

import contextlib
import gc
import os
import sys
from pathlib import Path

import jax
import pytest

from mpt_jax import tasks

# benchmarks/ is not installed; at the end, so that the packages under test are the installed ones where there are any
sys.path.append(str(Path(__file__).parent.parent))
# tests compile much and compute little; set before JAX starts a device
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture
def table():
    """The table of tasks, with what a test adds taken out afterwards."""
    before = dict(tasks.TABLE)
    yield tasks.TABLE
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """Programs that several tests compile are compiled once for all workers; jit still traces each, which is what tests count."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def let_go():
    """What a file of tests compiled goes with it: a worker that keeps all of it takes gigabytes, which every collection walks."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def forbidden():
    """Makes a path unreadable meanwhile, for root too."""

    @contextlib.contextmanager
    def forbid(path):
        mode, user = path.stat().st_mode, os.geteuid()
        parents = [(parent, parent.stat().st_mode) for parent in path.parents if parent.stat().st_uid == user and parent != parent.parent]
        if user == 0:
            for parent, parent_mode in parents:
                os.chmod(parent, parent_mode | 0o555)
        os.chmod(path, 0)
        if user == 0:
            os.seteuid(65_534)
        try:
            yield
        finally:
            os.seteuid(user)
            os.chmod(path, mode)
            for parent, parent_mode in parents:
                os.chmod(parent, parent_mode)

    return forbid
