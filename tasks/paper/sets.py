"""The paper's data sets, one row each: where the published rows lie, what the text looks like, which splits are carved.

Templates, labels in index order, carving and scores: ATTEMPT's pipeline (AkariAsai/ATTEMPT, attempt/data/tasks.py), with the
words of T5's own preprocessors as label texts. Rows of E2E and WebNLG: ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from mpt_jax.tasks.paper import layouts, prepare
from mpt_jax.tasks.paper.layouts import Reader, glue_tsv, jsonl

HALVES = "halves"  # of the published validation split: dev and test
OF_TRAIN = "of train"  # 1,000 rows of train are dev, the published validation split is test
OWN = "own"  # three splits as published
ROLES = {HALVES: ("train", "validation"), OF_TRAIN: ("train", "test"), OWN: ("train", "validation", "test")}
DEV_ROWS = 1000  # of OF_TRAIN
REFERENCES = "references"  # field of a generated row with all texts of its input

# where to get the files; what a message tells who has none
GLUE = "https://gluebenchmark.com/tasks"
SUPERGLUE = "https://super.gluebenchmark.com/tasks"
MRQA = "https://github.com/mrqa/MRQA-Shared-Task-2019"


@dataclass(frozen=True)
class PaperSet:
    """One data set. `files`: published split -> (path below the data folder, its reader), the first one there is read."""

    name: str
    mixture: str  # 'glue', 'superglue', 'mrqa', 'others', 'nlg' or ''
    carving: str
    tfds: str  # builder/config; its splits stand in `tfds_splits`
    files: Mapping[str, tuple[tuple[str, Reader], ...]]
    template: str
    score: str | tuple[str, ...]
    home: str  # web page with the files
    tfds_splits: Mapping[str, str]
    labels: tuple[str, ...] = ()  # label words
    target: str = ""  # template of the target, where there are no labels
    label_names: Mapping[str, int] = field(default_factory=dict)  # further words for labels in the files
    prepare: Callable[[dict, bool], dict | list[dict]] | None = None
    published_template: str = ""  # where ATTEMPT's text differs
    group: str = ""  # template of what must not straddle splits; '' = what the model reads
    cap: int = 0  # training rows at most
    references: tuple[str, str] | None = None  # (input field, target field): evaluation has one row an input, all texts as references
    answers: str = ""  # field with all right answers, where the target is one of several
    aliases: tuple[str, ...] = ()
    source: bool = False  # one of the six source tasks
    description: str = ""


LABEL_WORDS = {"False": 0, "True": 1, "false": 0, "true": 1}
VALIDATION = {"train": "train", "validation": "validation", "test": "validation"}
THREE = {"train": "train", "validation": "validation", "test": "test"}


def _glue(name: str, folder: str, template: str, labels: tuple[str, ...], carving: str, reader: Reader, **more) -> PaperSet:
    dev = "validation" if carving == HALVES else "test"
    settings = {
        "mixture": "glue",
        "tfds": f"glue/{name}",
        "files": {"train": ((f"{folder}/train.tsv", reader),), dev: ((f"{folder}/dev.tsv", reader),)},
        "score": "accuracy",
        "home": GLUE,
        "tfds_splits": VALIDATION,
        "aliases": (f"glue_{name}_v002",),
    }
    return PaperSet(name=name, carving=carving, template=f"{name} {template}", labels=labels, **{**settings, **more})


def _superglue(short: str, folder: str, template: str, labels: tuple[str, ...], **more) -> PaperSet:
    name = f"superglue_{short}"
    carving = more.pop("carving", HALVES)
    reader = more.pop("reader", jsonl)
    dev = "validation" if carving == HALVES else "test"
    published = more.pop("published", short)
    settings = {
        "mixture": "superglue",
        "tfds": f"super_glue/{published}",
        "files": {"train": ((f"{folder}/train.jsonl", reader),), dev: ((f"{folder}/val.jsonl", reader),)},
        "score": "accuracy",
        "home": SUPERGLUE,
        "tfds_splits": VALIDATION,
        "label_names": LABEL_WORDS,
        "aliases": (f"superglue-{published}", short, f"super_glue_{published}_v102"),
    }
    template = f"superglue-{published} {template}"
    return PaperSet(name=name, carving=carving, template=template, labels=labels, **{**settings, **more})


def _question_answer(name: str, tfds: str, files: Mapping, home: str, **more) -> PaperSet:
    return PaperSet(
        name=name,
        carving=OF_TRAIN,
        tfds=tfds,
        files=files,
        template=f"{name} question: {{question}} context: {{context}}",
        published_template="squad question: {question} context: {context}",
        target="{answer}",
        answers="answers",
        score="squad",
        home=home,
        tfds_splits=VALIDATION,
        prepare=prepare.question_answer,
        **more,
    )


def _mrqa(name: str, file: str, tfds: str, aliases: tuple[str, ...] = ()) -> PaperSet:
    files = {
        "train": ((f"MRQA/train/{file}.jsonl", layouts.mrqa), (f"MRQA/{file}_train.jsonl", layouts.mrqa)),
        "test": ((f"MRQA/dev/{file}.jsonl", layouts.mrqa), (f"MRQA/{file}_dev.jsonl", layouts.mrqa)),
    }
    return _question_answer(name, f"mrqa/{tfds}", files, MRQA, mixture="mrqa", aliases=aliases)


PAIR = "sentence1: {sentence1} sentence2: {sentence2}"
PAIR_FIELDS = {"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}
NLI = glue_tsv(premise="sentence1", hypothesis="sentence2", label="gold_label")
COLA = partial(layouts.tsv, fields={"sentence": "sentence", "label": "label"}, columns=("source", "label", "mark", "sentence"))
QQP = partial(layouts.tsv, fields={"question1": "question1", "question2": "question2", "label": "is_duplicate"}, broken=True)
MRPC = glue_tsv(sentence1="#1 String", sentence2="#2 String", label="Quality")
ENTAILMENT = ("entailment", "not_entailment")
CHOICE = ("not_equivalent", "equivalent")
TRUTH = ("False", "True")
GENERATED = ("bleu", "chrf", "ter", "rouge_l")

GLUE_SETS = (
    _glue(
        "mnli", "MNLI", "premise: {premise} hypothesis: {hypothesis}", ("entailment", "neutral", "contradiction"), OWN, NLI,
        files={
            "train": (("MNLI/train.tsv", NLI),),
            "validation": (("MNLI/dev_mismatched.tsv", NLI),),
            "test": (("MNLI/dev_matched.tsv", NLI),),
        },
        tfds_splits={"train": "train", "validation": "validation_mismatched", "test": "validation_matched"}, source=True,
    ),
    _glue(
        "qqp", "QQP", "question1: {question1} question2: {question2}", ("not_duplicate", "duplicate"), OF_TRAIN, QQP,
        score=("accuracy", "f1"), source=True,
    ),
    _glue(
        "qnli", "QNLI", "question: {question} sentence: {sentence}", ENTAILMENT, OF_TRAIN,
        glue_tsv(question="question", sentence="sentence", label="label"), source=True,
    ),
    _glue(
        "sst2", "SST-2", "sentence: {sentence}", ("negative", "positive"), OF_TRAIN,
        glue_tsv(sentence="sentence", label="label"), source=True,
    ),
    _glue(
        "stsb", "STS-B", PAIR, (), HALVES, glue_tsv(sentence1="sentence1", sentence2="sentence2", label="score"),
        target="{score}", score=("pearson", "spearman"), prepare=prepare.stsb,
    ),
    _glue("mrpc", "MRPC", PAIR, CHOICE, HALVES, MRPC, score=("accuracy", "f1")),
    _glue("rte", "RTE", PAIR, ENTAILMENT, HALVES, glue_tsv(**PAIR_FIELDS), prepare=prepare.rte),
    _glue("cola", "CoLA", "sentence: {sentence}", ("unacceptable", "acceptable"), HALVES, COLA, score="matthews"),
)  # fmt: skip
SUPERGLUE_SETS = (
    _superglue(
        "multirc", "MultiRC", "question: {question} answer: {answer} paragraph: {paragraph}", TRUTH,
        reader=layouts.multirc, prepare=prepare.multirc, score="multirc", group="{paragraph}\n{question}",
    ),
    _superglue("boolq", "BoolQ", "question: {question} passage: {passage}", TRUTH),
    _superglue("wic", "WiC", "sentence1: {sentence1} sentence2: {sentence2} word: {word}", TRUTH),
    _superglue(
        "wsc", "WSC", "text: {text}", TRUTH, published="wsc.fixed", reader=layouts.wsc, prepare=prepare.wsc,
        aliases=("superglue-wsc.fixed", "wsc", "wsc.fixed", "super_glue_wsc_v102"),
    ),
    _superglue(
        "cb", "CB", "premise: {premise} hypothesis: {hypothesis}", ("entailment", "contradiction", "neutral"),
        score=("accuracy", "macro_f1"),
    ),
    _superglue(
        "record", "ReCoRD", "record query: {query} entities: {entities} passage: {passage}", (), mixture="", carving=OF_TRAIN,
        reader=layouts.record, prepare=prepare.record, target="{answer}", answers="answers", score="squad", source=True,
    ),
)  # fmt: skip
QUESTION_SETS = (
    _question_answer(
        "squad", "squad/v1.1",
        {"train": (("SQuAD/train-v1.1.json", layouts.squad),), "test": (("SQuAD/dev-v1.1.json", layouts.squad),)},
        "https://rajpurkar.github.io/SQuAD-explorer", mixture="", source=True, aliases=("squad_v010_allanswers",),
    ),
    _mrqa("naturalquestions", "NaturalQuestionsShort", "natural_questions", ("nq",)),
    _mrqa("hotpotqa", "HotpotQA", "hotpot_qa"),
    _mrqa("searchqa", "SearchQA", "search_qa"),
    _mrqa("newsqa", "NewsQA", "news_qa"),
)  # fmt: skip
OTHER_SETS = (
    PaperSet(
        "winogrande", "others", OF_TRAIN, "winogrande",
        {"train": (("winogrande_1.1/train_xl.jsonl", jsonl),), "test": (("winogrande_1.1/dev.jsonl", jsonl),)},
        "winogrande sentence: {sentence} option0: {option0} option1: {option1}", "accuracy",
        "https://winogrande.allenai.org", {"train": "train_xl", "test": "validation"},
        labels=("option0", "option1"), prepare=prepare.winogrande,
    ),
    PaperSet(
        "yelp_polarity", "others", OF_TRAIN, "yelp_polarity_reviews",
        {
            "train": (("yelp_review_polarity_csv/train.csv", layouts.yelp),),
            "test": (("yelp_review_polarity_csv/test.csv", layouts.yelp),),
        },
        "yelp_polarity sentence: {text}", "accuracy", "https://course.fast.ai/datasets", {"train": "train", "test": "test"},
        labels=("negative", "positive"), prepare=prepare.yelp, cap=100_000, aliases=("yelp",),
    ),
    PaperSet(
        "scitail", "others", HALVES, "sci_tail",
        {
            "train": (("SciTailV1.1/snli_format/scitail_1.0_train.txt", layouts.scitail),),
            "validation": (("SciTailV1.1/snli_format/scitail_1.0_dev.txt", layouts.scitail),),
        },
        "scitail premise: {premise} hypothesis: {hypothesis}", "accuracy", "https://allenai.org/data/scitail", THREE,
        labels=("entailment", "neutral"), label_names={"entails": 0},
    ),
    PaperSet(
        "paws", "others", OWN, "paws_wiki/labeled_final_tokenized",
        {
            split: ((f"PAWS/final/{file}.tsv", glue_tsv(**PAIR_FIELDS)),)
            for split, file in (("train", "train"), ("validation", "dev"), ("test", "test"))
        },
        f"paws {PAIR}", "accuracy", "https://github.com/google-research-datasets/paws", THREE,
        labels=CHOICE, aliases=("paws_wiki",),
    ),
)  # fmt: skip
NLG_SETS = (
    PaperSet(
        "e2e_nlg", "nlg", OWN, "gem/e2e_nlg",
        {
            "train": (("E2E/train-fixed.no-ol.csv", layouts.e2e), ("E2E/trainset.csv", layouts.e2e)),
            "validation": (("E2E/devel-fixed.no-ol.csv", layouts.e2e), ("E2E/devset.csv", layouts.e2e)),
            "test": (("E2E/test-fixed.csv", layouts.e2e), ("E2E/testset_w_refs.csv", layouts.e2e)),
        },
        "e2e_nlg meaning: {meaning}", GENERATED, "https://github.com/tuetschek/e2e-cleaning", THREE,
        target="{text}", prepare=prepare.e2e, references=("meaning", "text"), aliases=("e2e",),
    ),
    PaperSet(
        "web_nlg", "nlg", OWN, "gem/web_nlg_en",
        {
            "train": (("WebNLG/train", layouts.webnlg),),
            "validation": (("WebNLG/dev", layouts.webnlg),),
            "test": (("WebNLG/test", layouts.webnlg),),
        },
        "web_nlg triples: {triples}", GENERATED, "https://gitlab.com/shimorina/webnlg-dataset", THREE,
        target="{text}", prepare=prepare.webnlg, references=("triples", "text"), aliases=("webnlg",),
    ),
)  # fmt: skip
SETS = {row.name: row for row in (*GLUE_SETS, *SUPERGLUE_SETS, *QUESTION_SETS, *OTHER_SETS, *NLG_SETS)}
MIXTURES = {
    "mpt_sources": ("mnli", "qnli", "qqp", "sst2", "squad", "superglue_record"),
    **{name: tuple(row.name for row in SETS.values() if row.mixture == name) for name in ("glue", "superglue", "mrqa", "others", "nlg")},
}
ALIASES = {alias: row.name for row in SETS.values() for alias in row.aliases}
