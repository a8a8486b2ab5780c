"""Damages files in many ways and reads them: a reader may succeed or refuse (UserError), in little time and memory, and nothing else.

A `Reader` writes a sound sample into a folder and reads it. `hunt` makes mutation number n of it from (seed, reader, n) alone, so
what it tells can be made again. Readers run in a process of their own (this file, as a command): a library that aborts, a
read that never ends and memory beyond the limit show as such, and the next mutation goes on in a new process.
"""

import dataclasses
import fnmatch
import gzip
import importlib
import io
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

SECONDS = 2.0  # of CPU, a read may take
MEMORY = 2**30  # bytes, a read may take more than the sound one
START, SILENCE = 120.0, 20.0  # seconds without a result, the first one or another, after which a read counts as hanging
ALLOWED = ("read", "refused")
REFUSALS = ("UserError", "TaskError")  # classes that a reader may raise: mpt_jax/errors.py, tasks/errors.py


@dataclasses.dataclass(frozen=True)
class Reader:
    """write(folder) makes a sound sample in an empty folder, read(folder) reads it. kept: patterns of files that stay as they are."""

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    kept: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutation: result is 'read', 'refused', or what must not be."""

    reader: str
    number: int
    change: str
    result: str
    detail: str
    seconds: float


# ---- changes of bytes


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    span = rng.choice([64, 512, len(data)])  # heads hold the lengths
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        changed[rng.randrange(min(span, len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    marks = [place for mark in (b"PK", b"\n", b"{", b",", b"}", b"\0\0") for place in _places(data, mark)]
    return data[: rng.choice(marks) if marks and rng.random() < 0.5 else rng.randrange(len(data))]


def _places(data: bytes, mark: bytes, most: int = 50) -> list[int]:
    found, start = [], data.find(mark)
    while start >= 0 and len(found) < most:
        found.append(start)
        start = data.find(mark, start + max(1, len(data) // most))
    return found


def _overwrite(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(min(len(data), rng.choice([16, 256, len(data)])))
    size = rng.choice([1, 2, 4, 8, 64])
    new = rng.choice([b"\xff" * size, b"\0" * size, b"\x7f" + b"\xff" * (size - 1), rng.randbytes(size), b"9" * size])
    return data[:start] + new + data[start + size :]


def _splice(data: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice([data[:start] + data[stop:], data[:stop] + data[start:], data[:start] + rng.randbytes(16) + data[start:], data * 2])


def _noise(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [b"", b"\0" * len(data), rng.randbytes(len(data)), data[:8] + rng.randbytes(len(data)), b"\xff\xfe" + data, b"{}", b"[]", b"null"]
    )


def _lines(data: bytes, rng: random.Random) -> bytes | None:
    lines = data.split(b"\n")
    if len(lines) < 2 or b"\0" in data[:1000]:
        return None
    place = rng.randrange(len(lines))
    lines[place] = rng.choice(
        [
            b"",
            lines[place] * 2,
            lines[place][: len(lines[place]) // 2],
            b'"',
            b"\xe9\xff",
            b"\0",
            b"x" * 300_000,
            b"\xed\xa0\x80",
            b"[" * 5000,
            b"{" + lines[place],
        ]
    )
    return rng.choice([b"\n", b"\r\n", b"\r"]).join(lines) if rng.random() < 0.3 else b"\n".join(lines)


# ---- changes of what bytes mean


WRONG = (
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1,
    2**31,
    10**6,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    1e308,
    [[]],
    {"x": 1},
    "\ud800",
    "a\nb",
    "../x",
    [1, 2, 3],
    ["x"],
)
RAW = ("1" + "0" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000)  # more than Python's reader of JSON takes


def _spots(value: object, path: tuple = ()) -> list[tuple]:
    """The places of all values in a JSON value; of a long list the first and the last few."""
    inner: Iterable = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = list(inner)
    inner = inner if len(inner) < 40 else [*inner[:6], *inner[-6:]]
    return [path] + [spot for key, part in inner for spot in _spots(part, (*path, key))]


def change_json(data: bytes, rng: random.Random) -> bytes | None:
    """JSON in which one value is of another type, gone, or under another name; None for what is not JSON."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    spot = rng.choice(_spots(value))
    if not spot:
        return json.dumps(rng.choice(WRONG)).encode()
    holder = value
    for key in spot[:-1]:
        holder = holder[key]
    kind = rng.randrange(10)
    if kind == 0:
        del holder[spot[-1]]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "a\nb", "\ud800", "y" * 100_000, f"{spot[-1]}_"])] = holder.pop(spot[-1])
    elif kind == 2:
        holder[spot[-1]] = "@@"
        return json.dumps(value).replace('"@@"', rng.choice(RAW)).encode()
    elif kind == 3:
        old = holder[spot[-1]]
        number = isinstance(old, int | float)
        holder[spot[-1]] = rng.choice([-old, old + 1, old * 1000, old * 10**9, old / 2]) if number and not isinstance(old, bool) else [old]
    else:
        holder[spot[-1]] = rng.choice(WRONG)
    return json.dumps(value).encode(rng.choice(["utf-8"] * 8 + ["utf-16"]))


