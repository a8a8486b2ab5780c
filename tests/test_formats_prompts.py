"""Prompts in and out (prompts.py, prompt_writers.py, card.py, convert.py): nothing changes on the way, labels and scores travel along,
wrong requests are named."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import TINY, data_folder, random_params
from tiny_families import weights
from tiny_methods import CAUSAL
from tiny_run import STEP, row, write_run

from mpt_jax import convert as convert_module
from mpt_jax.checkpoint import load_trainable
from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.methods.bank import compose_all
from mpt_jax.methods.prompt import bank_of, read_prompt_array
from mpt_jax.model import formats
from mpt_jax.model.backbone import fingerprint_of
from mpt_jax.model.formats import npy_file, prompt_writers, prompts
from mpt_jax.model.formats.prompts import PromptFile

REAL = ("sst2", "mrpc", "rte")
SCORES = {"accuracy": 87.5}


def bank(num_groups: int = 1, rank: int = 2, seed: int = 0, width: int = 6) -> PromptFile:
    """Three tasks, P = 4, D = width; rank 0 has no factors and a group for each task."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    groups = 3 if rank == 0 else num_groups
    factors = (draw(3, 4, rank), draw(3, rank, width)) if rank else (None, None)
    metadata = {
        "stage": "source",
        "backbone": {"name": "nano", "fingerprint": "0123456789abcdef"},
        "settings": {"train_steps": 7},
        "runs": [{"task": name, "seed": 42, "learning_rate": 0.3, "scores": SCORES} for name in "abc"],
    }
    return PromptFile(draw(groups, 4, width), *factors, np.arange(3, dtype=np.int32) % groups, tuple("abc"), metadata)


