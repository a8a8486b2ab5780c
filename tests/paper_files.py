"""A few rows of each of the paper's data sets, written in the layout in which the set is published.

Row n of each file tells its number, so that no two rows are equal; row 0 of `train` is what the golden rows show.
"""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

Record = Callable[[int, str], dict]


def _lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def _tsv(header: str, row: Callable[[int, str], str]):
    def write(path: Path, split: str, rows: int) -> None:
        _lines(path, ([header] if header else []) + [row(n, split) for n in range(rows)])

    return write


def _jsonl(row: Record):
    return lambda path, split, rows: _lines(path, [json.dumps(row(n, split)) for n in range(rows)])


def _multirc(n: int, split: str) -> dict:
    answers = [{"text": f"Answer {a}", "idx": a, "label": a} for a in range(2)]
    questions = [{"question": f"Who ran {q}?", "idx": q, "answers": answers} for q in range(2)]
    return {"idx": n, "passage": {"text": f"<b>Sent 1: </b>A dog ran {split} {n}.<br>It sat.", "questions": questions}}


def _record(n: int, split: str) -> dict:
    text = f"Ann met Bob in {split} {n}.\n@highlight\nBob left"
    spans = [{"start": 0, "end": 2}, {"start": 8, "end": 10}]
    answers = [{"start": 8, "end": 10, "text": "Bob"}, {"start": 0, "end": 2, "text": "Ann"}]
    query = {"query": "@placeholder left", "idx": 0, "answers": answers if n % 2 == 0 else answers[:1]}
    return {"idx": n, "passage": {"text": text, "entities": spans}, "qas": [query]}


def _wsc(n: int, split: str) -> dict:
    target = {"span1_text": "the cat", "span1_index": 2, "span2_text": "it", "span2_index": 5}
    return {"text": f"Today {split}{n} the cat said it slept.", "target": target, "idx": n, "label": bool(n % 2)}


def _squad(path: Path, split: str, rows: int) -> None:
    answers = [{"text": "42 m.", "answer_start": 9}, {"text": "42", "answer_start": 9}]
    questions = [{"id": f"{split}{n}", "question": f"How tall ({split} {n})?", "answers": answers} for n in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "It was a 42 m. tower.", "qas": questions}]}]}))


def _mrqa(path: Path, split: str, rows: int) -> None:
    lines = [{"header": {"dataset": "X", "split": split}}]
    for n in range(rows):
        question = {"question": "who won", "qid": f"{split}{n}", "answers": ["Ann"], "detected_answers": [], "question_tokens": []}
        lines.append({"id": "", "context": f"[PAR] Ann won {split} {n}, twice.", "context_tokens": [], "qas": [question]})
    _lines(path, [json.dumps(line) for line in lines])


def _e2e(path: Path, split: str, rows: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["mr", "ref"])
        for n in range(rows):
            for text in ("is a pub", "serves food"):
                writer.writerow([f"name[The {split} {n}], eatType[pub]", f"The {split} {n} {text}."])


