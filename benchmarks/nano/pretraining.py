"""Writes everything that pretraining the nano backbone needs into one folder.

    python -m benchmarks.nano.pretraining --output DIR [--data_dir ../shared/data]

DIR/spiece.model       the vocabulary
DIR/tasks/NAME/train.jsonl, train.npy   rows, and where the task has them their texts' sentence vectors (float16; zeros: none)
DIR/index.json         tasks with counts, group of mixing weight and fingerprints
DIR/initial/           backbone folder before training: embeddings from MiniLM's word pieces, the rest as T5 initialises
DIR/vectors/           sentence vectors by text, so that a second run computes only new ones

Everything is a function of the input files, the seed and the package versions; docs/nano.md lists sources and licences.
"""

import argparse
import hashlib
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.nano import (
    embedded_rows,
    entailment,
    initial,
    labelled,
    short_texts,
    spans,
    text,
    text_rows,
    vectors,
    vocabulary,
    wordnet,
    wordnet_rows,
)
from benchmarks.nano.labelled import Row

# Targets of the evaluation: none of their rows, and no held-out row of a source, may enter in any form.
FORBIDDEN = {
    "rte": ("premise", "hypothesis"), "cb": ("premise", "hypothesis"), "cola": ("sentence",),
    "subjectivity": ("sentence",), "sst2": ("sentence",), "qnli_small": ("question", "sentence"),
    "mrpc": ("sentence1", "sentence2"), "ag_news": ("title", "description"), "mnli_small": ("premise", "hypothesis"),
    "snli_small": ("premise", "hypothesis"), "tweet_emotion": ("sentence",), "clinc_domain": ("sentence",), "tweet_irony": ("sentence",),
    "answer_selection": ("question", "sentence"), "boolq_small": ("question", "passage"),
}  # fmt: skip
# SICK's held-out rows are kept out pair by pair (benchmarks.nano.entailment)
# only their train splits are used
SOURCES = ("sst2", "ag_news", "qnli_small", "mrpc", "mnli_small", "snli_small", "tweet_emotion", "clinc_domain")
SEGMENT = (56, 84)  # tokens of a span corruption segment
SPAN_SEGMENTS = 60_000


@dataclass(frozen=True)
class Material:
    """Everything read from disk, once."""

    task_folder: Path
    documents: dict[str, list[str]]
    definitions: list[text.Definition]
    synsets: dict[str, wordnet.Synset]
    lexicon: wordnet_rows.Lexicon
    sentences: list[str]
    banned: frozenset[str]


@dataclass(frozen=True)
class Recipe:
    """One pretraining task: its rows, and what `mpt-jax tasks` says about it."""

    name: str
    description: str
    rows: Callable[[Material, random.Random], Iterator[Row]]
    with_vectors: bool = True


