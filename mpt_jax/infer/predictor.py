"""Trained runs for notebooks and scripts: ``mpt_jax.load(run_dir).predict(["…"], task="trec")``, ``mpt_jax.load([a, b]).answer([Query…])``.

B examples, P prompt positions, D model width, C labels.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import distributed, tasks
from mpt_jax.checkpoint import load as load_checkpoint
from mpt_jax.config import BackboneSettings, DataSettings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.spelling import spelling
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import queries, requests
from mpt_jax.infer.history import best_dev
from mpt_jax.infer.live_bank import LiveBank
from mpt_jax.infer.queries import Answer, Query
from mpt_jax.infer.requests import BATCH_SIZE, Model, Progress
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.infer.sources import Source, Sources
from mpt_jax.methods.bank import compose, compose_all
from mpt_jax.methods.method import backbone_of, check_counts, own_of, places_for
from mpt_jax.methods.prompt import METHOD, bank_alone, bank_of
from mpt_jax.methods.table import method_named
from mpt_jax.model.backbone import Backbone, load_backbone
from mpt_jax.model.families.family import Network
from mpt_jax.regular_files import shown
from mpt_jax.run_folder import read_run_json, require

LENGTHS = tuple(f"settings.data.feature_lengths.{name}" for name in ("inputs", "targets"))
NEEDED = ("tasks", "runs", "settings.backbone.path", *LENGTHS, "backbone.name", "backbone.fingerprint")
COMMON = ("dtype", "vocabulary", "int8")  # of the backbone's settings: the same in all runs that are answered together


class Predictor:
    """Answers, probabilities and prompts of the tasks of one run, or of several on one backbone.

    Texts are what the model reads; ``format`` applies a task's template. A task trained under several learning rates and seeds answers
    with the best rates on the dev split and the first seed, unless ``seed`` names another. A task that several runs have is RUN/TASK.
    ``model``, ``vocabulary``, ``run`` and ``step``, that its training had come to, are the first run's.
    Methods that take ``task`` need it only where there are several. They raise UserError for a task or seed that the run does not have.

    >>> run = mpt_jax.load("runs/target")
    >>> run.tasks
    ('definition_valence',)
    >>> run.prompt("definition_valence").shape  # P vectors of the model's width D
    (20, 192)
    """

    def __init__(self, sources: Sequence[Source], batch_size: int = BATCH_SIZE):
        self.sources = Sources()
        for source in sources:
            self.sources.add(source)
        first = sources[0]
        self.model, self.vocabulary, self.run, self.step = first.model, first.vocabulary, first.run, first.step
        lengths = (max(getattr(source, name) for source in sources) for name in ("input_length", "target_length"))
        self.spec: BatchSpec = requests.inference_spec(*lengths, batch_size)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its tasks by the names that ask for them."""
        return self.sources.tasks()

    def answer(self, asked: Sequence[Query], progress: Progress | None = None, search: Search = GREEDY) -> list[Answer]:
        """An answer to each query, in their order; queries of any tasks share batches. ``search`` finds the texts.

        Raises UserError naming the query that cannot be answered: an unknown task or seed, an empty text, a target that is too long.

        >>> text, scored = run.answer([mpt_jax.Query("definition: full of joy"), mpt_jax.Query("definition: a wound", target="negative")])
        >>> text.text, scored.score < 0
        ('...', True)
        """
        return queries.answer(queries.asked(asked, self.sources), self.spec, progress, search)

    def predict(
        self,
        texts: Sequence[str],
        task: str | None = None,
        seed: int | None = None,
        max_tokens: int = 0,
        progress: Progress | None = None,
        search: Search = GREEDY,
    ) -> list[str]:
        """An answer to each text, the most likely one token by token, or as ``search`` says.

        At most ``max_tokens`` tokens (0: the run's target length). Inputs longer than the run reads are cut, and a warning counts them.
        Raises UserError as ``answer`` does, and for a single text instead of a list.

        >>> run.predict(["definition: full of joy"], task="definition_valence")
        ['...']
        """
        asked = [Query(text, task, seed, max_tokens) for text in _list_of("texts", texts)]
        return [str(answer.text) for answer in self.answer(asked, progress, search)]

    def score(self, inputs: Sequence[str], targets: Sequence[str], task: str | None = None, seed: int | None = None) -> np.ndarray:
        """Log-probability of each target (natural logarithm, summed over its tokens, EOS included): (B,) float32.

        Raises UserError as ``answer`` does, and unless there is a target for each input.

        >>> run.score(["definition: full of joy"], ["positive"]).shape
        (1,)
        """
        if isinstance(targets, str) or len(inputs) != len(targets):
            raise UserError(f"score takes a target for each input: {len(inputs)} inputs, {len(targets)} targets.")
        asked = [Query(text, task, seed, target=target) for text, target in zip(_list_of("texts", inputs), targets, strict=True)]
        return np.array([answer.score for answer in self.answer(asked)], np.float32)

    def score_labels(
        self,
        texts: Sequence[str],
        labels: Sequence[str] | None = None,
        task: str | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Log-probability of every label for each text: (B, C) float32; labels default to the registered task's.

        Raises UserError as ``answer`` does, and for labels that the vocabulary cannot tell apart.

        >>> logp_BC = run.score_labels(["definition: full of joy"], labels=("negative", "positive"))
        >>> logp_BC.shape, bool((logp_BC < 0).all())
        ((1, 2), True)
        """
        labels = tuple(labels or self.labels(task))
        answers = self.answer([Query(text, task, seed, labels=labels) for text in _list_of("texts", texts)], progress)
        return np.array([list((answer.scores or {}).values()) for answer in answers], np.float32).reshape(len(texts), len(labels))

    def bank_rows(self, task: str | None = None) -> list[int]:
        """Bank rows of a task, those with the best learning rates; one row for a run that trained a backbone.

        Raises UserError for a task that the run does not hold, or where none is named and it holds several.
        """
        source, own = self.sources.find(task)
        return source.bank_rows(own)

    def undecided(self) -> list[str]:
        """A line for each task that has several learning rates, and no dev scores to tell which did best."""
        return [line for source in self.sources for line in source.undecided()]

    def bank_row(self, task: str | None = None, seed: int | None = None) -> int:
        """The bank row that answers for a task. Raises UserError for an unknown task or seed."""
        source, own = self.sources.find(task)
        return source.bank_row(own, seed)

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Labels of a task of the table. Raises UserError where it has none."""
        name = self._one_task(task)
        registered = tasks.TABLE.get(name)
        if registered is not None and not registered.labels:
            raise UserError(f"task {name!r} has a target and no labels: leave out --score, or give `labels`.")
        if registered is None:
            raise UserError(f"task {name!r} has no labels here: register it (MIXTURE_OR_TASK_MODULE) or give `labels`.")
        return registered.labels

    def check_task(self, task: str | None, needs_labels: bool = False) -> None:
        """Raises UserError for labels that cannot be answered (too long, the same to the vocabulary), or none where they are needed."""
        source, own = self.sources.find(task)
        spelling(own, source.vocabulary, source.target_length)
        if needs_labels:
            self.labels(task)

    def _one_task(self, task: str | None) -> str | None:
        """The name that a task is registered by: the one that is asked for, or the run's only one."""
        if task in tasks.TABLE or (task is None and len(self.tasks) > 1):
            return task
        with contextlib.suppress(UserError):  # RUN/TASK too
            return self.sources.find(task)[1]
        return task

    def prompt(self, task: str | None = None, seed: int | None = None) -> np.ndarray:
        """The prompt of a task, composed: (P, D) float32. Raises UserError for a run that trained something else.

        >>> run.prompt().dtype
        dtype('float32')
        """
        source, own = self.sources.find(task)
        bank = bank_of(source.model.own, source.model.group_N)
        if bank is None:
            raise UserError("this run trained a backbone, or another method's parameters, and holds no prompt.")
        return np.asarray(compose(bank, np.array([source.bank_row(own, seed)]))[0], np.float32)

    def format(self, row: Mapping, task: str | None = None) -> str:
        """The text that the model reads for a row of fields. Raises tasks.TaskError for a missing field, UserError for the task.

        >>> run.format({"definition": "full of joy"})
        'definition: full of joy'
        """
        name = self._one_task(task)
        if name not in tasks.TABLE:
            raise UserError(f"task {name!r} is not registered here: import its module (MIXTURE_OR_TASK_MODULE), or give texts.")
        return tasks.inputs_text(tasks.TABLE[name], row, "the given row")


def _list_of(what: str, texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str):
        raise UserError(f"{what} must be a list of texts, not the text {texts!r:.60}.")
    return texts


def load(
    run_dir: str | Path | Sequence[str | Path],
    checkpoint: str = "best",
    backbone: str = "",
    feature_lengths: Mapping[str, int] | None = None,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
) -> Predictor:
    """A run folder ready to answer, or several that tuned prompts on the same weights. checkpoint: 'best' on the dev split | 'last'.

    ``backbone`` replaces a folder that has moved since training; its weights must be the same. ``feature_lengths`` (tokens) default
    to those of training; ``batch_size`` rows are answered together, split over ``mesh`` if there is one. Raises UserError for a folder
    that is not a run folder, is damaged, or belongs to other weights.

    >>> run = mpt_jax.load("runs/target")
    >>> run.predict(["definition: full of joy"])
    ['...']
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"checkpoint = {checkpoint!r} is not one of 'best', 'last'.")
    if not isinstance(run_dir, str | Path):
        if not run_dir:
            raise UserError("no run folder is given.")
        bank = Banks(run_dir[0], backbone, mesh)
        return Predictor([bank.source(folder, checkpoint, feature_lengths) for folder in run_dir], batch_size)
    trained, run, step, _ = load_checkpoint(run_dir, checkpoint)
    require(run, run_dir, *NEEDED)
    method, own = method_named(run["method"]), own_of(trained)
    group_N = np.array([row["group"] for row in run["runs"]], np.int32)
    check_counts(own, method.parts, group_N)
    given = _backbone_settings(run, backbone)
    places = functools.partial(places_for, mesh, method)
    loaded = load_backbone(given, lambda config: places(config).of_backbone())
    advice = "put those weights back there, or give their folder: --backbone FOLDER, mpt_jax.load(run, backbone=FOLDER)"
    loaded.check_same(run, f"run {str(run_dir)!r}", advice)
    flat = loaded.flat()
    # trained weights replace the frozen ones; what else was trained for them (teaching heads) answers nothing
    weights = {path: jnp.asarray(array, flat[path].dtype) for path, array in trained.items() if path in flat}
    params = backbone_of(flat | places(loaded.config).put(weights))
    network = Network(loaded.config, given.computation, method.adaptation)
    model = Model(network, params, loaded.vocabulary(_cue(run)), own, method.parts, group_N, mesh)
    source = _source(_name(run_dir), run, model.vocabulary, model, range(len(group_N)), run_dir, feature_lengths)
    return Predictor([source._replace(step=step)], batch_size)


def _name(run_dir: str | Path) -> str:
    """What a run is called: its folder's name, also where the path is `.` or ends in `..`."""
    return os.path.basename(os.path.abspath(run_dir))


def _backbone_settings(run: Mapping, backbone: str) -> BackboneSettings:
    """What a run says of its backbone, as it is loaded to answer."""
    given = BackboneSettings(**run["settings"]["backbone"])
    if not backbone and os.path.isabs(given.path) and not os.path.exists(given.path):
        message = f"the run's backbone was {given.path!r}, which no longer exists"
        raise UserError(f"{message}: give the folder of the same weights as --backbone.")
    # not 'fused', which the machine that trained may have had and this one lacks
    attention = "einsum" if given.attention == "einsum" else "auto"
    return dataclasses.replace(given, path=backbone or given.path, attention=attention)


def _cue(run: Mapping) -> str:
    return run["settings"]["data"].get("cue") or ""


def _source(name: str, run: Mapping, vocabulary, model: Model, rows, run_dir, feature_lengths: Mapping[str, int] | None) -> Source:
    lengths = DataSettings(feature_lengths=dict(feature_lengths or run["settings"]["data"]["feature_lengths"])).feature_lengths
    source = Source(name, run, vocabulary, lengths["inputs"], lengths["targets"], best_dev(run_dir), model, tuple(rows))
    for line in source.undecided():
        distributed.say(f"{str(run_dir)!r}: {line}")
    return source


class Banks:
    """Prompts of any number of runs on one backbone, in a bank for each prompt length. The first run names the backbone."""

    def __init__(self, run_dir: str | Path, backbone: str = "", mesh: Mesh | None = None):
        run = read_run_json(run_dir)
        require(run, run_dir, *NEEDED)
        self.settings = _backbone_settings(run, backbone)
        self._mesh, self._first = mesh, str(run_dir)
        self.backbone: Backbone = load_backbone(self.settings, lambda config: places_for(mesh, METHOD, config).of_backbone())
        self.params = backbone_of(self.backbone.flat())
        self.banks: dict[int, LiveBank] = {}
        self._names: set[str] = set()
        self._vocabularies: dict[str, Vocabulary] = {}

    def bank(self, length: int) -> LiveBank:
        """The bank of prompts of a length, made when it is first asked for."""
        if length not in self.banks:
            config = self.backbone.config
            network = Network(config, self.settings.computation, METHOD.adaptation)
            self.banks[length] = LiveBank(network, self.params, self.vocabulary(), length, config.d_model, self._mesh)
        return self.banks[length]

    def read(self, run_dir: str | Path, checkpoint: str = "best") -> tuple[dict, int, np.ndarray]:
        """(run.json, step, prompts (N, P, D) float32) of a run. Raises UserError unless it tuned prompts, on these weights, in this way."""
        trained, run, step, _ = load_checkpoint(run_dir, checkpoint)
        require(run, run_dir, *NEEDED)
        self.backbone.check_same(run, f"run {str(run_dir)!r}", "give runs of one backbone, or answer for this one alone")
        bank = bank_alone(trained, run, str(run_dir))
        if bank is None:
            raise UserError(f"run {str(run_dir)!r} trained {run['method']!r}, and only prompts share batches: load it alone.")
        self.check_common({"int8": False, **run["settings"]["backbone"]}, f"run {str(run_dir)!r}")  # older runs had none
        return run, step, np.asarray(compose_all(bank), np.float32)

    def check_common(self, there: Mapping, what: str) -> None:
        """Raises UserError unless a run's settings of its backbone, where they are known, are those of the first run."""
        for name in COMMON:
            found, here = there.get(name), getattr(self.settings, name)
            if found is not None and found != here:
                message = f"{what} was trained with {name} {shown(found)}, run {self._first!r} with {here!r}"
                raise UserError(f"{message}: answer for them apart.")

    def source(self, run_dir: str | Path, checkpoint: str = "best", feature_lengths: Mapping[str, int] | None = None) -> Source:
        """A run, its prompts in the bank. It is called by its folder's name, or its whole path where that is taken."""
        run, step, prompts_NPD = self.read(run_dir, checkpoint)
        name = _name(run_dir) if _name(run_dir) not in self._names else str(run_dir)
        if name in self._names or os.path.realpath(run_dir) in self._names:
            raise UserError(f"run {str(run_dir)!r} is given twice; give it once.")
        self._names |= {name, os.path.realpath(run_dir)}
        bank = self.bank(prompts_NPD.shape[1])
        source = self.described(name, run, run_dir, bank.model, feature_lengths)
        return source._replace(rows=bank.add(prompts_NPD), step=step)

    def vocabulary(self, cue: str = "") -> Vocabulary:
        """The backbone's vocabulary with a cue, read once."""
        if cue not in self._vocabularies:
            self._vocabularies[cue] = self.backbone.vocabulary(cue)
        return self._vocabularies[cue]

    def described(self, name: str, run: Mapping, run_dir, model: Model, feature_lengths: Mapping[str, int] | None = None) -> Source:
        """A run as a source that has no bank rows yet."""
        return _source(name, run, self.vocabulary(_cue(run)), model, (), run_dir, feature_lengths)
