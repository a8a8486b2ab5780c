"""README and docs: commands, flags, settings, files and modules that they name exist, links lead somewhere, and commands run as printed
or a reason stands here."""

import ast
import dataclasses
import inspect
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_run import row, write_run

import mpt_jax
from mpt_jax import gin_settings, tasks
from mpt_jax.command_line import COMMANDS, OWN, PROCESSES, macros_of, parse_arguments
from mpt_jax.config import BackboneSettings
from mpt_jax.infer.predictor import Predictor
from mpt_jax.macros import macros
from mpt_jax.main import main
from mpt_jax.methods.table import METHODS
from mpt_jax.model.backbone import load_backbone

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TOUR = ROOT / "docs" / "tour.ipynb"
SMALL = ["--train_steps=2", "--batch_size=4", "--gin.TrainSettings.eval_rows=8", "--gin.DataSettings.micro_batch_size=4"]
FEW = ["--gin.EvalSettings.max_rows=8"]
SHORT = ["--task_feature_lengths=inputs=32,targets=8", "--gin.DataSettings.input_buckets=[]", "--gin.DataSettings.target_buckets=[]"]


# Pages whose commands a test runs one after another in one folder, as printed but for fewer steps and shorter rows
TOGETHER = {
    "readme": ("README.md", "docs/evaluation.md"),
    "coming_from": ("docs/coming_from.md",),
    "stages": ("docs/stages.md", "docs/formats.md", "docs/serving.md"),
    "quickstart": ("docs/quickstart.md", "docs/tasks.md"),
    "methods": ("docs/methods.md",),
}
ELSEWHERE = {"extending.md": "test_extending.py", "tour.ipynb": "test_tour.py"}  # pages that another test file runs
NOT_RUN = {  # pages whose commands no test runs as printed, and why
    "jobs.md": "they need a bucket, a TPU or a cluster; test_bucket_training.py, test_launch_detached.py and test_launch_slurm.py stand in",
    "paper.md": "they need the published data sets; test_gin_paper.py reads the same gin files",
    "scale.md": "they need many hosts, libtpu or a GPU; test_launch_*.py and test_compile.py",
    "study.md": "they need SmolLM2's weights, which the tests do not install",
}
NEVER = {  # commands that no test runs as printed, and why
    r"^quickstart": "it takes ten minutes; test_quickstart.py runs it cut short",
    r"^serve ": "it ends when it is asked to; test_serving.py",
    r"gs://": "it needs a bucket; test_formats_bucket.py",
}


def code_blocks(page: Path) -> list[str]:
    """Fenced blocks of a page; of a notebook the cells for the shell."""
    if page.suffix == ".ipynb":
        cells = ["".join(cell["source"]) for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
        return [cell.removeprefix("%%sh\n") for cell in cells if cell.startswith("%%sh\n")]
    return re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.S | re.M)


def commands(page: Path) -> list[list[str]]:
    """Arguments of mpt-jax in a page's blocks, also where a launcher starts it; what stands for more is left out."""
    found = []
    for block in code_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if "mpt-jax " not in line and "mpt_jax.launch" not in line:
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
            lexer.whitespace_split = True
            words = [word for word in lexer if word != "…"]
            starts = [n for n, word in enumerate(words) if word == "mpt-jax" or (word == "--" and "mpt_jax.launch" in words)]
            for start in starts:
                end = next((n for n in range(start + 1, len(words)) if set(words[n]) <= set(";&|")), len(words))
                local = words[start] == "--"  # where a launcher mounts buckets as folders
                found.append([word.replace("gs://", "/") if local else word for word in words[start + 1 : end]])
    return found


EVERY = [(page, argv) for page in [*PAGES, TOUR] for argv in commands(page)]


def test_the_pages_have_commands():
    assert len(EVERY) > 50 and {argv[0] for _, argv in EVERY} >= set(COMMANDS) - {"quickstart"}


def why_not(argv: list[str]) -> str:
    """Why no test runs a command as printed; '' where one does."""
    return next((why for pattern, why in NEVER.items() if re.search(pattern, " ".join(argv))), "")


def test_every_command_runs_or_a_reason_stands_here():
    run = {(ROOT / page).name for pages in TOGETHER.values() for page in pages} | set(ELSEWHERE)
    assert not run & set(NOT_RUN)
    left = {(page.name, " ".join(argv)) for page, argv in EVERY if page.name not in run | set(NOT_RUN) and not why_not(argv)}
    assert left == set()
    assert set(NOT_RUN) <= {page.name for page, _ in EVERY}  # no reason is left over
    assert all(any(re.search(pattern, " ".join(argv)) for _, argv in EVERY) for pattern in NEVER)


def codes(page: Path) -> Iterator[str]:
    """All code of a page: its blocks and what stands in backticks."""
    blocks = code_blocks(page)
    yield from blocks
    rest = page.read_text()
    for block in blocks:
        rest = rest.replace(block, "")
    yield from re.findall(r"`([^`\n]+)`", rest)


