"""docs/models.md says what the table of families says."""

from pathlib import Path

from benchmarks.models import holder, table


def test_the_sizes_of_the_docs_are_those_of_the_families():
    assert table() in (Path(__file__).parent.parent / "docs" / "models.md").read_text()


def test_the_smallest_device_that_holds_weights():
    assert [holder(gib * 2**30) for gib in (12, 12.1, 24.1, 60, 72, 73)] == ["v5e", "v6e", "H100", "v5p", "8 × v5e", "8 × v5e"]
    assert holder(97 * 2**30) == "16 × v5e"
