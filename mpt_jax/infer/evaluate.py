"""Scores of tasks: every row of a split once, decoded greedily, put through the task's own postprocessing and scores."""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpt_jax import tasks
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.spelling import longest_label, spelling, writer
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Progress, Requests
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.output import file_name
from mpt_jax.run_folder import write_json

FOLDER = "eval"
DESCRIBED = ("seed", "learning_rate", "factor_learning_rate", "source")
Scorer = Callable[[Sequence[dict], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EvalRun:
    """Rows to score: all of a token cache, or ``limit_rows`` drawn once and for all, answered with row ``bank_index`` of the bank.

    ``max_tokens`` of an answer; 0 = the target length of the batch specification, or, without beams, for a task with labels one token
    more than its longest label, which tells every wrong answer from the right one, also where no row of the split has that label.
    """

    cache: TokenCache
    bank_index: int = 0
    limit_rows: int = 0
    max_tokens: int = 0
    scorer: Scorer | None = None  # None: the task's own

    def rows(self) -> np.ndarray:
        """Numbers of the rows to score, ascending; the same ones in every run."""
        if not 0 < self.limit_rows < self.cache.rows:
            return np.arange(self.cache.rows)
        return np.sort(np.random.default_rng(0).permutation(self.cache.rows)[: self.limit_rows])

    def limit(self, spec: BatchSpec, vocabulary: Vocabulary, search: Search = GREEDY) -> int:
        """Most tokens of an answer, EOS included."""
        if self.max_tokens:
            return self.max_tokens
        if search.beams > 1:  # a text that the limit cuts is as good as one that ended: another limit is another search
            return spec.target_length
        task = tasks.TABLE.get(self.cache.name)
        labels = task.labels if task is not None else None
        return min(longest_label(labels, vocabulary) + 1, spec.target_length) if labels else spec.target_length

    def described_rows(self, vocabulary: Vocabulary) -> list[dict]:
        """The rows to score as their scorer takes them; texts that a SeqIO task did not keep are read back from their tokens."""
        found = []
        for row in self.rows():
            fields = self.cache.extra(row)
            if "targets" not in fields:
                fields["targets"] = vocabulary.text_of(self.cache.targets(row))
            found.append(fields)
        return found


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Scores in percent by name, and the answers they came from, in the order of ``row_index``."""

    task: str
    split: str
    bank_index: int
    scores: dict[str, float]
    predictions: list[str]
    row_index: np.ndarray
    cut_inputs: int
    cut_targets: int = 0


def evaluate(
    model: Model,
    eval_run: EvalRun,
    spec: BatchSpec,
    progress: Progress | None = None,
) -> EvalResult:
    """Scores of one task."""
    return evaluate_runs(model, [eval_run], spec, progress)[0]


def evaluate_runs(
    model: Model,
    runs: Sequence[EvalRun],
    spec: BatchSpec,
    progress: Progress | None = None,
    method: str = "decode",
    search: Search = GREEDY,
) -> list[EvalResult]:
    """Scores of many (bank row, task) pairs. Rows of all of them share batches, each with its own prompt.

    ``spec``: see requests.inference_spec. ``method``: a row of config.ANSWERS; tasks without labels are decoded by any. ``search``: how
    what is decoded is found.
    Raises tasks.TaskError where a task has no scores, UserError for labels that the vocabulary cannot tell apart or that are too long.
    """
    spellings = [spelling(eval_run.cache.name, model.vocabulary, spec.target_length) for eval_run in runs]
    scorers = [eval_run.scorer or tasks.scorer(eval_run.cache.name, writer(model.vocabulary)) for eval_run in runs]
    rows = [eval_run.rows() for eval_run in runs]
    predictions_of: list[list[str]] = [[] for _ in runs]
    done, total = 0, sum(map(len, rows))
    for labels, members in _alike(runs, method).items():
        inputs, task_id, limit = [], [], []
        for n in members:
            eval_run, index = runs[n], rows[n]
            inputs += [eval_run.cache.inputs(row) for row in index]
            task_id += [eval_run.bank_index] * len(index)
            limit += [eval_run.limit(spec, model.vocabulary, search)] * len(index)
        count = progress and functools.partial(_from, progress, done, total)
        texts = _answers(model, Requests(inputs, task_id, limit), labels, method, spec, count, search)
        done += len(inputs)
        for n in members:
            predictions_of[n] = list(itertools.islice(texts, len(rows[n])))
    results = []
    for eval_run, index, scorer, spelled, found in zip(runs, rows, scorers, spellings, predictions_of, strict=True):
        predictions = [spelled.get(text, text) for text in found]
        scores = scorer(eval_run.described_rows(model.vocabulary), predictions)
        sizes = (eval_run.cache.input_lengths, spec.input_length), (eval_run.cache.target_lengths, spec.target_length)
        cut = (int(np.sum(lengths[index] > limit)) for lengths, limit in sizes)
        results.append(EvalResult(eval_run.cache.name, eval_run.cache.split, eval_run.bank_index, scores, predictions, index, *cut))
    return results


def _alike(runs: Sequence[EvalRun], method: str) -> dict[tuple[str, ...], list[int]]:
    """Numbers of the runs that are answered together, by the labels that are ranked; () = decoded."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, eval_run in enumerate(runs):
        task = tasks.TABLE.get(eval_run.cache.name)
        labels = task.labels if method != "decode" and task is not None and task.labels else ()
        groups.setdefault(labels, []).append(n)
    return groups


def _answers(
    model: Model, given: Requests, labels: tuple[str, ...], method: str, spec: BatchSpec, progress: Progress | None, search: Search
) -> Iterator[str]:
    """The answer to each request: a label chosen by the method, or decoded where there are none."""
    if not labels:
        text_of = _remembered(model.vocabulary)
        return (text_of(tokens) for tokens in requests.decode(model, given, spec, progress, search))
    return iter(requests.label_of(model, given, labels, method, spec, progress))


def _from(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Counts rows done in one of several calls."""
    progress(before + done, total)


def _remembered(vocabulary: Vocabulary) -> Callable[[np.ndarray], str]:
    """vocabulary.text_of that turns each different answer into text once: a label task has few."""
    known: dict[bytes, str] = {}

    def text_of(tokens: np.ndarray) -> str:
        key = tokens.tobytes()
        if key not in known:
            known[key] = vocabulary.text_of(tokens)
        return known[key]

    return text_of


def write_results(run_dir: str | Path, results: Sequence[EvalResult], run: dict, how: Mapping[str, Any]) -> list[Path]:
    """Writes ``eval/<task>.json`` for each task: mean and standard deviation (population) of each score over the task's runs, and each run.

    ``run`` is the content of run.json; ``how``: which checkpoint, of which step, and how it answered. A file of the same task is
    replaced; names as output.file_name makes them.
    """
    folder = results_folder(run_dir)
    paths = []
    for task in dict.fromkeys(result.task for result in results):
        found = [result for result in results if result.task == task]
        path = folder / f"{file_name(task)}.json"
        try:
            write_json(path, summary_of(found, run) | dict(how) | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")})
        except OSError as error:
            raise UserError(f"{str(path)!r} cannot be written ({error.strerror or error}): free space there.") from error
        paths.append(path)
    return paths


def results_folder(run_dir: str | Path) -> Path:
    """The folder of a run's scores, made if it is not there. Raises UserError where it cannot be."""
    folder = Path(run_dir) / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{str(folder)!r} cannot be made, which scores are written to ({error.strerror or error}).") from error
    return folder


def summary_of(results: Sequence[EvalResult], run: dict) -> dict:
    """One task's results over its runs as JSON: ``scores`` and ``std`` by name, ``main_score``, ``runs`` with seed and rate of each."""
    first = results[0]
    names = [name for name in first.scores if all(name in result.scores for result in results)]
    values = {name: [result.scores[name] for result in results] for name in names}
    rows = [{"run": r.bank_index, **_described(run, r), "scores": r.scores} for r in results]
    return {
        "task": first.task,
        "split": first.split,
        "rows": len(first.predictions),
        "cut_inputs": first.cut_inputs,
        "cut_targets": first.cut_targets,
        "main_score": tasks.main_score(first.task),
        "scores": {name: float(np.mean(values[name])) for name in names},
        "std": {name: float(np.std(values[name])) for name in names},
        "runs": rows,
    }


def _described(run: dict, result: EvalResult) -> dict:
    """Seed and learning rates of the bank row, as far as run.json knows it for this task."""
    rows = run.get("runs", [])
    row = rows[result.bank_index] if result.bank_index < len(rows) else {}
    return {key: row[key] for key in DESCRIBED if key in row} if row.get("task") == result.task else {}


def majority(train: TokenCache, cache: TokenCache, vocabulary: Vocabulary, scorer: Scorer | None = None) -> dict[str, float]:
    """Scores of ``cache`` if every answer is the most frequent target text of ``train``, as the vocabulary writes it."""
    counts = collections.Counter(row["targets"] for row in EvalRun(train).described_rows(vocabulary))
    rows, write = EvalRun(cache).described_rows(vocabulary), writer(vocabulary)
    return (scorer or tasks.scorer(cache.name, write))(rows, [write(counts.most_common(1)[0][0])] * len(rows))


def table(summaries: Sequence[dict]) -> str:
    """Markdown table of ``summary_of`` dicts: a line for each task and score."""
    lines = ["| task | split | rows | runs | score | mean | std |", "|---|---|---:|---:|---|---:|---:|"]
    for summary in summaries:
        start = f"| {summary['task']} | {summary['split']} | {summary['rows']} | {len(summary['runs'])} |"
        for name, mean in summary["scores"].items():
            main = "**" if name == summary["main_score"] else ""
            lines.append(f"{start} {main}{name}{main} | {mean:.2f} | {summary['std'][name]:.2f} |")
    return "\n".join(lines) + "\n"
