"""Reads Debian's WordNet files (`data.noun` ...; format: wndb(5WN)) into synsets."""

import re
from dataclasses import dataclass
from pathlib import Path

# wndb(5WN), lexnames(5WN): number of the lexicographer file -> its name; '' where the name says nothing.
LEXICOGRAPHER = (
    "", "", "", "", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event",
    "feeling", "food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession",
    "process", "quantity", "relation", "shape", "state", "substance", "time", "body", "change", "cognition",
    "communication", "competition", "consumption", "contact", "creation", "emotion", "motion", "perception",
    "possession", "social", "stative", "weather", "",
)  # fmt: skip
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
POINTERS = {"@": "hypernym", "@i": "instance", "!": "antonym", "%p": "part", "#p": "whole", ";c": "topic"}


@dataclass(frozen=True)
class Synset:
    """One meaning: its words (spaces, not underscores), category, gloss without examples, examples, pointers.

    pointers: (relation, key of the other synset, index of the own word or -1, index of its word or -1).
    """

    key: str
    part: str
    category: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    pointers: tuple[tuple[str, str, int, int], ...]


def read_synsets(folder: Path) -> dict[str, Synset]:
    """All synsets, keyed by part of speech and offset ("n00001740"), in file order."""
    synsets = {}
    for name in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").split("\n"):
            if line and not line.startswith(" "):
                synset = _synset(line)
                synsets[synset.key] = synset
    return synsets


def _synset(line: str) -> Synset:
    data, _, note = line.partition("|")
    fields = data.split()
    part, count = fields[2], int(fields[3], 16)
    words = tuple(re.sub(r"\((?:a|p|ip)\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count))
    at = 4 + 2 * count
    pointers = []
    for i in range(int(fields[at])):
        symbol, offset, other, ends = fields[at + 1 + 4 * i : at + 5 + 4 * i]
        if symbol in POINTERS:
            pointers.append((POINTERS[symbol], _key(other, offset), int(ends[:2], 16) - 1, int(ends[2:], 16) - 1))
    first = note.split('; "')[0].strip()
    gloss = re.sub(r"^\([^)]*\)\s*", "", first).strip(' ;"') or first
    examples = tuple(text.strip() for text in re.findall(r'"([^"]+)"', note))
    category = LEXICOGRAPHER[int(fields[1])]
    return Synset(_key(part, fields[0]), PARTS_OF_SPEECH[part], category, words, gloss, examples, tuple(pointers))


def _key(part: str, offset: str) -> str:
    return ("a" if part == "s" else part) + offset