RECIPES = (
    Recipe("nano_sst2", "film review sentence -> its sentiment, 12 wordings",
           lambda m, r: labelled.sst2_rows(m.task_folder, r)),
    Recipe("nano_ag_news", "news -> topic, 5 wordings, and yes/no about a topic",
           lambda m, r: labelled.ag_news_rows(m.task_folder, r)),
    Recipe("nano_qnli", "does a sentence answer a question, 5 wordings",
           lambda m, r: labelled.qnli_rows(m.task_folder, r), False),
    Recipe("nano_mrpc", "do two sentences say the same, 5 wordings",
           lambda m, r: labelled.mrpc_rows(m.task_folder, r), False),
    *(Recipe(f"nano_{name}", "does a statement follow from another, 7 wordings",
             lambda m, r, name=name: entailment.rows_of(m.task_folder, name, r), False) for name in entailment.NAMES),
    Recipe("nano_tweet_emotion", "tweet -> its emotion, 9 wordings",
           lambda m, r: short_texts.emotion_rows(m.task_folder, r)),
    Recipe("nano_clinc_domain", "request to an assistant -> its domain, 4 wordings, or intent, and yes/no about a domain",
           lambda m, r: short_texts.domain_rows(m.task_folder, r)),
    Recipe("nano_category", "WordNet gloss or word -> one of 34 categories, or yes/no",
           lambda m, r: wordnet_rows.category_rows(m.lexicon, r)),
    Recipe("nano_gloss", "WordNet gloss -> the word it defines, among options or free",
           lambda m, r: wordnet_rows.gloss_rows(m.lexicon, r, 24_000)),
    Recipe("nano_sense", "example sentence: the word left out, its part of speech, its meaning",
           lambda m, r: wordnet_rows.sense_rows(m.lexicon, r, 12_000)),
    Recipe("nano_topic", "WordNet gloss -> its subject",
           lambda m, r: wordnet_rows.topic_rows(m.lexicon, r)),
    Recipe("nano_field", "dictionary definition -> its subject",
           lambda m, r: text_rows.field_rows(m.definitions, r, 300)),
    Recipe("nano_relation", "two words -> their relation; a word -> its opposite, synonym or kind",
           lambda m, r: wordnet_rows.relation_rows(m.lexicon, r, 12_000), False),
    Recipe("nano_episode", "a task given by examples alone, with labels drawn at random",
           lambda m, r: wordnet_rows.episode_rows(m.lexicon, r, 16_000, label_words()), False),
    Recipe("nano_source", "sentence -> the kind of writing it is from",
           lambda m, r: text_rows.source_rows(m.documents, [s.gloss for s in m.synsets.values()], r, 10_000)),
    Recipe("nano_adjacency", "do two sentences follow each other, and in which order",
           lambda m, r: text_rows.adjacency_rows(text_rows.neighbours(m.documents), r, 10_000), False),
    Recipe("nano_order", "is a sentence whole, or are its words shuffled, swapped or doubled",
           lambda m, r: text_rows.order_rows(m.sentences, r, 10_000), False),
    Recipe("nano_cloze", "the word left out of a sentence, among options",
           lambda m, r: text_rows.cloze_rows(m.sentences, lambda w: m.lexicon.counts[w] >= 20, r, 10_000), False),
    Recipe("nano_finding", "n-th, last, next word of a text; contained or not; counting; copying",
           lambda m, r: text_rows.finding_rows(m.sentences, r, 20_000), False),
    Recipe("nano_slots", "a named fact out of several", lambda m, r: text_rows.slot_rows(r, 16_000), False),
)  # fmt: skip


def all_recipes() -> tuple[Recipe, ...]:
    """RECIPES and one recipe for each embedded source task."""
    embedded = tuple(
        Recipe(
            f"nano_{name}",
            f"the embedded source task {name} with a textual prefix",
            lambda m, r, name=name: embedded_rows.source_rows(name, r, 1 if name.startswith("journey") else 2),
            name == "science_topic",
        )
        for name in embedded_rows.source_names()
    )
    return RECIPES + embedded


def label_words() -> list[str]:
    """Every word that a task answers with, for the vocabulary and for random labels."""
    single = (*labelled.SST2, *labelled.AG_NEWS, *entailment.WORDINGS, *short_texts.EMOTION, *short_texts.DOMAIN)
    words = {word for form in single for word in form[-1]}
    words |= {word for form in (*labelled.QNLI, *labelled.MRPC) for word in form[-1] if word.isalpha()}
    words |= {*wordnet_rows.CATEGORIES, *wordnet_rows.PARTS, *wordnet_rows.RELATIONS, *text.SOURCE_WORDS.values()}
    words |= {*text.GCIDE_FIELDS.values(), *text_rows.ORDINALS, *text_rows.NUMBERS, *text_rows.SLOTS}
    words |= {word for pair in text_rows.YES_NO for word in pair} | {v for vs in text_rows.SLOTS.values() for v in vs}
    # Usual label words of English classification tasks that no row above happens to answer with.
    words |= set(
        "acceptable unacceptable grammatical subjective objective opinion fact entailment contradiction neutral unrelated "
        "abbreviation entity description human number related high low more less strong weak easy hard true false left "
        "right old new big small start end many few plural singular past present future letter sound "
        "files mail network numbers tasks tests windows city country currency language unit drawing learning "
        "matrices optimization signals statistics pictures training algebra maximum waves data".split()
    )
    return sorted(word for word in words if word.isalpha())


