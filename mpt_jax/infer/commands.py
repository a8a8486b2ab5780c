"""What the commands eval, infer, cache and tasks do, from settings to the text they print."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpt_jax import buckets, distributed, tasks
from mpt_jax.bucket_run import brought, put_results
from mpt_jax.checks import check_folder
from mpt_jax.config import BackboneSettings, DataSettings, EvalSettings, MeshSettings
from mpt_jax.data.cache import open_cache
from mpt_jax.data.checked_folder import cache_folder
from mpt_jax.data.spelling import spelling, writer
from mpt_jax.data.vocabulary import Vocabulary, load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer import evaluate, rows
from mpt_jax.infer.evaluate import EvalRun
from mpt_jax.infer.predictor import Predictor, load
from mpt_jax.infer.search import GREEDY, search_of
from mpt_jax.metrics import ProgressLine
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, framed, vocabulary_path
from mpt_jax.output import descriptor
from mpt_jax.sharding import mesh_or_none

DESCRIBED_ROWS = 20_000  # rows of a split that `mpt-jax tasks NAME` measures at most


def _load(settings: EvalSettings, data: DataSettings, mesh: MeshSettings, backbone: str) -> Predictor:
    """The run, with the lengths it was trained with unless TASK_FEATURE_LENGTHS is given. backbone: see ``load``."""
    check_folder("MODEL_DIR", settings.model_dir)
    given = data.feature_lengths if data.lengths_given else None
    return load(settings.model_dir, settings.checkpoint, backbone, given, settings.batch_size, mesh_or_none(mesh))


def _here(settings: EvalSettings) -> EvalSettings:
    """With the run's place on this host, where it is in a bucket."""
    return dataclasses.replace(settings, model_dir=brought("MODEL_DIR", settings.model_dir))


def run_eval(settings: EvalSettings, data: DataSettings, mesh: MeshSettings, names: Sequence[str], backbone: str = "") -> str:
    """Scores the named tasks (default: all of the run), writes ``eval/<task>.json`` in the run folder, returns a Markdown table.

    A task with several seeds is scored with each; of several learning rates those that did best on the dev split in training.
    """
    given, settings = settings, _here(settings)
    predictor = _load(settings, data, mesh, backbone)
    chosen = tuple(names) or predictor.tasks
    bank_rows = {name: predictor.bank_rows(name) for name in chosen}
    folder = cache_folder(data.cache_dir)
    evaluate.results_folder(settings.model_dir)  # before the work, which would be lost
    for name in chosen:
        predictor.check_task(name)
    with distributed.first_before_others("token caches"):
        caches = {name: open_cache(name, settings.split, predictor.vocabulary, folder, trust=data.trust_caches) for name in chosen}
    runs = [EvalRun(caches[name], n, settings.max_rows) for name in chosen for n in bank_rows[name]]
    spec = predictor.spec
    with ProgressLine("eval", sum(len(eval_run.rows()) for eval_run in runs), unit="rows") as progress:

        def count(done: int, total: int) -> None:
            progress.update(done)

        search = search_of(settings)
        results = evaluate.evaluate_runs(predictor.model, runs, spec, count, settings.method, search)
    how = {"checkpoint": settings.checkpoint, "step": predictor.step, "method": settings.method}
    how |= {} if search == GREEDY else {"search": search.describe()}
    paths = evaluate.write_results(settings.model_dir, results, predictor.run, how)
    if buckets.is_address(given.model_dir):
        put_results(given.model_dir, Path(settings.model_dir), paths)
    summaries = [evaluate.summary_of([r for r in results if r.task == name], predictor.run) for name in chosen]
    lengths = f"input length {spec.input_length}, target length {spec.target_length} tokens"
    for feature in ("inputs", "targets"):
        cut = [f"{summary['task']} {summary[f'cut_{feature}']}" for summary in summaries if summary[f"cut_{feature}"]]
        lengths += f"; {feature} cut: {', '.join(cut)} (TASK_FEATURE_LENGTHS)" if cut else ""
    return f"{evaluate.table(summaries)}\n{lengths}; written: {', '.join(map(str, paths))}\n"


def run_infer(
    settings: EvalSettings,
    data: DataSettings,
    mesh: MeshSettings,
    names: Sequence[str],
    source: str,
    output: str,
    score: bool = False,
    backbone: str = "",
) -> str:
    """Answers each row of a JSONL file (or TASK:SPLIT) into another file; returns one line that says so."""
    if len(names) > 1:
        raise UserError(f"infer answers for one task, {len(names)} are named: {', '.join(names)}.")
    predictor = _load(_here(settings), data, mesh, backbone)
    folder = cache_folder(data.cache_dir)
    count = rows.infer(predictor, source, output, names[0] if names else None, score, folder, search_of(settings), settings.method)
    said = f"{count} rows written to {output}"
    if descriptor(output) != 1:
        return f"{said}\n"
    distributed.say(said)  # the answers are what stdout holds
    return ""


def _vocabulary(backbone: BackboneSettings, cue: str) -> Vocabulary:
    """The vocabulary of a backbone, without reading its weights."""
    config, _, own = formats.read_backbone(backbone_folder(backbone.path))
    return framed(load_vocabulary(vocabulary_path(backbone, own)), config, cue)


