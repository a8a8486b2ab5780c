"""The scores of tasks, in percent (0 to 100), from texts: golds, predictions and labels.

Every function takes `golds` (for each row the list of texts that are right), `predictions` (a text for each
row) and `labels` (the task's label words or None), and returns {score name: percent}.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.words import plain_words, spaced

Golds = Sequence[Sequence[str]]
Labels = tuple[str, ...] | None
# what a prediction that is not a number counts as; as T5 does (t5/evaluation/postprocessors)
NOT_A_NUMBER = -1.0
INSIDE = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u2019"  # combining accents, typographic apostrophe: no end of a word, as \\b has it
AVERAGE = "average"
TAKEN = frozenset(("step", "split", "task", "run", AVERAGE))  # names that a line of metrics.jsonl has already
ARTICLES = re.compile(rf"(?<![{INSIDE}])\b(a|an|the)\b(?![{INSIDE}])")
DIGIT_SIGNS = str.maketrans({"\u066b": ".", "\u066c": "", "\u2212": "-"})  # Arabic decimal and thousands signs, the minus sign


def accuracy(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Share of predictions that are one of the right texts, blanks at the ends aside."""
    return {"accuracy": _share(_hits(golds, predictions))}


def exact_match(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """As accuracy, under the name that extraction and generation use; nothing is normalised (see squad)."""
    return {"exact_match": _share(_hits(golds, predictions))}


def f1(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """F1 of the second of two labels; a prediction that is no label counts as the wrong one of the two."""
    from sklearn.metrics import f1_score

    true, predicted = binary_indices(golds, predictions, labels)
    return {"f1": 100.0 * float(f1_score(true, predicted, zero_division=0.0))}


def macro_f1(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Mean over the labels of each label's F1; a label that occurs nowhere has F1 0, as in T5."""
    from sklearn.metrics import f1_score

    true, predicted = label_indices(golds, predictions, labels)
    value = f1_score(true, predicted, labels=range(len(labels)), average="macro", zero_division=0.0)
    return {"macro_f1": 100.0 * float(value)}


def matthews(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Matthews correlation; a prediction that is no label is the wrong one of two, one more of several."""
    from sklearn.metrics import matthews_corrcoef

    indices = binary_indices if len(labels) == 2 else label_indices
    return {"matthews": 100.0 * float(matthews_corrcoef(*indices(golds, predictions, labels)))}


def pearson(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Pearson correlation of numbers; 0 where one side is constant; a prediction that is no number is -1."""
    from scipy.stats import pearsonr

    return {"pearson": _correlation(pearsonr, golds, predictions)}


def spearman(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Spearman rank correlation of numbers; 0 where one side is constant; no number is -1."""
    from scipy.stats import spearmanr

    return {"spearman": _correlation(spearmanr, golds, predictions)}


def squad(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """SQuAD 1.1's exact match and word F1, best over the right answers, on normalised text; each Chinese character is a word."""
    exact, overlap = 0.0, 0.0
    for answers, prediction in zip(golds, predictions, strict=True):
        words = spaced(normalise_answer(prediction)).split()
        rights = [spaced(normalise_answer(answer)).split() for answer in answers]
        exact += max(float(right == words) for right in rights)
        overlap += max(word_f1(right, words) for right in rights)
    return {"em": 100.0 * exact / len(golds), "f1": 100.0 * overlap / len(golds)}


def multirc(golds: Golds, predictions: Sequence[str], labels: Labels, groups: Sequence[str]) -> dict[str, float]:
    """MultiRC's F1a over all answers, and the share of questions (`groups`) whose answers are all judged right.

    A prediction that is no label is the wrong one of the two (SuperGLUE, section 3).
    """
    true, predicted = binary_indices(golds, predictions, labels)
    right: dict[str, bool] = {}
    for group, t, p in zip(groups, true, predicted, strict=True):
        right[group] = right.get(group, True) and t == p
    return {"f1a": f1(golds, predictions, labels)["f1"], "em": _share(list(right.values()))}


def bleu(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Corpus BLEU of sacrebleu with its own settings (13a words, exponential smoothing); each Chinese character is a word."""
    from sacrebleu import corpus_bleu

    return {"bleu": corpus_bleu([spaced(text) for text in predictions], _streams(golds, spaced)).score}


def chrf(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Corpus chrF2 of sacrebleu with its own settings, several references."""
    from sacrebleu import corpus_chrf

    return {"chrf": corpus_chrf(list(predictions), _streams(golds)).score}


def ter(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Corpus translation edit rate of sacrebleu: lower is better, may pass 100; each Chinese character is a word."""
    from sacrebleu import corpus_ter

    return {"ter": corpus_ter([spaced(text) for text in predictions], _streams(golds, spaced)).score}


def rouge_l(golds: Golds, predictions: Sequence[str], labels: Labels) -> dict[str, float]:
    """Mean ROUGE-L F of rouge-score without stemming, best over the references; its own words are of ASCII letters alone, ours of all."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            return plain_words(text)

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    pairs = zip(golds, predictions, strict=True)
    values = [scorer.score_multi(list(right), text)["rougeL"].fmeasure for right, text in pairs]
    return {"rouge_l": 100.0 * sum(values) / len(values)}


class Score(NamedTuple):
    """A row of SCORES: the function, the names it returns, what it needs, and whether higher is better.

    function(golds, predictions, labels) -> {name: percent}: of each row the list of right texts and the predicted one, and the task's
    labels or None. needs: '', 'labels', 'two labels' or 'numbers'.

    >>> def first_letter(golds, predictions, labels):
    ...     right = [text[:1] in {gold[:1] for gold in answers} for answers, text in zip(golds, predictions)]
    ...     return {"first_letter": 100.0 * sum(right) / len(right)}
    >>> score = tasks.Score(first_letter, ("first_letter",))
    >>> score.function([["yes", "yeah"], ["no"]], ["y", "maybe"], None)
    {'first_letter': 50.0}
    """

    function: Callable[[Golds, Sequence[str], Labels], dict[str, float]]
    keys: tuple[str, ...]
    needs: str = ""  # '', 'labels', 'two labels' or 'numbers'
    higher_is_better: bool = True
    grouped: bool = False  # the function also takes each row's field `group`


SCORES = {
    "accuracy": Score(accuracy, ("accuracy",)),
    "exact_match": Score(exact_match, ("exact_match",)),
    "f1": Score(f1, ("f1",), "two labels"),
    "macro_f1": Score(macro_f1, ("macro_f1",), "labels"),
    "matthews": Score(matthews, ("matthews",), "labels"),
    "pearson": Score(pearson, ("pearson",), "numbers"),
    "spearman": Score(spearman, ("spearman",), "numbers"),
    "squad": Score(squad, ("em", "f1")),
    "multirc": Score(multirc, ("f1a", "em"), "two labels", grouped=True),
    "bleu": Score(bleu, ("bleu",)),
    "chrf": Score(chrf, ("chrf",)),
    "ter": Score(ter, ("ter",), higher_is_better=False),
    "rouge_l": Score(rouge_l, ("rouge_l",)),
}


SHIPPED = frozenset(SCORES)


def add_score(name: str, score: Score) -> None:
    """Adds a score of one's own, which a task then names, or replaces it. Raises TaskError for the name of a shipped one or a taken key.

    >>> def length(golds, predictions, labels):
    ...     return {"short": 100.0 * sum(len(text) < 9 for text in predictions) / len(predictions)}
    >>> tasks.add_score("short", tasks.Score(length, ("short",)))
    >>> files = {"train": "mood_train.jsonl"}
    >>> tasks.jsonl("brief", files=files, template="{text}", target="{label}", score=("exact_match", "short")).scores
    ('exact_match', 'short')
    """
    if name in SHIPPED:
        raise TaskError(f"score {name!r} is shipped already: choose another name")
    if not score.keys or (taken := TAKEN & set(score.keys)):
        problem = f"its key {', '.join(sorted(taken))} is in a line of metrics already: rename it" if score.keys else "it has no keys"
        raise TaskError(f"score {name!r}: {problem}")
    SCORES[name] = score


def check_scores(name: str, scores: Sequence[str], labels: Labels) -> None:
    """Raises TaskError if a task's scores are unknown, clash, or need labels that the task has not."""
    for score in scores:
        if score not in SCORES:
            raise TaskError(f"task {name!r}: unknown score {score!r}; there are {', '.join(SCORES)}; tasks.add_score adds your own")
        needs = SCORES[score].needs
        if needs in ("labels", "two labels") and labels is None:
            raise TaskError(f"task {name!r}: score {score!r} needs `labels`; without them try 'exact_match'")
        if needs == "two labels" and len(labels) != 2:
            raise TaskError(
                f"task {name!r}: score {score!r} needs 2 labels, not {len(labels)}: try 'macro_f1'"
            )
    keys = [key for score in scores for key in SCORES[score].keys]
    if len(set(keys)) != len(keys):
        raise TaskError(f"task {name!r}: two of its scores {tuple(scores)} share a name: {', '.join(keys)}")
    if not any(SCORES[score].higher_is_better for score in scores):
        raise TaskError(
            f"task {name!r}: its scores {tuple(scores)} choose no checkpoint: add one where higher is better"
        )


def label_indices(
    golds: Golds, predictions: Sequence[str], labels: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """(true, predicted) indices into labels; -1 for a prediction that is no label. Raises TaskError for a target that is none."""
    index = {label: i for i, label in enumerate(labels)}
    for row, right in enumerate(golds):
        if right[0] not in index:
            raise TaskError(f"row {row}: the target {right[0]!r:.80} is none of the labels {', '.join(labels)}")
    return [index[right[0]] for right in golds], [index.get(text.strip(), -1) for text in predictions]


def binary_indices(
    golds: Golds, predictions: Sequence[str], labels: tuple[str, ...]
) -> tuple[list[int], list[int]]:
    """As label_indices for two labels; a prediction that is none becomes the wrong one of the two."""
    true, predicted = label_indices(golds, predictions, labels)
    return true, [1 - t if p < 0 else p for t, p in zip(true, predicted, strict=True)]


def number(text: str) -> float | None:
    """The finite number that a text is, or None; digits of any script count, with their own decimal sign."""
    text = unicodedata.normalize("NFKC", text).translate(DIGIT_SIGNS)
    try:
        value = float("" if "_" in text else text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, the words a, an, the, and needless blanks (SQuAD 1.1's own rule)."""
    text = unicodedata.normalize("NFC", text.lower())
    text = "".join(letter for letter in text if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())


def word_f1(right: Sequence[str], words: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the words, counted with repetition; in 0..1."""
    shared = sum((Counter(right) & Counter(words)).values())
    return 2.0 * shared / (len(right) + len(words)) if shared else 0.0


def _hits(golds: Golds, predictions: Sequence[str]) -> list[bool]:
    pairs = zip(golds, predictions, strict=True)
    return [text.strip() in {answer.strip() for answer in right} for right, text in pairs]


def _share(hits: Sequence[bool]) -> float:
    return 100.0 * sum(hits) / len(hits)


def _correlation(function: Callable, golds: Golds, predictions: Sequence[str]) -> float:
    true = [number(right[0]) for right in golds]
    if None in true:
        row = true.index(None)
        raise TaskError(f"row {row}: the target {golds[row][0]!r} is not a number, which a correlation needs")
    predicted = [number(text) for text in predictions]
    predicted = [NOT_A_NUMBER if value is None else value for value in predicted]
    if len(set(true)) < 2 or len(set(predicted)) < 2:
        return 0.0
    return 100.0 * float(function(true, predicted).statistic)


def _streams(golds: Golds, change: Callable[[str], str] = str) -> list[list[str | None]]:
    """References as sacrebleu wants them, changed: the n-th of every row together, None where a row has fewer."""
    most = max(len(right) for right in golds)
    return [[change(right[n]) if n < len(right) else None for right in golds] for n in range(most)]
