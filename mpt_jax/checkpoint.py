"""Orbax checkpoints of {trainable tree, optimiser state, step, data state}, of each run's best weights and of what its method keeps.

A checkpoint is written asynchronously into a temporary folder and renamed when complete, so that a kill at any moment leaves the
previous one whole. The frozen backbone is never in a checkpoint; its fingerprint is in run.json. The item `meta` holds the step, digests
of all arrays (mpt_jax/digests.py) and a digest of itself; every read checks them. A checkpoint of before, whose meta has no digests,
is read unchecked and a line says so.
"""

import concurrent.futures
import contextlib
import functools
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from mpt_jax import digests, distributed
from mpt_jax.errors import UserError
from mpt_jax.model.formats import t5x
from mpt_jax.model.formats.detect import detect
from mpt_jax.model.formats.files import Folder
from mpt_jax.paths import Opened, readable_run
from mpt_jax.regular_files import check_regular
from mpt_jax.run_folder import ASIDE, CHECKPOINTS, checkpoint_steps, read_run_json
from mpt_jax.sharding import put_array

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax is writing
ITEMS = ("state", "best", "meta")
WRITE_S = 24 * 3600  # most seconds of one write: a large model on a slow disk takes hours [ours]
MOST_PACKED, PACKED_TIMES = 2**28, 100  # an item's arrays may have so many bytes, or so many times its files' [ours]
CHECK_S = 1.0  # between looks, while a write goes on, whether its folder is there [ours]
KEPT = "kept"  # the item of what a method needs and does not train, where there is any
META_WITHOUT_DIGESTS = {"step", "data", "has_best"}  # all that the meta of a checkpoint of before can hold
# what Orbax, TensorStore and the file system raise for a damaged file or a disk that takes no more
FAILURES = (ValueError, LookupError, OSError, RuntimeError, TypeError, AttributeError, AssertionError, SyntaxError)

# what TensorStore and Orbax print of the other arrays after the first that cannot be read
LATE = ("Event loop is closed", "Encountered error while reading array index")


class Best(NamedTuple):
    """Best weights so far on the host: trainable arrays by path, and each group's score and step (G,)."""

    trainable: dict[str, np.ndarray]
    score_G: np.ndarray
    step_G: np.ndarray


