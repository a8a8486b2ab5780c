"""The shape of the code: who may import whom, where facts are kept, how things are called (dims.py). All is read from the sources."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpt_jax.dims import LETTERS

ROOT = Path(__file__).parent.parent
PACKAGES = ("mpt_jax", "tasks", "launch")
# from below to above: a module imports modules of its own layer and of those before it. A module is found by its longest beginning
LAYERS = (
    ("mpt_jax.errors", "mpt_jax.dims", "mpt_jax.launched"),
    ("mpt_jax.buckets",),
    ("mpt_jax.tasks",),
    ("mpt_jax.regular_files", "mpt_jax.gguf_parts", "mpt_jax.paths", "mpt_jax.checks", "mpt_jax.bindings", "mpt_jax.gin_messages"),
    ("mpt_jax.computation", "mpt_jax.config", "mpt_jax.macros", "mpt_jax.serving.settings", "mpt_jax.command_line"),
    ("mpt_jax.launch",),
    ("mpt_jax.distributed", "mpt_jax.output"),
    ("mpt_jax.sharding", "mpt_jax.digests", "mpt_jax.metrics", "mpt_jax.run_folder", "mpt_jax.folder_lock", "mpt_jax.goodput"),
    ("mpt_jax.bucket_run",),
    ("mpt_jax.data", "mpt_jax.methods.bank"),
    ("mpt_jax.model",),
    ("mpt_jax.methods",),
    ("mpt_jax.checkpoint",),
    ("mpt_jax.infer",),
    ("mpt_jax.train",),
    ("mpt_jax.compiling", "mpt_jax.convert", "mpt_jax.convert_prompts", "mpt_jax.adapters", "mpt_jax.quickstart", "mpt_jax.serving"),
    ("mpt_jax.gin_settings", "mpt_jax.commands", "mpt_jax.main", "mpt_jax"),
    ("mpt_jax.__main__", "mpt_jax.t5x_bridge"),
)
OUTSIDE = {  # modules of other packages that only some places may import, at any depth
    "gin": {"mpt_jax/gin_settings.py", "mpt_jax/t5x_bridge"},
    "seqio": {"tasks", "mpt_jax/data", "mpt_jax/t5x_bridge"},
    "tensorflow": {"tasks", "mpt_jax/data", "mpt_jax/t5x_bridge"},
    "t5x": {"mpt_jax/t5x_bridge"},
    "torch": set(),  # nowhere
    "transformers": set(),
}


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{node.lineno}"


def module_name(path: Path) -> str:
    """tasks/ and launch/ are mpt_jax.tasks and mpt_jax.launch."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "mpt_jax" else ("mpt_jax", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in files(*PACKAGES)}


def imported(path: Path) -> Iterator[str]:
    """Modules that a file imports: at its top, inside functions, and for type checking alone."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{where(path, node)}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


ARROWS = {name: {other for other in imported(path) if other in MODULES} - {name} for name, path in MODULES.items()}


def reached(start: str) -> set[str]:
    """All modules that a module imports, directly or through others."""
    found, waiting = set(), [start]
    while waiting:
        new = ARROWS[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_no_modules_import_each_other():
    """Function-level imports and those for type checking count: they hide a circle, they do not open it."""
    beyond = {name: reached(name) for name in MODULES}
    assert not {name: sorted(other for other in beyond[name] if name in beyond[other]) for name in MODULES if name in beyond[name]}


def layer(name: str) -> int:
    known = {start: number for number, starts in enumerate(LAYERS) for start in starts}
    parts = name.split(".")
    start = next(start for length in range(len(parts), 0, -1) if (start := ".".join(parts[:length])) in known)
    assert start != "mpt_jax" or name == "mpt_jax", f"{name} has no place in LAYERS"
    return known[start]


def test_arrows_lead_downwards():
    wrong = {(name, other) for name, others in ARROWS.items() for other in others if layer(other) > layer(name)}
    assert not wrong


@pytest.mark.parametrize(
    "package, never",
    [
        ("mpt_jax.model", ("mpt_jax.train", "mpt_jax.infer", "mpt_jax.checkpoint", "mpt_jax.tasks")),
        ("mpt_jax.methods", ("mpt_jax.train", "mpt_jax.infer", "mpt_jax.data", "mpt_jax.tasks")),
        ("mpt_jax.infer", ("mpt_jax.train",)),
        ("mpt_jax.data", ("mpt_jax.model", "mpt_jax.methods")),
        ("mpt_jax.launch", ("mpt_jax.main", "mpt_jax.train", "mpt_jax.model", "mpt_jax.tasks")),
        ("mpt_jax.tasks", ("mpt_jax.launch",)),
    ],
)
def test_what_a_package_never_imports(package, never):
    """Of packages on the same way down, which need not know one another."""
    starts = tuple(f"{name}." for name in never)
    wrong = [(n, o) for n, others in ARROWS.items() if f"{n}.".startswith(f"{package}.") for o in others if f"{o}.".startswith(starts)]
    assert not wrong


@pytest.mark.parametrize("name", OUTSIDE)
def test_libraries_that_few_places_may_import(name):
    users = {path.relative_to(ROOT).as_posix() for path in files(*PACKAGES) if any(f"{m}.".startswith(f"{name}.") for m in imported(path))}
    assert bool(users) == bool(OUTSIDE[name]) and all(user.startswith(tuple(OUTSIDE[name])) for user in users), users


def test_the_table_of_tasks_knows_no_jax():
    for path in files("tasks"):
        assert not {"jax", "jaxlib", "flax", "optax", "orbax"} & {name.split(".")[0] for name in imported(path)}, path


def test_gin_holds_no_code():
    assert not list((ROOT / "gin").rglob("*.py"))


def test_one_file_knows_where_the_bank_is_kept_in_a_tree_of_parameters():
    """Everything else asks the method's parts, or the constant."""
    found = {path.relative_to(ROOT).as_posix() for path in files("mpt_jax") if "bank/" in path.read_text()}
    assert found == {"mpt_jax/methods/bank.py"}


