"""JSONL, TSV and CSV: reading, relative paths, and messages that name file, line and field."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mpt_jax.tasks.files import read_records

from mpt_jax import tasks


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def records(path: Path, format: str, **settings) -> list[dict]:
    return [record for _, record in read_records(path, format, **settings)]


def test_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '\ufeff{"a": "é", "n": 1}\n\n{"a": "y\\nz"}')
    assert list(read_records(path, "jsonl")) == [
        (f"{path}:1", {"a": "é", "n": 1}),
        (f"{path}:3", {"a": "y\nz"}),
    ]


def test_tsv_has_no_quotes(tmp_path):
    path = write(tmp_path / "a.tsv", 'a\tb\r\n"x\ty, z"\r\n')
    assert records(path, "tsv") == [{"a": '"x', "b": 'y, z"'}]


def test_csv_rows_over_several_lines(tmp_path):
    path = write(tmp_path / "a.csv", 'a,b\n"x, ""1""\nmore",y\nz,w\n')
    assert list(read_records(path, "csv")) == [
        (f"{path}:2", {"a": 'x, "1"\nmore', "b": "y"}),
        (f"{path}:4", {"a": "z", "b": "w"}),
    ]


def test_columns_name_a_file_without_a_header(tmp_path):
    path = write(tmp_path / "a.csv", '"1","good"\n"2","bad"\n')
    assert records(path, "csv", columns=("label", "text")) == [
        {"label": "1", "text": "good"},
        {"label": "2", "text": "bad"},
    ]


@pytest.mark.parametrize(
    ("format", "text", "line", "message"),
    [
        ("jsonl", '{"a": 1}\n{"a": }\n', 2, r"not JSON \(Expecting value, column 7\): \{\"a\": \}"),
        ("jsonl", '["a"]\n', 1, r"a JSON object is needed.*got \[\"a\"\]"),
        ("jsonl", b'{"a": "\xff"}\n', 1, "not UTF-8"),
        ("tsv", "a\tb\n1\t2\n1\n", 3, r"1 values instead of 2 \(a, b\)"),
        ("csv", "a,a\n1,2\n", 1, "two columns have the same name: a, a"),
        ("csv", 'a,b\n"1"x,2\n', 2, "not CSV"),
        ("csv", 'a,b\n1,2\n"1,2\n', 3, "not CSV"),
        ("csv", "a,b\r1,2\r", 1, r"not CSV \(new-line .*: end rows with line feeds"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, format, text, line, message):
    path = write(tmp_path / f"a.{format}", text)
    with pytest.raises(tasks.TaskError, match=message) as error:
        records(path, format)
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("format", "text"), [("jsonl", ""), ("jsonl", "\n \n"), ("tsv", "a\tb\n"), ("csv", "")]
)
def test_empty_file(tmp_path, format, text):
    path = write(tmp_path / "empty", text)
    with pytest.raises(
        tasks.TaskError, match=f"^{path}: the file holds no row: give it rows or take its split out"
    ):
        records(path, format)


def test_missing_file(tmp_path):
    with pytest.raises(tasks.TaskError, match=r"nowhere\.tsv: there is no such file: correct `files`"):
        records(tmp_path / "nowhere.tsv", "tsv")


def test_short_forms(table, tmp_path):
    files = {"train": write(tmp_path / "a.tsv", "q\tlabel\nwho\tyes\nwhat\t0\n")}
    task = tasks.tsv("short", files=files, template="q: {q}", labels=["no", "yes"], score=["accuracy", "f1"])
    assert table["short"] is task
    assert list(tasks.rows("short", "train")) == [
        {"q": "who", "label": 1, "inputs": "q: who", "targets": "yes"},
        {"q": "what", "label": 0, "inputs": "q: what", "targets": "no"},
    ]
    csv_task = tasks.csv(
        "short2", files={"train": write(tmp_path / "a.csv", "a,b\n1,2\n")}, template="{a}", target="{b}"
    )
    assert (csv_task.format, csv_task.score) == ("csv", "accuracy")


def test_wrong_short_forms(table):
    with pytest.raises(
        tasks.TaskError, match=r"`files` must be like \{'train': 'train.jsonl'\}, got 'a.jsonl'"
    ):
        tasks.jsonl("bad", files="a.jsonl", template="{a}", target="{b}")
    with pytest.raises(tasks.TaskError, match="`columns` is for TSV and CSV"):
        tasks.jsonl("bad", files={"train": "a"}, template="{a}", target="{b}", columns=("a", "b"))
    assert "bad" not in table


def test_several_files_are_read_one_after_the_other(table, tmp_path):
    for name, word in (("b-1", "three"), ("a-2", "two"), ("a-10", "one")):
        write(tmp_path / f"{name}.jsonl", json.dumps({"s": word, "t": "x"}) + "\n")
    files = {
        "listed": [tmp_path / "b-1.jsonl", str(tmp_path / "a-2.jsonl")],
        "pattern": tmp_path / "a-*.jsonl",
        "both": (tmp_path / "b-1.jsonl", tmp_path / "a-*.jsonl"),
        "same": [tmp_path / "b-1.jsonl"] * 2,
    }
    tasks.jsonl("several", files=files, template="{s}", target="{t}")
    words = {split: [row["s"] for row in tasks.rows("several", split)] for split in files}
    assert words == {"listed": ["three", "two"], "pattern": ["one", "two"], "both": ["three", "one", "two"], "same": ["three", "three"]}
    assert len(tasks.ingredients("several", "both")["files"]) == 3
    assert tasks.describe("several", dict.fromkeys(("inputs", "targets"), list), {})["source"]["pattern"].count(str(tmp_path)) == 2


def test_a_name_with_brackets_is_a_name_where_there_is_such_a_file(table, tmp_path):
    path = write(tmp_path / "a[1].jsonl", '{"s": "x", "t": "y"}\n')
    tasks.jsonl("brackets", files={"train": path}, template="{s}", target="{t}")
    assert len(list(tasks.rows("brackets", "train"))) == 1
    path.unlink()
    with pytest.raises(tasks.TaskError, match=r"a\[1\].jsonl: no file fits this pattern"):
        list(tasks.rows("brackets", "train"))


@pytest.mark.parametrize("given", [None, [], 5, {"a": "b"}, [None], ["a", 3]])
def test_files_that_are_not_paths(table, given):
    with pytest.raises(tasks.TaskError, match=r"files\['train'\] must be a path, a pattern or a list of paths, got"):
        tasks.jsonl("bad", files={"train": given}, template="{a}", target="{b}")


@pytest.mark.parametrize("setting", ["labels", "score", "columns"])
def test_settings_that_are_lists_of_texts(table, setting):
    given = {"labels": ("a", "b"), "score": "accuracy", "columns": ("a", "b")} | {setting: 5}
    with pytest.raises(tasks.TaskError, match=rf"`{setting}` must be a list of texts, got 5"):
        tasks.csv("bad", files={"train": "a.csv"}, template="{a}", **given)


def test_long_fields_are_read_and_an_open_quote_has_a_limit(tmp_path, monkeypatch):
    long = "word " * 40_000
    path = write(tmp_path / "a.csv", f'a,b\n"{long}",y\n')
    assert records(path, "csv") == [{"a": long, "b": "y"}]
    path = write(tmp_path / "b.csv", 'a,b\n"' + ("line\n" * 4_000_000))
    with pytest.raises(tasks.TaskError, match=r"b.csv:2: not CSV \(field larger than field limit .*: correct the quotes"):
        records(path, "csv")


def test_pipes_are_refused_where_rows_and_where_digests_are_read(table, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    tasks.jsonl("piped", files={"train": tmp_path / "pipe"}, template="{a}", target="{b}")
    for ask in (lambda: list(tasks.rows("piped", "train")), lambda: tasks.ingredients("piped", "train")):
        with pytest.raises(tasks.TaskError, match="pipe: is a pipe or device"):
            ask()


def test_paths_are_relative_to_the_module_else_to_the_current_folder(tmp_path):
    (tmp_path / "module").mkdir()
    (tmp_path / "here").mkdir()
    row = json.dumps({"a": "x", "b": "y"})
    write(tmp_path / "module" / "m.jsonl", row)
    write(tmp_path / "here" / "h.jsonl", row)
    write(
        tmp_path / "module" / "mine.py",
        "import tasks\n"
        "files = {'m': 'm.jsonl', 'h': 'h.jsonl', 'n': 'n.jsonl'}\n"
        "tasks.jsonl('t', files=files, template='{a}', target='{b}')\n",
    )
    code = (
        "import json, tasks; tasks.import_module('../module/mine.py'); "
        "print(json.dumps(tasks.TABLE['t'].files))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "here",
        env={"PYTHONPATH": str(Path(tasks.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == {
        "m": str(tmp_path / "module" / "m.jsonl"),
        "h": str(tmp_path / "here" / "h.jsonl"),
        "n": str(tmp_path / "here" / "n.jsonl"),
    }