@functools.cache
def _quiet() -> None:
    """Keeps Orbax from telling of every step, and from a traceback for each array of a damaged checkpoint after the first."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # of the reads that fail it awaits the first alone
    warnings.filterwarnings("ignore", message="Sharding info not provided|coroutine .* was never awaited")
    before = sys.unraisablehook

    def hook(told):
        if not str(told.exc_value).startswith(LATE):
            before(told)

    sys.unraisablehook = hook


class Checkpoints:
    """The checkpoints of a run folder; the last ``keep`` ones stay. What a killed process left half written is cleared.

    runs: what run.json says of the runs; kept as a digest, so that a checkpoint of other runs is not taken for theirs. kept: arrays by
    path that do not change, once in each checkpoint. Raises UserError where the folder cannot hold checkpoints, and, before and after
    each write, where it is no longer the folder that was opened.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, runs: list | None = None, kept: Mapping[str, Any] | None = None):
        _quiet()
        self._kept = {KEPT: dict(kept)} if kept else {}
        self._runs = {} if runs is None else {"runs": digests.of_json(runs)}
        self.folder = Path(run_dir).absolute() / CHECKPOINTS
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{str(self.folder)!r} is not a folder, and a run keeps its checkpoints there; move it away.")
        self.cleared = _unfinished(self.folder)  # names of what the manager clears
        # of several processes each waits for all others at Orbax's own limit, 20 minutes
        limit = {"async_options": ocp.AsyncOptions(timeout_secs=WRITE_S)} if jax.process_count() == 1 else {}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True, **limit
        )  # fmt: skip
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=(*ITEMS, *self._kept))
            # JAX agrees on when to end by the number of questions: those of Orbax would make processes miss it
            self._manager.reached_preemption = lambda step: False
            self._opened = Opened(self.folder)
        except FAILURES as error:
            raise UserError(f"{str(self.folder)!r} cannot hold checkpoints: {_reason(error)}. Give another MODEL_DIR.") from error
        # of several processes each takes part in every save at once: they save in the loop's own thread
        self._writer = concurrent.futures.ThreadPoolExecutor(1) if jax.process_count() == 1 else None
        self._pending: concurrent.futures.Future | None = None

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def put_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way and returns where it is now."""
        aside = self.folder.parent / ASIDE / str(step)
        with distributed.first_before_others(f"put aside {aside}"):
            if distributed.is_first():
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}_")
                aside.parent.mkdir(exist_ok=True)
                os.rename(self.folder / str(step), aside)
        self._manager.reload()
        return aside

    def save(self, step: int, state, best: Best | None, meta: dict) -> None:
        """Starts writing; returns once the arrays are copied to the host. A failure of the previous write is raised here.

        What Orbax does before its own writing goes on beside the step as well: 40-150 ms measured, where copying a bank takes 1 ms.
        """
        self._check_there(step)
        best_tree = {} if best is None else {"trainable": best.trainable, "score": best.score_G, "step": best.step_G}
        trees = {"state": state, "best": {"empty": np.zeros(1), **best_tree}, **self._kept}
        if self._writer:
            self._finish_pending(step)
            # a copy: the step after this one is given the arrays' memory
            trees["state"] = jax.tree.map(lambda array: np.array(array), state)
        try:
            if self._writer:
                self._pending = self._writer.submit(self._write, step, trees, meta)
            else:
                self._wait_for_orbax(step)
                self._write(step, trees, meta)
        except FAILURES as error:
            raise self._not_saved(step, error) from error

    def _check_there(self, step: int | None) -> None:
        """Orbax makes a folder again that is gone, even between this check and its writing: so each write is checked twice."""
        if not self._opened.is_there():
            raise self._not_saved(step, FileNotFoundError())

    def _write(self, step: int, trees: dict, meta: dict) -> None:
        found = {name: digests.digests(tree) for name, tree in trees.items()}
        arguments = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        meta = _sealed({**meta, **self._runs, "step": step, "digests": found})
        self._manager.save(step, args=ocp.args.Composite(**arguments, meta=ocp.args.JsonSave(meta)))

    def _finish_pending(self, step: int | None) -> None:
        try:
            if self._pending:
                self._waited(self._pending, step)
        except FAILURES as error:
            self._pending = None
            raise self._not_saved(step, error) from error
        self._pending = None  # not after Ctrl-C: the write goes on, and ``settle`` waits for it

    def _waited(self, job: concurrent.futures.Future, step: int | None) -> None:
        """Returns when a thread has done the job. For a folder that is gone Orbax waits ten minutes and more; this does not."""
        while not concurrent.futures.wait([job], CHECK_S).done:
            self._check_there(step)
        job.result()

    def _wait_for_orbax(self, step: int | None) -> None:
        job: concurrent.futures.Future = concurrent.futures.Future()

        def wait() -> None:
            try:
                job.set_result(self._manager.wait_until_finished())
            except BaseException as error:  # for who waits
                job.set_exception(error)

        threading.Thread(target=wait, daemon=True).start()
        self._waited(job, step)

    def wait(self) -> None:
        """Returns when everything is on disk. Raises UserError if it could not be written."""
        self._finish_pending(None)
        try:
            self._wait_for_orbax(None)
            self._manager.check_for_errors()
        except FAILURES as error:
            raise self._not_saved(None, error) from error
        self._check_there(None)

    def settle(self) -> None:
        """Waits until what is being written is on disk, or is not; so that an interrupted process leaves no half of it."""
        with distributed.uninterrupted(), contextlib.suppress(UserError):
            self.wait()

    def close(self) -> None:
        """Waits and releases threads."""
        try:
            self.wait()
        finally:
            if self._writer:
                self._writer.shutdown(wait=self._opened.is_there())
            self._opened.close()
        self._manager.close()

    def _not_saved(self, step: int | None, error: Exception) -> UserError:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        message = f"{what} could not be written to {str(self.folder)!r}"
        if not self._opened.is_there():
            now = ", and what is there now was made since" if self.folder.exists() else ""
            advice = "Put the run's folder back there and run the same command again, or give another MODEL_DIR"
            return UserError(f"{message}: the folder is gone (moved or deleted{now}). {advice}.")
        whole = checkpoint_steps(self.folder.parent)
        last = f"the checkpoint of step {whole[-1]} is whole" if whole else "no earlier checkpoint exists"
        advice = "Free space there, or give another MODEL_DIR, and run the same command again"
        return UserError(f"{message} ({_reason(error)}); {last}. {advice}.")

    def restore(self, step: int, state) -> tuple[Any, Best | None, dict]:
        """(state like the given one, best, meta). Raises UserError naming a damaged checkpoint."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)),
            best=ocp.args.PyTreeRestore(),
            meta=ocp.args.JsonRestore(),
        )
        folder = self.folder / str(step)
        advice = "Move that folder away, or type --skip_damaged_checkpoints, to continue from the checkpoint before it"
        _check_files(folder, advice)
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            done = reader.submit(self._manager.restore, step, args=arguments)
        error = done.exception()
        # Orbax raises a bare Exception for a part of an array that cannot be read
        if error is not None and (type(error) is Exception or isinstance(error, FAILURES)):
            raise _damaged(folder, error, advice) from error
        restored = done.result()
        try:
            found = jax.tree.map(_like, state, restored["state"])
            noted = _checked_meta(folder, restored["meta"])
            if self._runs and restored["meta"].get("runs", self._runs["runs"]) != self._runs["runs"]:
                raise ValueError("it was trained for other tasks, seeds or rates than run.json names")
            for name, tree in (("state", found), ("best", restored["best"])):
                _check_arrays(name, tree, noted)
            best = _best_from(restored["best"])
        except (ValueError, LookupError, TypeError) as error:
            raise _damaged(folder, error, advice) from error
        return found, best, restored["meta"]