def same(ours: PromptFile, theirs: PromptFile) -> None:
    for name in ("shared_GPD", "cols_NPR", "rows_NRD", "group_N"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.task_names == theirs.task_names


def test_prompts_are_the_products_of_their_factors():
    held = bank(2)
    expected = [held.shared_GPD[g] * (held.cols_NPR[n] @ held.rows_NRD[n]) for n, g in enumerate(held.group_N)]
    np.testing.assert_allclose(held.compose(), expected, rtol=1e-5)
    assert held.compose().dtype == np.float32 and isinstance(held.compose(), np.ndarray)


def test_some_tasks_keep_their_prompts_groups_and_runs():
    held = bank(3)
    chosen = held.select([2, 0])
    np.testing.assert_array_equal(chosen.compose(), held.compose()[[2, 0]])
    assert chosen.task_names == ("c", "a") and chosen.group_N.tolist() == [1, 0] and len(chosen.shared_GPD) == 2
    assert [run["task"] for run in chosen.metadata["runs"]] == ["c", "a"] and isinstance(chosen.shared_GPD, np.ndarray)


@pytest.mark.parametrize("name", REAL)
def test_real_prompts_come_out_unchanged(name, tmp_path):
    path = data_folder(f"prompts/t5_1_1_lm100k_base/{name}.npy")
    wanted = np.load(path)
    held = prompts.read(path, width=768)
    assert held.shared_GPD.shape == (1, 100, 768) and held.task_names == (name,)
    for to in ("npz", "peft_single", "peft", "npy"):  # each from what the one before wrote
        written = convert(path, to, str(tmp_path / to))
        path = written[0] if to in ("npz", "npy") else str(tmp_path / to)
    np.testing.assert_array_equal(np.load(path), wanted)


@pytest.mark.parametrize("groups, rank", [(1, 2), (3, 1), (2, 1), (3, 0)])
def test_npz_holds_the_whole_bank(groups, rank, tmp_path):
    held = bank(groups, rank)
    prompt_writers.write("npz", str(tmp_path / "bank"), held)
    back = prompts.read(tmp_path / "bank.npz", width=6)
    same(held, back)
    assert back.metadata == held.metadata


def test_a_multitask_adapter_lists_its_tasks_and_carries_a_card(tmp_path):
    held = bank()
    prompt_writers.write("peft", str(tmp_path / "x"), held)
    settings = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert settings["task_names"] == list("abc")
    assert settings["peft_type"] == "MULTITASK_PROMPT_TUNING" and settings["num_transformer_submodules"] == 1
    card = (tmp_path / "x" / "README.md").read_text()
    for fact in ("0123456789abcdef", "accuracy 87.50", '"train_steps": 7', 'base_model: "nano"', "a, b, c"):
        assert fact in card
    back = prompts.read(tmp_path / "x")
    same(held, back)
    assert back.metadata["runs"] == held.metadata["runs"]


def test_one_adapter_or_file_for_each_task(tmp_path):
    held = bank(3)
    for kind, suffix in (("peft_single", ""), ("npy", ".npy")):
        prompt_writers.write(kind, str(tmp_path / kind), held)
        for n, task in enumerate(held.task_names):
            back = prompts.read(tmp_path / kind / f"{task}{suffix}")
            np.testing.assert_array_equal(back.compose()[0], held.compose()[n])


def test_several_shared_prompts_do_not_fit_one_adapter(tmp_path):
    with pytest.raises(UserError, match="3 shared prompts for 3 tasks.*--task.*--to peft_single"):
        prompt_writers.write("peft", str(tmp_path / "x"), bank(3))
    assert not list(tmp_path.iterdir())


def test_a_prompt_variable_of_t5x(tmp_path):
    params = random_params(TINY)
    arrays = {path: formats.in_memory(array) for path, array in params.items()}
    prompt_PD = np.random.default_rng(0).normal(size=(5, TINY.d_model)).astype(np.float32)
    arrays[prompts.ENCODER_PROMPT] = formats.in_memory(prompt_PD)
    for number, write in enumerate((formats.t5x.write_native, formats.t5x.write_orbax)):
        folder = tmp_path / f"checkpoint_{number}"
        folder.mkdir()
        write(str(folder), arrays)
        np.testing.assert_array_equal(prompts.read(folder, TINY.d_model).compose()[0], prompt_PD)
        assert formats.read_backbone(folder)[1].keys() == params.keys()  # and it is a backbone, too
        convert(str(folder), "npy", str(tmp_path / f"out{number}"))
        np.testing.assert_array_equal(np.load(tmp_path / f"out{number}.npy"), prompt_PD)


@pytest.mark.parametrize("groups, rank", [(1, 2), (2, 1), (3, 0)])
def test_a_bank_goes_to_t5x_with_its_backbone_and_comes_back(groups, rank, tmp_path):
    formats.write_backbone("own", tmp_path / "own", TINY, random_params(TINY))
    held = bank(groups, rank, width=TINY.d_model)
    prompt_writers.write("npz", str(tmp_path / "bank"), held)
    with pytest.raises(UserError, match="these prompts were trained on backbone .*0123456789abcdef.*; give the folder of the same weights"):
        convert(str(tmp_path / "bank.npz"), "t5x_bank", str(tmp_path / "out"), backbone=str(tmp_path / "own"))
    known = {"name": str(tmp_path / "own"), "fingerprint": fingerprint_of(formats.read_backbone(tmp_path / "own")[1])}
    prompt_writers.write("npz", str(tmp_path / "known"), dataclasses.replace(held, metadata=held.metadata | {"backbone": known}))
    convert(str(tmp_path / "known.npz"), "t5x_bank", str(tmp_path / "out"))
    checkpoint = tmp_path / "out" / "checkpoint_0"
    same(held, prompts.read(checkpoint, TINY.d_model))
    trained, run = load_trainable(tmp_path / "out")
    np.testing.assert_array_equal(compose_all(bank_of(trained, held.group_N)), held.compose())
    assert [row["group"] for row in run["runs"]] == held.group_N.tolist()
    assert run["tasks"] == list("abc") and run["backbone"] == {"name": str(checkpoint), "fingerprint": known["fingerprint"]}
    assert fingerprint_of(formats.read_backbone(checkpoint)[1]) == known["fingerprint"]
    convert(str(tmp_path / "out"), "npz", str(tmp_path / "back"))  # the folder is a run folder
    same(held, prompts.read(tmp_path / "back.npz"))


def test_a_bank_in_a_t5x_checkpoint_alone(tmp_path):
    held = bank(1, 2, width=TINY.d_model)
    arrays = {"shared": held.shared_GPD, "cols": held.cols_NPR, "rows": held.rows_NRD}
    (tmp_path / "checkpoint_7").mkdir()
    formats.t5x.write_orbax(str(tmp_path / "checkpoint_7"), {f"bank/{name}": formats.in_memory(array) for name, array in arrays.items()})
    back = prompts.read(tmp_path / "checkpoint_7")
    np.testing.assert_array_equal(back.compose(), held.compose())
    assert back.task_names == ("task_1", "task_2", "task_3")  # their numbers in a batch
    prompt_writers.write("npz", str(tmp_path / "bank"), dataclasses.replace(held, metadata={}))
    with pytest.raises(UserError, match="names none: give --backbone"):
        convert(str(tmp_path / "bank.npz"), "t5x_bank", str(tmp_path / "out"))
    with pytest.raises(UserError, match="prompts of width 16, the backbone has width 192"):
        convert(str(tmp_path / "bank.npz"), "t5x_bank", str(tmp_path / "out"), backbone="nano")


@pytest.fixture
def run_folder(tmp_path):
    """A run as training leaves it: two tasks, task `a` with two seeds."""
    held, folder = bank(3), tmp_path / "run"
    trainable = {"bank/shared": held.shared_GPD, "bank/cols": held.cols_NPR, "bank/rows": held.rows_NRD}
    write_run(folder, [row("a", 1, 0), row("b", 1, 1), row("a", 2, 2)], trainable, backbone="nano", stage="target")
    (folder / "eval").mkdir()
    write_scores(folder, [{"run": 0, "scores": SCORES}, {"run": 2, "scores": {"accuracy": 90.0}}])
    return folder, held


def write_scores(folder, runs, **more) -> None:
    """eval/a.json as `mpt-jax eval` writes it."""
    told = {"runs": runs, "checkpoint": "best", "step": STEP, "split": "validation", "rows": 12} | more
    (folder / "eval" / "a.json").write_text(json.dumps(told))


def test_a_run_folder(run_folder, tmp_path):
    folder, held = run_folder
    convert(str(folder), "npz", str(tmp_path / "bank.npz"))
    back = prompts.read(tmp_path / "bank.npz")
    np.testing.assert_array_equal(back.compose(), held.compose())
    assert back.task_names == ("a#0", "b", "a#2")
    convert(str(folder), "peft", str(tmp_path / "b"), task="b")
    np.testing.assert_array_equal(prompts.read(tmp_path / "b").compose()[0], held.compose()[1])
    convert(str(folder), "npz", str(tmp_path / "two"), task="a#2, b")
    np.testing.assert_array_equal(prompts.read(tmp_path / "two.npz").compose(), held.compose()[[2, 1]])
    convert(str(folder), "npy", str(tmp_path / "a"), task="a#2")
    assert "accuracy 90.00 (validation, 12 rows)" in (tmp_path / "a.npy.md").read_text()
    with pytest.raises(UserError, match=r"trained 2 times; give one of a#0 \(seed 1.*a#2 \(seed 2.*accuracy 90.00"):
        convert(str(folder), "npy", str(tmp_path / "c"), task="a")
    for other in ({"checkpoint": "last"}, {"step": STEP - 1}):  # scores of other weights
        write_scores(folder, [{"run": 2, "scores": {"accuracy": 90.0}}], **other)
        convert(str(folder), "npy", str(tmp_path / f"other{len(other)}{other.get('step', '')}"), task="a#2")
    assert not [path for path in tmp_path.glob("other*.md") if "accuracy" in path.read_text()]
    with pytest.raises(UserError, match="'' is not among the tasks of the source: a#0, b, a#2"):
        convert(str(folder), "npy", str(tmp_path / "c"), task=",")
    with pytest.raises(UserError, match="'z' is not among the tasks of the source: a#0, b, a#2"):
        convert(str(folder), "npy", str(tmp_path / "c"), task="z")


def test_runs_of_a_task_that_differ_in_their_source_are_told_apart(tmp_path):
    runs = [row("a", 1, n) | {"source": source} for n, source in enumerate(("s", "t"))]
    folder = write_run(tmp_path / "run", runs, {"bank/shared": bank(3, rank=0).shared_GPD[:2]})
    scored = [{"step": STEP, "split": "dev", "task": "a", "run": n, "accuracy": 50.0 + n} for n in range(2)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scored))
    with pytest.raises(UserError, match=r"a#0 \(.*from s, best dev score 50.0\), a#1 \(.*from t, best dev score 51.0\)"):
        convert(folder, "npy", str(tmp_path / "x"), task="a")


