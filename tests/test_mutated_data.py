"""Data files and caches that somebody or something has changed: they are read, or refused with a message that names them, soon."""

import gzip
import json
import os
import random
import time

import numpy as np
import pytest
from mpt_jax.tasks.paper import location, reading, sets
from paper_files import write_published
from test_teacher_cache import LAYOUT, written
from tiny_data import byte_vocabulary, sized_cache, token_cache

from mpt_jax import tasks
from mpt_jax.data.cache import open_cache, read_cache
from mpt_jax.data.checked_folder import META, file_sums, sum_of
from mpt_jax.data.teacher_cache import TeacherOutputs
from mpt_jax.errors import UserError

SECONDS = 2  # for each file
SEEDS = int(os.environ.get("MPT_MUTATIONS", "150"))
PIECES = (
    b"NaN", b"Infinity", b"null", b"true", b"-1e999", b"9" * 5000, b'"\\ud83d"', b"\xff", b"\x00", b'"', b"\r", b"\n", b"\t", b",", b"{",
    b"[" * 500, b"\x1b[2J", b"\xef\xbb\xbf", b'"label": 1, ', b"{}", b"\xe2\x80\xa8", b"\xed\xa0\x80",
)  # fmt: skip
ROWS = [{"q": f"wörd {n}", "n": n / 2, "label": n % 2, "tags": [n, {"a": None}]} for n in range(5)]
FILES = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "csv": "q,n,label\n" + "".join(f'"wörd, ""{row["n"]}""",{row["n"]},{row["label"]}\n' for row in ROWS),
    "tsv": "q\tn\tlabel\n" + "".join(f"wörd {row['n']}\t{row['n']}\t{row['label']}\n" for row in ROWS),
}


def changed(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to three changes: cut off, bytes overwritten, a piece put in, taken out or doubled."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.randint(1, 9))
        piece = draw.choice((draw.choice(PIECES), draw.randbytes(end - start), b"", data[start:end] * 2))
        data = data[:start] if draw.random() < 0.15 else data[:start] + piece + data[draw.choice((start, end)) :]
    return data


def refused_or_read(read, seed: int) -> bool:
    """Whether it was read. Anything but success and the two errors of users fails, with the seed."""
    began = time.perf_counter()
    try:
        read()
        done = True
    except (UserError, tasks.TaskError) as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, f"seed {seed}: {error}"
        done = False
    except BaseException as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert time.perf_counter() - began < SECONDS, f"seed {seed}"
    return done


def same(path, before: bytes) -> bool:
    """Whether a file says what it said: blanks between the entries of JSON say nothing."""
    now = path.read_bytes()
    return now == before or path.name == META and json.loads(now) == json.loads(before)


@pytest.mark.parametrize("kind", ["labels", "target"])
@pytest.mark.parametrize("format", FILES)
def test_rows_of_changed_files(table, tmp_path, format, kind):
    path, vocabulary = tmp_path / f"a.{format}", byte_vocabulary()
    settings = {"labels": ("no", "yes")} if kind == "labels" else {"target": "{n} {label}", "score": "exact_match"}
    task = getattr(tasks, format)("changed", files={"train": path}, template="q: {q}", **settings)
    read = 0
    for seed in range(SEEDS):
        path.write_bytes(changed(FILES[format].encode(), random.Random(seed)))

        def rows():
            cache = open_cache(task.name, "train", vocabulary, tmp_path / "cache")
            texts = [cache.extra(row)["inputs"] for row in range(cache.rows)]
            assert texts == [row["inputs"] for row in tasks.rows(task.name, "train")]

        read += refused_or_read(rows, seed)
    assert 0.02 * SEEDS < read < 0.98 * SEEDS


def test_changed_token_caches(tmp_path):
    """Every file cut at many places or changed; sums tell. Then also with sums that fit, as no accident makes them."""
    cache = token_cache(tmp_path, [([5 + row, 7, 1], [6, 1]) for row in range(30)], embedding=2)
    files = {path: path.read_bytes() for path in cache.folder.iterdir()}
    for seed in range(SEEDS):
        draw = random.Random(seed)
        path = draw.choice(sorted(files))
        path.write_bytes(changed(files[path], draw))
        assert not refused_or_read(lambda: read_cache(cache.folder), seed) or same(path, files[path])
        if path.name != META and seed % 2:
            sums = {name: entry for name, entry in file_sums(cache.folder).items() if name != META}
            meta = json.loads(files[cache.folder / META]) | {"files": sums}
            (cache.folder / META).write_text(json.dumps({**meta, "sum": sum_of(meta)}))
            refused_or_read(lambda: read_cache(cache.folder), seed)
            (cache.folder / META).write_bytes(files[cache.folder / META])
        path.write_bytes(files[path])


def test_changed_entries_of_a_meta(tmp_path):
    folder = token_cache(tmp_path, [([5, 1], [6, 1])] * 4).folder
    meta = json.loads((folder / META).read_text())
    values = (None, 0, -1, 1e9, 10**30, "x", [], {}, [[]], True, {"a": 1}, "../../etc", float("nan"))
    for seed in range(SEEDS):
        draw = random.Random(seed)
        given = json.loads(json.dumps(meta))
        holder = draw.choice([given, given["key"], given["files"], given["outline"]])
        holder[draw.choice(sorted(holder))] = draw.choice(values)
        (folder / META).write_text(json.dumps({**given, "sum": sum_of(given)}))
        refused_or_read(lambda: read_cache(folder), seed)


def test_changed_teacher_caches(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = written(tmp_path / "told", cache, np.array([1, 4]))
    part = next(outputs.folder.glob("part-*"))
    files = {path: path.read_bytes() for path in part.iterdir()}
    for seed in range(SEEDS):
        draw = random.Random(seed)
        path = draw.choice(sorted(files))
        path.write_bytes(changed(files[path], draw))
        read = refused_or_read(lambda: TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows), seed)
        assert not read or same(path, files[path])
        path.write_bytes(files[path])


@pytest.mark.parametrize("name", sorted(sets.SETS))
def test_changed_files_of_the_papers_sets(name, tmp_path, monkeypatch):
    write_published(tmp_path)
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    monkeypatch.setattr(reading, "DEV_ROWS", 2)
    where = location.locate(sets.SETS[name]).files["train"][0]
    paths = sorted(where.rglob("*.xml")) if where.is_dir() else [where]
    before = paths[0].read_bytes()
    for seed in range(max(SEEDS // 8, 2)):
        draw = random.Random(seed)
        if paths[0].suffix == ".gz" and seed % 2:
            paths[0].write_bytes(gzip.compress(changed(gzip.decompress(before), draw)))
        else:
            paths[0].write_bytes(changed(before, draw))
        for variant in ("", ":published"):
            refused_or_read(lambda variant=variant: list(tasks.rows(f"{name}{variant}", "train")), seed)
