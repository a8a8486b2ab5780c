"""Tasks about single words: valence, part of speech, inflection, and definitions."""

from collections.abc import Iterator
from functools import cache

from mpt_jax.tasks.embedded.materials import frequencies, inflections, parts_of_speech, senses, valences
from mpt_jax.tasks.embedded.splitting import balanced, half, limited, within

WORD_CLASSES = {"NN": "noun", "VB": "verb", "JJ": "adjective", "RB": "adverb"}


def family(word: str) -> str:
    """What related words share: 'happy' and 'happily' fall into one split."""
    return word[:5]


def word_valence(split: str) -> Iterator[dict]:
    """A word -> whether people rated it negative or positive (clear ratings only)."""
    rows = [
        {"word": word, "label": "positive" if valences()[word] > 0 else "negative"}
        for word in within(rated_words(), split, target=False, key=family)
    ]
    yield from balanced(rows, split, target=False)


def rated_words() -> set[str]:
    return {word for word, mean in valences().items() if abs(mean) >= 1.0}


def word_class(split: str) -> Iterator[dict]:
    """A word -> its part of speech, where only one is common."""
    words = [word for word, kind in one_class_words().items() if kind != "noun" or half(word) == 0]
    chosen = within(words, split, target=False, key=family)
    yield from balanced([{"word": w, "label": one_class_words()[w]} for w in chosen], split, target=False)


@cache
def one_class_words() -> dict[str, str]:
    """Common words -> noun, verb, adjective or adverb; words that inflect as two of them left out."""
    verbs, nouns = inflections("verb"), inflections("noun")
    twofold = {"noun": verbs, "verb": nouns, "adjective": nouns, "adverb": {}}
    classes = {word: WORD_CLASSES.get(tag, "") for word, tag in parts_of_speech().items() if is_common(word)}
    return {w: c for w, c in classes.items() if c and len(w) > 3 and w.isalpha() and w not in twofold[c]}


def past_tense(split: str) -> Iterator[dict]:
    """A verb -> its past tense."""
    verbs = {verb: forms[0] for verb, forms in inflections("verb").items() if forms[0].isalpha()}
    common = [
        verb for verb in verbs if is_common(verb) and parts_of_speech().get(verb, "")[:1] in ("V", "N", "J")
    ]
    rows = [{"word": verb, "past": verbs[verb]} for verb in within(common, split, target=False)]
    yield from limited(rows, split, target=False)


def plural(split: str) -> Iterator[dict]:
    """A noun -> its plural, where that differs; nouns that no source asks about."""
    asked = rated_words()
    nouns = {noun: forms[0] for noun, forms in inflections("noun").items() if forms[0] not in ("", noun)}
    halved = [word for word, kind in one_class_words().items() if kind == "noun" and half(word) == 1]
    ours = [noun for noun in halved if noun in nouns and noun not in asked]
    rows = [{"word": noun, "plural": nouns[noun]} for noun in within(ours, split, target=True)]
    yield from limited(rows, split, target=True)


def is_common(word: str) -> bool:
    return frequencies().get(word, 0) >= 3


def definition_valence(split: str) -> Iterator[dict]:
    """A definition (its word is not shown) -> negative or positive; unclear ones are left out."""
    polarity: dict[str, list[float]] = {}
    for sense in senses():
        polarity.setdefault(sense.definition, []).append(sense.polarity)
    clear = [text for text, signs in polarity.items() if min(signs) >= 0.3 or max(signs) <= -0.3]
    rows = [
        {"definition": text, "label": "positive" if polarity[text][0] > 0 else "negative"}
        for text in within(clear, split, target=True)
    ]
    yield from balanced(rows, split, target=True)
