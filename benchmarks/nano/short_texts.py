"""Rows from tweets with emotions (TweetEval) and requests to an assistant (CLINC150), train rows, each asked in several ways."""

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.nano.labelled import TEXT_MARKS, Row, asked, plain_then_varied, read_jsonl
from benchmarks.nano.text import squeeze

# (question, words for anger, joy, optimism, sadness)
EMOTION = (
    ("tweet_emotion sentence:", ("anger", "joy", "optimism", "sadness")),
    ("emotion of the tweet:", ("anger", "joy", "optimism", "sadness")),
    ("how does the writer feel?", ("angry", "happy", "hopeful", "sad")),
    ("is the feeling good or bad?", ("bad", "good", "good", "bad")),
    ("negative or positive?", ("negative", "positive", "positive", "negative")),
    ("is the writer angry?", ("yes", "no", "no", "no")),
    ("is the writer sad?", ("no", "no", "no", "yes")),
    ("is the writer hopeful?", ("no", "no", "yes", "no")),
    ("does the writer have fun?", ("no", "yes", "no", "no")),
)
# (question, words for auto_and_commute, banking, credit_cards, home, kitchen_and_dining, meta, small_talk, travel, utility, work)
DOMAIN = (
    ("clinc_domain sentence:", ("car", "bank", "credit", "home", "kitchen", "meta", "chat", "travel", "utility", "work")),
    ("what is the request about?", ("car", "bank", "credit", "home", "food", "settings", "talk", "travel", "tools", "job")),
    ("which desk answers?", ("driving", "money", "card", "house", "cooking", "assistant", "chat", "trip", "tools", "office")),
    ("topic of the request:", ("car", "bank", "card", "house", "food", "assistant", "talk", "trip", "utility", "work")),
)  # fmt: skip
ABOUT = (
    ("a car", "driving"), ("a bank", "money"), ("a credit card", "credit"), ("the home", "the house"), ("food", "cooking"),
    ("the assistant itself", "settings"), ("small talk", "chat"), ("a trip", "travel"),
    ("time, units or weather", "a small tool"), ("work", "a job"),
)  # fmt: skip


def emotion_rows(task_folder: Path, rng: random.Random, copies: int = 5) -> Iterator[Row]:
    """Tweet -> its emotion; the plain wording and then others."""
    for row in read_jsonl(task_folder / "tweet_emotion" / "train.jsonl"):
        text = squeeze(row["sentence"])
        yield from _rows(text, row["label"], EMOTION, rng, copies)


def domain_rows(task_folder: Path, rng: random.Random, copies: int = 3) -> Iterator[Row]:
    """Request -> its domain, its intent among others or freely, and yes/no about a domain."""
    rows = read_jsonl(task_folder / "clinc_domain" / "train.jsonl")
    intents = sorted({row["intent"] for row in rows})
    for row in rows:
        text = squeeze(row["sentence"])
        yield from _rows(text, row["label"], DOMAIN, rng, copies)
        options = [_spoken(name) for name in {row["intent"], *rng.sample(intents, 3)}]
        yield {"inputs": asked(rng, "what does the user want?", options, text, 0.6), "targets": _spoken(row["intent"]), "text": text}
        about = row["label"] if rng.random() < 0.5 else rng.randrange(len(ABOUT))
        inputs = asked(rng, f"is this about {rng.choice(ABOUT[about])}?", ("yes", "no"), text, 0.2)
        yield {"inputs": inputs, "targets": "yes" if about == row["label"] else "no", "text": text}


def _spoken(intent: str) -> str:
    return intent.replace("_", " ")


def _rows(text: str, label: int, wordings: tuple, rng: random.Random, copies: int) -> Iterator[Row]:
    for at in plain_then_varied(rng, len(wordings))[:copies]:
        question, words = wordings[at]
        body = f"{rng.choice(TEXT_MARKS)} {text}" if at else text
        yield {"inputs": asked(rng, question, tuple(dict.fromkeys(words)), body), "targets": words[label], "text": text}
