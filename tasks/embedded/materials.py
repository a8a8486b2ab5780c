"""Reads the plain data that installed packages ship, where it lies; cached for the process.

Only Babel is imported: its data has no plain form. What comes from where: TextBlob (word frequencies,
parts of speech, senses of adjectives with polarity; MIT, public domain), vaderSentiment (rated words; MIT),
lemminflect (SPECIALIST inflections; MIT), Babel (CLDR; BSD and Unicode licence), docstrings of the standard
library, NumPy, SciPy, scikit-learn and matplotlib.
"""

import gzip
import importlib.util
import re
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mpt_jax.tasks.errors import TaskError

WORD = re.compile(r"[a-z]{3,12}")
SENTENCE = re.compile(r"[A-Z][a-z]{1,15}(?: [A-Za-z][a-z'-]{0,15},?)+\.")
DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
# Folders and files whose docstrings are no prose about the package: tests, copies of other projects, rot13.
LEFT_OUT = frozenset(
    "tests test testing _vendor externals site-packages idlelib lib2to3 this.py turtledemo ensurepip"
    " pydoc_data __pycache__ __phello__ distutils _lib extern f2py".split()
)
LARGEST_FILE = 600_000  # bytes; larger ones are tables


class Sense(NamedTuple):
    """One sense of a word: its definition and polarity in [-1, 1]."""

    word: str
    definition: str
    polarity: float


class Docstring(NamedTuple):
    """One docstring: path of the file inside the package, and its paragraphs as single lines."""

    path: tuple[str, ...]
    paragraphs: tuple[str, ...]


def package_folder(package: str) -> Path:
    """Where an installed package lies, without importing it; raises TaskError if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(
            f"package {package!r} is not installed, and embedded tasks are made from it: install it"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_text(package: str, *path: str) -> str:
    file = package_folder(package).joinpath(*path)
    if not file.is_file():
        raise TaskError(
            f"{file}: no such file; embedded tasks read it: install another release of {package!r}"
        )
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")


@cache
def frequencies() -> dict[str, int]:
    """How often a lower-case word occurs in 1.1 million words of books (TextBlob's spelling list)."""
    lines = package_text("textblob", "en", "en-spelling.txt").splitlines()
    pairs = (line.split() for line in lines if not line.startswith(";;;"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


@cache
def parts_of_speech() -> dict[str, str]:
    """The commonest Penn Treebank tag of a word (TextBlob's lexicon)."""
    lines = package_text("textblob", "en", "en-lexicon.txt").splitlines()
    pairs = (line.split() for line in lines if not line.startswith(";;;"))
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


@cache
def valences() -> dict[str, float]:
    """Mean rating of a word in [-4, 4] by ten people (vaderSentiment's lexicon)."""
    fields = (line.split("\t") for line in package_text("vaderSentiment", "vader_lexicon.txt").splitlines())
    return {field[0]: float(field[1]) for field in fields if len(field) > 1 and WORD.fullmatch(field[0])}


@cache
def senses() -> tuple[Sense, ...]:
    """Definitions of adjectives and some other words, with polarity (TextBlob's sentiment lexicon)."""
    words = ElementTree.fromstring(package_text("textblob", "en", "en-sentiment.xml").encode()).iter("word")
    found = []
    for word in words:
        definition = re.sub(r"\s*\([^)]*\)?\s*", " ", word.get("sense", "")).strip(" ;:,")
        if 3 <= len(definition.split()) <= 16 and WORD.fullmatch(word.get("form", "")):
            found.append(Sense(word.get("form"), definition, float(word.get("polarity"))))
    return tuple(found)


@cache
def inflections(part_of_speech: str) -> dict[str, tuple[str, ...]]:
    """Lemma -> its inflected forms: verb (past, participle, -ing, -s), noun (plural,), adj (-er, -est)."""
    found = {}
    for line in package_text("lemminflect", "resources", "infl_lu.csv.gz").splitlines():
        lemma, tag, *forms = line.split(",")
        if tag == part_of_speech and WORD.fullmatch(lemma):
            found[lemma] = tuple(form.split("/")[0] for form in forms)
    return found


@cache
def docstrings(package: str) -> tuple[Docstring, ...]:
    """All docstrings of a package's Python files ('python': the standard library), sorted by path."""
    root = Path(sysconfig.get_path("stdlib")) if package == "python" else package_folder(package)
    found = []
    for file in _python_files(root):
        text = file.read_text(encoding="utf-8", errors="replace")
        for match in DOCSTRING.finditer(text):
            paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", match[1].strip()))
            found.append(Docstring(file.relative_to(root).parts, tuple(paragraphs)))
    return tuple(found)


def _python_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in LEFT_OUT:
                yield from _python_files(path)
        elif path.suffix == ".py" and path.name not in LEFT_OUT and path.stat().st_size <= LARGEST_FILE:
            yield path


def sentences(docstring: Docstring) -> Iterator[str]:
    """Plain sentences of a docstring, 5 to 16 words, without code, numbers or signs."""
    for paragraph in docstring.paragraphs:
        for sentence in re.split(r"(?<=\.) (?=[A-Z])", paragraph):
            if is_plain(sentence):
                yield sentence


def is_plain(text: str) -> bool:
    """Whether the text is one plain sentence of 5 to 16 words."""
    return 5 <= len(text.split()) <= 16 and SENTENCE.fullmatch(text) is not None


@cache
def cldr_names() -> dict[str, tuple[str, ...]]:
    """English CLDR names by kind (city, country, currency, language, unit), none of two kinds."""
    from babel import Locale

    locale = Locale("en")
    kinds = {
        "city": set(cities()),
        "country": {name for code, name in locale.territories.items() if re.fullmatch("[A-Z]{2}", code)},
        "currency": set(locale.currencies.values()),
        "language": {name for code, name in locale.languages.items() if re.fullmatch("[a-z]{2,3}", code)},
        "unit": {dict(names).get("long", "") for names in locale.unit_display_names.values()},
    }
    plain = {kind: {re.sub(r"\s*\(.*", "", name) for name in names} for kind, names in kinds.items()}
    counts = Counter(name for names in plain.values() for name in names)
    twice = {name for name, count in counts.items() if count > 1}
    usable = re.compile(r"[A-Za-z][A-Za-z .&'-]{2,35}")
    return {
        kind: tuple(sorted(n for n in names - twice if usable.fullmatch(n))) for kind, names in plain.items()
    }


@cache
def cities() -> tuple[str, ...]:
    """Places that name a time zone."""
    from babel.core import get_global

    regions = ("Africa", "America", "Asia", "Australia", "Europe", "Pacific")
    zones = (zone for zone in get_global("zone_territories") if zone.split("/")[0] in regions)
    return tuple(sorted({zone.split("/")[-1].replace("_", " ") for zone in zones}))
