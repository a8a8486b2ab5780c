"""Rows from the embedded source tasks (tasks.embedded.SOURCES), each with a textual prefix. Target tasks never enter."""

import random
from collections.abc import Iterator

from benchmarks.nano.labelled import Row, asked, plain_then_varied
from benchmarks.nano.text import squeeze

# task -> wordings: a question, or a question and the words to answer with in the order of the task's labels.
WORDINGS: dict[str, tuple] = {
    "word_valence": ("word_valence", ("is the word good or bad?", ("bad", "good")), "negative or positive?",
                     ("is it pleasant?", ("no", "yes")), ("happy or sad?", ("sad", "happy"))),
    "word_class": ("word_class", "part of speech?", "which class of word?"),
    "name_kind": ("name_kind", "what is it the name of?", "kind of name?"),
    "science_topic": ("science_topic", "what is the sentence about?", "topic?",
                      ("which subject?", ("pictures", "training", "algebra", "maximum", "waves", "data"))),
    "word_order": ("word_order", "is the word order acceptable?", ("are the words in order?", ("yes", "no")),
                   ("well written?", ("right", "wrong")), ("fine or broken?", ("fine", "broken"))),
    "summary_match": ("summary_match", "do they belong together?", ("same text?", ("false", "true")),
                      ("one text or two?", ("different", "same"))),
    "journey_check": ("journey_check", "does the second follow from the first?", ("is it true?", ("false", "true")),
                      ("does it agree?", ("wrong", "right"))),
    "journey_question": ("journey_question", "answer from the context.", "find the answer."),
    "past_tense": ("past_tense", "past tense.", "the past of the verb."),
    "number_words": ("number_words", "write the number in words.", "spell the number."),
}  # fmt: skip
# Target tasks are asked with these, never trained on: what a prompt could find. Each asks for the target's own label words.
TARGET_WORDINGS: dict[str, tuple[str, ...]] = {
    "definition_valence": ("negative or positive?", "word_valence", "sentiment: options: negative, positive.", "sst2 sentence:"),
    "module_topic": ("what is the sentence about? options: files, mail, numbers, windows.",
                     "topic? choose: mail, numbers, files, windows.", "science_topic"),
    "turned_words": ("is the word order acceptable? options: acceptable, unacceptable.", "word_order",
                     "is the word order acceptable?"),
    "same_text": ("do they belong together?", "summary_match", "do they belong together? options: no, yes."),
    "purchase_check": ("does the second follow from the first?", "journey_check", "is it true? options: no, yes."),
    "purchase_question": ("answer from the context.", "journey_question", "find the answer."),
    "plural": ("the plural of the noun.", "more than one.", "past_tense"),
    "ordinal_words": ("write the number in words.", "number_words", "the ordinal in words."),
}  # fmt: skip
TEXT_FIELDS = ("sentence",)  # fields worth a sentence vector


def source_names() -> tuple[str, ...]:
    """The embedded source tasks. Raises ValueError if one of them has no wording here."""
    from mpt_jax.tasks.embedded import SOURCES

    missing = sorted(set(SOURCES) - set(WORDINGS))
    if missing:
        raise ValueError(f"embedded source tasks without a wording in {__name__}.WORDINGS: {', '.join(missing)}")
    return tuple(SOURCES)


def source_rows(name: str, rng: random.Random, copies: int = 2) -> Iterator[Row]:
    """The train rows of one embedded source task, the plain prefix and then other wordings."""
    from mpt_jax import tasks

    labels, wordings = tasks.TABLE[name].labels, WORDINGS[name]
    for row in tasks.rows(name, "train"):
        for at in plain_then_varied(rng, len(wordings))[:copies]:
            question, words = (wordings[at], labels) if isinstance(wordings[at], str) else wordings[at]
            targets = words[row["label"]] if labels else row["targets"]
            inputs = asked(rng, question, words or (), row["inputs"], 0.35 if labels else 0.0)
            made = {"inputs": inputs, "targets": targets}
            text = next((squeeze(str(row[key])) for key in TEXT_FIELDS if key in row), None)
            # A sentence with shuffled words has no vector: its encoder output should differ from the whole one's.
            if text and name != "word_order":
                made["text"] = text
            yield made


def target_texts() -> set[str]:
    """Every text of two words or more in any split of any embedded target task."""
    from mpt_jax.tasks.embedded import TARGETS

    from mpt_jax import tasks

    return {
        squeeze(str(value))
        for name in TARGETS
        for split in tasks.TABLE[name].splits
        for row in tasks.rows(name, split)
        for key, value in row.items()
        if isinstance(value, str) and len(value.split()) >= 2 and key not in ("inputs", "targets")
    }
