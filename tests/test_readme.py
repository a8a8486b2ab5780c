"""Commands of README and docs are ones that mpt-jax takes (main.py), and README's notebook block calls what a Predictor has."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest

import mpt_jax
from mpt_jax import main
from mpt_jax.config import BackboneSettings, CompileSettings, DataSettings, EvalSettings, MeshSettings, TaskSettings
from mpt_jax.infer.predictor import Predictor

ROOT = Path(__file__).parent.parent
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
READ = {  # settings that a command reads besides those of a stage
    "eval": (EvalSettings, DataSettings, MeshSettings),
    "infer": (EvalSettings, DataSettings, MeshSettings),
    "cache": (BackboneSettings, DataSettings),
    "tasks": (BackboneSettings, DataSettings),
    "compile": (CompileSettings,),
}


def commands(page: str) -> list[list[str]]:
    """Arguments of mpt-jax in the page's blocks, also where a launcher starts it; what stands for more is left out."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", PAGES[page], re.S):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
            lexer.whitespace_split = True
            words = [word for word in lexer if word != "…"]
            starts = [n for n, word in enumerate(words) if word == "mpt-jax" or (word == "--" and "mpt_jax.launch" in words)]
            for start in starts:
                end = next((n for n in range(start + 1, len(words)) if set(words[n]) <= set(";&")), len(words))
                local = words[start] == "--"  # where a launcher mounts buckets as folders
                found.append([word.replace("gs://", "/") if local else word for word in words[start + 1 : end]])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_every_command_is_one_that_the_program_takes(page):
    for argv in commands(page):
        arguments = main.parse_arguments(argv)
        if arguments.gin_default is None:
            continue
        files = arguments.gin_file or ([arguments.gin_default] if arguments.gin_default else [])
        main.parse_gin(files, arguments.gin_bindings, [])
        if arguments.command in ("train", "compile"):
            assert main.stage_settings().train.stage in main.STAGES, argv
        for cls in (TaskSettings, *READ.get(arguments.command, ())):
            main.configured(cls)


def test_the_pages_have_commands_of_each_kind():
    found = {argv[0] for page in PAGES for argv in commands(page)}
    assert found >= {"train", "eval", "infer", "convert", "report", "tasks", "cache", "compile"}


def test_the_notebook_of_the_readme_calls_what_there_is():
    """Names and arguments; the calls themselves are tested in test_predictor.py."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", PAGES["README.md"], re.S) if "mpt_jax.load" in block)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    called = {call.func.attr for call in calls}
    for call in calls:
        owner, self = (mpt_jax, ()) if call.func.value.id == "mpt_jax" else (Predictor, (None,))
        given, named = [None] * len(call.args), {keyword.arg: None for keyword in call.keywords}
        inspect.signature(getattr(owner, call.func.attr)).bind(*self, *given, **named)
    assert called >= {"load", "predict", "score", "prompt"}
