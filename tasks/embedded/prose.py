"""Tasks about English sentences, taken from docstrings: sources from scientific libraries, targets from the
standard library, so that sources and targets share no sentence."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

from mpt_jax.tasks.embedded.materials import docstrings, is_plain, sentences
from mpt_jax.tasks.embedded.splitting import balanced, half, rotated, shuffled, within

SCIENCE = ("numpy", "scipy", "sklearn", "matplotlib")

PROSE_START = re.compile(r"[A-Z][a-z]*(?: [a-zA-Z'`(),;.-]+){6,9}")

# First folders of a file's path inside its package -> what its sentences are about.
SCIENCE_TOPICS = {
    ("scipy", "stats"): "statistics",
    ("scipy", "optimize"): "optimization",
    ("scipy", "signal"): "signals",
    ("scipy", "fft"): "signals",
    ("scipy", "linalg"): "matrices",
    ("scipy", "sparse"): "matrices",
    ("numpy", "linalg"): "matrices",
    ("sklearn", "ensemble"): "learning",
    ("sklearn", "linear_model"): "learning",
    ("sklearn", "model_selection"): "learning",
    ("sklearn", "neural_network"): "learning",
    ("sklearn", "preprocessing"): "learning",
    ("sklearn", "cluster"): "learning",
    ("sklearn", "feature_selection"): "learning",
    ("matplotlib", ""): "drawing",
}
STANDARD_TOPICS = {
    "files": ("pathlib", "shutil", "os", "tarfile", "zipfile", "tempfile", "glob", "fileinput", "posixpath",
              "ntpath", "filecmp", "gzip", "bz2", "lzma", "_pyio", "genericpath", "zipapp"),
    "mail": ("email", "mailbox", "imaplib", "smtplib", "poplib"),
    "numbers": ("_pydecimal", "fractions", "statistics", "random", "numbers", "colorsys"),
    "windows": ("tkinter", "turtle", "curses"),
}  # fmt: skip


@cache
def science_sentences() -> frozenset[str]:
    return frozenset(all_sentences(SCIENCE))


def all_sentences(packages: Sequence[str]) -> Iterator[str]:
    return (
        text for package in packages for docstring in docstrings(package) for text in sentences(docstring)
    )


def science_topic(split: str) -> Iterator[dict]:
    """A sentence of a scientific library -> what its part of the library is about."""
    found: dict[str, set[str]] = {}
    for package in SCIENCE:
        for docstring in docstrings(package):
            topic = SCIENCE_TOPICS.get((package, docstring.path[0])) or SCIENCE_TOPICS.get((package, ""))
            for sentence in sentences(docstring) if topic else ():
                found.setdefault(sentence, set()).add(topic)
    yield from _topic_rows(found, split, target=False)


def module_topic(split: str) -> Iterator[dict]:
    """A sentence of the standard library -> what its module is for."""
    topics = {module: topic for topic, modules in STANDARD_TOPICS.items() for module in modules}
    found: dict[str, set[str]] = {}
    for docstring in docstrings("python"):
        topic = topics.get(docstring.path[0].removesuffix(".py"))
        for sentence in sentences(docstring) if topic else ():
            if sentence not in science_sentences():
                found.setdefault(sentence, set()).add(topic)
    yield from _topic_rows(found, split, target=True)


def _topic_rows(found: dict[str, set[str]], split: str, target: bool) -> Iterator[dict]:
    one_topic = [sentence for sentence, topics in found.items() if len(topics) == 1]
    rows = [{"sentence": text, "label": min(found[text])} for text in within(one_topic, split, target)]
    yield from balanced(rows, split, target)


def summary_match(split: str) -> Iterator[dict]:
    """The first line of a docstring and the beginning of a text -> whether both are of one docstring."""
    pairs = within(summaries(), split, target=False, key=lambda pair: pair[0])
    rows = []
    for shift in (3, 5):
        for own, other in zip(pairs, rotated(pairs, shift), strict=True):
            belongs = half(f"{own[0]} {shift // 4}") == 0
            text = own[1] if belongs else other[1]
            rows.append({"summary": own[0], "text": text, "label": "yes" if belongs else "no"})
    unique = {(row["summary"], row["text"]): row for row in rows}
    yield from balanced(list(unique.values()), split, target=False)


@cache
def summaries() -> tuple[tuple[str, str], ...]:
    """(first line, first 10 words of the next paragraph), each line and each text once."""
    lines: dict[str, str] = {}
    for package in SCIENCE:
        for docstring in docstrings(package):
            if len(docstring.paragraphs) > 1 and is_plain(docstring.paragraphs[0]):
                first, second = docstring.paragraphs[:2]
                text = " ".join(second.split()[:10])
                if PROSE_START.fullmatch(text):
                    lines.setdefault(first, text)
    texts = {text: line for line, text in sorted(lines.items())}
    return tuple((line, text) for text, line in texts.items())


def word_order(split: str) -> Iterator[dict]:
    """A sentence of a scientific library, as written or shuffled -> acceptable or unacceptable."""
    yield from _order_rows(science_sentences(), shuffled_words, split, target=False)


def turned_words(split: str) -> Iterator[dict]:
    """A sentence of the standard library, as written or its middle backwards -> acceptable or not."""
    texts = set(all_sentences(["python"])) - science_sentences()
    yield from _order_rows(texts, turned_inner, split, target=True)


def _order_rows(
    texts: Iterable[str], disturb: Callable[[list[str]], list[str]], split: str, target: bool
) -> Iterator[dict]:
    """Every sentence once: as written or disturbed, in lower case without commas and full stop."""
    rows = []
    for text in within((text for text in texts if 6 <= len(text.split()) <= 12), split, target):
        words = text.rstrip(".").replace(",", "").lower().split()
        broken = disturb(words)
        keep = half(f"keep {text}") == 0 or broken == words
        label = "acceptable" if keep else "unacceptable"
        rows.append({"sentence": " ".join(words if keep else broken), "label": label})
    yield from balanced(list({row["sentence"]: row for row in rows}.values()), split, target)


def shuffled_words(words: list[str]) -> list[str]:
    return [word for _, word in shuffled(enumerate(words), " ".join(words))]


def turned_inner(words: list[str]) -> list[str]:
    return words[:1] + words[-2:0:-1] + words[-1:]


def same_text(split: str) -> Iterator[dict]:
    """Two sentences of the standard library -> whether they are of one docstring."""
    pairs = within(neighbours(), split, target=True, key=lambda pair: pair[0])
    rows = []
    for own, other in zip(pairs, rotated(pairs, 5), strict=True):
        rows.append({"first": own[0], "second": own[1], "label": "yes"})
        if own[2] != other[2]:
            rows.append({"first": own[0], "second": other[1], "label": "no"})
    yield from balanced(rows, split, target=True)


@cache
def neighbours() -> tuple[tuple[str, str, str], ...]:
    """(short plain sentence, the next one of its docstring, module); each sentence is in one pair only."""
    used: set[str] = set()
    pairs = []
    for docstring in docstrings("python"):
        short = (text for text in sentences(docstring) if len(text.split()) <= 13)
        fresh = [text for text in short if text not in used and text not in science_sentences()]
        for first, second in zip(fresh[::2], fresh[1::2], strict=False):
            if first != second:
                used |= {first, second}
                pairs.append((first, second, docstring.path[0]))
    return tuple(pairs)
