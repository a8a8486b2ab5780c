"""The tasks of the quickstart: rows are made at run time from what installed packages ship, never stored.

Importing this module adds the tasks to the table and reads nothing; rows are made when a split is asked for.
"""

from mpt_jax.tasks.embedded import facts, names, prose, words
from mpt_jax.tasks.embedded.splitting import SPLITS
from mpt_jax.tasks.table import Task, add

VERSION = "3"  # of the generators; the packages' versions are recorded beside it

VALENCE = ("negative", "positive")
ANSWER = ("no", "yes")
ORDER = ("acceptable", "unacceptable")
CLASSES = ("adjective", "adverb", "noun", "verb")
KINDS = ("city", "country", "currency", "language", "unit")
TOPICS = tuple(sorted(set(prose.SCIENCE_TOPICS.values())))
MODULES = tuple(sorted(prose.STANDARD_TOPICS))
DOCS = ("numpy", "scipy", "scikit-learn", "matplotlib")

# function, template, labels or target, score, distributions that the rows are made of
SOURCE_ROWS = (
    (words.word_valence, "word: {word}", VALENCE, "accuracy", ("vaderSentiment",)),
    (words.word_class, "word: {word}", CLASSES, "accuracy", ("textblob", "lemminflect")),
    (names.name_kind, "name: {name}", KINDS, "accuracy", ("babel",)),
    (prose.science_topic, "sentence: {sentence}", TOPICS, "accuracy", DOCS),
    (prose.word_order, "sentence: {sentence}", ORDER, "accuracy", DOCS),
    (prose.summary_match, "sentence1: {summary} sentence2: {text}", ANSWER, "accuracy", DOCS),
    (facts.journey_check, "sentence1: {context} sentence2: {statement}", ANSWER, "accuracy", ("babel",)),
    (facts.journey_question, "question: {question} context: {context}", "{answer}", "squad", ("babel",)),
    (words.past_tense, "word: {word}", "{past}", "exact_match", ("lemminflect", "textblob")),
    (names.number_words, "number: {number}", "{words}", "exact_match", ("num2words",)),
)
TARGET_ROWS = (
    (words.definition_valence, "definition: {definition}", VALENCE, "accuracy", ("textblob",)),
    (prose.module_topic, "sentence: {sentence}", MODULES, "accuracy", ("python", *DOCS)),
    (prose.turned_words, "sentence: {sentence}", ORDER, "accuracy", ("python", *DOCS)),
    (prose.same_text, "sentence1: {first} sentence2: {second}", ANSWER, "accuracy", ("python", *DOCS)),
    (facts.purchase_check, "sentence1: {context} sentence2: {statement}", ANSWER, "accuracy", ("babel",)),
    (facts.purchase_question, "question: {question} context: {context}", "{answer}", "squad", ("babel",)),
    (words.plural, "word: {word}", "{plural}", "exact_match", ("lemminflect", "textblob")),
    (names.ordinal_words, "number: {number}", "{words}", "exact_match", ("num2words",)),
)


def _task(row: tuple, group: str) -> Task:
    function, template, answer, score, packages = row
    return Task(
        name=function.__name__,
        kind="generated",
        splits=SPLITS,
        template=template,
        labels=answer if isinstance(answer, tuple) else None,
        target=answer if isinstance(answer, str) else None,
        score=score,
        group=group,
        description=function.__doc__.split("\n")[0],
        generate=function,
        version=VERSION,
        packages=packages,
    )


SOURCES = tuple(add(_task(row, "source")).name for row in SOURCE_ROWS)
TARGETS = tuple(add(_task(row, "target")).name for row in TARGET_ROWS)
