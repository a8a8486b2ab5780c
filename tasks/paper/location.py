"""Where a set's rows lie on this machine: files in their published layout, or a prepared TFDS folder. No TensorFlow here."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.files import read_records
from mpt_jax.tasks.paper.layouts import Reader
from mpt_jax.tasks.paper.sets import ROLES, PaperSet
from mpt_jax.tasks.seqio_tasks import plain
from mpt_jax.tasks.sources import file_digest

DATA_FOLDER = "MPT_TASK_DATA"  # variable: folder of published files, or of TFDS folders
DOWNLOAD = "MPT_TASK_DOWNLOAD"  # variable: '1' lets TFDS download what is not there
TFDS_FOLDER = "TFDS_DATA_DIR"  # TFDS's own variable


class Location(NamedTuple):
    """The rows of a set: `files` split -> (path, reader), or `tfds`, the folder of a prepared builder."""

    files: dict[str, tuple[Path, Reader]]
    tfds: Path | None


def locate(row: PaperSet) -> Location:
    """Where the set's splits are; files of the data folder come before TFDS. Takes no time and needs no network.

    Raises TaskError saying what to download and where to put it if some split is nowhere.
    """
    folder = os.environ.get(DATA_FOLDER)
    try:
        found = _files(Path(folder).expanduser(), row) if folder else {}
    except OSError as error:
        raise TaskError(f"task {row.name!r}: TASK_DATA_DIR = {folder!r} cannot be read ({error})") from error
    if len(found) == len(ROLES[row.carving]):
        return Location(found, None)
    prepared = _tfds_folder(row.tfds)
    if prepared is not None and not found:
        return Location({}, prepared)
    if os.environ.get(DOWNLOAD) == "1" and not found:
        return Location({}, _download(row.tfds))
    raise TaskError(_missing(row, folder, found))


def _files(folder: Path, row: PaperSet) -> dict[str, tuple[Path, Reader]]:
    found = {}
    for split in ROLES[row.carving]:
        for relative, reader in _candidates(row, split):
            path = _resolve(folder, relative)
            if path is not None:
                found[split] = (path, reader)
                break
    return found


def _candidates(row: PaperSet, split: str) -> Iterator[tuple[str, Reader]]:
    for relative, reader in row.files[split]:
        yield relative, reader
        yield f"{relative}.gz", reader
    name = row.name.removeprefix("superglue_")
    yield f"{name}/{row.tfds_splits[split]}.jsonl", records  # rows with TFDS's field names


def records(path: Path) -> Iterator[dict]:
    """JSON lines with the fields of TFDS."""
    for _, record in read_records(path, "jsonl"):
        yield record


def _resolve(folder: Path, relative: str) -> Path | None:
    """The path below a folder, whatever the case of its names."""
    path = folder
    for part in Path(relative).parts:
        if not path.is_dir():
            return None
        names = {entry.name for entry in path.iterdir()}
        if part not in names:
            part = next((name for name in sorted(names) if name.lower() == part.lower()), part)
        path = path / part
    return path if path.exists() else None


def tfds_roots() -> list[Path]:
    """Folders that may hold prepared TFDS builders."""
    given = [os.environ.get(DATA_FOLDER), os.environ.get(TFDS_FOLDER)]
    return [Path(root).expanduser() for root in given if root] + [Path.home() / "tensorflow_datasets"]


def _tfds_folder(name: str) -> Path | None:
    """The newest prepared version of a builder, by what lies on disk: importing TFDS would take seconds."""
    for root in tfds_roots():
        versions = [path.parent for path in (root / name).glob("*/dataset_info.json")]
        if versions:
            return max(versions, key=lambda path: [int(part) if part.isdecimal() else -1 for part in path.name.split(".")])
    return None


def _download(name: str) -> Path:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=os.environ.get(TFDS_FOLDER) or os.environ.get(DATA_FOLDER))
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _missing(row: PaperSet, folder: str | None, found: dict) -> str:
    wanted = [f"{row.files[split][0][0]}" for split in ROLES[row.carving] if split not in found]
    where = f"in {folder}" if folder else f"(the folder is not set: --task_data_dir or the variable {DATA_FOLDER})"
    there = f"; found there: {', '.join(str(path) for path, _ in found.values())}" if found else ""
    return (
        f"task {row.name!r}: no {' and no '.join(wanted)} {where}{there}, and no prepared TFDS {row.tfds!r} in "
        f"{', '.join(map(str, tfds_roots()))}. Download the files from {row.home} and put them there under these names; or, where "
        f"there is a network, prepare them with tensorflow_datasets.load({row.tfds!r}) or --gin.TaskSettings.download=True, and copy "
        "the folder"
    )


def read(row: PaperSet, where: Location, split: str) -> Iterator[dict]:
    """The records of a published split ('train', 'validation' or 'test' as in ROLES), in their order."""
    if where.tfds is None:
        path, reader = where.files[split]
        return reader(path)
    return _tfds_records(where.tfds, row.tfds_splits[split])


def _tfds_records(folder: Path, split: str) -> Iterator[dict]:
    import tensorflow as tf
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    with contextlib.suppress(RuntimeError):  # TensorFlow has started already and keeps what it holds
        tf.config.set_visible_devices([], "GPU")  # or it would take the accelerator's memory from JAX
    try:
        dataset = tfds.builder_from_directory(folder).as_dataset(split=split, shuffle_files=False)
        for example in tfds.as_numpy(dataset):
            yield plain(example)
    except (OSError, KeyError, ValueError, ParseError, tf.errors.OpError) as error:
        first = str(error).strip().partition("\n")[0]
        raise TaskError(f"{folder}: split {split!r} of this TFDS folder cannot be read: {first:.300}: prepare it anew") from error


def fingerprint(row: PaperSet, where: Location) -> dict:
    """What the rows are made of, JSON-able: digests of the files, or of TFDS's description of what it wrote."""
    if where.tfds is not None:
        info = file_digest(str(where.tfds / "dataset_info.json"))
        return {"tfds": row.tfds, "version": where.tfds.name, "info": info}
    found = {}
    for split, (path, _) in where.files.items():
        paths = sorted(path.rglob("*.xml")) if path.is_dir() else [path]
        found[split] = [file_digest(str(file)) for file in paths]
    return {"files": found}
