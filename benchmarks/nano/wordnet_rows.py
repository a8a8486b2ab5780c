"""Rows made from WordNet: categories, words for glosses, relations between words, senses of words in examples."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from benchmarks.nano.labelled import Row, asked
from benchmarks.nano.text import first_words, words_of
from benchmarks.nano.wordnet import Synset

CATEGORIES = (
    "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food",
    "group", "location", "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time", "change", "competition", "consumption", "contact",
    "creation", "emotion", "motion", "perception", "social", "weather",
)  # fmt: skip
PARTS = ("noun", "verb", "adjective", "adverb")
RELATIONS = ("synonym", "antonym", "kind", "part", "unrelated")
PER_CATEGORY = 1500


class Lexicon:
    """Synsets with the counts of their words in running text, for choosing words a small vocabulary can spell."""

    def __init__(self, synsets: dict[str, Synset], counts: Counter[str]) -> None:
        self.synsets, self.counts = synsets, counts
        self.by_category: dict[str, list[Synset]] = defaultdict(list)
        self.senses: dict[tuple[str, str], list[Synset]] = defaultdict(list)
        for synset in synsets.values():
            if synset.category:
                self.by_category[synset.category].append(synset)
            for word in synset.words:
                self.senses[word.lower(), synset.part].append(synset)
        self.common = [s for s in synsets.values() if self.word(s)]

    def word(self, synset: Synset, least: int = 3) -> str:
        """The synset's most frequent single word, lower-cased; '' if none occurs `least` times in the text."""
        words = [w.lower() for w in synset.words if w.isalpha() and self.counts[w.lower()] >= least]
        return max(words, key=lambda w: self.counts[w], default="")

    def other_words(self, rng: random.Random, synset: Synset, count: int) -> list[str]:
        """Words of the same part of speech that are none of the synset's own."""
        own, chosen = {w.lower() for w in synset.words}, []
        while len(chosen) < count:
            other = rng.choice(self.common)
            word = self.word(other)
            if other.part == synset.part and word not in own and word not in chosen:
                chosen.append(word)
        return chosen


def gloss_of(synset: Synset) -> str:
    return first_words(synset.gloss.split(";")[0], 24)


def category_rows(lexicon: Lexicon, rng: random.Random) -> Iterator[Row]:
    """Gloss, word or example sentence -> category; and yes/no about one category."""
    for category in CATEGORIES:
        synsets = lexicon.by_category[category]
        for synset in rng.sample(synsets, min(PER_CATEGORY, len(synsets))):
            gloss, word, form = gloss_of(synset), synset.words[0], rng.random()
            others = rng.sample([c for c in CATEGORIES if c != category], rng.randint(2, 4))
            if form < 0.3:
                yield {"inputs": f"category of the definition: {gloss}", "targets": category, "text": gloss}
            elif form < 0.55:
                question = rng.choice(("what kind of thing is this?", "which fits the text?", "label:", "category?"))
                inputs = asked(rng, question, [category, *others], gloss, 1.0)
                yield {"inputs": inputs, "targets": category, "text": gloss}
            elif form < 0.75:
                yes = rng.random() < 0.5
                asks = category if yes else others[0]
                question = rng.choice((f"is this about {asks}?", f"{asks}: yes or no?", f"does it mean a {asks}?"))
                inputs = asked(rng, question, ("yes", "no"), gloss, 0.2)
                yield {"inputs": inputs, "targets": "yes" if yes else "no", "text": gloss}
            elif form < 0.9:
                inputs = asked(rng, "category of the word:", [category, *others], f"{word}", 0.5)
                yield {"inputs": inputs, "targets": category, "text": word}
            else:
                yield {"inputs": f"category of {word}: {gloss}", "targets": category, "text": gloss}


def gloss_rows(lexicon: Lexicon, rng: random.Random, rows: int) -> Iterator[Row]:
    """Gloss -> the word it defines, most with options: choosing the nearest meaning among words of any kind."""
    for synset in rng.sample(lexicon.common, min(rows, len(lexicon.common))):
        gloss, word, form = gloss_of(synset), lexicon.word(synset), rng.random()
        others = lexicon.other_words(rng, synset, rng.randint(1, 5))
        if form < 0.6:
            question = rng.choice(("which word is meant?", "which word fits?", "choose the label.", "answer:", "label?"))
            yield {"inputs": asked(rng, question, [word, *others], gloss, 1.0), "targets": word, "text": gloss}
        elif form < 0.75:
            yield {"inputs": f"word for: {gloss}", "targets": word, "text": gloss}
        elif form < 0.9:
            yes = rng.random() < 0.5
            question = f"does {word if yes else others[0]} mean this?"
            inputs = asked(rng, question, ("yes", "no"), gloss, 0.2)
            yield {"inputs": inputs, "targets": "yes" if yes else "no", "text": gloss}
        else:
            yield {"inputs": f"part of speech: {gloss}", "targets": synset.part, "text": gloss}