def run_cache(
    backbone: BackboneSettings, data: DataSettings, names: Sequence[str], splits: str, overwrite: bool = False
) -> Iterator[str]:
    """Writes the token caches of tasks that are missing or stale (all with ``overwrite``); a line for each."""
    chosen = [part.strip() for part in splits.split(",") if part.strip()]
    if not chosen:
        raise UserError(f"--splits {splits!r} names no split: give some, for example train,validation.")
    loaded, folder = _vocabulary(backbone, data.cue), cache_folder(data.cache_dir)
    for name in names:
        for split in chosen:
            cache = open_cache(name, split, loaded, folder, overwrite=overwrite, trust=data.trust_caches)
            tokens = int(cache.input_lengths.sum()), int(cache.target_lengths.sum())
            cut = int((cache.input_lengths > data.input_length).sum())
            counts = f"{tokens[0]:,} input and {tokens[1]:,} target tokens"
            yield f"{name} {split}: {cache.rows:,} rows, {counts}, {cut:,} inputs longer than {data.input_length}: {cache.folder}"


def list_tasks() -> str:
    """All tasks that are registered, one a line."""
    lines = [("task", "group", "splits", "scores", "what it is")]
    for name, task in sorted(tasks.TABLE.items(), key=lambda item: (item[1].group, item[0])):
        if name.rpartition(":")[0] in tasks.paper.SETS and name.rpartition(":")[2] in tasks.paper.VARIANTS:
            continue
        about = task.description or (", ".join(task.labels) if task.labels else task.template or task.kind)
        lines.append((name, task.group, " ".join(task.splits), " ".join(task.scores), about))
    lines += [(name, "seqio", "", "", "") for name in tasks.seqio_tasks.names()[0] if name not in tasks.TABLE]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    mixtures = [f"{name}: {' '.join(members)}" for name, members in tasks.MIXTURES.items() if len(members) > 1]
    variants = f"variants of the paper's tasks: {' '.join(f'NAME:{variant}' for variant in tasks.paper.VARIANTS)}"
    return "\n".join([*(_cells(line, widths) for line in lines), "", "mixtures", *mixtures, "", variants])


def _cells(line: Sequence[str], widths: Sequence[int]) -> str:
    start = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
    return f"{start}  {line[-1]}".rstrip()[:160]


def show_task(name: str, backbone: BackboneSettings, data: DataSettings, shown: int = 3) -> str:
    """One task: origin, template, labels, scores, and for each split rows, lengths in tokens, cuts and label counts; a few rows."""
    found_names = tasks.expand([name])
    if len(found_names) > 1:
        raise UserError(f"{name!r} is a mixture of {', '.join(found_names)}: name one of them.")
    if shown < 0:
        raise UserError(f"--rows {shown}: must be 0 or more.")
    (name,) = found_names
    loaded = _vocabulary(backbone, data.cue)
    tokens = {"inputs": loaded.input_tokens, "targets": loaded.target_tokens}
    found = tasks.describe(name, tokens, data.feature_lengths, DESCRIBED_ROWS, shown, writer(loaded))
    lines = [f"{found['name']} ({found['kind']}, {found['group']})  {found['description']}".rstrip()]
    for key in ("template", "target"):
        if found[key]:
            lines.append(f"{key}: {found[key]}")
    if found["labels"]:
        lines.append(f"labels: {', '.join(found['labels'])}")
        try:
            spelling(name, loaded, data.target_length)
        except UserError as error:
            lines.append(f"  with this vocabulary and these lengths it cannot be trained: {error}")
    lines.append(f"scores: {', '.join(found['scores'])} (selects: {found['main_score']})")
    for split, measured in found["splits"].items():
        lines += ["", f"{split}: {found['source'].get(split, '')}", *_split_lines(measured)]
    for number, row in enumerate(found["examples"]):
        lines += ["", f"row {number}", f"  inputs:  {row.get('inputs', row.get('inputs_tokens'))}"]
        lines.append(f"  targets: {row.get('targets', row.get('targets_tokens'))}")
    return "\n".join(lines)


def _split_lines(measured: dict) -> list[str]:
    more = "" if measured["complete"] else " read (there are more)"
    lines = [f"  {measured['rows']:,} rows{more}"]
    for feature in ("inputs", "targets"):
        sizes = measured[feature]
        cut = f"; {sizes['cut']:,} get cut at {sizes['limit']}" if sizes["limit"] else ""
        lines.append(f"  {feature}: median {sizes['median']:g}, 95 % {sizes['p95']:g}, longest {sizes['max']} tokens{cut}")
    respelled = measured["respelled"]
    if respelled["rows"]:
        example = f"for example {respelled['target']!r:.80} comes back as {respelled['written']!r:.80}"
        lines.append(f"  {respelled['rows']:,} targets lose letters, blanks or case in this vocabulary: {example}")
    if measured["labels"]:
        lines.append("  " + ", ".join(f"{label} {count:,}" for label, count in measured["labels"].items()))
    return lines
