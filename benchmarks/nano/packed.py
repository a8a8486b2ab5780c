"""Pretraining rows as text, and what makes tokens and sentence vectors of them, in two small files: for a machine that has nothing else.

    python -m benchmarks.nano.packed --data nano_data --output packed [--spans 30000]

packed/rows.xz: every row, those of a text one after another. packed/weights.xz: MiniLM's weights, rounded (benchmarks.nano.minilm), and the
embeddings at the start. R rows, X different texts with a vector, E width of a vector, V vocabulary, D width of the backbone.
"""

import argparse
import io
import json
import lzma
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.nano import embedded_rows, entailment, labelled, minilm, short_texts, spans, vocabulary
from benchmarks.nano.labelled import Row

LONGEST = {"inputs": 80, "targets": 24}  # tokens, end of sequence included
EMBEDDING_STEP = 1 / 32  # of embeddings, whose standard deviation is 1
DEV_ROWS = 200
EOS = 1
SPANS = "nano_spans"
CORRUPTIONS = 2  # of each segment of running text
ENDS, BESIDE = "\x1f", "\x1e"  # in inputs: here starts the text whose vector the row has; behind inputs: such a text follows

def dev_rows(task_folder: Path) -> Iterator[tuple[str, list[Row]]]:
    """Held-out rows by task: embedded sources with their plain prefix, embedded targets asked, real sets with their plain wording."""
    from mpt_jax import tasks

    for name, wordings in (embedded_rows.WORDINGS | embedded_rows.TARGET_WORDINGS).items():
        asked, rows = wordings[0], [row for row, _ in zip(tasks.rows(name, "validation"), range(DEV_ROWS), strict=False)]
        yield name, [{"inputs": f"{asked} {row['inputs']}", "targets": row["targets"]} for row in rows]
    plain = {"sst2": labelled.SST2[0], "tweet_emotion": short_texts.EMOTION[0], "clinc_domain": short_texts.DOMAIN[0]}
    for name, (question, words) in plain.items():
        rows = _held_out(task_folder / name)
        yield name, [{"inputs": f"{question} {row['sentence']}", "targets": words[row["label"]]} for row in rows]
    for name in entailment.NAMES:
        _, shown, words = entailment.WORDINGS[0]
        rows = _held_out(task_folder / name)
        yield name, [{"inputs": f"{name} {shown.format(**row)}", "targets": words[row["label"]]} for row in rows]


def _held_out(folder: Path) -> list[dict]:
    rows = labelled.read_jsonl(folder / "validation.jsonl")
    return random.Random(0).sample(rows, min(DEV_ROWS, len(rows)))


def line_of(row: Row) -> str:
    """A row as a line: its text is written once where the inputs end with it."""
    inputs, text = row["inputs"], row.get("text")
    if text:
        inputs = f"{inputs[: -len(text)]}{ENDS}{text}" if inputs.endswith(text) else f"{inputs}{BESIDE}{text}"
    return f"{inputs}\t{row['targets']}"


def row_of(line: str) -> Row:
    """The row of ``line_of``."""
    inputs, targets = line.split("\t")
    if ENDS in inputs:
        return {"inputs": inputs.replace(ENDS, ""), "targets": targets, "text": inputs.split(ENDS)[1]}
    if BESIDE in inputs:
        return {"inputs": inputs.split(BESIDE)[0], "targets": targets, "text": inputs.split(BESIDE)[1]}
    return {"inputs": inputs, "targets": targets}


def lines_of(data: Path, most_spans: int) -> dict[str, list[str]]:
    """Training rows of each task as lines; running text as whole segments."""
    model, found = vocabulary.load(data / "spiece.model"), {}
    for name, facts in json.loads((data / "index.json").read_text(encoding="utf-8"))["tasks"].items():
        rows = labelled.read_jsonl(data / "tasks" / name / "train.jsonl")
        if facts["tokens"]:
            ids = [spans.rebuild(row["inputs_tokens"][:-1], row["targets_tokens"][:-1], vocabulary.PIECES) for row in rows[:most_spans]]
            found[name] = sorted(model.decode(ids))
        else:
            rows.sort(key=lambda row: (row.get("text", ""), row["inputs"]))
            found[name] = [line_of(row) for row in rows]
    return found


def compress(content: bytes, **options: int) -> bytes:
    """As .xz files hold it."""
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**26, **options}])


def write(folder: Path, lines: Mapping[str, list[str]], dev: Mapping[str, list[Row]], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes rows.xz and weights.xz."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": lines, "dev": {name: [line_of(row) for row in rows] for name, rows in dev.items()}}
    counts = {part: {name: len(rows) for name, rows in held.items()} for part, held in parts.items()}
    every = [line for held in parts.values() for rows in held.values() for line in rows]
    if any("\n" in line or line.count("\t") > 1 for line in every):
        raise ValueError("a row holds a line break or a tab, which end rows and inputs here")
    (folder / "rows.xz").write_bytes(compress("\n".join([json.dumps(counts), *every]).encode(), lc=4))
    held = io.BytesIO()
    np.savez(held, **arrays)
    (folder / "weights.xz").write_bytes(compress(held.getvalue(), lc=0))


