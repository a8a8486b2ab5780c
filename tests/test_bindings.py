"""Values of bindings as one types them, and what stays ambiguous."""

import pytest

from mpt_jax.bindings import as_gin
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
        ("many", int, "'many'"),
        ("300", int, "300"),
        ("true", bool, "True"),
        ("FALSE", bool, "False"),
        ("maybe", bool, "'maybe'"),
        ("{inputs: 32, targets: 8}", dict, "{'inputs': 32, 'targets': 8}"),
        ("inputs=32,targets=8", dict, "{'inputs': 32, 'targets': 8}"),
        ("{'inputs': 32}", dict, "{'inputs': 32}"),
        ("text", None, "'text'"),
        ("a,b", None, "'a,b'"),
        ("1,2", None, "[1, 2]"),
        ("%MODEL", str, "%MODEL"),
        ("[@f(), %X]", LIST, "[@f(), %X]"),
    ],
)
def test_what_one_types_becomes_what_gin_reads(text, hint, value):
    assert as_gin("NAME", text, hint) == value


@pytest.mark.parametrize(
    "text, hint, example",
    [
        ("'runs/a", str, "--gin.NAME=text or --gin.NAME=\"'text'\""),
        ("['a', b", LIST, "--gin.NAME=a,b"),
        ("[[1, b]]", LIST, "--gin.NAME=a,b"),
        ("32", dict, ""),
        ("32,8", dict, "{'inputs': 256, 'targets': 128}"),
        ("{inputs}", dict, "{'inputs': 256, 'targets': 128}"),
        ("", int, "--gin.NAME=1"),
        ("", bool, "--gin.NAME=True"),
        ("[" * 100_000, LIST, "--gin.NAME=a,b"),
    ],
)
def test_what_can_mean_several_things_is_named_with_what_to_type(text, hint, example):
    if not example:  # read, and refused by the type of the setting
        assert as_gin("NAME", text, hint) == text
        return
    with pytest.raises(UserError, match="--gin.NAME=.*the value cannot be read") as raised:
        as_gin("NAME", text, hint)
    assert example in str(raised.value) and len(str(raised.value)) < 300