def test_few_places_name_a_t5():
    """Outside of the family's own files and of readers and writers of T5's files."""
    named = set()
    for path in files("mpt_jax"):
        place = path.relative_to(ROOT / "mpt_jax").as_posix()
        if place.startswith(("model/families/", "model/formats/")):
            continue
        names = {node.id for node in ast.walk(tree(path)) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        from_family = any(name.startswith("mpt_jax.model.families.t5") for name in imported(path))
        if from_family or names & {"T5", "T5Config", "T5_SIZES", "NANO"}:
            named.add(place)
    assert len(named) <= 3, named


TOKENS = re.compile(r"^(\w+_)?(inputs|targets|tokens|answers)(_[A-Z]+)?$|^(ids|labels?)(_[A-Z]+)?$")
PADDING = {"PAD_ID", "SEQIO_PAD"}


def compared_tokens(node: ast.Compare) -> bool:
    """Whether tokens are compared with 0 or a constant that stands for padding."""
    sides = [node.left, *node.comparators]
    names = {getattr(side, "id", getattr(side, "attr", "")) for side in sides}
    zero = any(isinstance(side, ast.Constant) and side.value == 0 and side.value is not False for side in sides)
    return any(TOKENS.search(name) for name in names) and (zero or bool(names & PADDING))


def test_lengths_say_what_is_real_and_not_ids():
    """SeqIO's features for T5X have no lengths; a limit of how many tokens are written is no token."""
    found = set()
    for path in files("mpt_jax"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare) and compared_tokens(node):
                found.add((path.relative_to(ROOT / "mpt_jax").as_posix(), ast.unparse(node)))
    assert found == {
        ("t5x_bridge/model.py", "inputs_BL != SEQIO_PAD"),
        ("t5x_bridge/model.py", "targets_BT != SEQIO_PAD"),
        ("infer/queries.py", "0 <= query.max_tokens <= MOST_TOKENS"),
    }


def test_the_search_for_padding_by_id_finds_it():
    for text, expected in (
        ("targets_BT > 0", True), ("0 < rows.inputs_BL", True), ("tokens != PAD_ID", True), ("ids == 0", True),
        ("target_length_B > 0", False), ("targets_BT > limit", False), ("number > 0", False), ("label_C == index", False),
    ):  # fmt: skip
        assert compared_tokens(ast.parse(text, mode="eval").body) == expected, text


def test_functions_have_names_of_their_own():
    """No lambda is bound to a name: a traceback shows it as <lambda>. Ruff's rule is on, and nothing silences it."""
    bound, silenced = [], []
    for path in files(*PACKAGES, "tests", "benchmarks", "docs"):
        for node in ast.walk(tree(path)):
            value = getattr(node, "value", None) if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) else None
            if isinstance(value, ast.Lambda) and not isinstance(getattr(node, "targets", [None])[0], ast.Attribute):
                bound.append(where(path, node))
        if path != Path(__file__) and "E731" in path.read_text():
            silenced.append(path.name)
    assert not bound and not silenced
    settings = (ROOT / "pyproject.toml").read_text()
    assert '"E"' in settings and "E731" not in settings


