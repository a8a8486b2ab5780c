"""Every score against numbers computed by hand."""

import math
import random

import pytest
from mpt_jax.tasks import scores
from mpt_jax.tasks.table import TaskError

TWO, THREE = ("no", "yes"), ("a", "b", "c")


def of(name, golds, predictions, labels=None):
    golds = [[gold] if isinstance(gold, str) else gold for gold in golds]
    return scores.SCORES[name].function(golds, predictions, labels)


@pytest.mark.parametrize(
    ("name", "golds", "predictions", "labels", "expected"),
    [
        ("accuracy", ["no", "yes", "yes", "no"], ["no ", "yes", "no", "maybe"], TWO, {"accuracy": 50}),
        ("exact_match", [["x", "y"], "z"], [" y", "Z"], None, {"exact_match": 50}),
        # one right yes, one missed, one false: precision 1/2, recall 1/2
        ("f1", ["yes", "yes", "no", "no"], ["yes", "no", "yes", "no"], TWO, {"f1": 50}),
        # texts that are no label are the wrong label: precision 1/2, recall 1/2 once more
        ("f1", ["yes", "yes", "no", "no"], ["yes", "?", "?", "no"], TWO, {"f1": 50}),
        ("f1", ["no", "no"], ["no", "no"], TWO, {"f1": 0}),
        # a: precision 1, recall 1/2; b: precision 1/2, recall 1; c: never found
        (
            "macro_f1",
            ["a", "a", "b", "c"],
            ["a", "b", "b", "?"],
            THREE,
            {"macro_f1": 100 * (2 / 3 + 2 / 3 + 0) / 3},
        ),
        # 2 true yes, 1 true no, 1 false yes: (2*1 - 1*0) / sqrt(3*2*2*1)
        (
            "matthews",
            ["yes", "yes", "no", "no"],
            ["yes", "yes", "yes", "no"],
            TWO,
            {"matthews": 200 / math.sqrt(12)},
        ),
        (
            "matthews",
            ["yes", "yes", "no", "no"],
            ["yes", "yes", "?", "no"],
            TWO,
            {"matthews": 200 / math.sqrt(12)},
        ),
        ("matthews", ["yes", "no"], ["yes", "yes"], TWO, {"matthews": 0}),
        # sums about the means: xy 3, xx 2, yy 42/9
        ("pearson", ["1", "2", "3"], ["1", "2", "4"], None, {"pearson": 300 / math.sqrt(2 * 42 / 9)}),
        # "?" counts as -1: xy -1, xx 1/2, yy 2
        ("pearson", ["1", "2"], ["1.0", "?"], None, {"pearson": -100}),
        ("pearson", ["1", "2"], ["3", "3"], None, {"pearson": 0}),
        # squared rank differences 0, 1, 1: 1 - 6*2 / (3*8)
        ("spearman", ["10", "20", "30"], ["1", "7", "5"], None, {"spearman": 50}),
        # row 2: "cat sat" shares one word of 2 with "cat": 2*1 / (2+1)
        (
            "squad",
            [["a dog", "The cat!"], "cat"],
            ["cat", "cat sat"],
            None,
            {"em": 50, "f1": 100 * (1 + 2 / 3) / 2},
        ),
        ("squad", ["no, No"], ["no"], None, {"em": 0, "f1": 100 * 2 / 3}),
        # 5/5 words, 3/4 pairs, 2/3 triples, 1/2 quadruples; 5 words for 6: exp(1 - 6/5)
        (
            "bleu",
            ["the cat sat on the mat"],
            ["the cat sat on mat"],
            None,
            {"bleu": 100 * 0.25**0.25 * math.exp(-0.2)},
        ),
        ("bleu", [["x y z w", "a b c d"], "e f g h"], ["a b c d", "e f g h"], None, {"bleu": 100}),
        # letters 2/2 found of 3, pairs 1/1 of 2: precision 1, recall 7/12, F2 = 5PR / (4P + R)
        ("chrf", ["abc"], ["ab"], None, {"chrf": 100 * (5 * 7 / 12) / (4 + 7 / 12)}),
        ("ter", ["a b c d"], ["a b x d"], None, {"ter": 25}),
        # common subsequence "the cat": precision 2/3, recall 2/4
        (
            "rouge_l",
            ["the cat on mat"],
            ["the cat sat"],
            None,
            {"rouge_l": 100 * 2 * (1 / 3) / (2 / 3 + 1 / 2)},
        ),
        ("rouge_l", [["x", "the cat"]], ["the cat"], None, {"rouge_l": 100}),
    ],
)
def test_by_hand(name, golds, predictions, labels, expected):
    assert of(name, golds, predictions, labels) == pytest.approx(expected, abs=1e-6)
    assert set(expected) == set(scores.SCORES[name].keys)


def test_multirc_by_hand():
    """Question x: all right; y: one of two right; z: its only answer is no label. Two true yes of three found, one false yes."""
    golds = [["yes"], ["no"], ["yes"], ["no"], ["yes"]]
    predictions = ["yes", "no", "yes", "yes", "?"]
    found = scores.multirc(golds, predictions, TWO, ["x", "x", "y", "y", "z"])
    assert found == pytest.approx({"f1a": 100 * 2 / 3, "em": 100 / 3})


