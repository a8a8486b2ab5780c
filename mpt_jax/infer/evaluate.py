"""Scores of tasks: every row of a split once, decoded greedily, put through the task's own postprocessing and scores."""

import collections
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import tasks
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Progress, Requests
from mpt_jax.infer.search import GREEDY, Search
from mpt_jax.run_folder import write_json

BATCH_SIZE = 64  # rows decoded together, where nothing else is said
FOLDER = "eval"
DESCRIBED = ("seed", "learning_rate", "factor_learning_rate")
Scorer = Callable[[Sequence[dict], Sequence[str]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class EvalRun:
    """Rows to score: all of a token cache, or ``limit_rows`` drawn once and for all, answered with row ``bank_index`` of the bank.

    ``max_tokens`` of an answer; 0 = the target length of the batch specification, or for a task with labels one token more than the
    longest right answer, which tells every wrong answer from the right one.
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

    def limit(self, spec: BatchSpec) -> int:
        """Most tokens of an answer, EOS included."""
        if self.max_tokens:
            return self.max_tokens
        task = tasks.TABLE.get(self.cache.name)
        longest = int(self.cache.target_lengths.max(initial=0)) + 1
        return min(longest, spec.target_length) if task is not None and task.labels else spec.target_length


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


def evaluate(
    model: Model,
    run: EvalRun,
    spec: BatchSpec,
    progress: Progress | None = None,
) -> EvalResult:
    """Scores of one task."""
    return evaluate_runs(model, [run], spec, progress)[0]


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
    Raises tasks.TaskError where a task has no scores.
    """
    scorers = [run.scorer or tasks.scorer(run.cache.name) for run in runs]
    rows = [run.rows() for run in runs]
    predictions_of: list[list[str]] = [[] for _ in runs]
    done, total = 0, sum(map(len, rows))
    for labels, members in _alike(runs, method).items():
        inputs, task_id, limit = [], [], []
        for place in members:
            run, index = runs[place], rows[place]
            inputs += [run.cache.inputs(row) for row in index]
            task_id += [run.bank_index] * len(index)
            limit += [run.limit(spec)] * len(index)
        count = progress and functools.partial(_from, progress, done, total)
        texts = _answers(model, Requests(inputs, task_id, limit), labels, method, spec, count, search)
        done += len(inputs)
        for place in members:
            predictions_of[place] = list(itertools.islice(texts, len(rows[place])))
    results = []
    for run, index, scorer, found in zip(runs, rows, scorers, predictions_of, strict=True):
        spelled = spelling(run.cache.name, model.vocabulary)
        predictions = [spelled.get(text, text) for text in found]
        scores = scorer([run.cache.extra(row) for row in index], predictions)
        cut = int(np.sum(run.cache.input_lengths[index] > spec.input_length))
        results.append(EvalResult(run.cache.name, run.cache.split, run.bank_index, scores, predictions, index, cut))
    return results


def spelling(task: str, vocabulary: Vocabulary) -> dict[str, str]:
    """A task's labels by what the vocabulary makes of them: a lower-case vocabulary cannot answer "World" otherwise."""
    known = tasks.TABLE.get(task)
    return {vocabulary.text_of(vocabulary.target_tokens(label)): label for label in (known.labels if known else None) or ()}


def _alike(runs: Sequence[EvalRun], method: str) -> dict[tuple[str, ...], list[int]]:
    """Places of the runs that are answered together, by the labels that are ranked; () = decoded."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, run in enumerate(runs):
        task = tasks.TABLE.get(run.cache.name)
        labels = task.labels if method != "decode" and task is not None and task.labels else ()
        groups.setdefault(labels, []).append(place)
    return groups


def _answers(
    model: Model, given: Requests, labels: tuple[str, ...], method: str, spec: BatchSpec, progress: Progress | None, search: Search
) -> Iterator[str]:
    """The answer to each request: a label chosen by the method, or decoded where there are none."""
    if not labels:
        text_of = _remembered(model.vocabulary)
        return (text_of(tokens) for tokens in requests.decode(model, given, spec, progress, search))
    tokens = requests.label_tokens(labels, model.vocabulary)
    if method == "rank":
        chosen = requests.choose_label(model, given, tokens, spec, progress)
    else:
        chosen = requests.score_each_label(model, given, tokens, spec, progress).argmax(axis=1)
    return (labels[number] for number in chosen)


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


def write_results(
    run_dir: str | Path, results: Sequence[EvalResult], run: dict, checkpoint: str, method: str = "decode", search: Search = GREEDY
) -> list[Path]:
    """Writes ``eval/<task>.json`` for each task: mean and standard deviation (population) of each score over the task's runs, and each run.

    ``run`` is the content of run.json. A file of the same task is replaced; '/' and ':' of a task's name become '_'.
    """
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    paths, how = [], {"checkpoint": checkpoint, "method": method} | ({"search": search.describe()} if search != GREEDY else {})
    for task in dict.fromkeys(result.task for result in results):
        found = [result for result in results if result.task == task]
        path = folder / f"{task.replace('/', '_').replace(':', '_')}.json"
        write_json(
            path,
            summary_of(found, run) | how | {"time": time.strftime("%Y-%m-%dT%H:%M:%S")},
        )
        paths.append(path)
    return paths


def summary_of(results: Sequence[EvalResult], run: dict) -> dict:
    """One task's results over its runs as JSON: ``scores`` and ``std`` by name, ``main_score``, ``runs`` with seed and rate of each."""
    first = results[0]
    names = list(first.scores)
    values = {name: [result.scores[name] for result in results] for name in names}
    rows = [{"run": r.bank_index, **_described(run, r), "scores": r.scores} for r in results]
    return {
        "task": first.task,
        "split": first.split,
        "rows": len(first.predictions),
        "cut_inputs": first.cut_inputs,
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


def majority(train: TokenCache, cache: TokenCache, scorer: Scorer | None = None) -> dict[str, float]:
    """Scores of ``cache`` if every answer is the most frequent target text of ``train``."""
    target_text = tasks.scoring.target_text
    counts = collections.Counter(target_text(train.extra(row)) for row in range(train.rows))
    rows = [cache.extra(row) for row in range(cache.rows)]
    return (scorer or tasks.scorer(cache.name))(rows, [counts.most_common(1)[0][0]] * len(rows))


def table(summaries: Sequence[dict]) -> str:
    """Markdown table of ``summary_of`` dicts: a line for each task and score."""
    lines = ["| task | split | rows | runs | score | mean | std |", "|---|---|---:|---:|---|---:|---:|"]
    for summary in summaries:
        start = f"| {summary['task']} | {summary['split']} | {summary['rows']} | {len(summary['runs'])} |"
        for name, mean in summary["scores"].items():
            main = "**" if name == summary["main_score"] else ""
            lines.append(f"{start} {main}{name}{main} | {mean:.2f} | {summary['std'][name]:.2f} |")
    return "\n".join(lines) + "\n"