def _unfinished(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if UNFINISHED in name) if folder.is_dir() else []


def _sealed(meta: dict) -> dict:
    """With a digest of itself."""
    return {**meta, "sha256": digests.of_json(meta)}


def _checked_meta(folder: Path, meta: object) -> dict | None:
    """The digests that a checkpoint's meta holds, by item; None, said in a line, for one of before that holds none.

    Raises ValueError where the meta is not as it was written, or belongs to another step.
    """
    if not isinstance(meta, dict):
        raise ValueError("its meta is not an object")
    if meta.get("step", int(folder.name)) != int(folder.name):
        raise ValueError(f"its own step is {meta['step']!r}")
    if meta.keys() <= META_WITHOUT_DIGESTS:
        distributed.say(f"checkpoint {str(folder)!r} has no digests (an earlier version wrote it): its numbers are not checked")
        return None
    if _sealed({name: value for name, value in meta.items() if name != "sha256"}) != meta:
        raise ValueError("its meta is not what was written")
    return meta["digests"]


def _check_arrays(item: str, tree, noted: dict | None) -> None:
    wrong = [] if noted is None else digests.changed(tree, noted[item])
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"the numbers of {item}: {', '.join(wrong[:3])}{more} are not those that were written")


def _like(array, restored):
    """A restored array where the given one is: Orbax gives scalars back on a device of the process's own."""
    there = isinstance(restored, jax.Array) and restored.sharding.is_equivalent_to(array.sharding, array.ndim)
    return restored if there else put_array(array.sharding, np.asarray(restored))


def _best_from(tree: dict) -> Best | None:
    return Best(tree["trainable"], tree["score"], tree["step"]) if "trainable" in tree else None


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__


def _damaged(path: Path, error: Exception, advice: str) -> UserError:
    return UserError(f"checkpoint {str(path)!r} is damaged or of another run ({_reason(error)}). {advice}.")


