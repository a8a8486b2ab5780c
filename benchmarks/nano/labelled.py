"""Rows from SST-2, AG News, QNLI and MRPC, train rows, each asked in many ways.

A row is {"inputs", "targets"} and, where the text has a sentence vector, "text". The question stands before the
text, where a soft prompt will stand later.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.nano.text import first_words, squeeze

Row = dict[str, str]

# (question, words for label 0, 1, ...): the first is the plain one, used more often than the rest.
SST2 = (
    ("sst2 sentence:", ("negative", "positive")),
    ("sentiment of the review:", ("negative", "positive")),
    ("is this good or bad?", ("bad", "good")),
    ("does the writer like it?", ("no", "yes")),
    ("does the writer dislike it?", ("yes", "no")),
    ("is the feeling happy or sad?", ("sad", "happy")),
    ("is the film great or terrible?", ("terrible", "great")),
    ("the review is favorable. true or false?", ("false", "true")),
    ("will people love it or hate it?", ("hate", "love")),
    ("stars:", ("one", "five")),
    ("thumbs up or down?", ("down", "up")),
    ("right or wrong: a pleasant film.", ("wrong", "right")),
)
AG_NEWS = (
    ("ag_news article:", ("world", "sports", "business", "technology")),
    ("topic of the news:", ("world", "sports", "business", "technology")),
    ("what is this about?", ("politics", "sport", "money", "science")),
    ("section of the paper:", ("world", "sports", "business", "science")),
    ("which desk writes it?", ("foreign", "sports", "finance", "computer")),
)
AG_NEWS_ABOUT = (
    ("world affairs", "politics", "other countries"), ("sports", "a game", "athletes"),
    ("business", "money", "companies"), ("technology", "science", "computers"),
)  # fmt: skip
QNLI = (
    ("qnli", "question: {question} sentence: {sentence}", ("entailment", "not_entailment")),
    ("does the sentence answer the question?", "question: {question} sentence: {sentence}", ("yes", "no")),
    ("is the answer there?", "sentence: {sentence} question: {question}", ("answer", "none")),
    ("answered or unknown?", "text: {sentence} question: {question}", ("answered", "unknown")),
    ("the sentence answers it. true or false?", "question: {question} text: {sentence}", ("true", "false")),
)
MRPC = (
    ("mrpc", "sentence1: {sentence1} sentence2: {sentence2}", ("not_equivalent", "equivalent")),
    ("do they say the same?", "first: {sentence1} second: {sentence2}", ("no", "yes")),
    ("same or different?", "{sentence1} / {sentence2}", ("different", "same")),
    ("is the second a paraphrase?", "text: {sentence1} text: {sentence2}", ("no", "yes")),
    ("the meanings match. true or false?", "a: {sentence1} b: {sentence2}", ("false", "true")),
)
TEXT_MARKS = ("sentence:", "text:", "review:", "sentence1:", "passage:", "input:", "")


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(rng: random.Random, question: str, options: Sequence[str], body: str, listed: float = 0.4) -> str:
    """Question, with probability `listed` the options in random order, then the text."""
    shown = ""
    if rng.random() < listed:
        shown = f" {rng.choice(('options:', 'choose:', 'one of:'))} {', '.join(rng.sample(list(options), len(options)))}."
    return squeeze(f"{question}{shown} {body}")


def plain_then_varied(rng: random.Random, rows: int) -> list[int]:
    """Which wording to use for each copy of a row: the plain one first, then different others."""
    return [0, *rng.sample(range(1, rows), rows - 1)]


def sst2_rows(folder: Path, rng: random.Random, copies: int = 4) -> Iterator[Row]:
    for row in read_jsonl(folder / "sst2" / "train.jsonl"):
        text = squeeze(row["sentence"])
        for at in plain_then_varied(rng, len(SST2))[:copies]:
            question, words = SST2[at]
            body = f"{rng.choice(TEXT_MARKS)} {text}" if at else text
            yield {"inputs": asked(rng, question, words, body), "targets": words[row["label"]], "text": text}


def ag_news_text(row: dict) -> str:
    return first_words(squeeze(f"{row['title']}. {row['description']}"), 36)


def ag_news_rows(folder: Path, rng: random.Random, copies: int = 3) -> Iterator[Row]:
    for row in read_jsonl(folder / "ag_news" / "train.jsonl"):
        text = ag_news_text(row)
        for at in plain_then_varied(rng, len(AG_NEWS))[:copies]:
            question, words = AG_NEWS[at]
            body = f"{rng.choice(TEXT_MARKS)} {text}" if at else text
            yield {"inputs": asked(rng, question, words, body), "targets": words[row["label"]], "text": text}
        about = row["label"] if rng.random() < 0.5 else rng.randrange(4)
        question = f"is this about {rng.choice(AG_NEWS_ABOUT[about])}?"
        answer = "yes" if about == row["label"] else "no"
        yield {"inputs": asked(rng, question, ("yes", "no"), text, 0.2), "targets": answer, "text": text}


def _pair_rows(path: Path, rng: random.Random, forms: Sequence, copies: int, keys: Sequence[str]) -> Iterator[Row]:
    for row in read_jsonl(path):
        fields = {key: first_words(squeeze(row[key]), 26) for key in keys}
        for at in plain_then_varied(rng, len(forms))[:copies]:
            question, template, words = forms[at]
            body = template.format(**fields)
            yield {"inputs": asked(rng, question, words, body, 0.3), "targets": words[row["label"]], "text": body}


def qnli_rows(folder: Path, rng: random.Random, copies: int = 2) -> Iterator[Row]:
    yield from _pair_rows(folder / "qnli_small" / "train.jsonl", rng, QNLI, copies, ("question", "sentence"))


def mrpc_rows(folder: Path, rng: random.Random, copies: int = 2) -> Iterator[Row]:
    yield from _pair_rows(folder / "mrpc" / "train.jsonl", rng, MRPC, copies, ("sentence1", "sentence2"))
