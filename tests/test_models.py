"""docs/models.md says what the table of families says."""

from pathlib import Path

from benchmarks.models import table


def test_the_sizes_of_the_docs_are_those_of_the_families():
    assert table() in (Path(__file__).parent.parent / "docs" / "models.md").read_text()
