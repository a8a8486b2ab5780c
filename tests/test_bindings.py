"""Values of settings as one types them, and what can mean several things or nothing."""

import pytest

from mpt_jax.bindings import Binding, as_gin
from mpt_jax.errors import UserError

LIST, NUMBERS = list | tuple, float | list | tuple


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("runs/a", str, "'runs/a'"),
        ("'runs/a'", str, "'runs/a'"),
        ("runs/a,b [1]", str, "'runs/a,b [1]'"),
        ("2024", str, "'2024'"),
        ("1,2", str, "'1,2'"),
        ("True", str, "'True'"),
        ("", str, "''"),
        ("it's", str, '"it\'s"'),
        ("sst2", LIST, "['sst2']"),
        ("'sst2'", LIST, "['sst2']"),
        ("sst2,mrpc", LIST, "['sst2', 'mrpc']"),
        ("[sst2, mrpc]", LIST, "['sst2', 'mrpc']"),
        ("['sst2', mrpc]", LIST, "['sst2', 'mrpc']"),
        ("sst2,", LIST, "['sst2']"),
        ("['sst2']", LIST, "['sst2']"),
        ("16", LIST, "[16]"),
        ("[]", LIST, "[]"),
        ("1,2", int | list | tuple, "[1, 2]"),
        ("1", int | list | tuple, "1"),
        ("0.1,3e-2", NUMBERS, "[0.1, 0.03]"),
        ("fast", NUMBERS, "['fast']"),
        ("300", int, "300"),
        ("1", float, "1"),
        ("true", bool, "True"),
        ("FALSE", bool, "False"),
        ("{inputs: 32, targets: 8}", dict, "{'inputs': 32, 'targets': 8}"),
        ("inputs=32,targets=8", dict, "{'inputs': 32, 'targets': 8}"),
        ("{'inputs': 32}", dict, "{'inputs': 32}"),
        ("is it good, or bad?", str | dict, "'is it good, or bad?'"),
        ("{rte: true or false}", str | dict, "{'rte': 'true or false'}"),
        ("sst2", str | list | tuple | dict, "'sst2'"),
        ("sst2,mnli", str | list | tuple | dict, "['sst2', 'mnli']"),
        ("text", None, "'text'"),
        ("a,b", None, "'a,b'"),
        ("1,2", None, "[1, 2]"),
        ("%MODEL", str, "%MODEL"),
        ("[@f(), %X]", LIST, "[@f(), %X]"),
    ],
)
def test_what_one_types_becomes_what_gin_reads(text, hint, value):
    assert as_gin("--name", text, hint) == value


@pytest.mark.parametrize(
    "text, hint, said",
    [
        ("'runs/a", str, "a text with matching quotes is expected; type --name=text"),
        ("['a', b", LIST, "a list with matching quotes and brackets is expected; type --name=a,b"),
        ("[[1, b]]", LIST, "type --name=a,b"),
        ("32", dict, "type --name=inputs=256,targets=128"),
        ("32,8", dict, "type --name=inputs=256,targets=128"),
        ("{inputs}", dict, "type --name=inputs=256,targets=128"),
        ("", int, "a whole number is expected; type --name=1"),
        ("many", int, "a whole number is expected; type --name=1"),
        ("1.5", int, "a whole number is expected; type --name=1"),
        ("True", int, "a whole number is expected; type --name=1"),
        ("1,2", int, "a whole number is expected; type --name=1"),
        ("fast", float, "a number is expected; type --name=0.1"),
        ("", bool, "True or False is expected; type --name=True"),
        ("maybe", bool, "True or False is expected; type --name=True"),
        ("[" * 100_000, LIST, "type --name=a,b"),
    ],
)
def test_what_means_nothing_is_named_with_what_to_type(text, hint, said):
    with pytest.raises(UserError) as raised:
        as_gin("--name", text, hint)
    message = str(raised.value)
    assert message.startswith(f"--name={text[:80]}") and said in message and len(message) < 300


def test_gins_own_way_of_writing_is_a_setting_too():
    assert Binding.of("TASKS = ['a', 'b=c']") == ("TASKS", "['a', 'b=c']", "--gin.TASKS")
