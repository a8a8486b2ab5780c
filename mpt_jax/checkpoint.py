"""Orbax checkpoints of {trainable tree, optimiser state, step, data state} and of each run's best weights.

A checkpoint is written asynchronously into a temporary folder and renamed when complete, so that a kill at any moment leaves the
previous one whole. The frozen backbone is never in a checkpoint; its fingerprint is in run.json.
"""

import concurrent.futures
import json
import logging
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from mpt_jax import distributed
from mpt_jax.config import WEIGHT_STAGES
from mpt_jax.errors import UserError
from mpt_jax.model.formats import t5x
from mpt_jax.model.formats.detect import detect
from mpt_jax.model.formats.files import Folder
from mpt_jax.sharding import put_array

FOLDER = "checkpoints"
ASIDE = "damaged_checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax is writing
ITEMS = ("state", "best", "meta")
# what Orbax, TensorStore and the file system raise for a damaged file or a disk that takes no more
FAILURES = (ValueError, KeyError, OSError, RuntimeError, TypeError)


class Best(NamedTuple):
    """Best weights so far on the host: trainable arrays by path, and each group's score and step (G,)."""

    trainable: dict[str, np.ndarray]
    score_G: np.ndarray
    step_G: np.ndarray


def _quiet() -> None:
    # Orbax tells of every step and warns of sharding files that a single reader does not need
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Sharding info not provided")


class Checkpoints:
    """The checkpoints of a run folder; the last ``keep`` ones stay."""

    def __init__(self, run_dir: str | Path, keep: int = 2):
        _quiet()
        self.folder = Path(run_dir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=ITEMS)
        # of several processes each takes part in every save at once: they save in the loop's own thread
        self._writer = concurrent.futures.ThreadPoolExecutor(1) if jax.process_count() == 1 else None
        self._pending: concurrent.futures.Future | None = None

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def unfinished(self) -> list[str]:
        """Names of folders whose writing was cut off by a kill; they are never read."""
        return sorted(path.name for path in self.folder.iterdir() if UNFINISHED in path.name)

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
        best_tree = {} if best is None else {"trainable": best.trainable, "score": best.score_G, "step": best.step_G}
        if self._writer:
            self._finish_pending(step)
            # a copy: the step after this one is given the arrays' memory
            state = jax.tree.map(lambda array: np.array(array), state)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            best=ocp.args.PyTreeSave({"empty": np.zeros(1), **best_tree}),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            if self._writer:
                self._pending = self._writer.submit(self._manager.save, step, args=arguments)
            else:
                self._manager.save(step, args=arguments)
        except FAILURES as error:
            raise self._not_saved(step, error) from error

    def _finish_pending(self, step: int | None) -> None:
        try:
            if self._pending:
                self._pending.result()
        except FAILURES as error:
            raise self._not_saved(step, error) from error
        finally:
            self._pending = None

    def wait(self) -> None:
        """Returns when everything is on disk. Raises UserError if it could not be written."""
        self._finish_pending(None)
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except FAILURES as error:
            raise self._not_saved(None, error) from error

    def close(self) -> None:
        """Waits and releases threads."""
        try:
            self.wait()
        finally:
            if self._writer:
                self._writer.shutdown()
        self._manager.close()

    def _not_saved(self, step: int | None, error: Exception) -> UserError:
        whole = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
        last = f"the checkpoint of step {whole[-1]} is whole" if whole else "no earlier checkpoint exists"
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        reason = str(error).strip().splitlines()[0][:300]
        advice = "Free space there, or give another MODEL_DIR, and run the same command again"
        return UserError(f"{what} could not be written to {str(self.folder)!r} ({reason}); {last}. {advice}.")

    def restore(self, step: int, state, has_best: bool) -> tuple[object, Best | None, dict]:
        """(state like the given one, best, meta). Raises UserError naming a damaged checkpoint."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)),
            best=ocp.args.PyTreeRestore(),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except FAILURES as error:
            advice = "Move that folder away, or give --gin.SKIP_DAMAGED_CHECKPOINTS=True, to continue from the checkpoint before it"
            raise _damaged(self.folder / str(step), error, advice) from error
        best = _best_from(restored["best"]) if has_best else None
        return jax.tree.map(_like, state, restored["state"]), best, restored["meta"]


def _like(array, restored):
    """A restored array where the given one is: Orbax gives scalars back on a device of the process's own."""
    there = isinstance(restored, jax.Array) and restored.sharding.is_equivalent_to(array.sharding, array.ndim)
    return restored if there else put_array(array.sharding, np.asarray(restored))


def _best_from(tree: dict) -> Best | None:
    return Best(tree["trainable"], tree["score"], tree["step"]) if "trainable" in tree else None


def _damaged(path: Path, error: Exception, advice: str) -> UserError:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return UserError(f"checkpoint {str(path)!r} is damaged or of another run ({reason}). {advice}.")


def read_run_json(run_dir: str | Path) -> dict:
    """The run's description. Raises UserError if the folder is no run folder."""
    path = Path(run_dir) / "run.json"
    try:
        return _of_today(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(f"{str(run_dir)!r} is no run folder: it has no run.json.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error


def _of_today(run: dict) -> dict:
    """A description as this version writes it: 0.1 kept the backbone's settings among those of training, and had one method."""
    settings = run.get("settings", {})
    train = settings.get("train", {})
    names = {"backbone": "path", "vocabulary": "vocabulary", "dtype": "dtype", "remat": "remat", "attention": "attention"}
    if "backbone" not in settings and "backbone" in train:
        settings["backbone"] = {new: train.pop(old) for old, new in names.items() if old in train}
    trains_backbone = run.get("stage") in WEIGHT_STAGES
    return {"method": "weights" if trains_backbone else "prompt", **run}


def load_trainable(run_dir: str | Path, which: str = "best") -> tuple[dict[str, np.ndarray], dict]:
    """(trained arrays by path, run.json). which: 'best' on the dev split (the last ones where none were scored) or 'last'."""
    _quiet()
    run = read_run_json(run_dir)
    folder = Path(run_dir).absolute() / FOLDER
    t5x_steps = t5x.steps(Folder(run_dir))
    if t5x_steps and not folder.is_dir():  # a run under T5X's trainer: it keeps no best bank
        kind, path = detect(f"{run_dir}/{t5x_steps[-1]}")
        return {name: lazy.load(np.float32) for name, lazy in t5x.read(kind, path).items() if name.startswith(t5x.BANK)}, run
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise UserError(f"run folder {str(run_dir)!r} has no finished checkpoint in {FOLDER}/; let its training go on first.")
    step_folder = folder / str(steps[-1])
    try:
        with ocp.PyTreeCheckpointer() as reader:
            best = _best_from(_as_numpy(reader, step_folder / "best"))
            if which == "best" and best is not None:
                return best.trainable, run
            state = _as_numpy(reader, step_folder / "state")
    except FAILURES as error:
        raise _damaged(step_folder, error, "Move that folder away to read the checkpoint before it") from error
    trainable = state["trainable"] if isinstance(state, dict) else state[1]
    return {path: np.asarray(array) for path, array in trainable.items()}, run


def _as_numpy(reader: ocp.PyTreeCheckpointer, folder: Path):
    """What a folder holds, on the host, whatever devices it was written from."""
    described = reader.metadata(folder).item_metadata
    if described is None:
        raise ValueError(f"the description of the arrays in {folder.name}/ cannot be read")
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described.tree)
    return reader.restore(folder, restore_args=on_host)