def test_every_score_is_tested_and_has_its_own_keys():
    keys = [key for name, row in scores.SCORES.items() if name != "squad" for key in row.keys]
    assert len(set(keys)) == len(keys)


def test_target_that_is_not_a_number():
    with pytest.raises(TaskError, match="row 1: the target 'high' is not a number"):
        of("pearson", ["1", "high"], ["1", "2"])


@pytest.mark.parametrize(
    ("text", "value"),
    [(" 2.50 ", 2.5), ("-1e2", -100.0), ("nan", None), ("inf", None), ("", None), ("1_0", None), ("3,5", None)]
    + [("٣٫٥", 3.5), ("१२", 12.0), ("３．５", 3.5), ("−1", -1.0), ("١٬٠٠٠", 1000.0)],
)
def test_number(text, value):
    assert scores.number(text) == value


def test_normalise_answer():
    assert scores.normalise_answer(" The  U.S. theatre, an A-team ") == "us theatre ateam"
    # an "a" with an accent or behind an apostrophe is no article, however the accent is encoded
    assert scores.normalise_answer("a\u0302ge, l’a, à, q\u0303a") == "âge l’a à q\u0303a"
    assert scores.normalise_answer("e\u0301te\u0301") == scores.normalise_answer("Été") == "été"


TEXTS = {  # script: a sentence, and the same with its last word changed
    "Arabic": ("هذا اختبار جيد جدا اليوم", "هذا اختبار جيد جدا غدا"),
    "Chinese": ("今天的天气非常好", "今天的天气非常坏"),
    "Hindi": ("यह हिन्दी में लिखा हुआ वाक्य", "यह हिन्दी में लिखा हुआ पत्र"),
    "accented": ("l’été était très beau à Besançon", "l’été était très beau à Orléans"),
    "Japanese": ("東京タワーはとても高い", "東京タワーはとても低い"),
    "Korean": ("오늘 날씨가 매우 아주 좋다", "오늘 날씨가 매우 아주 나쁘다"),
}
NEED_NO_LABELS = ("accuracy", "exact_match", "squad", "bleu", "chrf", "ter", "rouge_l")


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize("name", NEED_NO_LABELS)
def test_no_score_drops_the_letters_of_a_script(name, script):
    text, other = TEXTS[script]

    def value(prediction):
        return of(name, [text], [prediction])["f1" if name == "squad" else name]

    best, worst = (0, 100) if name == "ter" else (100, 0)
    assert value(text) == pytest.approx(best)
    assert value("x") == pytest.approx(worst)
    if name in ("accuracy", "exact_match"):
        assert value(other) == 0
    else:  # most words, or characters of scripts without blanks, are right
        assert (20 < value(other) < 100) if name != "ter" else (0 < value(other) < 50)


@pytest.mark.parametrize("script", TEXTS)
def test_labels_of_any_script_are_scored(script):
    labels = TEXTS[script]
    for name in ("f1", "macro_f1", "matthews"):
        assert of(name, labels, labels, labels)[name] == pytest.approx(100)
        assert of(name, labels, labels[::-1], labels)[name] <= 0
    found = scores.multirc([[label] for label in labels], labels, labels, ["q", "q"])
    assert found == {"f1a": 100, "em": 100}


def test_rouge_of_english_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    draw, theirs = random.Random(1), RougeScorer(["rougeL"])
    for _ in range(50):
        one, two = (" ".join(draw.choices(["the", "Cat's", "A_b", "sat.", "(on)", "U.S.", "3,5", "mat-s"], k=6)) for _ in range(2))
        assert of("rouge_l", [one], [two])["rouge_l"] == pytest.approx(100 * theirs.score(one, two)["rougeL"].fmeasure)


@pytest.mark.slow
def test_scores_agree_with_torchmetrics():
    """Random answers, scored by another implementation."""
    text = pytest.importorskip("torchmetrics.functional.text")
    draw, words = random.Random(0), ["the", "a", "cat", "sat", "on", "U.S.", "mat,", "42", "Mats"]

    def some():
        return " ".join(draw.choices(words, k=draw.randint(1, 8)))

    golds, predictions = [[some() for _ in range(3)] for _ in range(60)], [some() for _ in range(60)]
    answers = [{"answers": {"answer_start": [0] * 3, "text": right}, "id": str(n)} for n, right in enumerate(golds)]
    given = [{"prediction_text": prediction, "id": str(n)} for n, prediction in enumerate(predictions)]
    theirs = text.squad(given, answers)
    assert of("squad", golds, predictions) == pytest.approx({"em": float(theirs["exact_match"]), "f1": float(theirs["f1"])}, abs=1e-3)
    golds = [right[:1] for right in golds]  # of several references the two choose another length
    assert of("bleu", golds, predictions)["bleu"] == pytest.approx(100 * float(text.sacre_bleu_score(predictions, golds)), abs=1e-3)
    long = [f"{prediction} sat on the mat" for prediction in predictions]  # the two differ below six letters
    golds = [[f"a cat sat {right[0]}"] for right in golds]
    assert of("chrf", golds, long)["chrf"] == pytest.approx(100 * float(text.chrf_score(long, golds, n_word_order=0)), abs=1e-3)
