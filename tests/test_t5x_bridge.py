"""The bridge to T5X. What needs the real T5X is marked slow and skips, saying how to get it, where it is missing (docs/t5x.md).

With T5X: the nano backbone and real tasks through all three stages under T5X's trainer, its evaluator and its inference. Covers cached.py,
features.py, mixtures.py, t5x_bridge/model.py, t5x_bridge/optimizer.py, t5x_bridge/program.py and restore.py."""

import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import data_folder
from t5x_session import events, need_t5x, t5x
from tiny_model import LENGTH, new_bank, objective_of

from mpt_jax import paths, tasks
from mpt_jax.checkpoint import load_trainable
from mpt_jax.config import BackboneSettings, DataSettings, DistillationSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.main import main
from mpt_jax.methods.bank import PromptBank, compose_all
from mpt_jax.methods.prompt import bank_of
from mpt_jax.metrics import read_metrics
from mpt_jax.model import formats
from mpt_jax.model.backbone import SHIPPED
from mpt_jax.model.formats import t5x as t5x_format
from mpt_jax.train.run import run_train

ROOT = Path(__file__).parents[1]
WITHOUT_T5X = "import sys, runpy; sys.modules['t5x'] = None; "
TASKS = {
    "bridge_sst2": ("sst2", "sst2 sentence: {sentence}", ("negative", "positive")),
    "bridge_rte": ("rte", "rte premise: {premise} hypothesis: {hypothesis}", ("entailment", "not_entailment")),
    "bridge_cb": ("cb", "cb premise: {premise} hypothesis: {hypothesis}", ("entailment", "contradiction", "neutral")),
}
SOURCES = ["bridge_sst2", "bridge_rte"]


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_without_t5x_the_bridge_says_how_to_get_it():
    ended = python(WITHOUT_T5X + "import mpt_jax.t5x_bridge.model")
    # what else of its needs is missing is named as well
    said = ended.stderr.splitlines()[-1]
    assert ended.returncode and re.search(r"ImportError: T5X cannot be used: t5x(, \w+)* cannot be imported\.", said)
    assert "pip install --no-deps git+https://github.com/google-research/t5x@cc342d4" in ended.stderr
    ended = python(WITHOUT_T5X + "runpy._run_module_as_main('mpt_jax.t5x_bridge')")  # python -m mpt_jax.t5x_bridge
    assert ended.returncode and "T5X cannot be used" in ended.stderr and "Traceback" not in ended.stderr