def test_a_run_that_does_not_tell_its_family_takes_it_from_the_backbone_that_is_named(tmp_path, capsys):
    """The bank in the package is of a decoder-only model and says so."""
    shipped = Path(convert_module.__file__).parent / "banks" / "smollm2"
    convert(str(shipped), "peft", str(tmp_path / "shipped"))
    assert json.loads((tmp_path / "shipped" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not capsys.readouterr().err
    formats.write_backbone("own", str(tmp_path / "llama"), CAUSAL, weights(CAUSAL), "bytes")
    held = bank(1, width=CAUSAL.d_model)
    trained = {"bank/shared": held.shared_GPD, "bank/cols": held.cols_NPR, "bank/rows": held.rows_NRD}
    config, arrays, _ = formats.read_backbone(str(tmp_path / "llama"))
    runs = [row(name, 1, 0) for name in "abc"]
    write_run(tmp_path / "run", runs, trained, backbone="gone", fingerprint=fingerprint_of(arrays), stage="source")
    convert(str(tmp_path / "run"), "peft", str(tmp_path / "told"), backbone=str(tmp_path / "llama"))
    told = json.loads((tmp_path / "told" / "adapter_config.json").read_text())
    assert told["task_type"] == "CAUSAL_LM" and told["base_model_name_or_path"] == str(tmp_path / "llama")
    convert(str(tmp_path / "run"), "peft", str(tmp_path / "untold"))
    assert "is for a sequence-to-sequence model; add --backbone FOLDER" in capsys.readouterr().err
    write_run(tmp_path / "other", runs, trained, backbone="gone", stage="source")
    with pytest.raises(UserError, match="these prompts were trained on backbone gone .f{16}."):
        convert(str(tmp_path / "other"), "peft", str(tmp_path / "x"), backbone=str(tmp_path / "llama"))
    with pytest.raises(UserError, match="--backbone 'nano' has width 192, the prompts of .* have width"):
        convert(str(tmp_path / "run"), "peft", str(tmp_path / "x"), backbone="nano")


def test_an_npz_that_holds_something_else_next_to_prompts_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 4), np.float32), b=np.zeros((1, 2, 4), np.float32))
    with pytest.raises(UserError, match=r"of one shape and nothing else; it has a \(2, 4\), b \(1, 2, 4\)"):
        prompts.read(tmp_path / "x.npz")


