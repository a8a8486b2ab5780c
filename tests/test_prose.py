"""README, docs and what users see are plain English: short sentences, short parentheses, no phrase that reads as translated."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BANK = ROOT / "mpt_jax" / "banks" / "smollm2" / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb"), BANK])
LONGEST_SENTENCE = 35  # words
LONGEST_PARENTHESIS = 12
PHRASES = {  # what reads as translated, and what to say
    r"\bin place of\b": "instead of",
    r"(?<!there )\b(is|are) no (?!longer|more|less|need)": "is not a",
    r"\bbut for\b": "except for",
    r"\bbesides?\b": "next to, with, as well as",
    r"\btold\b": "said, named, asked",
    r"\bmend\b": "correct",
    r"\bat hand\b": "available",
    r"\b(which|that|what) (is|are) not there\b": "absent, missing",
    r"\bneed not be there\b": "you don't have",
    r"\btrained a task\b": "trained params / task",
    r"\bthe aim\b": "the goal",
    r"\b[Mm]ake it again\b": "reproduce it",
    r"\bout of reach\b": "not possible",
    r"\b(examples|rows|seconds|tokens|bytes|factors|vectors|steps|ms|GB) a (run|step|task|row|token|second)\b": "per",
    r"\bsome (hundred|thousand|ten|twenty)\b": "about",
    r"\bas well\b(?! as)": "too",
    r"\bbe they\b|\bbe it\b": "whether",
}


def plain(text: str) -> str:
    """Markdown without code, addresses and comments; a piece of code in a line counts as a word."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end -->|<!--.*?-->|<br>", "\n", text, flags=re.S)  # tables that benchmarks.table writes
    text = re.sub(r"`[^`\n]*(?:\n[^`\n]+)?`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"https?://\S+", "LINK", text.replace("**", ""))


def prose(page: Path) -> str:
    """A page as Markdown; of a notebook its cells of text; of a gin file its comments, whole lines that are not set in together."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    if page.suffix == ".gin":
        lines = [(line.partition("#")[2].strip(), line.startswith("#") and not line.startswith("#  ")) for line in text.splitlines()]
        return "".join(f"{said}\n" if whole else f"\n{said}\n\n" for said, whole in lines)
    return text


def blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items and table cells, each on one line."""
    for part in re.split(r"\n\s*\n|\n(?=\s*(?:[*-]|\d+\.) )|\n(?=#)|\n(?=\|)|(?<=\|)\n", plain(text)):
        for cell in part.split("|") if part.lstrip().startswith("|") else [part]:
            if cell.strip(" -:#*\n"):
                yield " ".join(cell.split())


def sentences(text: str) -> Iterator[str]:
    for block in blocks(text):
        yield from re.split(r"(?<=[.!?:;])\s+(?=[A-Z*_\"'(]|CODE)|(?<=[.!?])\s+", block)


def words(text: str) -> int:
    return len([word for word in text.split() if re.search(r"\w", word)])


def parentheses(text: str) -> list[str]:
    return [inside for block in blocks(text) for inside in re.findall(r"\(([^()]*)\)", block)]


def found(text: str) -> list[str]:
    """Phrases of the list in a text."""
    return [f"{match[0]!r}: say {better!r}" for pattern, better in PHRASES.items() for match in re.finditer(pattern, text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_short_sentences_and_no_phrase_of_the_list(page):
    text = prose(page)
    assert [sentence for sentence in sentences(text) if words(sentence) > LONGEST_SENTENCE] == []
    assert [inside for inside in parentheses(text) if words(inside) > LONGEST_PARENTHESIS] == []
    assert found("\n".join(blocks(text))) == []


@pytest.mark.parametrize("path", sorted((ROOT / "gin").rglob("*.gin")), ids=lambda path: path.relative_to(ROOT / "gin").as_posix())
def test_gin_files_say_what_settings_mean_in_plain_english(path):
    """`--help` shows these comments."""
    assert found(prose(path)) == []
    assert [sentence for sentence in sentences(prose(path)) if words(sentence) > LONGEST_SENTENCE] == []


def texts(node: ast.AST) -> str:
    """What a string or f-string says; values that are filled in are a word each."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
    return " ".join(texts(child) for child in ast.iter_child_nodes(node))


def visible(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is not a docstring, an annotation's or a part of another one."""
    hidden = set()
    for node in ast.walk(tree):
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr):
            hidden.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            hidden.update(node.values)
    for node in ast.walk(tree):
        if node not in hidden and (isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))):
            yield node.lineno, texts(node)


def sources() -> list[Path]:
    return [path for folder in ("mpt_jax", "tasks", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_messages_and_columns_hold_no_phrase_of_the_list():
    """Every string that can be seen: messages, help, headings of tables. Values of settings and names are single words."""
    wrong = []
    for path in sources():
        for line, text in visible(ast.parse(path.read_text())):
            if " " in text and path.name != "thesaurus.py":
                wrong += [f"{path.relative_to(ROOT)}:{line}: {phrase}: {text:.80}" for phrase in found(re.sub(r"'[^']*'", "VALUE", text))]
    assert wrong == []


def test_errors_have_short_sentences():
    wrong = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name | ast.Attribute):
                if getattr(node.exc.func, "id", getattr(node.exc.func, "attr", "")) in ("UserError", "TaskError", "LaunchError"):
                    said = " ".join(texts(argument) for argument in node.exc.args)
                    long = [s for s in re.split(r"(?<=[.;:?])\s+", said) if words(s) > LONGEST_SENTENCE]
                    wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {sentence}" for sentence in long]
    assert wrong == []


@pytest.mark.parametrize(
    "text, count",
    [
        ("Instead of this.", 0), ("In place of it, in place of that.", 1), ("'x' is no run folder", 1), ("It is no longer so.", 0),
        ("examples a run and step", 1), ("He told it besides.", 2), ("64 rows per step", 0),
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text, count):
    assert len(found(text)) == count


def test_sentences_and_parentheses_are_counted_as_one_reads_them():
    text = "# A head\n\nOne two `three four`. Five (six\nseven).\n\n* item one\n* item two; more\n\n| a b | c |\n|---|---|\n| d. E | f |\n"
    assert list(sentences(text))[:4] == ["# A head", "One two CODE.", "Five (six seven).", "* item one"]
    assert list(sentences(text))[4:] == ["* item two; more", "a b", "c", "d.", "E", "f"]
    assert parentheses(text) == ["six seven"] and words("One two CODE. - |") == 3
    assert next(iter(visible(ast.parse('"""Doc."""\nx = f"a {1} b"\n')))) == (2, "a VALUE b")
