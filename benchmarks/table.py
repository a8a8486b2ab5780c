"""Rebuilds the tables of docs/performance.md, and of docs/serving.md, from benchmarks/results/*.jsonl.

    python -m benchmarks.table

What stands between the marks of a benchmark (``<!-- train_target -->`` … ``<!-- end -->``) is replaced; the words around them stay.
"""

import json
import re
from pathlib import Path

from mpt_jax.infer.report import markdown

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "performance.md"
PAGES = {name: ROOT / "docs" / "serving.md" for name in ("serve", "serve_tokens")}  # other pages, by benchmark
UNITS = {"seconds": "s", "peak_mb": "MB", "blocking_ms": "ms", "gflops": "10⁹/s"}
TOLD = (
    *("product_rate", "useful_gflops", "input_padding", "waiting_share", "teachers_s", "teachers_rows"),
    *("same_answers", "same_answers_ctranslate2", "same_answers_ctranslate2_int8", "bytes", "files", "commands"),
)


def load_lines(folder: Path) -> list[dict]:
    """All result lines, file by file."""
    return [json.loads(text) for path in sorted(folder.glob("*.jsonl")) for text in path.read_text().splitlines()]


def table(line: dict) -> str:
    """One case as a Markdown table: medians, lowest and highest repeat, how many times faster than the peer, and what else was told.

    A line that has ``rows`` is a table already.
    """
    if "rows" in line:
        return _given(line)
    rows = []
    for quantity, unit in UNITS.items():
        found = line.get(quantity, {})
        for name, value in ({"": found} if "median" in found else found).items():
            if not isinstance(value, dict):
                continue
            low, high = value["spread"]
            time = quantity in ("seconds", "peak_mb" if "seconds" not in line else "seconds")
            ratio = line.get("ratio", {}).get(name.replace("together", "ours")) if time else None
            share = line.get("useful_share", {}).get(name) if time else None
            cells = (name or quantity, f"{value['median']:g} {unit}", f"{low:g} – {high:g}", f"{ratio:g}" if ratio else "", _percent(share))
            rows.append("| " + " | ".join(cells) + " |")
    names = [name for name in TOLD if name in line]
    told = "; ".join(f"{name.replace('_', ' ')} {line[name]:g}" for name in names)
    if "ratio_by_step" in line:
        told += "; times the peer, step by step: " + ", ".join(f"{ratio:.2f}" for ratio in line["ratio_by_step"])
    counts = sorted({len(runs) for runs in line["runs"].values()})
    repeats = "-".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    company = f"cores busy with other processes meanwhile: up to {_percent(line['busy_elsewhere'])}"
    measured = f"{line['machine']['cpu']}, {repeats} repeats; {company}{'. Also: ' + told if told else ''}"
    head = "| | median | lowest – highest repeat | times the peer | useful share |\n|---|---:|---:|---:|---:|"
    return f"**{line['case']}**, {measured}\n\n{head}\n" + "\n".join(rows) + "\n"


def methods_table(lines: list[dict]) -> str:
    """One table of all methods: what trains, seconds of a step and peak of memory, ours and PEFT's."""
    rows: list[tuple[str, str]] = []
    busy: dict[str, float] = {}  # by place
    for line in lines:
        method, _, case = line["case"].partition(", ")
        seconds, memory, ratio = line["seconds"], line["peak_mb"], line.get("ratio", {}).get("ours")
        cells = [f"{line['trained']['ours']:,}"]
        for quantity, form in ((seconds, "{:.2f}"), (memory, "{:,.0f}")):
            cells += [form.format(quantity[side]["median"]) if side in quantity else "–" for side in ("ours", "peft")]
        where = f"{case}; {line['machine']['cpu']}"
        busy[where] = max(busy.get(where, 0.0), line["busy_elsewhere"])
        rows.append((where, f"| `{method}` | {' | '.join(cells)} | {f'{ratio:.2f}' if ratio else '–'} |\n"))
    head = "| method | trained | ours, s | PEFT, s | ours, MB | PEFT, MB | times PEFT |\n|---|---:|---:|---:|---:|---:|---:|\n"
    return "\n".join(
        f"**{place}, cores busy with other processes: up to {_percent(share)}**\n\n"
        f"{head}{''.join(row for where, row in rows if where == place)}"
        for place, share in busy.items()
    )


def _given(line: dict) -> str:
    names = list(dict.fromkeys(name for row in line["rows"] for name in row))
    rows = [[str(row.get(name, "")) for name in names] for row in line["rows"]]
    return f"**{line['case']}**, {line['machine']['cpu']}\n\n" + markdown([names, *rows], 1)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


TOGETHER = {"methods": methods_table}  # benchmarks whose lines make one table


def rebuild(page: str, lines: list[dict]) -> str:
    """The page with each benchmark's tables between its marks. Raises KeyError for results that the page has no marks for."""
    by_name: dict[str, list[dict]] = {}
    for line in lines:
        by_name.setdefault(line["benchmark"], []).append(line)
    for name, found in by_name.items():
        _place(page, name)
        page = marked(page, name, TOGETHER[name](found) if name in TOGETHER else "\n".join(map(table, found)))
    return page


def marked(page: str, name: str, text: str) -> str:
    """The page with a text between the marks of that name. Raises KeyError where it has none."""
    return _place(page, name).sub(lambda _: f"<!-- {name} -->\n{text}<!-- end -->", page)


def _place(page: str, name: str) -> re.Pattern:
    marks = re.compile(rf"<!-- {name} -->.*?<!-- end -->", re.S)
    if not marks.search(page):
        raise KeyError(f"the page has no place for the results of {name}: add <!-- {name} --> and <!-- end -->")
    return marks


def pages(lines: list[dict]) -> dict[Path, list[dict]]:
    """Each page with the lines that are its own."""
    found: dict[Path, list[dict]] = {}
    for line in lines:
        found.setdefault(PAGES.get(line["benchmark"], PAGE), []).append(line)
    return found


def main() -> None:
    for page, lines in pages(load_lines(RESULTS)).items():
        page.write_text(rebuild(page.read_text(), lines))
        print(page)


if __name__ == "__main__":
    main()