def sense_rows(lexicon: Lexicon, rng: random.Random, rows: int) -> Iterator[Row]:
    """Example sentences: the word's part of speech, the word left out (options), the right gloss of the word."""
    with_examples = [s for s in lexicon.common if s.examples]
    made = 0
    for synset in rng.sample(with_examples, len(with_examples)):
        example, word = first_words(synset.examples[0], 24), lexicon.word(synset)
        if word not in [w.lower() for w in words_of(example)]:
            continue
        others, form = lexicon.other_words(rng, synset, rng.randint(2, 3)), rng.random()
        if form < 0.45:
            blank = " ".join("___" if w.strip(".,;:!?\"'").lower() == word else w for w in example.split())
            yield {"inputs": asked(rng, "fill the gap.", [word, *others], blank, 0.9), "targets": word, "text": example}
        elif form < 0.65:
            inputs = asked(rng, f"{word} is used as a", PARTS, f"in: {example}", 0.4)
            yield {"inputs": inputs, "targets": synset.part, "text": example}
        else:
            senses = lexicon.senses[word, synset.part]
            wrong = [s for s in senses if s is not synset] or [rng.choice(lexicon.common)]
            right = rng.random() < 0.5
            gloss = first_words(gloss_of(synset if right else rng.choice(wrong)), 16)
            words = rng.choice((("no", "yes"), ("false", "true"), ("different", "same"), ("wrong", "right")))
            question = f"does {word} mean that? " if words[0] == "no" else f"meaning of {word}: {' or '.join(words)}?"
            body = f"sentence: {example} meaning: {gloss}"
            inputs = asked(rng, question, words, body, 0.2)
            yield {"inputs": inputs, "targets": words[right], "text": body, "definition": gloss}
        made += 1
        if made == rows:
            return


def topic_rows(lexicon: Lexicon, rng: random.Random) -> Iterator[Row]:
    """Gloss -> the subject it belongs to (WordNet's domain pointers)."""
    marked = [(s, lexicon.synsets[key]) for s in lexicon.synsets.values() for r, key, _, _ in s.pointers if r == "topic"]
    subjects = Counter(lexicon.word(topic) for _, topic in marked)
    known = sorted(word for word, count in subjects.items() if word and count >= 8)
    for synset, topic in marked:
        word = lexicon.word(topic)
        if word not in known:
            continue
        others = rng.sample([k for k in known if k != word], 3)
        question = rng.choice(("subject:", "what is it about?", "which field?", "topic of the definition:"))
        gloss = gloss_of(synset)
        yield {"inputs": asked(rng, question, [word, *others], gloss, 0.6), "targets": word, "text": gloss}


def word_pairs(lexicon: Lexicon) -> dict[str, list[tuple[str, str]]]:
    """Pairs of frequent words by relation: (a, b) means b is a synonym, antonym, kind (hypernym) or part of a."""
    pairs: dict[str, list[tuple[str, str]]] = {name: [] for name in RELATIONS[:4]}
    for synset in lexicon.common:
        words = [w.lower() for w in synset.words if w.isalpha() and lexicon.counts[w.lower()] >= 3]
        pairs["synonym"] += [(words[0], other) for other in words[1:3]]
        for relation, key, own, theirs in synset.pointers:
            other = lexicon.synsets[key]
            if relation == "antonym" and own >= 0:
                pair = (synset.words[own].lower(), other.words[theirs].lower())
                if all(w.isalpha() and lexicon.counts[w] >= 2 for w in pair):
                    pairs["antonym"].append(pair)
            elif relation in ("hypernym", "part") and lexicon.word(other) and lexicon.word(other) not in words:
                pairs["kind" if relation == "hypernym" else "part"].append((lexicon.word(synset), lexicon.word(other)))
    return pairs


def relation_rows(lexicon: Lexicon, rng: random.Random, rows: int) -> Iterator[Row]:
    """Two words -> their relation; yes/no about one relation; one word -> its antonym, synonym or kind."""
    pairs = word_pairs(lexicon)
    say = {"synonym": "same meaning", "antonym": "opposite", "kind": "kind of", "part": "part of"}
    for _ in range(rows):
        relation, form = rng.choice(RELATIONS), rng.random()
        if relation == "unrelated":
            a, b = (lexicon.word(rng.choice(lexicon.common)) for _ in range(2))
        else:
            a, b = rng.choice(pairs[relation])
        if form < 0.4:
            yield {"inputs": asked(rng, "relation:", RELATIONS, f"{a} and {b}", 0.3), "targets": relation}
        elif form < 0.65 or relation == "unrelated":
            yes = relation != "unrelated" and rng.random() < 0.7
            asks = relation if yes else rng.choice([name for name in RELATIONS[:4] if name != relation])
            words = rng.choice((("no", "yes"), ("false", "true"), ("wrong", "right")))
            body = f"{rng.choice(('words:', 'word1:', ''))} {a}, {b}"
            yield {"inputs": asked(rng, f"{say[asks]}?", words, body, 0.3), "targets": words[yes]}
        else:
            yield {"inputs": f"{relation} of {a}", "targets": b}


def episode_rows(lexicon: Lexicon, rng: random.Random, rows: int, labels: Sequence[str]) -> Iterator[Row]:
    """A task given by examples alone: "cat: x, rose: y, tulip: y. dog:" -> x, with label words drawn at random."""
    nouns = {c: [lexicon.word(s) for s in lexicon.by_category[c] if lexicon.word(s, 5)] for c in CATEGORIES}
    usable = [c for c in CATEGORIES if len(nouns[c]) >= 60]
    for _ in range(rows):
        kinds = rng.sample(usable, rng.randint(2, 3))
        # Half of the time the labels are the categories themselves, else any words: then only the examples tell.
        names = kinds if rng.random() < 0.4 else rng.sample(list(labels), len(kinds))
        shown = [(rng.choice(nouns[c]), name) for c, name in zip(kinds, names, strict=True) for _ in range(3)]
        rng.shuffle(shown)
        asks = rng.randrange(len(kinds))
        word = rng.choice(nouns[kinds[asks]])
        listed = ", ".join(f"{a}: {b}" for a, b in shown if a != word)
        yield {"inputs": f"{listed}. {word}:", "targets": names[asks]}
