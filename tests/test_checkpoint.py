"""Checkpoints: exact round trips, damage that is named, a disk that takes no more, kills at any moment."""

import json
import random
import resource
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny_run import describe, row
from tiny_world import arguments, start, write_world

from mpt_jax import checkpoint, digests, run_folder
from mpt_jax.checkpoint import Best, Checkpoints, load_trainable
from mpt_jax.errors import UserError
from mpt_jax.run_folder import read_run_json
from mpt_jax.train.run import resume
from mpt_jax.train.step import TrainState


def state(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    arrays = {"bank/shared": jax.numpy.asarray(rng.normal(size=(1, 3, 4)), "float32")}
    return {"step": jax.numpy.asarray(7), "trainable": arrays, "opt_state": (arrays, {"count": jax.numpy.asarray(3)})}


def best() -> Best:
    return Best({"bank/shared": np.ones((1, 3, 4), np.float32)}, np.array([50.0]), np.array([5]))


@pytest.fixture
def run_dir(tmp_path):
    describe(tmp_path, [row("a")])
    return tmp_path


def test_round_trip_is_exact(run_dir):
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), best(), {"step": 7, "data": {"next_index": 7}})
    checkpoints.close()
    restored, found, meta = Checkpoints(run_dir).restore(7, state(1))
    jax.tree.map(np.testing.assert_array_equal, restored, state())
    assert jax.tree.structure(restored) == jax.tree.structure(state())
    np.testing.assert_array_equal(found.trainable["bank/shared"], best().trainable["bank/shared"])
    assert found.score_G == [50.0] and found.step_G == [5] and meta["data"] == {"next_index": 7}


def test_best_and_last(run_dir):
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), best(), {})
    checkpoints.close()
    (trained, run), (last, _) = load_trainable(run_dir), load_trainable(run_dir, "last")
    assert np.all(trained["bank/shared"] == 1) and run == read_run_json(run_dir)
    np.testing.assert_array_equal(last["bank/shared"], state()["trainable"]["bank/shared"])


def test_without_scores_the_last_is_the_best(run_dir):
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), None, {})
    checkpoints.close()
    np.testing.assert_array_equal(load_trainable(run_dir)[0]["bank/shared"], state()["trainable"]["bank/shared"])


def test_what_does_not_change_is_held_once_and_read_with_either_weights(run_dir):
    """In a checkpoint's own item; damage to it is named."""
    kept = {"own/sources": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}
    checkpoints = Checkpoints(run_dir, kept=kept)
    for step in (6, 7):
        checkpoints.save(step, state(), best(), {})
    checkpoints.close()
    for which, expected in (("best", 1.0), ("last", np.asarray(state()["trainable"]["bank/shared"]))):
        found = load_trainable(run_dir, which)[0]
        np.testing.assert_array_equal(found["own/sources"], kept["own/sources"])
        assert np.all(found["bank/shared"] == expected) and len(found) == 2
    restored, _, _ = Checkpoints(run_dir, kept=kept).restore(7, state(1))
    assert restored["trainable"].keys() == state()["trainable"].keys()
    shutil.rmtree(run_dir / "checkpoints" / "7" / "kept")
    with pytest.raises(UserError, match="7' is damaged"):
        load_trainable(run_dir)


def test_only_the_newest_two_stay(run_dir):
    checkpoints = Checkpoints(run_dir)
    for step in range(1, 6):
        checkpoints.save(step, state(), None, {})
    checkpoints.close()
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == ["4", "5"]


def test_a_damaged_checkpoint_is_named(run_dir):
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), None, {})
    checkpoints.close()
    for path in (run_dir / "checkpoints" / "7" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"\0" * 7)
    with pytest.raises(UserError, match=r"checkpoints/7' is damaged.*Move that folder away"):
        Checkpoints(run_dir).restore(7, state())
    with pytest.raises(UserError, match="is damaged"):
        load_trainable(run_dir)


