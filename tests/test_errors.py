"""Messages for a user are on one line."""

import pytest
from mpt_jax.tasks import TaskError

from mpt_jax.errors import UserError


@pytest.mark.parametrize("kind", [UserError, TaskError])
def test_a_text_of_a_file_with_line_breaks_makes_no_second_line(kind):
    assert str(kind("x.json: field 'a\nb' is unknown")) == "x.json: field 'a\\nb' is unknown"
    assert str(kind("x.json: no fields")) == "x.json: no fields"