def test_a_small_file_that_makes_more_prompts_than_a_file_may_hold_is_refused(tmp_path):
    tasks = npy_file.MOST_BYTES // (4 * 100 * 1000) + 1
    bank_arrays = {"shared_GPD": np.zeros((1, 100, 1000), np.float32), "group_N": np.zeros(tasks, np.int32)}
    bank_arrays |= {"task_names": np.array([f"t{n}" for n in range(tasks)])}
    np.savez_compressed(tmp_path / "x.npz", **{f"bank/{name}": array for name, array in bank_arrays.items()})
    with pytest.raises(UserError, match="makes prompts of 1,0.* bytes from what it holds; a file's have at most 1,073,741,824"):
        prompts.read(tmp_path / "x.npz")


def test_a_run_folder_is_not_a_file_to_start_from(run_folder):
    with pytest.raises(UserError, match="init_file: .*run is a run folder, not a file of prompts; .*mpt-jax convert --from .*run --to npy"):
        read_prompt_array(str(run_folder[0]), 4, 6)


def test_a_file_of_prompts_in_a_bucket_is_to_be_copied_first():
    with pytest.raises(UserError, match="gs://bucket/x.npy: a file of prompts is read from this machine alone; copy it here first"):
        prompts.read("gs://bucket/x.npy")


@pytest.mark.parametrize("score", [10**400, True, "90"], ids=("huge", "truth", "text"))
def test_scores_that_are_not_numbers_are_refused(score, run_folder, tmp_path):
    """In a file of prompts, in eval/ of a run, and in the run.json next to a T5X checkpoint."""
    folder, held = run_folder
    prompt_writers.write("npz", str(tmp_path / "bank"), held)
    arrays = dict(np.load(tmp_path / "bank.npz"))
    rows = [{"task": name, "group": 0, "scores": {"accuracy": score}} for name in "abc"]
    np.savez(tmp_path / "bank.npz", **arrays | {"bank/metadata": np.array(json.dumps({"runs": rows}))})
    write_scores(folder, [{"run": 0, "scores": rows[0]["scores"]}])
    (tmp_path / "t5x" / "checkpoint_7").mkdir(parents=True)
    bank_arrays = {f"bank/{part}": formats.in_memory(array) for part, array in held.bank.trainable().items()}
    formats.t5x.write_orbax(str(tmp_path / "t5x" / "checkpoint_7"), bank_arrays)
    (tmp_path / "t5x" / "run.json").write_text(json.dumps({"runs": rows}))
    for source, said in (("bank.npz", "its runs or its backbone"), ("run", "it has .* for a run"), ("t5x/checkpoint_7", "its runs or its")):
        with pytest.raises(UserError, match=f"is damaged: {said}"):
            convert(str(tmp_path / source), "npz", str(tmp_path / "out"))


