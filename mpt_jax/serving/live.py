"""What a server answers for: runs and prompts that are added and taken away while requests run.

P prompt positions, D model width.
"""

import asyncio
import collections
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpt_jax.errors import UserError
from mpt_jax.infer import queries, sources
from mpt_jax.infer.predictor import Banks
from mpt_jax.infer.queries import Answer, Asked, Query
from mpt_jax.infer.requests import Model
from mpt_jax.infer.sources import Source, Sources
from mpt_jax.methods.prompt import bank_of
from mpt_jax.model.formats import detect, prompts
from mpt_jax.serving.batcher import Batcher, spec_of
from mpt_jax.serving.measures import Measures
from mpt_jax.serving.refused import Refused
from mpt_jax.serving.settings import ServeSettings

NAME = re.compile(r"[\w.-]{1,100}")
MOST_FILES = 10_000  # of a run folder
PROMPTS = ("peft", "npy", "npz")


class Live:
    """The sources of a server, its queue, and which bank rows queries still wait for."""

    def __init__(self, folders: Sequence[str], settings: ServeSettings, measures: Measures):
        self.settings, self.measures = settings, measures
        self.banks = Banks(folders[0], settings.backbone)
        self.sources = Sources()
        for folder in folders:
            self.sources.add(self.banks.source(folder, settings.checkpoint))
        spec = spec_of(settings, list(self.sources))
        for source in self.sources:  # what is longer than the compiled programs is refused, not cut by them
            lengths = {name: min(getattr(source, name), getattr(spec, name)) for name in ("input_length", "target_length")}
            self.sources.add(source._replace(**lengths))
        self.batcher = Batcher(settings, spec, measures, self._left)
        self.ready = False
        self.batching: asyncio.Task | None = None  # what answers; it ends with the server
        self.taken = self.given_up = 0  # requests that were read, and those of them that were cut off
        self._pending: collections.Counter[tuple[int, int]] = collections.Counter()  # queries by (prompt length, bank row)
        self._retired: set[tuple[int, int]] = set()
        self._changing = asyncio.Lock()
        self._told()

    def _told(self) -> None:
        self.measures.tasks.set(len(self.sources.tasks()))

    async def warm(self) -> int:
        """Compiles everything that is needed to answer; the number of programs."""
        lengths = {_length(source): source for source in self.sources}
        asked = [Asked(source, source.rows[0], np.zeros(1, np.int32), 1, {}) for source in lengths.values()]
        count = sum([await self.batcher.do(self.batcher.warm, one) for one in asked])
        self.ready = self.ready or not self.batcher.stopping
        return count

    async def answer(self, given: Sequence[Query]) -> list[Answer]:
        """An answer to each query; labels are scored one by one, so that any number of them needs no program of its own.

        Raises Refused: 404 for an unknown task, 422 for what cannot be answered, 503 before it is ready.
        """
        if not self.ready:
            raise Refused(503, "the server is still compiling: ask /health until it says ready", {"Retry-After": "1"})
        for task in {query.task for query in given}:
            try:
                self.sources.find(task)
            except UserError as error:
                raise Refused(404, str(error)) from error
        try:
            asked = queries.asked(given, self.sources, cuts_allowed=self.settings.cut)
            parts = [queries.each_label(one, f"text {number} of {len(given)}") for number, one in enumerate(asked)]
        except UserError as error:
            raise Refused(422, str(error)) from error
        self._check_lengths(asked)
        rows = [row for part in parts for row in part]
        self.batcher.check_room(len(rows))
        self._pending.update(map(_place, rows))
        answers = iter(await self.batcher.answer(rows))
        return [_together(one, list(itertools.islice(answers, len(part)))) for one, part in zip(asked, parts, strict=True)]

    def _check_lengths(self, asked: Sequence[Asked]) -> None:
        most = self.batcher.spec.target_length
        wrong = next((one for one in asked if one.limit > most), None)
        if wrong is not None:
            raise Refused(422, f"max_tokens = {wrong.limit}: this server answers with {most} at most (--output_tokens).")

    def _left(self, asked: Asked) -> None:
        """A query is answered or given up; a row that was taken away meanwhile is free when the last one has left."""
        place = _place(asked)
        self._pending[place] -= 1
        if not self._pending[place]:
            del self._pending[place]
            if place in self._retired:
                self._retired.discard(place)
                self._free([place])

    def _free(self, places: Sequence[tuple[int, int]]) -> None:
        for length, row in places:
            self.batcher.executor.submit(self.banks.bank(length).free, [row])

    def _retire(self, source: Source) -> None:
        """Frees the rows of a source that is no longer asked for, those with waiting queries later."""
        places = [(_length(source), row) for row in source.rows]
        waiting = {place for place in places if self._pending[place]}
        self._retired |= waiting
        self._free([place for place in places if place not in waiting])

    async def add(self, path: str, name: str, checkpoint: str) -> tuple[bool, list[str]]:
        """Adds a run folder, or a file or adapter of prompts, below --root; (whether it is new, its tasks).

        One of the same name is replaced: queries that wait are answered by the old one. Raises Refused.
        """
        place = await asyncio.to_thread(self._below_root, path)  # it may look at many files
        name = name or Path(place).name.removesuffix(".npz").removesuffix(".npy")
        if not NAME.fullmatch(name):
            raise Refused(400, f"name = {name!r:.60}: it takes 1 to 100 letters, digits, '_', '.' or '-'.")
        async with self._changing:
            try:
                held = await asyncio.to_thread(self._read, place, name, checkpoint)
            except UserError as error:
                raise Refused(422, str(error)) from error
            return await self._take(name, *held)

    async def _take(self, name: str, source: Source, prompts_NPD: np.ndarray) -> tuple[bool, list[str]]:
        old = next((each for each in self.sources if each.name == name), None)
        taken = sum(bank.taken for bank in self.banks.banks.values())
        if taken + len(prompts_NPD) > self.settings.max_tasks:
            raise Refused(507, f"{taken} prompts are in memory, and --max_tasks is {self.settings.max_tasks}: take some away first.")
        try:
            self.sources.check_names(source)
        except UserError as error:
            raise Refused(422, str(error)) from error
        bank = self.banks.bank(prompts_NPD.shape[1])
        rows = await self.batcher.do(self.batcher.take_rows, bank, prompts_NPD)
        self.sources.add(source._replace(model=bank.model, rows=rows))
        if old is not None:
            self._retire(old)
        self._told()
        return old is None, list(source.tasks)

    def _below_root(self, path: str) -> str:
        """The real path of what is below --root. Raises Refused for anything else."""
        if not self.settings.root:
            raise Refused(403, "nothing can be added: start the server with --root FOLDER.")
        if "\0" in path or not path.strip() or not _encodable(path):
            raise Refused(400, f"path = {path!r:.60} is not a path below --root.")
        root = os.path.realpath(self.settings.root)
        place = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, place]) != root or place == root:
            raise Refused(403, f"path = {path!r:.60} is not below --root.")
        if not os.path.exists(place):
            raise Refused(404, f"path = {path!r:.60}: nothing of that name is below --root.")
        if os.path.isdir(place):
            _check_links(root, place, path)
        return place

    def _read(self, place: str, name: str, checkpoint: str) -> tuple[Source, np.ndarray]:
        """(the source without bank rows, prompts (N, P, D)) of what is at a path."""
        kind, _ = detect(place)
        if kind == "run":
            run, step, prompts_NPD = self.banks.read(place, checkpoint)
            source = self._within_flags(self.banks.described(name, run, place, self._any_model())._replace(step=step))
        elif kind in PROMPTS:
            source, prompts_NPD = self._exported(place, name)
        else:
            raise UserError(f"{place} holds a backbone ({kind}); a run folder, or prompts ({', '.join(PROMPTS)}), can be added.")
        self._check_fits(source, prompts_NPD)
        return source, prompts_NPD

    def _within_flags(self, source: Source) -> Source:
        """With lengths of at most what was typed, as the runs have that the server started with."""
        given = {"input_length": self.settings.input_tokens, "target_length": self.settings.output_tokens}
        return source._replace(**{name: min(getattr(source, name), most) for name, most in given.items() if most})

    def _any_model(self) -> Model:
        """What stands for the bank's until the prompts have rows."""
        return next(iter(self.banks.banks.values())).model

    def _exported(self, place: str, name: str) -> tuple[Source, np.ndarray]:
        backbone = self.banks.backbone
        held = prompts.read(place, backbone.config.d_model, scale=prompts.peft_facts(backbone.config)["prompt_scale"])
        if len(held.task_names) > self.settings.max_tasks:
            raise UserError(f"{place} holds {len(held.task_names):,} prompts, and --max_tasks is {self.settings.max_tasks}.")
        there = held.metadata.get("backbone", {}).get("fingerprint", backbone.fingerprint)
        if there != backbone.fingerprint:
            raise UserError(f"{place} was trained on another backbone ({there}), this is {backbone.name} ({backbone.fingerprint}).")
        settings = _object(held.metadata.get("settings"))
        self.banks.check_common(_object(settings.get("backbone")), f"the run of {place!r}")
        data = _object(settings.get("data"))
        told, cue = _object(data.get("feature_lengths")), data.get("cue")
        spec = self.batcher.spec
        lengths = {"inputs": spec.input_length, "targets": spec.target_length}
        lengths |= {key: value for key, value in told.items() if key in lengths and type(value) is int and value > 0}
        run = {"tasks": list(held.task_names), "runs": [{"task": label, "seed": 0} for label in held.task_names]}
        vocabulary = self.banks.vocabulary(cue if isinstance(cue, str) else "")
        source = Source(name, run, vocabulary, lengths["inputs"], lengths["targets"], {}, self._any_model(), ())
        return source, held.compose()

    def _check_fits(self, source: Source, prompts_NPD: np.ndarray) -> None:
        """UserError for what the compiled programs do not serve."""
        spec, known = self.batcher.spec, self.banks.banks
        if prompts_NPD.shape[1] not in known:
            lengths = ", ".join(map(str, known))
            message = f"its prompts have length {prompts_NPD.shape[1]}, this server has compiled {lengths}"
            raise UserError(f"{message}: start it with a --run of that length.")
        for name, flag in (("input_length", "--input_tokens"), ("target_length", "--output_tokens")):
            if getattr(source, name) > getattr(spec, name):
                told = f"its {name} is {getattr(source, name)}, this server has {getattr(spec, name)}"
                raise UserError(f"{told}: start it with a larger {flag}.")

    async def remove(self, name: str) -> None:
        """Takes a task away, by the name that asks for it. Queries that wait are answered. Raises Refused for one that is not there."""
        async with self._changing:
            try:
                source, task = self.sources.find(name)
            except UserError as error:
                raise Refused(404, str(error)) from error
            kept, gone = sources.split(source, str(task))
            if kept.tasks:
                self.sources.add(kept)
            else:
                self.sources.remove(source.name)
            self._retire(gone)
            self._told()

    def described(self) -> list[dict[str, Any]]:
        """Each task: the name that asks for it, its source, its seeds, its lengths."""
        names = iter(self.sources.tasks())
        return [
            {
                "name": next(names), "source": source.name, "task": task,
                "seeds": list(dict.fromkeys(row["seed"] for row in source.run["runs"] if row["task"] == task)),
                "prompt_length": _length(source), "input_tokens": source.input_length, "output_tokens": source.target_length,
            }
            for source in self.sources for task in source.tasks
        ]  # fmt: skip


def _length(source: Source) -> int:
    """Positions of a source's prompts."""
    bank = bank_of(source.model.own, source.model.group_N)
    return 0 if bank is None else bank.shared_GPD.shape[1]


def _place(asked: Asked) -> tuple[int, int]:
    return _length(asked.source), asked.row


def _together(asked: Asked, answers: list[Answer]) -> Answer:
    """The answer to a query, of those to its parts."""
    if asked.labels is None:
        return answers[0]
    return Answer(scores={label: answer.score for label, answer in zip(asked.labels, answers, strict=True)})


def _encodable(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half a letter
        return False
    return True


def _object(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _check_links(root: str, place: str, path: str) -> None:
    """Raises Refused for a folder with a link that leads out of the root, or with more files than a run has."""
    count = 0
    for folder, folders, files in os.walk(place):
        count += len(folders) + len(files)
        if count > MOST_FILES:
            raise Refused(422, f"path = {path!r:.60} holds more than {MOST_FILES:,} files; a run folder has fewer.")
        for name in (*folders, *files):
            real = os.path.realpath(os.path.join(folder, name))
            if os.path.commonpath([root, real]) != root:
                raise Refused(403, f"path = {path!r:.60} holds the link {name!r:.60}, which leads out of --root.")
