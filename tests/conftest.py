"""What tests share."""

import pytest

import tasks


@pytest.fixture
def table():
    """The table of tasks, with what a test adds taken out afterwards."""
    before = dict(tasks.TABLE)
    yield tasks.TABLE
    tasks.TABLE.clear()
    tasks.TABLE.update(before)
