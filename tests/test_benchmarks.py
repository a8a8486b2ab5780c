"""The benchmarks: what they count, and that the shortest of them run to a line of JSON."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import alternate, rows, table


def test_row_lengths_have_the_told_median_and_cap():
    for name, (median, cap) in rows.SETS.items():
        drawn = rows.lengths(name, 20_000)
        assert abs(np.median(drawn) - median) <= 0.05 * median + 1
        assert drawn.max() == cap and drawn.min() >= 2


def test_appended_repeats_join_the_last_line_of_their_case_and_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(alternate, "run", lambda module, *rest, environment: {"seconds": [float(rest[0])], "busy_elsewhere": 0.0})
    path = tmp_path / "lines.jsonl"
    for cpu, first, flags in (("one", 4, []), ("two", 1, ["--append"]), ("one", 8, ["--append"])):
        monkeypatch.setattr(alternate, "machine", lambda threads, cpu=cpu: {"cpu": cpu})
        arguments = alternate.parser("").parse_args(["--json", str(path), "--repeats", "1", *flags])
        sides = {"peer": ["benchmarks.peer", first], "ours": ["benchmarks.ours", 2]}
        monkeypatch.setattr(alternate, "RATE", ["benchmarks.roofline", 1])
        alternate.compare(arguments, "b", "c", sides, lambda runs: alternate.against(runs, "peer"))
    other, line = [json.loads(text) for text in path.read_text().splitlines()]
    assert other["machine"] == {"cpu": "two"} and other["ratio"] == {"ours": 0.5}
    assert line["seconds"]["peer"] == {"median": 6.0, "spread": [4.0, 8.0]} and line["ratio"] == {"ours": 3.0}
    assert len(line["runs"]["ours"]) == 2


def test_the_pages_hold_what_the_committed_lines_say():
    """Each is what `python -m benchmarks.table` makes of the committed results."""
    found = table.pages(table.load_lines(table.RESULTS))
    assert {page.name for page in found} == {"performance.md", "serving.md"}
    for path, lines in found.items():
        page = path.read_text()
        assert table.rebuild(page, lines) == page
    with pytest.raises(KeyError, match="no place for the results of nothing"):
        table.rebuild(page, [{"benchmark": "nothing"}])


def test_preloaded_sides_run_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(
        alternate, "run", lambda module, *rest, environment: {"seconds": [4.0 if environment else 8.0], "busy_elsewhere": 0.0}
    )
    library = tmp_path / "libfast.so.4"
    library.touch()
    given = ["--json", str(tmp_path / "lines.jsonl"), "--repeats", "1", "--preload", str(library)]
    arguments = alternate.parser("", preload=True).parse_args(given)
    sides = {"peer": ["benchmarks.peer"], "ours": ["benchmarks.ours"]}
    line = alternate.compare(arguments, "b", "c", sides, lambda runs: alternate.against(runs, "peer"))
    assert line["ratio"] == {"ours": 1.0, "peer_fast": 2.0, "ours_fast": 2.0}


def test_a_library_that_would_not_be_preloaded_is_refused(tmp_path, capsys):
    given = ["--json", "x", "--preload", str(tmp_path / "absent.so")]
    for preload, message in ((True, "no file"), (False, "unrecognized arguments")):
        with pytest.raises(SystemExit):
            alternate.parser("", preload).parse_args(given)
        assert message in capsys.readouterr().err


def test_methods_that_were_measured_make_one_table():
    machine = {"machine": {"cpu": "A CPU"}, "busy_elsewhere": 0.01}
    both = {"trained": {"ours": 884_736}, "ratio": {"ours": 2.5}}
    both |= {"seconds": {"ours": {"median": 2.0}, "peft": {"median": 5.0}}, "peak_mb": {"ours": {"median": 1000}, "peft": {"median": 4000}}}
    alone = {"seconds": {"ours": {"median": 3.0}}, "peak_mb": {"ours": {"median": 1500}}, "trained": {"ours": 282_496}}
    lines = [
        {"benchmark": "methods", "case": "lora, t5_base short batch 8", **both, **machine},
        {"benchmark": "methods", "case": "bitfit, t5_base short batch 8", **alone, **machine},
    ]
    page = table.rebuild("before\n<!-- methods -->\nnothing\n<!-- end -->\nafter", lines)
    assert "**t5_base short batch 8; A CPU, cores busy with other processes: up to 1 %**" in page and page.count("| method |") == 1
    assert "| `lora` | 884,736 | 2.00 | 5.00 | 1,000 | 4,000 | 2.50 |" in page
    assert "| `bitfit` | 282,496 | 3.00 | – | 1,500 | – | – |" in page and page.endswith("<!-- end -->\nafter") and "nothing" not in page


@pytest.mark.slow
def test_methods_run_on_both_sides_and_go_on_where_they_were(tmp_path):
    pytest.importorskip("peft")
    arguments = ["--json", tmp_path / "out.jsonl", "--small", "--folder", tmp_path, "--only", "lora"]
    for said in ("", "lora, small: measured before"):
        command = [sys.executable, "-m", "benchmarks.methods", *map(str, arguments)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert said in done.stdout
    (line,) = [json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert line["trained"]["ours"] == line["trained"]["peft"] > 0 and line["ratio"]["ours"] > 0
    assert line["peak_mb"]["ours"]["median"] > 0 and "| `lora` |" in table.methods_table([line])


@pytest.mark.long
def test_train_target_runs_both_sides(tmp_path):
    pytest.importorskip("peft")
    arguments = ["--json", tmp_path / "out.jsonl", "--small", "--repeats", "1", "--folder", tmp_path]
    subprocess.run([sys.executable, "-m", "benchmarks.train_target", *map(str, arguments)], check=True)
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["seconds"]["ours"]["median"] > 0 and line["seconds"]["peft"]["median"] > 0
    assert all(0 < share < 1 for share in line["useful_share"].values())
