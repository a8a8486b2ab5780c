"""Rows made from running sentences: where a sentence comes from, order, adjacency, gaps, and finding words in a text."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.nano.labelled import TEXT_MARKS, Row, asked
from benchmarks.nano.text import SOURCE_WORDS, Definition, first_words, words_of

YES_NO = (("no", "yes"), ("false", "true"), ("wrong", "right"), ("bad", "good"))
ORDINALS = ("first", "second", "third", "fourth", "fifth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SLOTS = {
    "name": ("anna", "peter", "maria", "john", "helen", "david", "laura", "paul", "james", "mary"),
    "city": ("paris", "london", "rome", "berlin", "madrid", "boston", "chicago", "cairo", "dallas", "athens"),
    "color": ("red", "blue", "green", "yellow", "black", "white", "brown", "gray", "orange", "pink"),
    "animal": ("dog", "cat", "horse", "bird", "fish", "lion", "bear", "mouse", "snake", "wolf"),
    "food": ("bread", "rice", "apple", "cheese", "soup", "cake", "meat", "egg", "corn", "fish"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
    "job": ("doctor", "teacher", "lawyer", "farmer", "soldier", "writer", "actor", "nurse", "driver", "cook"),
    "age": ("20", "25", "31", "36", "42", "47", "53", "58", "64", "69"),
}  # fmt: skip


def short(sentence: str, least: int = 6, most: int = 28) -> bool:
    return least <= len(sentence.split()) <= most


def source_rows(documents: Mapping[str, Sequence[str]], glosses: Sequence[str], rng: random.Random, rows: int) -> Iterator[Row]:
    """Which kind of writing a sentence is from."""
    kinds = ("review", "speech", "play", "dictionary")
    pools: dict[str, list[str]] = {kind: [] for kind in kinds}
    for name, sentences in documents.items():
        pools[SOURCE_WORDS[name]] += [s for s in sentences if short(s)]
    pools["dictionary"] = [g for g in glosses if short(g)]
    for _ in range(rows):
        kind = rng.choice(kinds)
        # Case and spaces around punctuation would give the source away.
        text, form = plain(rng.choice(pools[kind])), rng.random()
        if form < 0.6:
            question = rng.choice(("source of the text:", "where is this from?", "what kind of writing?"))
            yield {"inputs": asked(rng, question, kinds, text), "targets": kind, "text": text}
        else:
            words, other = rng.choice(YES_NO[:3]), rng.choice(kinds)
            question = f"is it from a {other}?"
            yield {"inputs": asked(rng, question, words, text, 0.2), "targets": words[other == kind], "text": text}


def plain(sentence: str) -> str:
    """Punctuation set close to the words, so that the tokenised files read like the others."""
    for mark in ".,;:!?)":
        sentence = sentence.replace(f" {mark}", mark)
    return sentence.replace("( ", "(").replace('" ', '"')


def neighbours(documents: Mapping[str, Sequence[str]], most: int = 20) -> list[tuple[str, str]]:
    """Pairs of adjacent sentences, both short."""
    return [
        (plain(a), plain(b))
        for sentences in documents.values()
        for a, b in zip(sentences, sentences[1:], strict=False)
        if short(a, 6, most) and short(b, 6, most)
    ]


def adjacency_rows(pairs: Sequence[tuple[str, str]], rng: random.Random, rows: int) -> Iterator[Row]:
    """Two sentences: does the second follow the first; which came first."""
    for a, b in rng.sample(list(pairs), min(rows, len(pairs))):
        form, yes = rng.random(), rng.random() < 0.5
        if form < 0.6:
            words = rng.choice((*YES_NO[:3], ("random", "next")))
            second = b if yes else rng.choice(pairs)[1]
            question = rng.choice(("does the second follow the first?", "next sentence?", "do they belong together?"))
            body = f"first: {a} second: {second}"
        else:
            words = rng.choice((("swapped", "correct"), ("second", "first"), ("no", "yes")))
            one, two = (a, b) if yes else (b, a)
            question, body = "are they in order?", f"sentence1: {one} sentence2: {two}"
        inputs = asked(rng, f"{question} {' or '.join(words)}?", words, body, 0.1)
        yield {"inputs": inputs, "targets": words[yes], "text": body}


def order_rows(sentences: Sequence[str], rng: random.Random, rows: int) -> Iterator[Row]:
    """Is a sentence as it was written, or are words swapped, shuffled, doubled or missing."""
    for sentence in rng.sample(list(sentences), min(rows, len(sentences))):
        parts = plain(sentence).split()
        damage = rng.choice(("none", "none", "shuffled", "swapped", "doubled"))
        broken = list(parts)
        if damage == "shuffled":
            rng.shuffle(broken)
        elif damage == "swapped":
            at = rng.randrange(len(parts) - 2)
            broken[at], broken[at + 2] = broken[at + 2], broken[at]
        elif damage == "doubled":
            broken.insert(rng.randrange(len(parts)), rng.choice(parts))
        text = " ".join(broken)
        words = rng.choice((("broken", "fine"), ("wrong", "right"), ("no", "yes"), ("shuffled", "ordered")))
        question = rng.choice(("is the word order right?", "are the words in order?", "well written?"))
        inputs = asked(rng, f"{question} {' or '.join(words)}?", words, text, 0.1)
        yield {"inputs": inputs, "targets": words[broken == parts]}


def cloze_rows(sentences: Sequence[str], common: Callable[[str], bool], rng: random.Random, rows: int) -> Iterator[Row]:
    """A word left out of a sentence, chosen among words of other sentences."""
    made = 0
    for sentence in rng.sample(list(sentences), len(sentences)):
        text = plain(sentence)
        usable = [w for w in words_of(text) if len(w) >= 4 and common(w.lower())]
        others = [w for w in words_of(rng.choice(sentences)) if len(w) >= 4 and common(w.lower())]
        if len(set(usable)) < 2 or len(set(others)) < 3:
            continue
        word, wrong = rng.choice(usable), rng.sample(sorted(set(others)), rng.randint(2, 3))
        gap = text.replace(word, "___", 1)
        yield {
            "inputs": asked(rng, rng.choice(("fill the gap.", "which word is missing?")), [word, *wrong], gap, 0.9),
            "targets": word.lower(),
        }
        made += 1
        if made == rows:
            return


def finding_rows(sentences: Sequence[str], rng: random.Random, rows: int) -> Iterator[Row]:
    """Find, count and copy words of a text: n-th, last, next to a word, contained or not, how many, all of it."""
    for sentence in rng.sample(list(sentences), min(rows, len(sentences))):
        text = plain(first_words(sentence, rng.randint(5, 16)))
        words = [w.lower() for w in words_of(text)]
        if len(words) < 4:
            continue
        at, form = rng.randrange(min(5, len(words))), rng.random()
        body = f"{rng.choice(TEXT_MARKS)} {text}"
        inside = rng.choice(words)
        if form < 0.25:
            yield {"inputs": asked(rng, f"{ORDINALS[at]} word.", [], body, 0.0), "targets": words[at]}
        elif form < 0.4:
            yield {"inputs": asked(rng, "last word.", [], body, 0.0), "targets": words[-1]}
        elif form < 0.55:
            spot = rng.randrange(len(words) - 1)
            side, asks, answer = rng.choice((("after", words[spot], words[spot + 1]), ("before", words[spot + 1], words[spot])))
            if words.count(asks) == 1:
                yield {"inputs": asked(rng, f"word {side} {asks}.", [], body, 0.0), "targets": answer}
        elif form < 0.8:
            yes = rng.random() < 0.5
            asks = inside if yes else rng.choice([w.lower() for w in words_of(rng.choice(sentences))] or ["nothing"])
            answers = rng.choice(YES_NO[:3])
            yield {
                "inputs": asked(rng, f"is {asks} in the text?", answers, body, 0.2),
                "targets": answers[asks in words],
            }
        elif form < 0.9:
            few = words[: rng.randint(2, 10)]
            yield {"inputs": f"how many words? {' '.join(few)}", "targets": NUMBERS[len(few)]}
        else:
            yield {"inputs": f"repeat: {' '.join(words[:8])}", "targets": " ".join(words[:8])}


def slot_rows(rng: random.Random, rows: int) -> Iterator[Row]:
    """A few named facts; one is asked for, by name or by value."""
    for _ in range(rows):
        names = rng.sample(sorted(SLOTS), rng.randint(3, 5))
        facts = {name: rng.choice(SLOTS[name]) for name in names}
        form, asks = rng.random(), rng.choice(names)
        joined = rng.choice((", ", "; ", " ")).join(
            f"{name}{rng.choice((':', ' is', ' ='))} {value}" for name, value in facts.items()
        )
        if form < 0.6:
            question = rng.choice((f"what is the {asks}?", f"{asks}?", f"find the {asks}."))
            yield {"inputs": f"{question} {joined}", "targets": facts[asks]}
        elif form < 0.8:
            yield {"inputs": f"{joined}. {asks}:", "targets": facts[asks]}
        else:
            value = facts[asks]
            yield {"inputs": f"what kind of thing is {value}? {joined}", "targets": asks}


def field_rows(definitions: Sequence[Definition], rng: random.Random, most: int) -> Iterator[Row]:
    """GCIDE definition -> its subject."""
    counts: dict[str, int] = {}
    fields = sorted({d.field for d in definitions if d.field})
    marked = [d for d in definitions if d.field]
    for definition in rng.sample(marked, len(marked)):
        counts[definition.field] = counts.get(definition.field, 0) + 1
        if counts[definition.field] > most:
            continue
        others = rng.sample([f for f in fields if f != definition.field], 3)
        text = first_words(definition.text, 24)
        question = rng.choice(("subject:", "which field?", "what is it about?", "subject of the definition:"))
        yield {"inputs": asked(rng, question, [definition.field, *others], text, 0.5), "targets": definition.field, "text": text}
