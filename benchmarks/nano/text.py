"""Running English for pretraining: sentences and segments from plain text files, WordNet and GCIDE.

A "document" is a list of sentences in reading order; sentences are plain strings without line breaks.
"""

import gzip
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

RUNNING_FILES = ("movie_reviews.txt", "state_union.txt", "inaugural.txt", "shakespeare.txt")
SOURCE_WORDS = {"movie_reviews": "review", "state_union": "speech", "inaugural": "speech", "shakespeare": "play"}

# Subject marks of GCIDE, as printed, and the word that a task asks for.
GCIDE_FIELDS = {
    "Bot.": "botany", "Zool.": "zoology", "Med.": "medicine", "Anat.": "anatomy", "Chem.": "chemistry",
    "Law": "law", "Mus.": "music", "Naut.": "ships", "Arch.": "building", "Mil.": "war", "Math.": "mathematics",
    "Geom.": "geometry", "Min.": "minerals", "Geol.": "geology", "Physics": "physics", "Elec.": "electricity",
    "Mach.": "machines", "Print.": "printing", "Her.": "heraldry", "Eccl.": "church", "Gram.": "grammar",
    "Logic": "logic", "Astron.": "astronomy", "Physiol.": "physiology", "Myth.": "myth", "Theol.": "religion",
    "Script.": "bible", "Paint.": "painting", "Fine Arts": "art", "Photog.": "photography", "Agric.": "farming",
    "Com.": "trade", "Rhet.": "rhetoric", "Pros.": "poetry", "Metaph.": "philosophy", "Surg.": "surgery",
    "Crystallog.": "crystals", "Paleon.": "fossils", "Cookery": "cooking", "Mining": "mining",
    "Metal.": "metals", "Phon.": "speech", "Philol.": "language", "Antiq.": "history", "Steam Engine": "engines",
    "Geog.": "geography", "Biol.": "biology", "Bookkeeping": "accounts", "Naut": "ships", "Sports": "sport",
    "Railroads": "trains", "Railroad": "trains", "Weaving": "cloth", "Carp.": "wood", "Ethnol.": "peoples",
    "Computers": "computers", "Opt.": "light", "Falconry": "birds", "Meteor.": "weather", "Poetry": "poetry",
}  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """One sense of a GCIDE entry: headword, subject mark ('' if none) as a plain word, defining text."""

    word: str
    field: str
    text: str


def squeeze(text: str) -> str:
    """One line, single spaces."""
    return " ".join(text.split())


def normalised(text: str) -> str:
    """Letters and digits only, lower case: two texts are "the same" when these agree."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", text)


def read_documents(folder: Path) -> dict[str, list[str]]:
    """Sentences of each running-text file in reading order, keyed by the file's stem."""
    return {Path(name).stem: list(_sentences_of_file(folder / name)) for name in RUNNING_FILES}


def _sentences_of_file(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.stem == "movie_reviews":
        blocks: Iterable[str] = text.split("\n")  # one sentence a line
    elif path.stem == "shakespeare":
        text = "\n".join(line for line in text.split("\n") if not line.isupper())  # speakers' names
        blocks = (part for block in re.split(r"\n\s*\n", text) for part in _sentence_split(squeeze(block)))
    else:
        blocks = (part for line in text.split("\n") for part in _sentence_split(squeeze(line)))
    for block in blocks:
        sentence = squeeze(block)
        if len(words_of(sentence)) >= 4 and "XML" not in sentence:
            yield sentence


def _sentence_split(text: str) -> list[str]:
    return re.split(r"(?<=[.!?;])\s+(?=[\"'A-Z])", text)


def read_gcide(path: Path) -> list[Definition]:
    """Senses of GCIDE with the markup stripped; empty or cross-reference-only senses are dropped."""
    raw = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    definitions = []
    for entry in re.split(r"\n(?=[A-Za-z][^\n]*\\)", raw):
        head, _, body = entry.partition("\\")
        word = squeeze(head)
        if not re.fullmatch(r"[A-Za-z][A-Za-z -]{1,24}", word) or len(entry) > 20_000:
            continue
        body = body.rpartition("\\")[2] if "\\" in body else body
        definitions.extend(_senses(word, body))
    return definitions


def _senses(word: str, body: str) -> Iterator[Definition]:
    body = re.sub(r'Zo\["o\]l', "Zool", body)
    body = re.sub(r"\[[^\]]{0,400}\]", " ", body)
    body = re.sub(r"--[A-Z][\w.' &]{1,40}(?=\s|$)", " ", body)
    body = squeeze(body.replace("{", "").replace("}", "").replace("``", '"').replace("''", '"'))
    for sense in re.split(r"(?:^|\s)(?:\d{1,2}\.|\([a-z]\))\s", " " + body):
        sense = re.sub(r"^[\s,;:]*(?:(?:[a-z]{1,4}\.|&)[\s,;]*){1,5}", "", sense).strip(" ,;:")
        mark = re.match(r"^[^()]{0,60}\(([A-Z][\w. &]{1,30})\)\s*(.*)$", sense)
        field, text = (GCIDE_FIELDS[mark[1]], mark[2]) if mark and mark[1] in GCIDE_FIELDS else ("", sense)
        text = re.sub(r"\([A-Z][\w. &]{1,30}\)\s*", "", text).strip()
        text = re.sub(r"^(?:[a-z]{1,4}\. )+", "", text)
        if 5 <= len(words_of(text)) and re.match(r"[A-Za-z]", text) and not text.startswith("See "):
            yield Definition(word, field, text)


def first_words(text: str, limit: int) -> str:
    """The text, cut after `limit` space-separated words."""
    parts = text.split()
    return " ".join(parts[:limit])


def word_counts(sentences: Iterable[str]) -> Counter[str]:
    """How often each lower-cased word occurs."""
    counts: Counter[str] = Counter()
    for sentence in sentences:
        counts.update(word.lower() for word in words_of(sentence))
    return counts


def segments(pieces: Iterable[list[int]], shortest: int, longest: int, rng: random.Random) -> Iterator[list[int]]:
    """Token segments of random length in [shortest, longest], filled with whole and cut sentences in order."""
    length, held = rng.randint(shortest, longest), []
    for sentence in pieces:
        held.extend(sentence)
        while len(held) >= length:
            yield held[:length]
            held = held[length:] if len(held) - length >= 16 else []
            length = rng.randint(shortest, longest)