def forbidden_texts(task_folder: Path) -> set[str]:
    """Normalised texts of every target row, embedded ones too, and of every held-out row of a source."""
    texts = set()
    for name, fields in FORBIDDEN.items():
        for path in sorted((task_folder / name).glob("*.jsonl")):
            if name in SOURCES and path.stem == "train":
                continue
            for row in labelled.read_jsonl(path):
                texts.update(text.normalised(row[key]) for key in fields)
    texts = {entry for entry in texts if len(entry.split()) >= 4}
    for entry in embedded_rows.target_texts():
        texts.update(clauses(entry))
    return texts


def clauses(entry: str) -> set[str]:
    """Normalised forms under which a definition may appear: whole, its first clause, that cut as tasks cut it."""
    bare = re.sub(r"^\([^)]*\)\s*", "", entry)
    first = bare.split(";")[0]
    forms = (entry, bare, first, text.first_words(first, 24), re.split(r'[;:"(]', bare)[0])
    return {text.normalised(form) for form in forms} - {""}


def read_material(data_dir: Path, wordnet_folder: Path, gcide: Path) -> Material:
    """Reads all sources and drops sentences and definitions that stand in a target or held-out row."""
    banned = frozenset(forbidden_texts(data_dir / "tasks"))
    documents = {
        name: [s for s in sentences if text.normalised(s) not in banned]
        for name, sentences in text.read_documents(data_dir / "text").items()
    }
    synsets = wordnet.read_synsets(wordnet_folder)
    definitions = [d for d in text.read_gcide(gcide) if not clauses(d.text) & banned]
    sentences = [s for name in documents for s in documents[name] if text_rows.short(s)]
    examples = [example for synset in synsets.values() for example in synset.examples]
    counts = text.word_counts([*(s for d in documents.values() for s in d), *examples])
    lexicon = wordnet_rows.Lexicon(synsets, counts)
    return Material(data_dir / "tasks", documents, definitions, synsets, lexicon, sentences, banned)


def make_rows(recipe: Recipe, material: Material, seed: int) -> list[Row]:
    """The recipe's rows in random order, without those that show a banned text."""
    rng = random.Random(f"{seed}:{recipe.name}")
    rows = [row for row in recipe.rows(material, rng) if not shown(row) & material.banned]
    rng.shuffle(rows)
    return rows


def shown(row: Row) -> set[str]:
    """Normalised texts that a row shows: its text, a definition beside it, and the parts of its inputs."""
    parts = (row.get("text", ""), row.get("definition", ""), *re.split(r"[:?.] ", row["inputs"]))
    return {text.normalised(part) for part in parts} - {""}


def running_pieces(material: Material, rng: random.Random) -> Iterator[str]:
    """Running English, document after document, dictionaries last and shuffled by entry."""
    for sentences in material.documents.values():
        yield from (text_rows.plain(s) for s in sentences)
    entries = [f"{d.word}: {d.text}" for d in material.definitions if len(d.text.split()) >= 12]
    for synset in material.synsets.values():
        if clauses(synset.gloss) & material.banned:
            continue
        entries.append(f"{synset.words[0]}: {synset.gloss}" + "".join(f'; "{e}"' for e in synset.examples))
    rng.shuffle(entries)
    yield from entries


def span_rows(material: Material, path: Path, seed: int) -> Iterator[dict]:
    """Span corruption rows as token ids, both sides ending with EOS."""
    model = vocabulary.load(path)
    rng = random.Random(f"{seed}:nano_spans")
    pieces = model.encode(list(running_pieces(material, rng)), num_threads=2)
    chosen = list(text.segments(pieces, *SEGMENT, rng))
    for segment in rng.sample(chosen, min(SPAN_SEGMENTS, len(chosen))):
        inputs, targets = spans.corrupt(segment, vocabulary.SIZE, rng)
        yield {"inputs_tokens": [*inputs, 1], "targets_tokens": [*targets, 1]}


