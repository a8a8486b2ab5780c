"""docs/troubleshooting.md: the messages that it explains are those that the program prints."""

import ast
import re
from pathlib import Path

import pytest
from test_prose import sources, visible

from mpt_jax.errors import EXIT_CODES, EXIT_PEER_LOST_ABORTED

PAGE = Path(__file__).parent.parent / "docs" / "troubleshooting.md"
SYMPTOMS = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(encoding="utf-8"), re.M)[1:]
OTHERS = ("RESOURCE_EXHAUSTED", "Out of memory", "No space left on device")  # XLA's and the operating system's
NAMES = ("eval", "invalid", "config.json")  # a command, a score, a file
MESSAGES = [text for path in sources() for _, text in visible(ast.parse(path.read_text()))]
QUOTED = [quoted for symptom in SYMPTOMS for quoted in re.findall(r"`([^`]+)`", symptom) if quoted not in OTHERS + NAMES]


def test_the_page_has_symptoms():
    assert len(SYMPTOMS) > 20 and len(QUOTED) > 9 and len(MESSAGES) > 1000


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_message_of_the_page_is_one_of_the_program(quoted):
    """An ellipsis stands for what the program fills in."""
    pattern = ".*".join(re.escape(part.strip()) for part in quoted.split("…"))
    assert any(re.search(pattern, text) for text in MESSAGES)


def test_a_message_that_is_nowhere_is_found_out():
    assert not any("cannot be frobnicated" in text for text in MESSAGES)


def test_exit_codes_of_the_page_are_those_of_the_program():
    named = {int(code) for symptom in SYMPTOMS if symptom.startswith("code ") for code in re.findall(r"\d+", symptom)}
    assert named and named <= {*EXIT_CODES, EXIT_PEER_LOST_ABORTED}