def test_a_damaged_checkpoint_is_passed_over_only_when_asked(run_dir, capsys):
    """The one before it continues, the damaged one is put aside under its number; a half-written folder is named and never read."""
    checkpoints = Checkpoints(run_dir)
    for step in (7, 9):
        checkpoints.save(step, {**state(step), "step": jax.numpy.asarray(step)}, None, {"step": step})
    checkpoints.close()
    shutil.rmtree(run_dir / "checkpoints" / "9" / "meta")
    unfinished = run_dir / "checkpoints" / "11.orbax-checkpoint-tmp"
    unfinished.mkdir()
    start_state = TrainState(**state())
    with pytest.raises(UserError, match=r"checkpoints/9' is damaged.*--skip_damaged_checkpoints"):
        resume(Checkpoints(run_dir), start_state)
    assert "cleared: 11.orbax-checkpoint-tmp" in capsys.readouterr().err and not unfinished.exists()
    again = Checkpoints(run_dir)
    found, _, step = resume(again, start_state, skip_damaged=True)
    assert step == 7 and int(found.step) == 7
    np.testing.assert_array_equal(found.trainable["bank/shared"], state(7)["trainable"]["bank/shared"])
    said = capsys.readouterr().err
    assert "checkpoints/9' is damaged" in said and "continuing from the checkpoint of step 7" in said
    assert (run_dir / "damaged_checkpoints" / "9").is_dir() and not (run_dir / "checkpoints" / "9").exists()
    again.save(9, state(), None, {"step": 9})  # its number is free again
    again.close()
    assert Checkpoints(run_dir).latest_step() == 9


def test_arrays_that_promise_far_more_than_their_files_hold_are_refused_before_they_are_read(run_dir, monkeypatch):
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), best(), {})
    checkpoints.close()
    monkeypatch.setattr(checkpoint, "MOST_PACKED", 1)
    monkeypatch.setattr(checkpoint, "PACKED_TIMES", 0)
    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "restore", None)
    with pytest.raises(UserError, match="the arrays in .*/ promise .* bytes, and its files have"):
        load_trainable(run_dir)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        load_trainable(tmp_path)
    describe(tmp_path, [row("a")])
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_trainable(tmp_path)


def numbers(tree) -> dict[str, np.ndarray]:
    return {path: np.array(array) for path, array in digests.names(tree).items()}


def saved(run_dir) -> tuple[dict, dict]:
    """A checkpoint with arrays beyond a kilobyte, which files keep apart; the numbers of its state and of its best weights."""
    given = state(3)
    for name, shape in (("cols", (4, 3, 1)), ("rows", (4, 1, 512))):
        given["trainable"][f"bank/{name}"] = jax.numpy.asarray(np.random.default_rng(4).normal(size=shape), "float32")
    chosen = best()._replace(trainable={path: np.array(array) + 1 for path, array in given["trainable"].items()})
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, given, chosen, {"data": {"next_index": 7}})
    checkpoints.close()
    return given, chosen.trainable


