"""The study's results: one line of JSON for each number worth keeping, in benchmarks/results/study."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "results" / "study"


def note(name: str, lines: list[dict], folder: Path = FOLDER) -> None:
    """Appends lines to a file of results."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


def noted(name: str, folder: Path = FOLDER) -> list[dict]:
    """The lines of a file of results."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