def read(folder: Path, vocabulary_path: Path, seed: int = 0) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """(names of tasks by part, arrays): tokens of train and dev rows (``flat``), text_R and vectors_XE of train rows, embedding_VD."""
    first, *every = lzma.decompress((folder / "rows.xz").read_bytes()).decode().split("\n")
    counts, model, rng = json.loads(first), vocabulary.load(vocabulary_path), random.Random(seed)
    remaining = iter(every)
    parts = {part: {name: [next(remaining) for _ in range(count)] for name, count in held.items()} for part, held in counts.items()}
    arrays, texts = {}, []
    for part, held in parts.items():
        tokens = {}
        for name, lines in held.items():
            if name == SPANS:
                tokens[name] = corrupted(model.encode(lines, num_threads=os.cpu_count()), rng)
                texts += [None] * len(tokens[name])
                continue
            rows = [row_of(line) for line in lines]
            tokens[name] = tokens_of(rows, model)
            texts += [row.get("text") for row in rows] if part == "train" else []
        arrays |= flat(tokens, f"{part}_")
    with np.load(io.BytesIO(lzma.decompress((folder / "weights.xz").read_bytes())), allow_pickle=False) as held:
        weights = {name: held[name] for name in held.files}
    arrays["embedding_VD"] = weights.pop("embedding_VD")
    different = list(dict.fromkeys(text for text in texts if text))
    place = {text: at for at, text in enumerate(different)} | {None: len(different)}  # the last vector is of no text: zeros
    found_XE = minilm.unpacked(weights)(different)
    arrays["vectors_XE"] = np.concatenate([found_XE, np.zeros_like(found_XE[:1])])
    arrays["text_R"] = np.array([place[text] for text in texts], np.int32)
    return {part: list(held) for part, held in counts.items()}, arrays


def corrupted(segments: list[list[int]], rng: random.Random) -> list[tuple[list[int], list[int]]]:
    """Span corruption rows: CORRUPTIONS of each segment of 4 tokens or more."""
    pairs = [spans.corrupt(tokens, vocabulary.SIZE, rng) for tokens in segments if len(tokens) >= 4 for _ in range(CORRUPTIONS)]
    return [([*inputs, EOS], [*targets, EOS]) for inputs, targets in pairs]


def tokens_of(rows: list[Row], model) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of rows, each with its end."""
    sides = (model.encode([row[side] for row in rows], num_threads=os.cpu_count()) for side in LONGEST)
    return [([*inputs, EOS], [*targets, EOS]) for inputs, targets in zip(*sides, strict=True)]


def cut(tokens: list[int], longest: int) -> list[int]:
    """Tokens, cut so that they still end as they did."""
    return tokens if len(tokens) <= longest else [*tokens[: longest - 1], tokens[-1]]


def flat(rows: Mapping[str, list[tuple[list[int], list[int]]]], prefix: str) -> dict[str, np.ndarray]:
    """Rows of all tasks one after another: token ids (uint16), lengths (uint8) and the number of rows of each task."""
    pairs = [pair for task_rows in rows.values() for pair in task_rows]
    arrays = {f"{prefix}count": np.array([len(task_rows) for task_rows in rows.values()], np.int64)}
    for at, (side, longest) in enumerate(LONGEST.items()):
        cut_rows = [cut(pair[at], longest) for pair in pairs]
        arrays[f"{prefix}{side}_length"] = np.array([len(row) for row in cut_rows], np.uint8)
        arrays[f"{prefix}{side}"] = np.array([token for row in cut_rows for token in row], np.uint16)
    return arrays


def main(arguments: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano.packed", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="what `python -m benchmarks.nano.pretraining` wrote")
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spans", type=int, default=30_000, help="segments of running text")
    options = parser.parse_args(arguments)
    from mpt_jax.model import formats

    lines = lines_of(options.data, options.spans)
    texts = {row_of(line).get("text") for name, held in lines.items() if name != SPANS for line in held} - {None}
    start_VD = formats.read_backbone(options.data / "initial")[1]["token_embedder/embedding"].load()
    arrays = minilm.packed(sorted(texts))
    arrays["embedding_VD"] = np.clip(np.rint(start_VD / EMBEDDING_STEP), -127, 127).astype(np.int8)
    write(options.output, lines, dict(dev_rows(options.data_dir / "tasks")), arrays)
    for path in (options.output / "rows.xz", options.output / "weights.xz"):
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(f"{sum(map(len, lines.values())):,} rows, {len(texts):,} texts with a vector, {len(arrays['used_V']):,} word pieces")


if __name__ == "__main__":
    main()
