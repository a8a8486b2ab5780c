"""Readers of the sets' own published files: each yields records with the fields that TFDS gives the same set."""

import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.lines import check_file, json_object, lines, whole_text

Reader = Callable[[Path], Iterator[dict]]
# what a file raises that has other fields, or other values in them, than the published one
OTHER_LAYOUT = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


def published(reader: Callable[..., Iterator[dict]]) -> Callable[..., Iterator[dict]]:
    """A reader whose every failure is a TaskError that names the file."""

    @functools.wraps(reader)
    def read(path: Path, *arguments, **settings) -> Iterator[dict]:
        try:
            yield from reader(path, *arguments, **settings)
        except TaskError:
            raise
        except OTHER_LAYOUT as error:
            raise TaskError(f"{path}: not the published file ({type(error).__name__}: {error!s:.200})") from error

    return read


def _take(path: Path, line: int, record: Mapping, fields: Mapping[str, str]) -> dict:
    """Our field -> the file's field, for those of `fields`. Raises TaskError naming a field that is not there."""
    missing = [key for key in fields.values() if key not in record]
    if missing:
        there = ", ".join(map(repr, record))
        raise TaskError(f"{path}:{line}: no field {missing[0]!r}, there are {there}: not the published file")
    return {ours: record[key] for ours, key in fields.items()}


@published
def tsv(path: Path, fields: Mapping[str, str], columns: tuple[str, ...] = (), broken: bool = False) -> Iterator[dict]:
    """Tab-separated rows without quoting; the first line names the columns unless `columns` does.

    `broken`: rows with too few columns are left out, as TFDS does (QQP has some).
    """
    names = columns
    for number, line in enumerate(lines(path), 1):
        values = line.rstrip("\r\n").split("\t")
        if not names:
            names = tuple(values)
            continue
        if len(values) < len(names):
            if broken:
                continue
            raise TaskError(f"{path}:{number}: {len(values)} columns, {len(names)} are needed: {line[:80]!r}")
        yield _take(path, number, dict(zip(names, values, strict=False)), fields)


@published
def jsonl(path: Path, fields: Mapping[str, str] | None = None) -> Iterator[dict]:
    """A JSON object a line; the given fields, or all."""
    for number, record in _json_lines(path):
        yield record if fields is None else _take(path, number, record, fields)


def _json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            yield number, json_object(line, f"{path}:{number}")


@published
def multirc(path: Path) -> Iterator[dict]:
    """SuperGLUE's MultiRC: a passage a line, its questions and answers inside."""
    for number, record in _json_lines(path):
        passage = _take(path, number, record, {"passage": "passage", "idx": "idx"})["passage"]
        for question in passage["questions"]:
            for answer in question["answers"]:
                index = {"paragraph": record["idx"], "question": question["idx"], "answer": answer["idx"]}
                texts = {"paragraph": passage["text"], "question": question["question"], "answer": answer["text"]}
                yield {**texts, "label": answer.get("label"), "idx": index}


@published
def record(path: Path) -> Iterator[dict]:
    """SuperGLUE's ReCoRD: a passage a line; entities and answers as sorted sets of texts, as in TFDS."""
    for number, line in _json_lines(path):
        passage = _take(path, number, line, {"passage": "passage", "qas": "qas"})["passage"]
        text = passage["text"]
        entities = sorted({text[entity["start"] : entity["end"] + 1] for entity in passage["entities"]})
        for question in line["qas"]:
            answers = sorted({answer["text"] for answer in question.get("answers", [])})
            index = {"passage": line.get("idx"), "query": question.get("idx")}
            yield {"passage": text, "query": question["query"], "entities": entities, "answers": answers, "idx": index}


@published
def wsc(path: Path) -> Iterator[dict]:
    """SuperGLUE's WSC: the two spans inside `target`."""
    for number, line in _json_lines(path):
        fields = _take(path, number, line, {"text": "text", "target": "target", "label": "label"})
        target = fields.pop("target")
        spans = ("span1_text", "span1_index", "span2_text", "span2_index")
        yield {**fields, **_take(path, number, target, {key: key for key in spans})}


@published
def squad(path: Path) -> Iterator[dict]:
    """SQuAD 1.1's JSON."""
    text = whole_text(path)
    try:
        articles = json.loads(text)["data"]
    except OTHER_LAYOUT as error:
        raise TaskError(f"{path}: not SQuAD's JSON ({error})") from error
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [answer["text"] for answer in question["answers"]]
                texts = {"context": paragraph["context"], "question": question["question"]}
                yield {"id": question["id"], **texts, "answers": {"text": answers}}


@published
def mrqa(path: Path) -> Iterator[dict]:
    """MRQA's JSONL: a header line, then a context a line with its questions."""
    for number, line in _json_lines(path):
        if "header" in line:
            continue
        fields = _take(path, number, line, {"context": "context", "qas": "qas"})
        for question in fields["qas"]:
            texts = {"context": fields["context"].strip(), "question": question["question"].strip()}
            yield {"qid": question.get("qid"), **texts, "answers": question["answers"]}


@published
def yelp(path: Path) -> Iterator[dict]:
    """The polarity CSV, without header: "1" or "2", then the text, raw as TFDS and Hugging Face give it."""
    for number, line in enumerate(lines(path), 1):
        line = line.rstrip("\r\n")
        if line[:1] != '"' or line[1:2] not in ("1", "2"):
            raise TaskError(f'{path}:{number}: the line must start with "1" or "2" in quotes, got {line[:60]!r}')
        yield {"text": line[5:-1].strip(), "label": int(line[1]) - 1}


@published
def e2e(path: Path) -> Iterator[dict]:
    """E2E's CSV, cleaned or original: `mr` and `ref`; fields as in TFDS gem/e2e_nlg."""
    rows = csv.DictReader(lines(path))
    try:
        for number, row in enumerate(rows, 2):
            yield _take(path, number, row, {"meaning_representation": "mr", "target": "ref"})
    except csv.Error as error:
        raise TaskError(f"{path}:{rows.line_num}: not CSV ({error})") from error


@published
def webnlg(path: Path) -> Iterator[dict]:
    """WebNLG's XML, one file or a folder of files (1triples/…): a record a text; fields as in TFDS gem/web_nlg_en."""
    for file in sorted(path.rglob("*.xml")) if path.is_dir() else [path]:
        check_file(file)
        try:
            entries = ElementTree.parse(file).getroot().iter("entry")
        except (ElementTree.ParseError, OSError) as error:
            raise TaskError(f"{file}: not XML ({error})") from error
        for entry in entries:
            triples = [triple.text.strip() for triple in entry.iterfind("modifiedtripleset/mtriple")]
            texts = [lex.text.strip() for lex in entry.iterfind("lex") if lex.get("lang", "en") in ("en", "") and lex.text]
            for text in texts:
                yield {"input": triples, "target": text, "category": entry.get("category", "")}


def glue_tsv(**fields: str) -> Reader:
    """A reader of a GLUE file with a header: our field = the file's column."""
    return partial(tsv, fields=fields)


def scitail(path: Path) -> Iterator[dict]:
    """SciTail's snli_format: JSON lines in a .txt file."""
    names = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    return jsonl(path, names)
