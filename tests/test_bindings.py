"""Values of settings as one types them, and what can mean several things or nothing."""

import ast

import pytest

from mpt_jax.bindings import Binding, Words, WordsOfTasks, as_gin
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


@pytest.mark.parametrize(
    "text, hint, value",
    [
        ("\nAnswer:", Words, "\nAnswer:"),
        (r"\nAnswer:", Words, "\nAnswer:"),
        (r"'\nAnswer:'", Words, "\nAnswer:"),
        ("Answer: ", Words, "Answer: "),
        (" ", Words, " "),
        ("", Words, ""),
        ("5", Words, "5"),
        ("[a, b]", Words, "[a, b]"),
        ("{a: b}", Words, "{a: b}"),
        ("mail me @home, 5 %off", Words, "mail me @home, 5 %off"),
        (r' "a\\nb" ', Words, r"a\nb"),
        (r" is it good?\n", WordsOfTasks, " is it good?\n"),
        ("1, 2", WordsOfTasks, "1, 2"),
        (r"{rte: true\nor false}", WordsOfTasks, {"rte": "true\nor false"}),
        (r"{'rte': ' is it good?\n'}", WordsOfTasks, {"rte": " is it good?\n"}),
        (r"{rte: ' true?\n', cb: yes}", WordsOfTasks, {"rte": " true?\n", "cb": "yes"}),
    ],
)
def test_what_a_model_reads_keeps_its_white_space_and_line_breaks(text, hint, value):
    assert ast.literal_eval(as_gin("--cue", text, hint)) == value


def test_a_macro_may_stand_for_what_a_model_reads():
    assert as_gin("--cue", "%MY_CUE", Words) == "%MY_CUE"


@pytest.mark.parametrize("text", ["'Answer:", "'a', 'b'", '"yes" or "no"'])
def test_quotes_around_what_a_model_reads_have_to_match(text):
    with pytest.raises(UserError, match="a text with matching quotes is expected; type --cue=text, without quotes"):
        as_gin("--cue", text, Words)


def test_gins_own_way_of_writing_is_a_setting_too():
    assert Binding.of("TASKS = ['a', 'b=c']") == ("TASKS", "['a', 'b=c']", "--gin.TASKS")
