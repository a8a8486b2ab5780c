"""The study's tasks, a row each, and their splits, made once from the published files (MPT_DATA_DIR).

Rows for training and for choosing (`validation`) are written apart from test rows, and only the final evaluation registers the latter.
Where the files bring no validation split, its rows are taken out of the training rows; where they bring no test split, their validation
rows are the test rows.
"""

import json
import os
import random
from pathlib import Path
from typing import NamedTuple

from benchmarks.study import topics
from mpt_jax import tasks

PARTS = ("train", "validation", "test")
TRAIN_ROWS, DEV_ROWS, TEST_ROWS = 2000, 128, 400
CUE = "\nAnswer:"
ENTAILMENT = ("yes", "maybe", "no")
PAIR = "Hypothesis: {hypothesis}\nPremise: {premise}"


class Row(NamedTuple):
    """A task: template of an input, labels in the order of the files' numbers, and the instruction that states the task in words."""

    template: str
    labels: tuple[str, ...]
    instruction: str


NLI = "Does the premise mean that the hypothesis is true? Answer yes, maybe or no."
SOURCES: dict[str, Row] = {
    "sst2": Row("Review: {sentence}", ("negative", "positive"), "Is the review positive or negative?"),
    "ag_news": Row(
        "News: {title}. {description}", ("world", "sports", "business", "technology"),
        "Is the news about the world, sports, business or technology?",
    ),
    "qnli_small": Row(
        "Question: {question}\nSentence: {sentence}", ("yes", "no"), "Does the sentence answer the question? Answer yes or no."
    ),
    "mrpc": Row("First: {sentence1}\nSecond: {sentence2}", ("no", "yes"), "Do the two sentences mean the same? Answer yes or no."),
    "sick": Row(PAIR, ENTAILMENT, NLI),
    "mnli_small": Row(PAIR, ENTAILMENT, NLI),
    "snli_small": Row(PAIR, ENTAILMENT, NLI),
    "tweet_emotion": Row(
        "Tweet: {sentence}", ("anger", "joy", "optimism", "sadness"), "Does the tweet show anger, joy, optimism or sadness?"
    ),
    "clinc_domain": Row(
        "Request: {sentence}", ("car", "bank", "credit", "home", "kitchen", "meta", "chat", "travel", "utility", "work"),
        "Is the request about a car, a bank, credit, the home, the kitchen, the assistant itself (meta), chat, travel, a utility or work?",
    ),
}  # fmt: skip
TARGETS: dict[str, Row] = {
    "rte": Row(PAIR, ("yes", "no"), "Does the premise mean that the hypothesis is true? Answer yes or no."),
    "cb": Row(PAIR, ("yes", "no", "maybe"), "Does the premise mean that the hypothesis is true? Answer yes, no or maybe."),
    "cola": Row("Sentence: {sentence}", ("no", "yes"), "Is the sentence correct English? Answer yes or no."),
    "subjectivity": Row("Sentence: {sentence}", ("objective", "subjective"), "Is the sentence objective or subjective?"),
    "tweet_irony": Row("Tweet: {sentence}", ("no", "yes"), "Is the tweet ironic? Answer yes or no."),
    "answer_selection": Row(
        "Question: {question}\nSentence: {sentence}", ("no", "yes"), "Does the sentence answer the question? Answer yes or no."
    ),
    "boolq_small": Row("Question: {question}\nPassage: {passage}", ("no", "yes"), "What does the passage say? Answer yes or no."),
}  # fmt: skip
TOPICS: dict[str, Row] = {  # targets whose skill two sources have (AG News, CLINC): which of four topics
    name: Row("Text: {text}", tuple(topic.labels.values()), "Is the text about {}, {}, {} or {}?".format(*topic.labels.values()))
    for name, topic in topics.TOPICS.items()
}
GROUPS = {"": TARGETS, "topics": TOPICS}  # of targets, each with tables of its own
ROWS = SOURCES | TARGETS | TOPICS


def published(name: str) -> dict[str, list[dict]]:
    """Rows of a task's files by split. Raises SystemExit where a file is missing."""
    folder = Path(os.environ.get("MPT_DATA_DIR", "data")) / "tasks" / name
    found = {path.stem: [json.loads(line) for line in path.open(encoding="utf-8")] for path in sorted(folder.glob("*.jsonl"))}
    if "train" not in found or found.keys().isdisjoint({"validation", "test"}):
        wanted = "train.jsonl and one of validation.jsonl and test.jsonl"
        raise SystemExit(f"{folder} does not hold {wanted}: set MPT_DATA_DIR to the folder of tasks/{name}")
    return found


def split(held: dict[str, list[dict]], seed: int = 0) -> dict[str, list[dict]]:
    """train, validation and test rows: shuffled, cut to the study's numbers, and none in two splits."""
    rng = random.Random(seed)
    rows = {name: list(found) for name, found in held.items()}
    test = rows.pop("test", None) or rows.pop("validation")
    for part in (rows["train"], rows.get("validation", []), test):
        rng.shuffle(part)
    carved = min(DEV_ROWS, len(rows["train"]) // 5)
    dev = rows.get("validation") or rows["train"][:carved]
    train = rows["train"] if "validation" in rows else rows["train"][carved:]
    taken = {_text(row) for row in test}
    dev = [row for row in dev if _text(row) not in taken][:DEV_ROWS]
    taken |= {_text(row) for row in dev}
    return {"train": [row for row in train if _text(row) not in taken][:TRAIN_ROWS], "validation": dev, "test": test[:TEST_ROWS]}


def _text(row: dict) -> str:
    return json.dumps({name: value for name, value in sorted(row.items()) if name not in ("idx", "label")})


def prepare(folder: Path) -> None:
    """Writes the splits of all tasks: ``train/`` and ``validation/`` to train and choose on, ``test/`` for the final evaluation."""
    for name in ROWS:
        if all((folder / part / f"{name}.jsonl").exists() for part in PARTS):
            continue
        for part, rows in (topics.splits(name) if name in TOPICS else split(published(name))).items():
            path = folder / part / f"{name}.jsonl"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                temporary.replace(path)


def register(folder: Path, parts: tuple[str, ...] = ("train", "validation")) -> None:
    """Registers the tasks with some of their splits, and each once more as ``NAME_asked``, whose inputs begin with the instruction."""
    for name, row in ROWS.items():
        files = {part: folder / part / f"{name}.jsonl" for part in parts}
        for label, template in ((name, row.template), (f"{name}_asked", f"{row.instruction}\n{row.template}")):
            tasks.TABLE.pop(label, None)
            tasks.jsonl(label, files=files, template=template, labels=row.labels, score="accuracy")
