"""From a set's record to the fields of its template: one function for each set that needs more than its own fields.

A function takes the record and `published` (True: as ATTEMPT's pipeline did, defects included) and gives one
row of fields, or several in training. T5's own preprocessors (google-research/text-to-text-transfer-transformer,
t5/data/preprocessors.py) define the text where nothing else is said.
"""

import re
import unicodedata

from mpt_jax.tasks.errors import TaskError

NO_WORD = re.compile(r"[^\w \t\n\f\r]")  # and no accent: those Python's \w leaves out
NO_ANSWER = "<unk>"  # ReCoRD queries without a gold answer, as in T5


def stsb(record: dict, published: bool) -> dict:
    """The similarity as a number with one digit: the nearest 0.2 as in T5; published: the nearest 0.1."""
    value = float(record["label"])
    rounded = round(value, 1) if published else round(value * 5) / 5
    return {"sentence1": record["sentence1"], "sentence2": record["sentence2"], "score": f"{rounded:.1f}"}


def rte(record: dict, published: bool) -> dict:
    """GLUE's field names; SuperGLUE's RTE, the same rows, has premise and hypothesis."""
    first, second = ("premise", "hypothesis") if "premise" in record else ("sentence1", "sentence2")
    return {"sentence1": record[first], "sentence2": record[second], "label": record.get("label")}


def multirc(record: dict, published: bool) -> dict:
    """Without markup; `group` tells the question, for the exact match over its answers."""
    paragraph = re.sub(r"</?b>", "", re.sub(r"<br>", " ", record["paragraph"]))
    index = record["idx"]
    return {
        "question": record["question"],
        "answer": record["answer"],
        "paragraph": paragraph,
        "label": record["label"],
        "group": f"{index['paragraph']}-{index['question']}",
    }


def wsc(record: dict, published: bool) -> dict:
    """The text with `* span 1 *` and `# span 2 #`; published: a span that is not where its index says stays unmarked."""
    first, second = int(record["span1_index"]), int(record["span2_index"])
    text = mark_span(record["text"], record["span1_text"], first, "*", exact=published)
    text = mark_span(text, record["span2_text"], second + 2 * (first < second), "#", exact=published)
    return {"text": text, "label": record["label"]}


def mark_span(text: str, span: str, index: int, mark: str, exact: bool = False) -> str:
    """The text with `mark` around the span that starts at word `index` (counted from 0).

    Spans as published are not always substrings of the text: then letter case, blanks and a final point do not count, the nearest
    occurrence serves, and if there is none, the word at the index. `exact`: such a text comes back as it is. Raises TaskError if the
    text has no such word.
    """
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if not 0 <= index < len(words):
        raise TaskError(f"span {span!r} should start at word {index}, but the text has {len(words)} words: {text!r:.120}")
    start, end = words[index]
    if text.startswith(span, start):
        end = start + len(span)
    elif exact:
        return text
    else:
        pattern = r"\s+".join(map(re.escape, span.rstrip(".").split()))
        found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)] if pattern else []
        start, end = min(found, key=lambda span: abs(span[0] - start), default=(start, end))
    return f"{text[:start]}{mark} {text[start:end]} {mark}{text[end:]}"


def record(record: dict, published: bool) -> list[dict]:
    """One row for each answer; `answers` holds all. In evaluation only the first is wanted (see tasks.paper.reading)."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", record["passage"])
    passage = re.sub(r"\n@highlight\n", ". ", passage)
    shown = {"query": record["query"], "entities": ", ".join(record["entities"]), "passage": passage}
    answers = list(record["answers"]) or [NO_ANSWER]
    return [{**shown, "answer": answer, "answers": answers} for answer in answers]


def question_answer(record: dict, published: bool) -> dict:
    """SQuAD and MRQA: blanks around punctuation as in T5; the first answer is the target, all count in scoring."""
    found = record["answers"]
    answers = [pad_punctuation(text) for text in (found["text"] if isinstance(found, dict) else found)]
    shown = {key: pad_punctuation(record[key]) for key in ("question", "context")}
    return {**shown, "answer": answers[0] if answers else "", "answers": answers}


def pad_punctuation(text: str) -> str:
    """Blanks around each character that is no letter, digit, accent, underscore or blank; blanks collapsed (T5).

    T5 leaves a blank at the ends, which SentencePiece drops.
    """
    return re.sub(r"[ \t\n\f\r]+", " ", NO_WORD.sub(_padded, text)).strip(" ")


def _padded(match: re.Match) -> str:
    letter = match[0]
    return letter if letter > "\x7f" and unicodedata.category(letter)[0] == "M" else f" {letter} "


def winogrande(record: dict, published: bool) -> dict:
    """Both options; published: option 1 twice, so that option 2 is never shown (ATTEMPT, DePT)."""
    second = record["option1"] if published else record["option2"]
    label = record["label"] if "label" in record else int(record["answer"]) - 1  # TFDS: an index; published: option 1 or 2
    return {"sentence": record["sentence"], "option0": record["option1"], "option1": second, "label": label}


def yelp(record: dict, published: bool) -> dict:
    """The CSV's doubled quotes and written-out line ends undone; published: the text as it stands in the file."""
    text = record["text"] if published else " ".join(record["text"].replace('""', '"').replace("\\n", " ").split())
    return {"text": text, "label": record["label"]}


def e2e(record: dict, published: bool) -> dict:
    """The meaning representation as it is."""
    return {"meaning": record["meaning_representation"], "text": record["target"]}


def webnlg(record: dict, published: bool) -> dict:
    """Triples `subject | relation | object`, joined by ` && `."""
    triples = record["input"] if isinstance(record["input"], list) else [record["input"]]
    return {"triples": " && ".join(triples), "text": record["target"]}