@pytest.mark.parametrize(
    "to, task, message",
    [("pt", None, "none of t5x"), ("hf", "a", "chooses a prompt"), ("hf", None, "holds prompts"), ("npy", "b", "not among")],
)
def test_requests_that_make_no_sense(to, task, message, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(UserError, match=message):
        convert(str(tmp_path / "a.npy"), to, str(tmp_path / "out"), task)


def test_a_backbone_by_its_path(tmp_path):
    formats.write_backbone("own", tmp_path / "own", TINY, random_params(TINY))
    for to in ("hf", "t5x", "orbax", "own"):
        written = convert(str(tmp_path / "own"), to, str(tmp_path / f"out_{to}"))
        assert written and all((tmp_path / path).exists() for path in written)
        assert formats.read_backbone(tmp_path / f"out_{to}")[1].keys() == random_params(TINY).keys()
    with pytest.raises(UserError, match="--from .* is neither a known backbone"):
        convert("no_such_thing", "hf", str(tmp_path / "x"))


def test_a_prompt_of_any_format_starts_a_run(tmp_path):
    held = bank(3)
    for kind, name in (("npy", "x.npy"), ("npz", "y.npz"), ("peft_single", "z"), ("peft", "w")):
        prompt_writers.write(kind, str(tmp_path / name), held.select([1]))
        np.testing.assert_array_equal(read_prompt_array(str(tmp_path / name), 4, 6), held.compose()[1])
    prompt_writers.write("npz", str(tmp_path / "all"), held)
    for path, length, width, message in (
        ("all.npz", 4, 6, "holds 3 prompts .a, b, c."),
        ("x.npy", 5, 6, "shape .4, 6.; PROMPT_LENGTH and backbone need .5, 6."),
        ("x.npy", 4, 7, "backbone need .4, 7."),
        ("gone.npy", 4, 6, "does not exist"),
    ):
        with pytest.raises(UserError, match=f"init_file.*{message}"):
            read_prompt_array(str(tmp_path / path), length, width)


def named(*names: str) -> PromptFile:
    """Prompts without factors under these names."""
    rng = np.random.default_rng(0)
    return prompts.plain(rng.normal(size=(len(names), 4, 6)).astype(np.float32), names, {})


def test_tasks_called_like_an_argument_of_numpy_or_a_field_are_kept(tmp_path):
    held = named("file", "allow_pickle", "shared_GPD", "group_N", "arr_0", "x.npy")
    prompt_writers.write("npz", str(tmp_path / "all"), held)
    same(prompts.read(str(tmp_path / "all.npz")), held)
    with np.load(tmp_path / "all.npz") as arrays:
        for name, prompt_PD in zip(held.task_names, held.compose(), strict=True):
            np.testing.assert_array_equal(arrays[name], prompt_PD)


def test_tasks_whose_names_no_file_holds_are_written_apart(tmp_path):
    held = named("a:b", "a_b", "a/b", "..")
    written = prompt_writers.write("npy", str(tmp_path / "each"), held)
    arrays = [np.load(path) for path in written if path.endswith(".npy")]
    assert len(arrays) == 4 and {array.tobytes() for array in arrays} == {prompt.tobytes() for prompt in held.compose()}
    assert all(path.startswith(f"{tmp_path}/each/") for path in written)


def test_one_name_for_two_prompts_is_refused(tmp_path):
    for kind in prompt_writers.FORMATS:
        with pytest.raises(UserError, match="Prompts 0 and 2 are both called 'a'"):
            prompt_writers.write(kind, str(tmp_path / kind), named("a", "b", "a"))
    with pytest.raises(UserError, match="called 'bank/shared_GPD' has the name of an array of the bank"):
        prompt_writers.write("npz", str(tmp_path / "npz"), named("bank/shared_GPD"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["npz", "npy", "peft_single", "t5x_bank"])
def test_a_device_or_a_pipe_is_not_written_beside(to, tmp_path):
    prompt_writers.write("npz", str(tmp_path / "bank"), bank(1, 2))
    os.mkfifo(tmp_path / "pipe")
    for output in ("/dev/null", str(tmp_path / "pipe")):
        with pytest.raises(UserError, match=f"--output '{output}' is a device or pipe"):
            convert(str(tmp_path / "bank.npz"), to, output)


def test_a_task_that_fits_two_rows_names_both(tmp_path):
    from mpt_jax.convert import _row

    runs = [{"task": "a"}, {"task": "a"}, {"task": "a#1"}]
    held = dataclasses.replace(named(*prompts.task_labels(runs)), metadata={"runs": runs})
    assert held.task_names == ("a#0", "a#1", "a#1") and _row(held, "a#0") == 0
    with pytest.raises(UserError, match="--task 'a#1' fits row 1 .task 'a'. and row 2 .task 'a#1'."):
        _row(held, "a#1")
