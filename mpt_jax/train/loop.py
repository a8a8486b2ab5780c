"""The training loop around the updates: draw, log, score, save. "step" counts updates that are done."""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.data.batches import Batch, BatchIterator
from mpt_jax.data.sampler import Stream
from mpt_jax.distributed import say
from mpt_jax.errors import Preempted, UserError
from mpt_jax.goodput import Clock
from mpt_jax.methods.method import slots_of
from mpt_jax.metrics import MetricsWriter, ProgressLine
from mpt_jax.sharding import to_host
from mpt_jax.train.plan import stopped_groups
from mpt_jax.train.program import Program
from mpt_jax.train.step import TrainState
from mpt_jax.train.terms import Term, terms

# scores the trainable tree on the dev split: for each run its scores by name and the one that selects, or None
Evaluate = Callable[[dict], Sequence[tuple[dict[str, float], float] | None]]


@dataclasses.dataclass
class Window:
    """Sums since the last line of metrics; device arrays are read when the line is written, so that no step waits."""

    terms: Sequence[Term]
    sums: list = dataclasses.field(default_factory=list)
    counts_N: dict[str, np.ndarray | float] = dataclasses.field(default_factory=dict)  # by term
    target_tokens_N: np.ndarray | float = 0.0
    examples: int = 0
    cut_inputs: int = 0
    cut_targets: int = 0
    rows: int = 0  # CRC-32 of which rows were drawn

    def add(self, metrics: dict, batch) -> None:
        """Takes in one step."""
        self.sums.append(metrics)
        for term in self.terms:
            self.counts_N[term.name] = self.counts_N.get(term.name, 0.0) + term.counts(batch)
        self.target_tokens_N = self.target_tokens_N + batch.target_tokens_N
        self.examples += batch.examples
        self.cut_inputs += batch.cut_inputs
        self.cut_targets += batch.cut_targets
        self.rows = zlib.crc32(batch.rows.to_bytes(4, "little"), self.rows)

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """(means by term (N,), last gradient norm (G,), finite in every step (G,))."""
        host = jax.device_get(self.sums)
        means = {name: sum(m[name] for m in host) / np.maximum(count_N, 1.0) for name, count_N in self.counts_N.items()}
        return means, host[-1]["grad_norm"], np.all([m["finite"] for m in host], axis=0)


def update_best(best: Best | None, trainable: dict, scores, program: Program, step: int) -> Best:
    """Keeps each group's arrays from the step with its highest score (the mean over the group's tasks)."""
    plan = program.plan
    host = {path: np.array(to_host(array)) for path, array in trainable.items()}
    if best is None:
        best = Best(host, np.full(plan.num_groups, -np.inf), np.zeros(plan.num_groups, np.int64))
    values_G: list[list[float]] = [[] for _ in range(plan.num_groups)]
    for group, score in zip(plan.group_N, scores, strict=True):
        if score is not None:
            values_G[group].append(score[1])
    means = {group: np.mean(values) for group, values in enumerate(values_G) if values}
    better = [group for group, mean in means.items() if mean > best.score_G[group]]
    if not better:
        return best
    score_G, step_G = best.score_G.copy(), best.step_G.copy()
    step_G[better], score_G[better] = step, [means[group] for group in better]
    arrays = {path: array.copy() for path, array in best.trainable.items()}
    for path, group in itertools.product(arrays, better):
        slots = slots_of(path, program.method.parts, group, plan.group_N)
        arrays[path][slots] = host[path][slots]
    return Best(arrays, score_G, step_G)