def _change_zip(data: bytes, rng: random.Random) -> bytes | None:
    """A zip file with sound sums, of which one member is changed; or a member that is packed, locked, twice there or renamed."""
    if data[:2] != b"PK":
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name, out, kind = rng.choice(list(members)), io.BytesIO(), rng.randrange(8)
    if kind < 5:
        members[name] = change(members[name], rng)
    elif kind == 5:
        members[rng.choice(["../x", "x" * 5000, "\n", "x/"])] = members.pop(name)
    method = rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(out, "w", method) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    packed = out.getvalue()
    if kind == 6:  # the flag of a password, in the directory
        place = packed.find(b"PK\x01\x02")
        packed = packed[: place + 8] + b"\x01" + packed[place + 9 :]
    return packed


def _change_safetensors(data: bytes, rng: random.Random) -> bytes | None:
    """A safetensors file whose header is changed and has its right length."""
    size = struct.unpack("<Q", data[:8])[0] if len(data) > 8 else 0
    if not 2 <= size < len(data) or data[8:9] != b"{":
        return None
    header = change_json(data[8 : 8 + size], rng)
    return None if header is None else struct.pack("<Q", len(header)) + header + data[8 + size :]


def _change_gzip(data: bytes, rng: random.Random) -> bytes | None:
    return gzip.compress(change(gzip.decompress(data), rng)) if data[:2] == b"\x1f\x8b" else None


def _change_msgpack(data: bytes, rng: random.Random) -> bytes | None:
    """A msgpack map in which one value is another."""
    import msgpack

    if not data or not (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF)):
        return None
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except ValueError:
        return None
    spots = [spot for spot in _spots(value) if spot]
    spot = rng.choice(spots)
    holder = value
    for key in spot[:-1]:
        holder = holder[key]
    old = holder[spot[-1]]
    if isinstance(old, msgpack.ExtType) and rng.random() < 0.7:
        holder[spot[-1]] = msgpack.ExtType(old.code, change(old.data, rng))
    else:
        holder[spot[-1]] = rng.choice([*(wrong for wrong in WRONG if wrong != 10**30 and wrong != "\ud800"), b"x", [old] * 3])
    if rng.random() < 0.2 and isinstance(holder, dict):
        holder[rng.choice(["x", "a/b", "layers_3000000", 7, ""])] = holder.pop(spot[-1])
    return msgpack.packb(value, strict_types=True)


BYTES = (_flip, _flip, _cut, _overwrite, _splice, _noise)
MEANINGS = (change_json, change_json, _change_zip, _change_safetensors, _change_gzip, _change_msgpack, _lines)


def change(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one change: of what they mean where that is known, or of the bytes themselves."""
    if data and rng.random() < 0.6:
        for meaning in rng.sample(MEANINGS, len(MEANINGS)):
            changed = meaning(data, rng)
            if changed is not None:
                return changed
    return rng.choice(BYTES)(data, rng) if data else rng.randbytes(rng.choice([1, 100]))


# ---- changes of files


def _odd(path: Path, rng: random.Random) -> str:
    """Takes a file away, or puts something else there."""
    kind = rng.choice(["gone", "renamed", "folder", "pipe", "endless device", "loop of links", "link to nothing", "stray files"])
    content = path.read_bytes()
    if kind != "stray files":
        path.unlink()
    if kind == "renamed":
        path.with_name(path.name + rng.choice([".bak", "_", "1"])).write_bytes(content)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "loop of links":
        path.symlink_to(path.name)
    elif kind == "link to nothing":
        path.symlink_to("nothing")
    elif kind == "stray files":
        for name in (".DS_Store", "stray", f"{path.stem}-2{path.suffix}"):
            (path.parent / name).write_bytes(rng.randbytes(64))
    return kind


def mutate(folder: Path, files: Sequence[str], rng: random.Random) -> str:
    """Changes one of the files; returns which and how."""
    name = rng.choice(files)
    path = folder / name
    if rng.random() < 0.15:
        return f"{name}: {_odd(path, rng)}"
    old = path.read_bytes()
    new = change(old, rng)
    path.write_bytes(new)
    first = next((place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return f"{name}: {len(old)} bytes, {len(new)} now, from byte {first} on: {old[first : first + 24]!r} -> {new[first : first + 24]!r}"


# ---- the process that reads


class _Sample:
    """A reader's sound sample, and a copy of it to be damaged."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.sound, self.copy = reader, folder / "sound", folder / "copy"
        self.sound.mkdir(parents=True)
        reader.write(self.sound)
        files = sorted(str(path.relative_to(self.sound)) for path in self.sound.rglob("*") if path.is_file())
        self.files = [file for file in files if not any(fnmatch.fnmatch(file, kept) for kept in reader.kept)]
        reader.read(self.sound)  # what it imports and starts does not count

    def mutated(self, rng: random.Random) -> str:
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.sound, self.copy)
        return mutate(self.copy, self.files, rng)