def test_only_the_bridge_imports_t5x():
    importing = set()
    for path in [*(ROOT / "mpt_jax").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name == "t5x" or name.startswith(("t5x.", "mpt_jax.t5x_bridge")) for name in names):
                importing.add(path.parent.relative_to(ROOT).as_posix())
    assert importing == {"mpt_jax/t5x_bridge"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A T5X checkpoint of nano without any prompt, three real tasks, and the macros that every command takes."""
    need_t5x()
    folder = tmp_path_factory.mktemp("t5x")
    before = dict(tasks.TABLE)
    for name, (directory, template, labels) in TASKS.items():
        files = {split: data_folder(f"tasks/{directory}/{split}.jsonl") for split in ("train", "validation")}
        tasks.jsonl(name, files=files, template=template, labels=labels)
    convert("nano", "t5x", str(folder / "nano" / "checkpoint_0"))
    yield folder
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


def common(world: Path) -> dict:
    return {"VOCABULARY": str(SHIPPED / "nano" / "spiece.model"), "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 8}}


def train(world: Path, stage: str, name: str, names, steps: int, *files: str, **changes) -> Path:
    """A stage under T5X's trainer in the folder of this name, with relative paths as docs/t5x.md prints them."""
    macros = common(world) | {
        "MIXTURE_OR_TASK_NAME": names, "INITIAL_CHECKPOINT_PATH": "nano/checkpoint_0", "TRAIN_STEPS": steps,
        "MODEL_DIR": name, "PROMPT_LENGTH": 6, "BATCH_SIZE": 16, "EVAL_STEPS": 1, "CACHE_DIR": str(world / "cache"),
        "utils__SaveCheckpointConfig__period": steps, "EVAL_PERIOD": steps, "EVALUATOR_NUM_EXAMPLES": 16,
        "LEARNING_RATE": 0.03, "FACTOR_LEARNING_RATE": 0.03,
    } | changes  # fmt: skip
    if "cached" not in files:
        macros.pop("CACHE_DIR")
    with contextlib.chdir(world):
        t5x("train", stage, *files, **macros)
    return world / name


def train_source(world: Path, name: str, teachers: Path) -> Path:
    """Four steps over the token cache, saved after two."""
    changes = {"TEACHER_DIR": str(teachers), "utils__SaveCheckpointConfig__period": 2, "EVAL_PERIOD": 4}
    return train(world, "source", name, SOURCES, 4, "cached", **changes)


@pytest.fixture(scope="module")
def teachers(world) -> Path:
    return train(world, "teacher", "teachers", SOURCES, 3)


@pytest.fixture(scope="module")
def source(world, teachers) -> Path:
    return train_source(world, "source", teachers)


@pytest.fixture(scope="module")
def target(world, source) -> Path:
    return train(world, "target", "target", "bridge_cb", 3, SOURCE_DIR=str(source))


def best_bank(run_dir: Path, which: str = "best") -> tuple[PromptBank, dict]:
    trained, run = load_trainable(run_dir, which)
    return bank_of(trained, np.array([row["group"] for row in run["runs"]])), run


def arrays_of(checkpoint: Path) -> dict[str, np.ndarray]:
    return {path: lazy.load(np.float32) for path, lazy in t5x_format.read(*formats.detect(str(checkpoint))).items()}


@pytest.mark.slow
def test_three_stages_train_the_bank_alone(world, teachers, source, target):
    backbone = arrays_of(world / "nano" / "checkpoint_0")
    for folder, steps, shapes in (
        (teachers, 3, {"shared": (2, 6, 192)}),
        (source, 4, {"shared": (1, 6, 192), "cols": (2, 6, 1), "rows": (2, 1, 192)}),
        (target, 3, {"shared": (1, 6, 192), "cols": (1, 6, 1), "rows": (1, 1, 192)}),
    ):
        start, end = arrays_of(folder / "checkpoint_0"), arrays_of(folder / f"checkpoint_{steps}")
        bank = {path.removeprefix("bank/") for path in end.keys() - backbone.keys()}
        assert {name: end[f"bank/{name}"].shape for name in bank} == shapes
        assert all(not np.array_equal(start[f"bank/{name}"], end[f"bank/{name}"]) for name in bank)
        for path, array in backbone.items():
            np.testing.assert_array_equal(end[path], array)
        metadata = json.loads((folder / f"checkpoint_{steps}" / "state" / "_METADATA").read_text())
        states = [key for key in metadata["tree_metadata"] if "param_states" in key]
        assert states and all(".bank." in key or ".count" in key for key in states)  # nothing of a frozen weight
    first = arrays_of(target / "checkpoint_0")
    bank, run = best_bank(source)
    np.testing.assert_array_equal(first["bank/shared"], bank.shared_GPD)  # the target started where the source ended
    np.testing.assert_allclose(first["bank/cols"], bank.cols_NPR.mean(0, keepdims=True), rtol=1e-6)
    assert run["tasks"] == SOURCES and run["parameters"]["trainable"] == 6 * 192 + 2 * (6 + 192)


@pytest.mark.slow
def test_dropout_changes_what_the_bank_learns_and_nothing_else(world, teachers):
    dropped = train(world, "teacher", "dropped", SOURCES, 3, DROPOUT_RATE=0.5)
    with_rate, without = (arrays_of(folder / "checkpoint_3") for folder in (dropped, teachers))
    changed = [path for path, array in without.items() if not np.array_equal(array, with_rate[path])]
    assert changed == ["bank/shared"] and np.isfinite(with_rate["bank/shared"]).all()


@pytest.mark.slow
def test_t5x_and_our_evaluator_agree_and_inference_answers(world, source, target, monkeypatch):
    monkeypatch.chdir(world)
    arguments = common(world) | {"MIXTURE_OR_TASK_NAME": "bridge_cb", "CHECKPOINT_PATH": "target/checkpoint_3"}
    t5x("eval", "eval", **arguments, EVAL_OUTPUT_DIR="scores")
    theirs = json.loads((world / "scores" / "inference_eval" / "bridge_cb.mpt-metrics.jsonl").read_text().splitlines()[-1])
    assert main(["eval", f"--gin.MODEL_DIR={str(target)!r}", f"--gin.CACHE_DIR={str(world / 'cache')!r}"]) == 0
    ours = json.loads((target / "eval" / "bridge_cb.json").read_text())
    assert ours["runs"][0]["scores"]["accuracy"] == pytest.approx(theirs["accuracy"])

    t5x("infer", "infer", **arguments, INFER_OUTPUT_DIR="answers")
    lines = [json.loads(text) for text in (world / "answers" / "bridge_cb.mpt-predict.jsonl-00000-of-00001").read_text().splitlines()]
    right = [line["prediction"] == line["inputs"]["targets_pretokenized"] for line in lines]
    assert len(lines) == 56 and 100 * np.mean(right) == pytest.approx(theirs["accuracy"])
    arguments["CHECKPOINT_PATH"] = str(source / "checkpoint_4")
    with pytest.raises(UserError, match=r"no prompt is known for task bridge_cb; there are bridge_sst2 \(1\), bridge_rte \(2\)"):
        t5x("eval", "eval", **arguments, EVAL_OUTPUT_DIR=str(world / "none"))


@pytest.mark.slow
def test_other_tasks_or_an_unfinished_source_are_refused(world, source):
    description = (source / "run.json").read_text()
    with pytest.raises(UserError, match=r"holds a run of another configuration .*tasks: \['bridge_sst2', 'bridge_rte'\] there"):
        train(world, "teacher", "source", "bridge_cb", 4)
    assert (source / "run.json").read_text() == description
    unfinished = world / "unfinished"
    shutil.copytree(source / "checkpoint_2", unfinished / "checkpoint_2")
    (unfinished / "run.json").write_text(description)
    with pytest.raises(UserError, match="unfinished' is not finished: step 2 of 4"):
        train(world, "target", "never", "bridge_cb", 3, SOURCE_DIR=str(unfinished))


@pytest.mark.slow
def test_a_run_that_continues_is_the_run_that_never_stopped(world, teachers, source):
    stopped = world / "stopped"
    for name in ("checkpoint_0", "checkpoint_2"):
        shutil.copytree(source / name, stopped / name)
    train_source(world, "stopped", teachers)
    whole, continued = (arrays_of(folder / "checkpoint_4") for folder in (source, stopped))
    for name in ("bank/shared", "bank/cols", "bank/rows"):
        np.testing.assert_array_equal(continued[name], whole[name])


@pytest.mark.slow
def test_both_trainers_agree_at_every_step(world, teachers):
    steps = 20
    theirs = train(
        world, "source", "same", SOURCES, steps, "cached", TEACHER_DIR=str(teachers), train__stats_period=1,
        train__infer_eval_dataset_cfg=None, train__train_eval_dataset_cfg=None, LEARNING_RATE=0.3, FACTOR_LEARNING_RATE=0.3,
    )  # fmt: skip
    settings = Settings(
        TrainSettings("source", str(world / "ours"), teacher_dir=str(teachers), train_steps=steps, log_steps=1, score_tasks=False),
        BackboneSettings(str(world / "nano" / "checkpoint_0"), common(world)["VOCABULARY"]),
        PromptSettings(length=6),
        # the same shapes as T5X's: Adam makes rounding errors of small gradients as large as its steps
        data=DataSettings(16, 16, common(world)["TASK_FEATURE_LENGTHS"], cache_dir=str(world / "cache")),
    )
    run_train(settings, tuple(SOURCES))
    there = events(theirs / "train")
    for task in SOURCES:
        lines = {line["step"]: line for line in read_metrics(world / "ours") if line["task"] == task}
        for term in ("loss", "kl", "hidden_encoder", "hidden_decoder"):
            their_values = there[f"{task}/{term}"]
            assert len(their_values) == steps
            drawn = [step for step in range(1, steps + 1) if step in lines]  # a step's rows may all be of the other task
            np.testing.assert_allclose(their_values[np.array(drawn) - 1], [lines[step][term] for step in drawn], rtol=1e-4, atol=1e-4)
            assert len(drawn) > steps // 2
    (their_bank, _), (our_bank, _) = best_bank(theirs), best_bank(world / "ours", "last")
    start = arrays_of(theirs / "checkpoint_0")["bank/shared"]
    assert np.abs(their_bank.shared_GPD - start).max() > 0.1  # it has gone somewhere
    for name, array in their_bank.trainable().items():
        np.testing.assert_allclose(array, our_bank.trainable()[name], atol=1e-4)
    np.testing.assert_allclose(compose_all(their_bank), compose_all(our_bank), atol=1e-4)


@pytest.mark.slow
def test_banks_go_both_ways(world, source):
    (world / "converted").mkdir()
    convert(str(source / "checkpoint_4"), "npz", str(world / "converted" / "bank.npz"))
    held = formats.prompts.read(world / "converted" / "bank.npz")
    assert held.task_names == tuple(SOURCES)
    np.testing.assert_allclose(held.compose(), compose_all(best_bank(source)[0]), rtol=1e-6)
    convert(str(world / "converted" / "bank.npz"), "t5x_bank", str(world / "converted" / "run"))
    arguments = common(world) | {"MIXTURE_OR_TASK_NAME": "bridge_rte", "INFER_MODE": "score"}
    for name, checkpoint in (("theirs", source / "checkpoint_4"), ("back", world / "converted" / "run" / "checkpoint_0")):
        t5x("infer", "infer", **arguments, CHECKPOINT_PATH=str(checkpoint), INFER_OUTPUT_DIR=str(world / name))
    scores = [
        [json.loads(line)["score"] for line in (world / name / "bridge_rte.mpt-score.jsonl-00000-of-00001").read_text().splitlines()]
        for name in ("theirs", "back")
    ]
    assert len(scores[0]) == 277
    np.testing.assert_allclose(*scores, rtol=1e-6)


def test_rows_are_never_packed_and_always_have_a_task():
    need_t5x()
    import tensorflow as tf

    from mpt_jax.t5x_bridge.features import TaskIdFeatureConverter

    with pytest.raises(UserError, match="pack = True would join rows of different tasks"):
        TaskIdFeatureConverter(pack=True)
    row = {"inputs": [7, 8, 1], "targets": [3, 1], "task_id": [2]}
    dataset = tf.data.Dataset.from_tensors({name: tf.constant(value, tf.int32) for name, value in row.items()})
    convert_rows = TaskIdFeatureConverter()
    (found,) = convert_rows(dataset, {"inputs": 4, "targets": 3}).as_numpy_iterator()
    assert {name: value.tolist() for name, value in found.items()} == {
        "encoder_input_tokens": [7, 8, 1, 0], "decoder_target_tokens": [3, 1, 0], "decoder_input_tokens": [0, 3, 1],
        "decoder_loss_weights": [1, 1, 0], "task_id": [2],
    }  # fmt: skip
    without = dataset.map(lambda example: {name: example[name] for name in ("inputs", "targets")})
    with pytest.raises(UserError, match="has no feature 'task_id'"):
        convert_rows(without, {"inputs": 4, "targets": 3})
    padding = dataset.map(lambda example: example | {"task_id": tf.constant([0])})
    with pytest.raises(tf.errors.InvalidArgumentError, match="task_id counts from 1"):
        list(convert_rows(padding, {"inputs": 4, "targets": 3}))


def test_long_rows_keep_their_end():
    need_t5x()
    import seqio
    import tensorflow as tf

    from mpt_jax.t5x_bridge.mixtures import cut_before_eos

    features = {name: seqio.Feature(seqio.ByteVocabulary(), add_eos=name != "raw") for name in ("inputs", "targets", "raw")}
    rows = {"inputs": [5, 6, 7, 8, 1], "targets": [5, 1], "raw": [5, 6, 7]}
    dataset = tf.data.Dataset.from_tensors(rows)
    for lengths, inputs in (({"inputs": 3, "targets": 2, "raw": 2}, [5, 6, 1]), ({"inputs": 5}, rows["inputs"]), (None, rows["inputs"])):
        (found,) = cut_before_eos(dataset, features, lengths).as_numpy_iterator()
        assert {name: value.tolist() for name, value in found.items()} == rows | {"inputs": inputs}


def test_paths_that_orbax_takes_are_made_absolute():
    """What T5X's own files bind to a macro that may be relative; needs no T5X."""
    bound = {
        "stage": ("train_script.train.model_dir", "utils.RestoreCheckpointConfig.path"),
        "eval": ("eval_script.evaluate.output_dir", "utils.RestoreCheckpointConfig.path", "program.trained_model.checkpoint"),
        "infer": ("infer_script.infer.output_dir", "utils.RestoreCheckpointConfig.path", "program.trained_model.checkpoint"),
    }
    for name, fields in bound.items():
        text = (ROOT / "gin" / "t5x" / f"{name}.gin").read_text()
        for field in fields:
            (scope,) = re.findall(rf"^{re.escape(field)} = @(\w+)/paths.absolute\(\)$", text, re.M)
            assert re.search(rf"^{scope}/paths.absolute.path = %\w+$", text, re.M)
    assert paths.absolute("a/b") == str(Path.cwd() / "a/b") and paths.absolute("~/a") == str(Path.home() / "a")
    assert paths.absolute(["/a", "gs://b/c"]) == ["/a", "gs://b/c"]


def test_distances_of_encoder_states_are_divided_by_the_states_compared():
    need_t5x()
    from mpt_jax.t5x_bridge.model import PromptedModel

    bank = new_bank(1, 2)
    micro = {"input_length_B": np.array([5, 5, 5]), "target_length_B": np.array([2, 2, 2]), "task_id_B": np.array([0, 0, 1])}
    for positions, states in (("inputs", 5), ("all", 5 + LENGTH)):
        objective = objective_of(bank, DistillationSettings(hidden_positions=positions))
        found = PromptedModel(objective, bank, ("a", "b"), None)._metrics(micro, {"hidden_encoder": np.array([1.0, 2.0, 6.0])})
        assert float(found["a/hidden_encoder"].compute()) == pytest.approx(3 / (2 * states))
        assert float(found["mean/hidden_encoder"].compute()) == pytest.approx(9 / (3 * states))


def test_micro_batches_of_t5x_are_refused():
    need_t5x()
    from mpt_jax.t5x_bridge.model import PromptedModel
    bank = new_bank(1, 2)
    model = PromptedModel(objective_of(bank), bank, ("a", "b"), None, batch_size=8)
    shapes = {"encoder_input_tokens": (4, 5), "decoder_target_tokens": (4, 3), "task_id": (4, 1)}
    batch = {name: np.ones(shape, np.int32) for name, shape in shapes.items()}
    with pytest.raises(UserError, match="a step's 8 examples came in parts of 4.*num_microbatches = None"):
        model.loss_fn(model.get_initial_variables(None, {})["params"], batch, None)


def test_a_checkpoint_without_the_whole_backbone_is_refused():
    need_t5x()
    from mpt_jax.t5x_bridge.restore import take_backbone

    state = {"target": {"a": {"kernel": 0}, "b": {"kernel": 0}, "bank": {"shared": 0}}, "state": {"step": 0}}
    whole = {"target": {"a": {"kernel": 1}, "b": {"kernel": 2}, "bank": {"shared": 3}}, "state": {"step": 7}}
    assert take_backbone(whole, state) == {"target": {"a": {"kernel": 1}, "b": {"kernel": 2}}}
    assert take_backbone(whole, state, keep_bank=True)["target"]["bank"] == {"shared": 3}
    assert take_backbone(whole, state, is_resuming=True) is whole
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH lacks b/kernel"):
        take_backbone({"target": {"a": {"kernel": 1}}}, state)
    with pytest.raises(UserError, match="lacks bank/shared"):
        take_backbone({"target": {"a": {"kernel": 1}, "b": {"kernel": 2}}}, state, keep_bank=True)

