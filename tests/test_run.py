"""From settings to a run folder (train/run.py): what run.json says, caches, weights that trained; resuming is in test_checkpoint.py."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_model import CONFIG, LENGTH, tiny_backbone, weights
from tiny_world import write_world

from mpt_jax import tasks
from mpt_jax.config import BackboneSettings, DataSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt
from mpt_jax.methods.method import Part
from mpt_jax.methods.table import METHODS, register
from mpt_jax.model import formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.train.program import assemble
from mpt_jax.train.run import accounting, check_together, describe_run, made_from, open_caches, write_backbone


def settings(stage="target", **train) -> Settings:
    return Settings(TrainSettings(stage, **train), BackboneSettings("a folder"), PromptSettings(length=LENGTH, transfer="none"))


def test_a_description_counts_what_trains():
    program = assemble(settings(seeds=[1, 2]), ("a", "b"), tiny_backbone())
    described = json.loads(json.dumps(describe_run(program)))
    each, whole = LENGTH * 16 + LENGTH + 16, CONFIG.num_parameters()
    assert described["parameters"] == {"trainable": 4 * each, "per_task": each, "backbone": whole, "fraction_of_backbone": each / whole}
    assert described["stage"] == "target" and described["method"] == "prompt" and described["tasks"] == ["a", "b"]
    assert [(row["task"], row["seed"], row["group"]) for row in described["runs"]] == [("a", 1, 0), ("b", 1, 1), ("a", 2, 2), ("b", 2, 3)]
    assert described["backbone"]["name"] == "a folder" and described["backbone"]["fingerprint"] == "f" * 16
    assert described["settings"]["backbone"]["path"] == "a folder" and described["vocabulary"] == {"path": "bytes"}
    assert accounting(described).startswith(f"target: {4 * each:,} trainable parameters in 4 runs; {each:,} per task, ")


def test_weights_are_counted_once_for_all_tasks():
    described = describe_run(assemble(settings("finetune"), ("a", "b"), tiny_backbone()))
    assert described["method"] == "weights" and described["parameters"]["per_task"] == described["parameters"]["trainable"]
    assert described["parameters"]["fraction_of_backbone"] == 1.0


def test_trained_weights_become_a_backbone_folder(tmp_path):
    """Those that did not train are the loaded ones; heads are left out; what an earlier end wrote is replaced."""
    backbone = tiny_backbone()
    path = "backbone/encoder/encoder_norm/scale"
    for value in (2.0, 3.0):
        write_backbone(tmp_path, backbone, {path: jnp.full(16, value), "head/kernel": jnp.ones((16, 4))})
    written = load_backbone(BackboneSettings(str(tmp_path / "backbone")))
    assert written.config == CONFIG and written.vocabulary_path == "bytes"
    for name, array in written.flat().items():
        np.testing.assert_array_equal(array, np.full(16, 3.0) if name == path else backbone.flat()[name])
    assert formats.detect(str(tmp_path / "backbone"))[0] == "own"


@pytest.mark.parametrize("scored", [True, False])
def test_caches_of_training_and_of_the_dev_split_where_it_is_scored(tmp_path, table, scored):
    write_world(tmp_path)
    tasks.import_module(str(tmp_path / "my_tasks.py"))
    chosen = settings(score_tasks=scored)._replace(data=DataSettings(cache_dir=str(tmp_path / "cache")))
    caches = open_caches(chosen, ("vowel", "long"), tiny_backbone())
    assert caches.folder == tmp_path / "cache"
    assert {name: cache.split for name, cache in caches.train.items()} == {"vowel": "train", "long": "train"}
    assert {name: cache.split for name, cache in caches.dev.items()} == ({"vowel": "validation", "long": "validation"} if scored else {})
    assert [cache.rows for cache in caches.train.values()] == [40, 40]


@pytest.mark.parametrize("kind", ["own", "hf", "t5x"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_is_the_setting_whatever_the_files_of_the_backbone_say(tmp_path, kind, rate):
    formats.write_backbone(kind, str(tmp_path / "backbone"), CONFIG, weights(CONFIG), "bytes")
    told = tmp_path / "backbone" / "config.json"
    if told.exists():
        told.write_text(json.dumps({**json.loads(told.read_text()), "dropout_rate": 0.2}))
    backbone = load_backbone(BackboneSettings(str(tmp_path / "backbone"), "bytes"))
    assert assemble(settings(dropout_rate=rate), ("a",), backbone).network.computation.dropout_rate == rate


def test_settings_that_do_not_go_together_are_named():
    few = settings("fewshot", model_dir="x")
    with pytest.raises(UserError, match="K_SHOT = 0: stage 'fewshot' trains on K_SHOT rows, 1 or more"):
        check_together(few)
    check_together(few._replace(data=DataSettings(k_shot=4)))
    check_together(settings(model_dir="x"))
    with pytest.raises(UserError, match="MODEL_DIR is empty; type --model_dir FOLDER"):
        check_together(settings())
    with pytest.raises(UserError, match="ATTENTION = 'fused' gives the position bias no gradient"):
        check_together(settings("finetune", model_dir="x")._replace(backbone=BackboneSettings(attention="fused")))


def test_a_run_is_made_from_its_first_prompts_its_teachers_and_its_rows(tmp_path):
    cache = sized_cache(tmp_path, 40)
    program = assemble(settings(), ("a", "b"), tiny_backbone())
    teachers_NPD = np.ones((2, LENGTH, CONFIG.d_model), np.float32)
    found = made_from(program._replace(teachers_NPD=teachers_NPD), [cache])
    assert found.keys() == {"parameters at the start", "prompts of the teachers", "rows of toy, train", "scores of a", "scores of b"}
    assert found["rows of toy, train"] == cache.fingerprint
    changed = {**program.trainable, "bank/cols": -program.trainable["bank/cols"]}
    other = made_from(program._replace(trainable=changed, teachers_NPD=teachers_NPD + 1))
    assert other["parameters at the start"] != found["parameters at the start"]
    assert other["prompts of the teachers"] != found["prompts of the teachers"]
    assert describe_run(program, [cache])["made_from"] == made_from(program, [cache])
    # trained weights start as the backbone's, which has its fingerprint
    assert made_from(assemble(settings("finetune", score_tasks=False), ("a",), tiny_backbone())) == {}


def test_a_run_is_another_one_where_its_tasks_are_scored_otherwise(monkeypatch):
    """Its best step so far was chosen by the scores of before."""
    found, two = [], ("no", "yes")
    for given in ({"labels": two}, {"labels": (*two, "so")}, {"labels": two, "score": "macro_f1"}, {"target": "{t}"}):
        monkeypatch.setitem(tasks.TABLE, "a", tasks.Task("a", "file", ("train",), "{x}", format="jsonl", **given))
        found.append(made_from(assemble(settings(), ("a",), tiny_backbone()))["scores of a"])
    assert found == ["accuracy; labels no, yes", "accuracy; labels no, yes, so", "macro_f1; labels no, yes", "accuracy"]


def test_a_run_of_any_method_is_made_from_all_arrays_that_the_method_brings(monkeypatch):
    """Those that do not train, too: a method may draw some and keep them."""
    monkeypatch.setattr("mpt_jax.methods.table.METHODS", dict(METHODS))
    found = {}
    for value in (1.0, 2.0):
        register(prompt.METHOD._replace(
            name="kept", parts=(Part("kept/.*", None, "frozen"), *prompt.METHOD.parts),
            init=lambda start, value=value: prompt.init(start) | {"kept/x": np.full(3, value, np.float32)},
        ))  # fmt: skip
        found[value] = made_from(assemble(settings(method="kept"), ("a",), tiny_backbone()))["parameters at the start"]
    assert found[1.0] != found[2.0]