def write_jsonl(path: Path, rows: Iterable[dict]) -> tuple[int, str]:
    """Writes rows atomically; (number of rows, sha256 of the file's first 16 hex digits)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, digest, count = path.with_suffix(".partial"), hashlib.sha256(), 0
    with partial.open("wb") as out:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            out.write(line)
            count += 1
    os.replace(partial, path)
    return count, digest.hexdigest()[:16]


def train_vocabulary(material: Material, rows: dict[str, list[Row]], path: Path, seed: int) -> None:
    """The vocabulary, from all running text once and every task row once."""
    rng = random.Random(f"{seed}:vocabulary")
    lines = list(running_pieces(material, rng))
    lines = rng.sample(lines, min(len(lines), 250_000))
    lines += [f"{row['inputs']} {row['targets']}" for task_rows in rows.values() for row in task_rows]
    vocabulary.train(lines, label_words(), path)


def write_tasks(output: Path, rows: dict[str, list[Row]], spans_of: Iterator[dict], vectors_too: bool) -> dict:
    """Writes all row files and vectors; the index's `tasks` entry."""
    recipes = {recipe.name: recipe for recipe in all_recipes()}
    index = {}
    count, digest = write_jsonl(output / "tasks" / "nano_spans" / "train.jsonl", spans_of)
    index["nano_spans"] = {
        "rows": {"train": count}, "sha256": digest, "embedding_size": 0, "tokens": True,
        "description": "span corruption of running English: 15 % noise, mean span 3",
    }  # fmt: skip
    store = vectors.VectorStore(output / "vectors")
    wanted = [row["text"] for name, task_rows in rows.items() if recipes[name].with_vectors for row in task_rows if "text" in row]
    if vectors_too:
        store.fill(wanted, say)
    for name, task_rows in rows.items():
        path = output / "tasks" / name / "train.jsonl"
        shown_of = ("inputs", "targets", "text") if recipes[name].with_vectors else ("inputs", "targets")
        count, digest = write_jsonl(path, ({key: row[key] for key in shown_of if key in row} for row in task_rows))
        size = 0
        if recipes[name].with_vectors and vectors_too:
            table = store.of([row.get("text") for row in task_rows])
            np.save(path.with_suffix(".npy"), table)
            size = table.shape[1]
        index[name] = {
            "rows": {"train": count}, "sha256": digest, "embedding_size": size, "tokens": False,
            "description": recipes[name].description,
        }  # fmt: skip
    return index


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano.pretraining", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, default=os.environ.get("MPT_DATA_DIR", "../shared/data"))
    parser.add_argument("--wordnet", type=Path, default="/usr/share/wordnet", help="Debian package wordnet-base")
    parser.add_argument("--gcide", type=Path, default="/usr/share/dictd/gcide.dict.dz", help="Debian package dict-gcide")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no_vectors", action="store_true", help="skip the sentence vectors")
    parser.add_argument("--keep_vocabulary", action="store_true", help="use the spiece.model that is there")
    options = parser.parse_args(arguments)
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    say("reading")
    material = read_material(Path(options.data_dir), options.wordnet, options.gcide)
    recipes = all_recipes()
    rows = {recipe.name: make_rows(recipe, material, options.seed) for recipe in recipes}
    for name, task_rows in rows.items():
        say(f"{name}: {len(task_rows):,} rows")
    model = output / "spiece.model"
    if not (options.keep_vocabulary and model.is_file()):
        train_vocabulary(material, rows, model, options.seed)
        say("vocabulary written")
    index = write_tasks(output, rows, span_rows(material, model, options.seed), not options.no_vectors)
    facts = {"seed": options.seed, "vocabulary": hashlib.sha256(model.read_bytes()).hexdigest()[:16], "tasks": index}
    (output / "index.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    say("rows written")
    parameters = initial.write(output / "initial", model, options.seed, initial.embedding_of(model, options.seed))
    say(f"initial backbone written: {parameters:,} parameters")


if __name__ == "__main__":
    main()