@dataclasses.dataclass
class Loop:
    """What happens around the updates of one program: batches are drawn, metrics written, weights scored, kept and saved.

    A context, at whose end what was written is on disk and closed. Iterated after ``begin``: (step, batch) of each update still to do,
    from ``start_step`` on; ``after`` follows each. ``best``: what was best so far.
    """

    program: Program
    batches: BatchIterator
    streams: Sequence[Stream]  # of each group
    checkpoints: Checkpoints
    writer: MetricsWriter
    evaluate: Evaluate | None
    preempted: Callable[[int], bool]  # asked after every step
    start_step: int = 0
    best: Best | None = None
    clock: Clock = dataclasses.field(default_factory=Clock)

    def __post_init__(self):
        self.settings, self.runs = self.program.settings.train, self.program.plan.runs
        self._terms = terms(self.program.objective)
        self._window, self._stopped, self._note, self._progress = Window(self._terms), frozenset(), "", None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._progress:
            self._progress.close()
        self.checkpoints.settle()
        self.batches.close()
        self.writer.close()
        self.clock.close()
        if kind is None:
            self.checkpoints.close()

    def begin(self, state: TrainState) -> None:
        """Scores what training starts from, where that is asked for; in a run that continues, stops what was stopped."""
        if self.evaluate is not None and self.settings.score_start and self.start_step == 0:
            self._score(0, state)
        self._stop(self.start_step)
        self._progress = ProgressLine(self.settings.stage, self.settings.train_steps, self.start_step)
        self.clock.turn_to("computing")

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        last = self.start_step
        for step in range(self.start_step + 1, self.settings.train_steps + 1):
            if self._all_stopped:
                break
            with self.clock.spent("waiting_for_data"):
                batch = next(self.batches)
            yield step, batch
            last = step
        self._settle(last)

    def after(self, step: int, batch: Batch, state: TrainState, metrics: dict) -> None:
        """Logs, scores and saves where that is due.

        Raises UserError, after the last good checkpoint is on disk, when every run's loss is not finite.
        Raises Preempted, after a checkpoint of this step is on disk, when the machine is taken away.
        """
        self._window.add(metrics, batch)
        last = step == self.settings.train_steps
        score_now = self.evaluate is not None and (step % self.settings.steps_between_scores == 0 or last)
        leave_now = self.preempted(step) and not last
        save_now = step % self.settings.steps_between_checkpoints == 0 or last or leave_now
        if step % self.settings.log_steps == 0 or score_now or save_now:
            self._log(step)
        if score_now:
            self._score(step, state)
            self._stop(step)
            save_now |= self._all_stopped
        if save_now:
            meta = {"step": step, "data": {"next_index": step}, "has_best": self.best is not None}
            with self.clock.spent("saving"):
                self.checkpoints.save(step, state._asdict(), self.best, meta)
        self._progress.update(step, self._note)
        if leave_now:
            self._settle(step)
            raise Preempted(f"asked to end: the checkpoint of step {step} is written, the same command continues")

    def _settle(self, step: int) -> None:
        """Waits until what is being saved is on disk."""
        with self.clock.spent("saving"):
            self.checkpoints.wait()
        self.clock.write(step)

    @property
    def _all_stopped(self) -> bool:
        return len(self._stopped) == len(self.streams)

    def _stop(self, step: int) -> None:
        """Stops groups that have not got better for long; their rows of the batch go."""
        settings, before = self.settings, self._stopped
        self._stopped |= stopped_groups(self.best and self.best.step_G, step, settings.steps_between_scores, settings.patience)
        if self._stopped != before:
            names = ", ".join(f"{row.task} (seed {row.seed})" for row in self.runs if row.group in self._stopped - before)
            say(f"step {step}: no better dev score in {settings.patience} scorings, stopped: {names}")
            left = [stream for group, stream in enumerate(self.streams) if group not in self._stopped]
            if left:
                self.batches.keep(left)

    def _log(self, step: int) -> None:
        """Writes the window's metrics and opens the next one."""
        window, self._window = self._window, Window(self._terms)
        means, norm_G, finite_G = window.read()
        drawn = np.flatnonzero(np.asarray(window.target_tokens_N) > 0)
        for n in drawn:
            row = self.runs[n]
            values = {name: float(value_N[n]) for name, value_N in means.items()}
            values |= {"grad_norm": float(norm_G[row.group]), "finite": bool(finite_G[row.group])}
            self.writer.write(step, "train", values, row.task, int(n))
        drawn_rows = {"examples": window.examples, "cut_inputs": window.cut_inputs, "cut_targets": window.cut_targets}
        drawn_rows |= {"rows": f"{window.rows:08x}", "seconds_waiting_for_data": self.clock.seconds["waiting_for_data"]}
        self.writer.write(step, "train", drawn_rows)
        self.writer.flush()
        self.clock.write(step)
        if not finite_G.any():
            self._stop_not_finite(step)
        loss = sum(means["loss"][n] * window.target_tokens_N[n] for n in drawn) / max(np.sum(window.target_tokens_N), 1.0)
        self._note = f"loss {loss:.3f}" + ("" if finite_G.all() else f"; {int((~finite_G).sum())} runs not finite, held")

    def _stop_not_finite(self, step: int) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        kept = "no checkpoint was written yet" if last is None else f"the checkpoint of step {last} is the last good one"
        rates = sorted({row.learning_rate for row in self.runs})
        message = f"loss, gradient or prompts were not finite (NaN or infinite) by step {step} in every run; {kept}"
        advice = f"Lower LEARNING_RATE (now {rates}) or set OptimizerSettings.clip_norm, in a new MODEL_DIR"
        raise UserError(f"{message}. {advice}.")

    def _score(self, step: int, state: TrainState) -> None:
        """Scores the dev split and keeps what is best."""
        assert self.evaluate is not None
        with self.clock.spent("scoring"):
            found = self.evaluate(state.trainable)
        scores = [None if row.group in self._stopped else score for row, score in zip(self.runs, found, strict=True)]
        for n, (row, score) in enumerate(zip(self.runs, scores, strict=True)):
            if score is not None:
                self.writer.write(step, "dev", score[0], row.task, n)
        self.writer.flush()
        self._note = f"dev score {np.mean([score[1] for score in scores if score is not None]):.1f}"
        self.best = update_best(self.best, state.trainable, scores, self.program, step)
