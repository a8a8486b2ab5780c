"""The training loop: draw, step, log, score, save. "step" counts updates that are done."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from mpt_jax.checkpoint import Best, Checkpoints
from mpt_jax.data.batches import BatchIterator
from mpt_jax.data.sampler import Stream
from mpt_jax.distributed import say
from mpt_jax.errors import Preempted, UserError
from mpt_jax.methods.method import slots_of
from mpt_jax.metrics import MetricsWriter, ProgressLine
from mpt_jax.sharding import to_host
from mpt_jax.train.plan import stopped_groups
from mpt_jax.train.program import Program
from mpt_jax.train.step import TrainState, TrainStep
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

    def add(self, metrics: dict, batch) -> None:
        """Takes in one step."""
        self.sums.append(metrics)
        for term in self.terms:
            self.counts_N[term.name] = self.counts_N.get(term.name, 0.0) + term.counts(batch)
        self.target_tokens_N = self.target_tokens_N + batch.target_tokens_N
        self.examples += batch.examples
        self.cut_inputs += batch.cut_inputs
        self.cut_targets += batch.cut_targets

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
    score_G, step_G, arrays = best.score_G.copy(), best.step_G.copy(), dict(best.trainable)
    for group in range(plan.num_groups):
        values = [scores[n][1] for n in plan.members(group) if scores[n] is not None]
        if not values or not np.mean(values) > score_G[group]:
            continue
        score_G[group], step_G[group] = np.mean(values), step
        for path, array in host.items():
            slots = slots_of(path, program.method.parts, group, plan.group_N)
            arrays[path] = arrays[path].copy()
            arrays[path][slots] = array[slots]
    return Best(arrays, score_G, step_G)


@dataclasses.dataclass
class Loop:
    """One training program. ``run`` continues from ``state`` at ``start_step`` to the last step."""

    program: Program
    step_fn: TrainStep
    batches: BatchIterator
    streams: Sequence[Stream]  # of each group
    checkpoints: Checkpoints
    writer: MetricsWriter
    evaluate: Evaluate | None
    preempted: Callable[[int], bool]  # asked after every step

    def __post_init__(self):
        self.settings, self.runs = self.program.settings.train, self.program.plan.runs
        self.terms = terms(self.program.objective)

    def run(self, state: TrainState, best: Best | None, start_step: int) -> tuple[TrainState, Best | None]:
        """Trains. Raises UserError, after the last good checkpoint is on disk, when every run's loss is not finite.

        Raises Preempted, after a checkpoint of this step is on disk, when the machine is taken away.
        """
        total = self.settings.train_steps
        window = Window(self.terms)
        if self.evaluate is not None and self.settings.score_start and start_step == 0:
            best, _ = self._score(0, state, None, frozenset())
        note, stopped = "", self._stop(best, start_step, frozenset())
        with ProgressLine(self.settings.stage, total, start_step) as progress:
            for step in range(start_step + 1, total + 1):
                if len(stopped) == len(self.streams):
                    break
                batch = next(self.batches)
                state, metrics = self.step_fn(state, self.program.frozen, batch)
                window.add(metrics, batch)
                score_now = self.evaluate is not None and (step % self.settings.steps_between_scores == 0 or step == total)
                leave_now = self.preempted(step) and step < total
                save_now = step % self.settings.steps_between_checkpoints == 0 or step == total or leave_now
                if step % self.settings.log_steps == 0 or score_now or save_now:
                    note = self._log(step, window)
                    window = Window(self.terms)
                if score_now:
                    best, note = self._score(step, state, best, stopped)
                    stopped = self._stop(best, step, stopped)
                    save_now |= len(stopped) == len(self.streams)
                if save_now:
                    self._save(step, state, best)
                progress.update(step, note)
                if leave_now:
                    self.checkpoints.wait()
                    raise Preempted(f"told to end: the checkpoint of step {step} is written, the same command continues")
        self.checkpoints.wait()
        return state, best

    def _stop(self, best: Best | None, step: int, before: frozenset[int]) -> frozenset[int]:
        """The groups that are stopped by now; those that newly are free their rows of the batch."""
        stopped = before | stopped_groups(best and best.step_G, step, self.settings.steps_between_scores, self.settings.patience)
        if stopped != before:
            names = ", ".join(f"{run.task} (seed {run.seed})" for run in self.runs if run.group in stopped - before)
            say(f"step {step}: no better dev score in {self.settings.patience} scorings, stopped: {names}")
            left = [stream for group, stream in enumerate(self.streams) if group not in stopped]
            if left:
                self.batches.keep(left)
        return stopped

    def _log(self, step: int, window: Window) -> str:
        means, norm_G, finite_G = window.read()
        drawn = np.flatnonzero(np.asarray(window.target_tokens_N) > 0)
        for n in drawn:
            run = self.runs[n]
            values = {name: float(value_N[n]) for name, value_N in means.items()}
            values |= {"grad_norm": float(norm_G[run.group]), "finite": bool(finite_G[run.group])}
            self.writer.write(step, "train", values, run.task, int(n))
        cut = {"examples": window.examples, "cut_inputs": window.cut_inputs, "cut_targets": window.cut_targets}
        self.writer.write(step, "train", {**cut, "seconds_waiting_for_data": self.batches.waited_s})
        self.writer.flush()
        if not finite_G.any():
            self._stop_not_finite(step)
        loss = sum(means["loss"][n] * window.target_tokens_N[n] for n in drawn) / max(np.sum(window.target_tokens_N), 1.0)
        return f"loss {loss:.3f}" + ("" if finite_G.all() else f"; {int((~finite_G).sum())} runs not finite, held")

    def _stop_not_finite(self, step: int) -> None:
        self.checkpoints.wait()
        last = self.checkpoints.latest_step()
        kept = "no checkpoint was written yet" if last is None else f"the checkpoint of step {last} is the last good one"
        rates = sorted({run.learning_rate for run in self.runs})
        message = f"loss, gradient or prompts were not finite (NaN or infinite) by step {step} in every run; {kept}"
        advice = f"Lower LEARNING_RATE (now {rates}) or set OptimizerSettings.clip_norm, in a new MODEL_DIR"
        raise UserError(f"{message}. {advice}.")

    def _score(self, step: int, state: TrainState, best: Best | None, stopped: frozenset[int]) -> tuple[Best, str]:
        found = self.evaluate(state.trainable)
        scores = [None if run.group in stopped else score for run, score in zip(self.runs, found, strict=True)]
        for n, (run, score) in enumerate(zip(self.runs, scores, strict=True)):
            if score is not None:
                self.writer.write(step, "dev", score[0], run.task, n)
        self.writer.flush()
        mean = np.mean([score[1] for score in scores if score is not None])
        return update_best(best, state.trainable, scores, self.program, step), f"dev score {mean:.1f}"

    def _save(self, step: int, state: TrainState, best: Best | None) -> None:
        meta = {"step": step, "data": {"next_index": step}, "has_best": best is not None}
        self.checkpoints.save(step, state._asdict(), best, meta)