def _webnlg(path: Path, split: str, rows: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    entries = "".join(
        f'<entry category="City" eid="{n}"><modifiedtripleset><mtriple>Rome {split} {n} | country | Italy</mtriple>'
        "<mtriple>Italy | capital | Rome</mtriple></modifiedtripleset>"
        f'<lex comment="good" lid="1">Rome {split} {n} is in Italy.</lex><lex comment="good" lid="2">Italy has Rome.</lex></entry>'
        for n in range(rows)
    )
    (path / "a.xml").write_text(f"<benchmark><entries>{entries}</entries></benchmark>")


def _nli(n: int, split: str) -> str:
    cells = [str(n), "p", "q", "genre", "b1", "b2", "t1", "t2", f"A man {split} {n}.", "He sleeps.", "neutral"]
    return "\t".join([*cells, ("entailment", "neutral", "contradiction")[n % 3]])


PARSES = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
NLI_HEADER = "\t".join(f"index promptID pairID genre {PARSES} sentence1 sentence2 label1 gold_label".split())
NLI = _tsv(NLI_HEADER, _nli)
ENTAILMENT = ("entailment", "not_entailment")
# path -> how to write it; the published split is told by the path's entry in SPLITS
WRITERS = {
    "MNLI/train.tsv": NLI,
    "MNLI/dev_mismatched.tsv": NLI,
    "MNLI/dev_matched.tsv": NLI,
    "QQP/{}.tsv": _tsv(
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", lambda n, s: f"{n}\t1\t2\tIs {s} {n} \"odd\"?\tIs it odd?\t{n % 2}"
    ),
    "QNLI/{}.tsv": _tsv("index\tquestion\tsentence\tlabel", lambda n, s: f"{n}\tWho {s} {n}?\tAnn did.\t{ENTAILMENT[n % 2]}"),
    "SST-2/{}.tsv": _tsv("sentence\tlabel", lambda n, s: f"a fine {s} film {n} \t{n % 2}"),
    "STS-B/{}.tsv": _tsv(
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        lambda n, s: f"{n}\tg\tf\t2012\t1\tnone\tnone\tA plane {s} {n}.\tA bird.\t{2.716 + n % 3:.3f}",
    ),
    "MRPC/{}.tsv": _tsv(
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", lambda n, s: f"{n % 2}\t7\t8\tHe said \"{s} {n}\" .\tHe said so ."
    ),
    "RTE/{}.tsv": _tsv("index\tsentence1\tsentence2\tlabel", lambda n, s: f"{n}\tAnn {s} {n} won.\tAnn lost.\t{ENTAILMENT[1 - n % 2]}"),
    "CoLA/{}.tsv": _tsv("", lambda n, s: f"gj04\t{n % 2}\t*\tThem {s} {n} sleeps."),
    "MultiRC/{}.jsonl": _jsonl(_multirc),
    "BoolQ/{}.jsonl": _jsonl(lambda n, s: {"question": f"is {s} {n} odd", "passage": "Odd -- Numbers.", "idx": n, "label": n % 2 == 0}),
    "WiC/{}.jsonl": _jsonl(
        lambda n, s: {
            "word": "bank", "sentence1": f"The bank {s} {n}.", "sentence2": "A bank.", "idx": n, "label": bool(n % 2),
            "start1": 4, "start2": 2, "end1": 8, "end2": 6, "version": 1.1,
        }
    ),
    "WSC/{}.jsonl": _jsonl(_wsc),
    "CB/{}.jsonl": _jsonl(
        lambda n, s: {
            "premise": f"It is {s} {n}.", "hypothesis": "it is", "idx": n,
            "label": ("neutral", "entailment", "contradiction")[n % 3],
        }
    ),
    "ReCoRD/{}.jsonl": _jsonl(_record),
    "SQuAD/train-v1.1.json": _squad,
    "SQuAD/dev-v1.1.json": _squad,
    **{f"MRQA/{{}}/{name}.jsonl.gz": _mrqa for name in ("NaturalQuestionsShort", "HotpotQA", "SearchQA", "NewsQA")},
    "winogrande_1.1/{}.jsonl": _jsonl(
        lambda n, s: {
            "qID": f"{s}{n}", "sentence": f"Ann {s} {n} met Eve and _ left.",
            "option1": "Ann", "option2": "Eve", "answer": str(1 + n % 2),
        }
    ),
    "yelp_review_polarity_csv/{}.csv": lambda path, s, rows: _lines(
        path, [f'"{1 + n % 2}","The {s} ""pub"" {n}\\nwas fine."' for n in range(rows)]
    ),
    "SciTailV1.1/snli_format/scitail_1.0_{}.txt": _jsonl(
        lambda n, s: {"gold_label": ("neutral", "entailment")[n % 2], "sentence1": f"Ice {s} {n} melts.", "sentence2": "Ice is wet."}
    ),
    "PAWS/final/{}.tsv": _tsv("id\tsentence1\tsentence2\tlabel", lambda n, s: f"{n}\tA {s} {n} b .\tB a .\t{n % 2}"),
    "E2E/train-fixed.no-ol.csv": _e2e,
    "E2E/devel-fixed.no-ol.csv": _e2e,
    "E2E/test-fixed.csv": _e2e,
    "WebNLG/{}": _webnlg,
}  # fmt: skip
NAMES = {  # in place of train and dev, where the layout calls its files otherwise
    "WebNLG/{}": ("train", "dev", "test"),
    "PAWS/final/{}.tsv": ("train", "dev", "test"),
    "winogrande_1.1/{}.jsonl": ("train_xl", "dev"),
    "yelp_review_polarity_csv/{}.csv": ("train", "test"),
    **{f"{name}/{{}}.jsonl": ("train", "val") for name in ("MultiRC", "BoolQ", "WiC", "WSC", "CB", "ReCoRD")},
}


def write_published(folder: Path, rows: int = 8) -> Path:
    """Writes all sets below a folder, `rows` rows a file; a row's text tells 'train' or the file's name."""
    for pattern, write in WRITERS.items():
        for name in NAMES.get(pattern, ("train", "dev")) if "{}" in pattern else ("",):
            path = folder / pattern.format(name)
            write(path, "train" if "train" in str(path.relative_to(folder)) else path.name.split(".")[0], rows)
    return folder