def _work(module: str, seed: int, jobs: Sequence[tuple[str, int]], folder: Path, results: Path) -> None:
    """Reads the sound samples, then each mutation; writes a line before and after each."""
    readers = importlib.import_module(module).READERS
    samples = {name: _Sample(readers[name], folder / name) for name in dict.fromkeys(name for name, _ in jobs)}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with results.open("a", buffering=1) as out:
        for name, number in jobs:
            what = samples[name].mutated(random.Random(f"{seed}:{name}:{number}"))
            out.write(json.dumps([name, number, what]) + "\n")
            result, detail, seconds = _outcome(readers[name], samples[name].copy)
            if seconds > SECONDS:  # once more: what a busy machine makes slow is not slow twice
                result, detail, seconds = min(_outcome(readers[name], samples[name].copy), (result, detail, seconds), key=lambda o: o[2])
            result = "slow" if seconds > SECONDS and result in ALLOWED else result
            out.write(json.dumps([name, number, what, result, detail, seconds]) + "\n")


def _outcome(reader: Reader, copy: Path) -> tuple[str, str, float]:
    """What a read gives: result, detail, seconds of CPU."""
    start, result, detail = time.process_time(), "read", ""
    try:
        reader.read(copy)
    except BaseException as error:  # whatever it is: it is what is looked for
        result, detail = _named(error), str(error)[:500]
    return result, detail, time.process_time() - start


def _named(error: BaseException) -> str:
    """The result that an exception is."""
    if not any(kind.__name__ in REFUSALS for kind in type(error).__mro__):
        return type(error).__name__
    return "a message of several lines" if "\n" in str(error) else "refused"


def hunt(module: str, names: Iterable[str], seed: int, count: int, folder: Path, silence: float = SILENCE) -> list[Outcome]:
    """Outcomes of mutations 0 .. count - 1 of each reader of the module's READERS; folder: an empty one to work in."""
    jobs = [(name, number) for name in names for number in range(count)]
    outcomes: list[Outcome] = []
    while jobs:
        work = folder / str(len(jobs))
        work.mkdir()
        results, errors, todo = work / "results", work / "stderr", work / "jobs"
        results.touch()
        todo.write_text(json.dumps(jobs))
        arguments = [sys.executable, __file__, module, str(seed), str(todo), str(work), str(results)]
        environment = os.environ | {"MALLOC_ARENA_MAX": "2", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
        with errors.open("w") as log, subprocess.Popen(arguments, stdout=log, stderr=log, env=environment) as process:
            hangs = _watch(process, results, silence)
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        said = errors.read_text()[-600:]
        if not rows:
            raise AssertionError(f"the sound samples are not read: {said}")
        outcomes += [Outcome(*row) for row in rows if len(row) > 3]
        if len(rows[-1]) == 3:
            outcomes.append(Outcome(*rows[-1], "hangs" if hangs else f"the process ended with {process.returncode}", said, 0.0))
        jobs = jobs[jobs.index(tuple(rows[-1][:2])) + 1 :]
        shutil.rmtree(work)
    return outcomes


def _watch(process: subprocess.Popen, results: Path, silence: float) -> bool:
    """Waits for the process; ends it where nothing has come from it for long (True)."""
    size, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.02)
        now = results.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > (silence if size else START):
            process.kill()
            return True
    return False


def report(outcomes: Sequence[Outcome], seed: int) -> str:
    """The mutations that did what they must not, and how to make them again."""
    lines = [
        f"{o.reader} {o.number} (seed {seed}): {o.result}: {o.detail[:300]!r} after {o.change}" for o in outcomes if o.result not in ALLOWED
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    module, seed, todo, folder, results = sys.argv[1:]
    _work(module, int(seed), json.loads(Path(todo).read_text()), Path(folder), Path(results))