ARRAY = re.compile(r"\b(?=\w*[a-z])[a-z]\w*?_([A-Z0-9]*[A-Z][A-Z0-9]*)\b")
SHAPE = re.compile(r"\(((?:[A-Z](?: [-+*/] [A-Z0-9])?, ?)+(?:[A-Z](?: [-+*/] [A-Z0-9])?|\.\.\.)?)\)")


def test_dimension_letters_are_those_of_the_key():
    """In names of arrays, whether in code or in prose, and in shapes that docstrings give."""
    wrong = []
    for path in files("mpt_jax"):
        text = path.read_text()
        for found in (*ARRAY.finditer(text), *SHAPE.finditer(text)):
            unknown = {letter for letter in found[1] if letter.isalpha() and letter.isupper()} - set(LETTERS)
            if unknown:
                wrong.append(f"{path.relative_to(ROOT)}: {found[0]} ({', '.join(sorted(unknown))})")
    assert not wrong


KEY = dict(re.findall(r"^([A-Z])       (.+)$", (ROOT / "mpt_jax" / "dims.py").read_text(), re.M))
ITEM = re.compile(r"([A-Z])(?: = P \+ L)? ([a-z][a-z() -]*)")  # "B examples"
FILLING = set("a of the in that are and or each such as so them its".split())


def words(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[a-z]+", text)} - {word.removesuffix("s") for word in FILLING}


def explained(text: str) -> list[tuple[str, str]]:
    """Letters and what a docstring says they are, where it lists several."""
    found = []
    for sentence in re.split(r"(?<=[.;:]) ", " ".join(text.split())):
        items = [item for clause in sentence.split(", ") if (item := ITEM.fullmatch(clause.strip(" .;:")))]
        found += [item.groups() for item in items if len(items) > 1]
    return found


def test_the_key_of_letters_gives_each_one_meaning():
    assert list(KEY) == list(LETTERS) and len(set(KEY.values())) == len(KEY)


def test_docstrings_give_letters_the_meaning_of_the_key():
    """In words of the key, if not all of them."""
    wrong, seen = [], set()
    for path in files("mpt_jax"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for letter, meaning in explained(ast.get_docstring(node) or ""):
                    seen.add(letter)
                    if not words(meaning) <= words(KEY.get(letter, "")):
                        wrong.append(f"{path.relative_to(ROOT)}: {letter} {meaning}")
    assert not wrong and len(seen) > 15


def test_another_meaning_of_a_letter_is_found():
    text = "Attention. B examples, G groups of heads that share keys,\nT target tokens. A product of two. N beams, C labels."
    found = dict(explained(text))
    assert found == {"B": "examples", "G": "groups of heads that share keys", "T": "target tokens", "N": "beams", "C": "labels"}
    assert {letter for letter, meaning in found.items() if not words(meaning) <= words(KEY[letter])} == {"G", "N"}


@pytest.mark.parametrize("limit, nodes", [(60, (ast.FunctionDef,)), (400, (ast.Module,))], ids=["functions", "files"])
def test_nothing_is_too_long_to_read(limit, nodes):
    long = []
    for path in files(*PACKAGES):
        for node in ast.walk(tree(path)):
            if isinstance(node, nodes):
                lines = len(path.read_text().splitlines()) if isinstance(node, ast.Module) else node.end_lineno - node.lineno + 1
                if lines > limit:
                    long.append((path.relative_to(ROOT).as_posix(), getattr(node, "name", ""), lines))
    assert not [found for found in long if found[:2] != ("launch/k8s.py", "manifest")]  # a Kubernetes document, spelled out


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in files(*PACKAGES, "tests", "benchmarks") if path.stem in ("utils", "common", "helpers", "misc")]


def test_every_source_file_is_named_by_the_tests_that_cover_it():
    """By a test file of its name, or in the docstring of another one, as `folder/file.py` or `file.py` where that is unique."""
    told = " ".join(ast.get_docstring(tree(path)) or "" for path in files("tests") if path.name.startswith("test_"))
    named, missing = set(re.findall(r"[\w/]+\.py\b", told)), set()
    sources = [path for path in files("mpt_jax") if path.name not in ("__init__.py", "__main__.py")]
    for path in sources:
        place = path.relative_to(ROOT / "mpt_jax").as_posix()
        alone = sum(other.name == path.name for other in sources) == 1
        own = (ROOT / "tests" / f"test_{path.name}").is_file() and alone
        if not (own or place in named or (alone and path.name in named)):
            missing.add(place)
    assert not missing
