"""JSONL, TSV and CSV: reading, relative paths, and messages that name file, line and field."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from tasks.files import read_records


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
        ("tsv", "a\tb\n1\t2\n1\n", 3, r"1 values in place of 2 \(a, b\)"),
        ("csv", "a,a\n1,2\n", 1, "two columns have the same name: a, a"),
        ("csv", 'a,b\n"1"x,2\n', 2, "not CSV"),
        ("csv", 'a,b\n1,2\n"1,2\n', 3, "not CSV"),
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
