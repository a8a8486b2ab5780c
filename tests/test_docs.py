"""README and docs: every command is one that the program takes, links lead somewhere, and the commands of most pages run."""

import ast
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import mpt_jax
from mpt_jax import gin_settings, tasks
from mpt_jax.command_line import COMMANDS, parse_arguments
from mpt_jax.infer.predictor import Predictor
from mpt_jax.main import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SMALL = ["--train_steps=2", "--batch_size=4", "--gin.TrainSettings.eval_rows=8", "--gin.DataSettings.micro_batch_size=4"]
FEW = ["--gin.EvalSettings.max_rows=8"]
SHORT = ["--task_feature_lengths=inputs=32,targets=8", "--gin.DataSettings.input_buckets=[]", "--gin.DataSettings.target_buckets=[]"]


def commands(page: Path) -> list[list[str]]:
    """Arguments of mpt-jax in a page's blocks, also where a launcher starts it; what stands for more is left out."""
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            if "mpt-jax " not in line and "mpt_jax.launch" not in line:
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&")
            lexer.whitespace_split = True
            words = [word for word in lexer if word != "…"]
            starts = [n for n, word in enumerate(words) if word == "mpt-jax" or (word == "--" and "mpt_jax.launch" in words)]
            for start in starts:
                end = next((n for n in range(start + 1, len(words)) if set(words[n]) <= set(";&")), len(words))
                local = words[start] == "--"  # where a launcher mounts buckets as folders
                found.append([word.replace("gs://", "/") if local else word for word in words[start + 1 : end]])
    return found


EVERY = [(page, argv) for page in PAGES for argv in commands(page)]


def test_the_pages_have_commands():
    assert len(EVERY) > 50 and {argv[0] for _, argv in EVERY} >= set(COMMANDS) - {"quickstart"}


@pytest.mark.parametrize("page, argv", EVERY, ids=[f"{page.stem}: {' '.join(argv)}"[:120] for page, argv in EVERY])
def test_every_command_of_the_pages_is_one_that_the_program_takes(page, argv):
    parsed = parse_arguments(argv)
    row = COMMANDS[parsed.command]
    if row.gin is None:
        return
    try:
        # settings of the page's own module are known where it runs (test_extending.py)
        bindings = [binding for binding in parsed.gin_bindings if not binding.name.startswith("ScaleSettings.")]
        gin_settings.parse_gin(parsed.gin_file, bindings)
        for cls in gin_settings.SETTINGS:
            if any(read.partition(".")[0] == cls.__name__ for read in row.reads):
                gin_settings.configured(cls)
    finally:
        gin_settings.gin.clear_config()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "evaluation.md"], ids=lambda page: page.name)
def test_python_of_the_pages_calls_what_there_is(page):
    """Names and arguments; the calls themselves are tested in test_predictor.py."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if "mpt_jax.load" in block)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    assert {call.func.attr for call in calls} >= {"load", "predict"}
    for call in calls:
        owner, self = (mpt_jax, ()) if call.func.value.id == "mpt_jax" else (Predictor, (None,))
        given, named = [None] * len(call.args), {keyword.arg: None for keyword in call.keywords}
        inspect.signature(getattr(owner, call.func.attr)).bind(*self, *given, **named)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", page.read_text())):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), target
        heads = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.+)$", file.read_text(), re.M)]
        assert not anchor or anchor in heads, target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture
def folder(tmp_path, monkeypatch, table):
    """An empty folder with what README's own task needs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPT_CACHE_DIR", str(tmp_path / "cache"))
    rows = [{"text": f"a {'joy' if n % 2 else 'bore'} of {n} minutes", "label": "positive" if n % 2 else "negative"} for n in range(16)]
    for name in ("mood_train.jsonl", "mood_dev.jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = next(block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "tasks.jsonl" in block)
    Path("my_tasks.py").write_text(module)
    return tmp_path


def run(argv: list[str], monkeypatch) -> None:
    """A command of a page, with few steps and short rows."""
    more = {"train": [*SMALL, *SHORT], "eval": FEW}.get(argv[0], [])
    assert main([*argv, *more]) == 0, argv


def test_readmes_own_task_trains_is_scored_and_answers(folder, monkeypatch):
    chosen = [argv for argv in commands(ROOT / "README.md") if "my_tasks.py" in argv]
    assert [argv[0] for argv in chosen] == ["tasks", "train", "eval", "infer"]
    for argv in chosen:
        run(argv, monkeypatch)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 16


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("README.md", "docs/evaluation.md"), marks=pytest.mark.slow, id="readme"),
        pytest.param(("docs/coming_from.md",), marks=pytest.mark.long, id="coming_from"),
    ],
)
def test_commands_of_the_pages_run_as_printed(names, folder, monkeypatch):
    """One after another in one folder, with few steps and short rows."""
    (folder / "rows.jsonl").write_text('{"inputs": "definition: full of joy"}\n')
    done = set()
    for argv in (argv for name in names for argv in commands(ROOT / name)):
        if argv[0] in ("quickstart", "serve") or "my_tasks.py" in argv or tuple(argv) in done:
            continue
        done.add(tuple(argv))
        run(argv, monkeypatch)
    assert tasks.TABLE and list((folder / "runs").iterdir())