def flip(path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def damage(path, rng: random.Random) -> None:
    """Cuts, empties, removes, overwrites or zeroes a file, or makes it a folder."""
    data = path.read_bytes()
    place = rng.randrange(len(data))
    kind = rng.randrange(6)
    path.unlink()
    if kind == 0:
        path.mkdir()
    elif kind > 1:
        path.write_bytes((data[:place], b"", data[:place] + rng.randbytes(20) + data[place + 20 :], b"\0" * len(data))[kind - 2])


def is_named_or_equal(read, expected) -> bool:
    """True for a UserError in one line; False for the expected numbers."""
    try:
        found = numbers(read())
    except UserError as error:
        assert "is damaged or of another run" in str(error) and "\n" not in str(error)
        return True
    assert found.keys() == numbers(expected).keys()
    for path, array in numbers(expected).items():
        np.testing.assert_array_equal(found[path], array)
    return False


@pytest.mark.parametrize(
    "change, count, seed",
    [
        (flip, 24, 1),
        (damage, 12, 2),
        pytest.param(flip, 120, 3, marks=pytest.mark.slow),
        pytest.param(damage, 120, 4, marks=pytest.mark.long),
    ],
)
def test_whatever_changes_a_number_is_named_and_nothing_else_is_raised(tmp_path, capfd, change, count, seed):
    """Half of the changes fall on files by their size, half on each file alike; read to resume, and to be used."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    describe(whole, [row("a")])
    given, chosen = saved(whole)
    files = sorted(path.relative_to(whole) for path in (whole / "checkpoints").rglob("*") if path.is_file())
    sizes = [(whole / path).stat().st_size for path in files]
    rng, named = random.Random(seed), 0
    for number in range(count):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(whole, damaged)
        change(damaged / rng.choices(files, sizes if number % 2 else None)[0], rng)
        checkpoints = Checkpoints(damaged)
        for which, expected in (("best", chosen), ("last", given["trainable"])):
            named += is_named_or_equal(lambda which=which: load_trainable(damaged, which)[0], expected)
        named += is_named_or_equal(lambda kept=checkpoints: kept.restore(7, given)[0], given)
        checkpoints.close()
    assert count / 2 < named < 3 * count
    assert "Traceback" not in capfd.readouterr().err


def test_the_step_of_a_checkpoint_is_that_of_its_folder(run_dir):
    given, _ = saved(run_dir)
    (run_dir / "checkpoints" / "7").rename(run_dir / "checkpoints" / "9")
    for read in (lambda: load_trainable(run_dir), lambda: Checkpoints(run_dir).restore(9, given)):
        with pytest.raises(UserError, match="checkpoints/9' is damaged or of another run .its own step is 7"):
            read()


def rewrite_meta(run_dir, change) -> None:
    path = run_dir / "checkpoints" / "7" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_a_meta_that_was_changed_is_refused_and_one_of_before_is_read_with_a_word(run_dir, capsys):
    given, chosen = saved(run_dir)
    rewrite_meta(run_dir, lambda meta: meta.pop("digests"))
    with pytest.raises(UserError, match="its meta is not what was written"):
        load_trainable(run_dir)
    rewrite_meta(run_dir, lambda meta: meta.pop("sha256"))
    capsys.readouterr()
    np.testing.assert_array_equal(load_trainable(run_dir)[0]["bank/rows"], chosen["bank/rows"])
    assert "checkpoints/7' has no digests (an earlier version wrote it)" in capsys.readouterr().err
    Checkpoints(run_dir).restore(7, given)
    assert "has no digests" in capsys.readouterr().err


def test_a_checkpoint_of_other_runs_is_refused(run_dir):
    """Whoever puts another run.json beside a checkpoint, or another checkpoint beside a run.json, gives prompts another name."""
    runs = json.loads((run_dir / "run.json").read_text())["runs"]
    checkpoints = Checkpoints(run_dir, runs=runs)
    checkpoints.save(7, state(), best(), {})
    checkpoints.close()
    assert load_trainable(run_dir)[1]["runs"] == runs
    other = [{**runs[0], "task": "b"}]
    with pytest.raises(UserError, match="was trained for other tasks, seeds or rates"):
        Checkpoints(run_dir, runs=other).restore(7, state())
    (run_dir / "run.json").write_text(json.dumps({"runs": other}))
    with pytest.raises(UserError, match="the runs in .*run.json' are not those that checkpoint"):
        load_trainable(run_dir)


@pytest.mark.parametrize("name", ["state", "7", "007", "-3", "x"])
def test_what_is_not_a_checkpoint_is_passed_over(run_dir, name):
    given, _ = saved(run_dir)
    (run_dir / "checkpoints" / f"{name}0").write_text("")
    assert load_trainable(run_dir)[0].keys() == given["trainable"].keys()
    assert Checkpoints(run_dir).latest_step() == 7


def test_checkpoints_that_is_a_file_is_named(run_dir):
    (run_dir / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints' is not a folder"):
        Checkpoints(run_dir)
    with pytest.raises(UserError, match="has no finished checkpoint"):
        load_trainable(run_dir)


def test_checkpoints_that_may_not_be_read_are_named(run_dir, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    (run_dir / "checkpoints").mkdir()
    monkeypatch.setattr(run_folder.os, "listdir", denied)
    with pytest.raises(UserError, match="checkpoints' cannot be read: Permission denied"):
        run_folder.checkpoint_steps(run_dir)


def test_a_folder_that_is_deleted_while_training_is_named(run_dir):
    checkpoints = Checkpoints(run_dir)
    shutil.rmtree(run_dir)
    with pytest.raises(UserError, match=r"could not be written to .*the folder is gone"):
        checkpoints.save(7, state(), best(), {})
        checkpoints.wait()
    assert not run_dir.exists()


@pytest.mark.parametrize("end", ["wait", "save"])
def test_a_folder_that_orbax_made_again_is_not_the_runs(run_dir, monkeypatch, end):
    """The folder goes between the check and the write, which makes it again: whatever is asked next names it."""
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), None, {})
    checkpoints.wait()
    write = checkpoints._write

    def late(*given):
        run_dir.rename(run_dir.with_name(f"{run_dir.name}_moved"))
        write(*given)

    monkeypatch.setattr(checkpoints, "_write", late)
    with pytest.raises(UserError, match=r"could not be written to .*the folder is gone \(moved or deleted, and what is there now"):
        checkpoints.save(8, state(), None, {})
        if end == "save":
            checkpoints._pending.result()
            deadline = time.monotonic() + 60
            while not checkpoints.folder.exists():  # Orbax makes it in a thread of its own
                assert time.monotonic() < deadline
                time.sleep(0.01)
            checkpoints.save(9, state(), None, {})
        checkpoints.wait()
    assert (run_dir.with_name(f"{run_dir.name}_moved") / "checkpoints" / "7").is_dir()


def test_a_write_that_waits_for_a_folder_that_is_gone_is_not_waited_for(run_dir, monkeypatch):
    """Orbax waits for minutes; the training and its end do not."""
    checkpoints = Checkpoints(run_dir)
    let_go = threading.Event()
    monkeypatch.setattr(checkpoints, "_write", lambda *_: let_go.wait(100))
    checkpoints.save(7, state(), None, {})
    run_dir.rename(run_dir.with_name(f"{run_dir.name}_moved"))
    began = time.monotonic()
    try:
        for end in (checkpoints.wait, checkpoints.close):
            with pytest.raises(UserError, match=r"could not be written to .*the folder is gone"):
                end()
        assert time.monotonic() - began < 50 and not let_go.is_set()
    finally:
        let_go.set()


def test_orbax_that_waits_for_a_folder_that_is_gone_is_not_waited_for(run_dir, monkeypatch):
    """As of several processes, whose writes all end there."""
    checkpoints = Checkpoints(run_dir)
    let_go = threading.Event()
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", lambda: let_go.wait(100))
    run_dir.rename(run_dir.with_name(f"{run_dir.name}_moved"))
    try:
        with pytest.raises(UserError, match=r"could not be written to .*the folder is gone"):
            checkpoints.wait()
        assert not let_go.is_set()
    finally:
        let_go.set()


def test_orbax_does_not_ask_whether_to_end(run_dir, monkeypatch):
    """JAX lets processes agree by the number of questions, which the loop asks."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: bool(asked.append(step)))
    checkpoints = Checkpoints(run_dir)
    checkpoints.save(7, state(), best(), {})
    checkpoints.close()
    assert asked == [] and Checkpoints(run_dir).latest_step() == 7


FULL_DISK = """
import resource, sys
import jax, numpy as np
from mpt_jax.checkpoint import Checkpoints
from mpt_jax.errors import UserError
checkpoints = Checkpoints(sys.argv[1])
big = {"step": jax.numpy.asarray(1), "trainable": {"a": jax.random.normal(jax.random.PRNGKey(0), (512, 512))}, "opt_state": ()}
checkpoints.save(1, big, None, {"step": 1})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))  # writes past it fail as on a full disk
try:
    checkpoints.save(2, big, None, {"step": 2})
    checkpoints.wait()
except UserError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_keeps_the_checkpoint_before(run_dir):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(run_dir)], capture_output=True, text=True, check=False)
    assert "could not be written" in done.stdout, done.stderr[-2000:]
    assert "the checkpoint of step 1 is whole" in done.stdout and "Free space" in done.stdout
    assert load_trainable(run_dir)[0]["a"].shape == (512, 512)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """kill -9 at ten random moments of a source run, each time continued: the final bank is that of the uninterrupted run, bit for bit."""
    world = write_world(tmp_path)
    teachers = arguments("train", "teacher.gin", world, TASKS=["vowel", "long"], MODEL_DIR=str(tmp_path / "teachers"))
    assert start(teachers, tmp_path).wait() == 0
    changes = {"TASKS": ["vowel", "long"], "TEACHER_DIR": str(tmp_path / "teachers"), "TRAIN_STEPS": 400}
    changes["TrainSettings__checkpoint_steps"] = 5

    def command(name):
        return arguments("train", "source.gin", world, MODEL_DIR=str(tmp_path / name), **changes)

    whole = start(command("whole"), tmp_path)
    assert whole.wait() == 0
    moments = random.Random(time.time_ns())
    kills = 0
    while kills < 10:
        process = start(command("killed"), tmp_path)
        checkpoints = tmp_path / "killed" / "checkpoints"
        before = set(checkpoints.iterdir()) if checkpoints.is_dir() else set()
        while process.poll() is None and (not checkpoints.is_dir() or set(checkpoints.iterdir()) == before):
            time.sleep(0.01)  # until training has come past the checkpoint it went on from
        time.sleep(moments.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    final = start(command("killed"), tmp_path)
    assert final.wait() == 0, final.stderr.read()
    assert kills == 10, f"the run ended after {kills} kills: lengthen it"
    expected, found = load_trainable(tmp_path / "whole", "last")[0], load_trainable(tmp_path / "killed", "last")[0]
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    losses = [[json.loads(line).get("loss") for line in text] for text in lines]
    assert losses[0] == losses[1]
    shutil.rmtree(tmp_path / "compiled", ignore_errors=True)
