"""What tests share."""

import jax
import pytest

import tasks


@pytest.fixture
def table():
    """The table of tasks, with what a test adds taken out afterwards."""
    before = dict(tasks.TABLE)
    yield tasks.TABLE
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """Programs that several tests compile are compiled once; jit still traces each, which is what tests count."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