OTHERS = {  # flags of other programs
    "--no-deps",  # pip
    "--local-dir",  # hf
    "--model", "--output_dir", "--quantization",  # ct2-transformers-converter
    "--max-run-duration", "--valid-until-duration", "--time",  # gcloud, Slurm
    "--file", "--tag", "--build-arg",  # docker
    "--inplace",  # jupyter
    "--xla_cpu_use_onednn", "--xla_cpu_experimental_ynn_fusion_type",  # XLA_FLAGS
    "--preload",  # jemalloc's and tcmalloc's way in
}  # fmt: skip


def flags() -> set[str]:
    """Every flag that mpt-jax, the launcher and the benchmarks take."""
    own = {flag for rows in OWN.values() for flag, _ in rows} | {flag for flag, _ in PROCESSES}
    own |= {flag for command in COMMANDS for flag in macros_of(command)} | {"--help", "--version", "--gin_file", "--gin_search_paths"}
    files = [path for folder in ("launch", "benchmarks", "mpt_jax/serving") for path in (ROOT / folder).rglob("*.py")]
    for text in (path.read_text() for path in files):
        own |= set(re.findall(r"(?<![\w-])--[a-z]\w*", text))
        if 'f"--{name}"' in text:  # flags of a table
            own |= {f"--{name}" for name in re.findall(r'"([a-z]\w*)"', text)}
    return own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_a_page_names_exist(page):
    named = {flag for code in codes(page) for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*(?!\.)\b", code) if flag != "--gin"}
    assert named - flags() - OTHERS == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page):
    classes = [*gin_settings.SETTINGS, *(method.settings for method in METHODS.values() if method.settings)]
    known = {f"{cls.__name__}.{field.name}" for cls in classes for field in dataclasses.fields(cls)}
    text = "\n".join(codes(page))
    own = set(re.findall(r"^class (\w+Settings)\b", text, re.M))  # of an example
    assert {name for name in re.findall(r"\b[A-Z]\w*Settings\.\w+", text) if name.partition(".")[0] not in own} - known == set()
    if page.name != "t5x.md":  # whose macros are T5X's
        assert set(re.findall(r"--gin\.([A-Z][A-Z0-9_]*)\b", text)) - set(macros()) - {"NAME"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_modules_and_extras_that_a_page_names_exist(page):
    text = "\n".join(codes(page))
    read = re.sub(r"--json \S+", "", text)  # what a command writes
    for path in re.findall(r"(?<![\w./-])((?:tests|mpt_jax|benchmarks|launch|docs|tasks|gin)/[\w./*-]*\w)", read):
        assert list(ROOT.glob(path.replace("FILE", "*"))), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        file = Path(*module.replace("mpt_jax.launch", "launch").split("."))
        assert module.startswith(("t5x.", "venv")) or (ROOT / file).with_suffix(".py").is_file() or (ROOT / file).is_dir(), module
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for names in re.findall(r"(?:mpt_jax|\.)\[([\w,]+)\]", text) for extra in names.split(",")} <= set(extras)


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


@pytest.mark.parametrize("page", [*PAGES, TOUR], ids=lambda page: page.name)
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
    lines = next(block for block in code_blocks(ROOT / "README.md") if "my_tasks.py" in block).splitlines()
    subprocess.run("\n".join(line for line in lines if not line.startswith("mpt-jax ")), shell=True, check=True)
    module = next(block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "tasks.jsonl" in block)
    Path("my_tasks.py").write_text(module)
    return tmp_path


def run(argv: list[str]) -> None:
    """A command of a page, with few steps and short rows."""
    more = {"train": [*SMALL, *SHORT], "eval": FEW}.get(argv[0], [])
    assert main([*argv, *more]) == 0, argv


def test_readmes_own_task_trains_is_scored_and_answers(folder):
    chosen = [argv for argv in commands(ROOT / "README.md") if "my_tasks.py" in argv]
    assert [argv[0] for argv in chosen] == ["tasks", "train", "eval", "infer"]
    for argv in chosen:
        run(argv)
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "together", [pytest.param(name, marks=pytest.mark.slow if name == "readme" else pytest.mark.long) for name in TOGETHER]
)
def test_commands_of_the_pages_run_as_printed(together, folder):
    """One after another in one folder, with few steps and short rows."""
    (folder / "rows.jsonl").write_text('{"inputs": "definition: full of joy"}\n')
    if together == "stages":  # what docs/serving.md starts from
        nano = load_backbone(BackboneSettings("nano"))
        for name, task in (("a", "sst2"), ("b", "rte")):
            bank = {"bank/shared": np.ones((1, 20, nano.config.d_model), np.float32)}
            write_run(folder / "runs" / name, [row(task)], bank, bank, backbone="nano", fingerprint=nano.fingerprint)
    done = set()
    for argv in (argv for name in TOGETHER[together] for argv in commands(ROOT / name)):
        if why_not(argv) or "my_tasks.py" in argv or tuple(argv) in done:
            continue
        done.add(tuple(argv))
        run(argv)
    assert tasks.TABLE and list((folder / "runs").iterdir())