def _check_files(step_folder: Path, advice: str) -> None:
    """Raises UserError for what is not a file: a pipe or a device would be read without end."""
    try:
        for parent, _, names in os.walk(step_folder):
            for name in names:
                check_regular(os.path.join(parent, name))
    except UserError as error:
        raise _damaged(step_folder, error, advice) from error


class Loaded(NamedTuple):
    """Arrays by path on the host, trained and kept ones; run.json, the checkpoint's step, the step (G,) of each group's best or None."""

    trainable: dict[str, np.ndarray]
    run: dict
    step: int
    best_step_G: np.ndarray | None


def load(run_dir: str | Path, which: str = "best") -> Loaded:
    """The newest checkpoint of a run folder. which: 'best' on the dev split (the last weights where none were scored) or 'last'.

    Raises UserError for a folder that is not a run folder, has no checkpoint, or is damaged.
    """
    _quiet()
    run = read_run_json(run_dir)
    folder = readable_run("run folder", run_dir) / CHECKPOINTS
    t5x_steps = t5x.steps(Folder(run_dir))
    if t5x_steps and not folder.is_dir():  # a run under T5X's trainer: it keeps no best bank
        kind, path = detect(f"{run_dir}/{t5x_steps[-1]}")
        arrays = {name: lazy.load(np.float32) for name, lazy in t5x.read(kind, path).items() if name.startswith(t5x.BANK)}
        return Loaded(arrays, run, int(t5x_steps[-1].rpartition("_")[2]), None)
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise UserError(f"run folder {str(run_dir)!r} has no finished checkpoint in {CHECKPOINTS}/; let its training go on first.")
    step_folder, advice = folder / str(steps[-1]), "Move that folder away to read the checkpoint before it"
    _check_files(step_folder, advice)
    try:
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            meta = reader.restore(step_folder / "meta")
        noted = _checked_meta(step_folder, meta)
        best = _best_from(_as_numpy(step_folder, "best", noted)) if which == "best" else None
        if best is not None:
            trainable = best.trainable
        else:
            state = _as_numpy(step_folder, "state", noted)
            trainable = state["trainable"] if isinstance(state, dict) else state[1]
        held = _as_numpy(step_folder, KEPT, noted) if KEPT in (noted or {}) else {}  # where it is not, those of before are with the others
        trainable = {path: np.asarray(array) for path, array in {**trainable, **held}.items()}
    except FAILURES as error:
        raise _damaged(step_folder, error, advice) from error
    if meta.get("runs", of_runs := digests.of_json(run.get("runs"))) != of_runs:
        message = f"the runs in {str(Path(run_dir) / 'run.json')!r} are not those that checkpoint {str(step_folder)!r} was trained for"
        raise UserError(f"{message}: the file is damaged or of another folder; put the right one back.")
    return Loaded(trainable, run, steps[-1], None if best is None else best.step_G)


def load_trainable(run_dir: str | Path, which: str = "best") -> tuple[dict[str, np.ndarray], dict]:
    """(trained arrays by path, run.json) as ``load`` reads them."""
    return load(run_dir, which)[:2]


def _as_numpy(step_folder: Path, item: str, noted: dict | None):
    """What a folder holds, on the host, whatever devices it was written from, with its digests checked."""
    with ocp.PyTreeCheckpointer() as reader:
        described = reader.metadata(step_folder / item).item_metadata
        if described is None:
            raise ValueError(f"the description of the arrays in {item}/ cannot be read")
        promised = sum(math.prod(leaf.shape or ()) * np.dtype(leaf.dtype or np.uint8).itemsize for leaf in jax.tree.leaves(described.tree))
        there = sum(path.stat().st_size for path in (step_folder / item).rglob("*") if path.is_file())
        if promised > max(MOST_PACKED, PACKED_TIMES * there):
            raise ValueError(f"the arrays in {item}/ promise {promised:,} bytes, and its files have {there:,}")
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described.tree)
        tree = reader.restore(step_folder / item, restore_args=on_host)
    _check_arrays(item, tree, noted)
    return tree
