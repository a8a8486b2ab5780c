"""Rows from the entailment sets whose train rows may be used (SICK, MNLI, SNLI), each pair asked in several ways."""

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.nano.labelled import Row, asked, plain_then_varied, read_jsonl
from benchmarks.nano.text import first_words, normalised, squeeze

NAMES = ("sick", "mnli_small", "snli_small")
LONGEST = (24, 16)  # words kept of premise and hypothesis

# (question, how the pair is shown, words for entailment, neutral, contradiction)
WORDINGS = (
    ("{name}", "premise: {premise} hypothesis: {hypothesis}", ("entailment", "neutral", "contradiction")),
    ("does the second follow from the first?", "first: {premise} second: {hypothesis}", ("yes", "maybe", "no")),
    ("does the premise mean that the hypothesis is true?", "hypothesis: {hypothesis} premise: {premise}", ("yes", "maybe", "no")),
    ("true, false or unknown?", "text: {premise} statement: {hypothesis}", ("true", "unknown", "false")),
    ("is it certain?", "{premise} so: {hypothesis}", ("yes", "no", "no")),
    ("does one contradict the other?", "a: {premise} b: {hypothesis}", ("no", "no", "yes")),
    ("does the statement agree with the text?", "statement: {hypothesis} text: {premise}", ("right", "unrelated", "wrong")),
)  # fmt: skip


def pair(row: dict) -> frozenset[str]:
    """The two texts of a row, normalised, in no order."""
    return frozenset((normalised(row["premise"]), normalised(row["hypothesis"])))


def held_out_pairs(folder: Path) -> set[frozenset[str]]:
    """Pairs of a set's held-out rows. SICK makes its pairs from few sentences, so a pair is what may not enter there, not a sentence."""
    return {pair(row) for path in sorted(folder.glob("*.jsonl")) if path.stem != "train" for row in read_jsonl(path)}


def rows_of(task_folder: Path, name: str, rng: random.Random, copies: int = 4) -> Iterator[Row]:
    """Train rows of one set, the plain wording and then others; ``task_folder`` holds a folder for each set."""
    held_out = held_out_pairs(task_folder / name)
    for row in read_jsonl(task_folder / name / "train.jsonl"):
        if pair(row) in held_out:
            continue
        premise, hypothesis = (first_words(squeeze(row[key]), most) for key, most in zip(("premise", "hypothesis"), LONGEST, strict=True))
        for at in plain_then_varied(rng, len(WORDINGS))[:copies]:
            question, shown, words = WORDINGS[at]
            body = shown.format(premise=premise, hypothesis=hypothesis)
            yield {"inputs": asked(rng, question.format(name=name), tuple(dict.fromkeys(words)), body, 0.3), "targets": words[row["label"]]}
