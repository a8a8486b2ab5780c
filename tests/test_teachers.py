"""Teachers run once: training from what they said equals training beside them."""

import dataclasses

import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_families import gemma
from tiny_families import weights as family_weights
from tiny_model import CONFIG, LENGTH, SPEC, batch_at, given, make_step, new_bank, streams, sums_of, tiny_backbone
from tiny_run import row, write_run

from mpt_jax.config import BackboneSettings, DataSettings, DistillationSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.data import teacher_cache
from mpt_jax.errors import Preempted, UserError
from mpt_jax.methods.prompt import GIVEN, paths_of
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5gemma_config import T5GemmaConfig
from mpt_jax.train import teachers
from mpt_jax.train.program import assemble
from mpt_jax.train.teachers import Teachers, layout_of, teach_streams

EXACT = DistillationSettings(teacher_mode="cached", cached_top=0, cached_dtype="float32", temperature=2.0)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return [sized_cache(folder, 40 + n, name=f"task{n}", longest=20) for n in range(2)]


PROMPTS = np.random.default_rng(5).normal(size=(4, LENGTH, CONFIG.d_model)).astype(np.float32)


def teachers_of(folder, settings=EXACT, prompts_NPD=PROMPTS, steps=1, **changes) -> Teachers:
    backbone, spec = changes.pop("backbone", tiny_backbone()), changes.pop("spec", SPEC)
    return Teachers(settings, prompts_NPD, given(CONFIG, **changes), backbone, spec, None, folder, steps)


def train(settings, stream_list, steps=4):
    """Bank after some updates, and the terms of the last one. With cached teachers the frozen arrays hold no prompts of theirs."""
    step_fn, state, frozen = make_step(new_bank(2, 2), settings, PROMPTS)
    for step in range(steps):
        state, metrics = step_fn(state, frozen, batch_at(stream_list, step, 4))
    return state.trainable, sums_of(step_fn, metrics)


LONG_CASES = [pytest.param(*case, marks=pytest.mark.long) for case in (("last", "all"), ("none", "inputs"))]


@pytest.mark.parametrize("hidden, positions", [pytest.param("last", "inputs", marks=pytest.mark.slow), *LONG_CASES])
def test_whole_distributions_and_float32_states_equal_the_teacher_beside(caches, tmp_path, hidden, positions):
    """Tolerance 1e-5 on parameters after four updates."""
    settings = dataclasses.replace(EXACT, hidden=hidden, hidden_positions=positions)
    stream_list = streams(caches, 2)
    cached, cached_terms = train(settings, teach_streams(teachers_of(tmp_path, settings, steps=4), stream_list))
    beside, beside_terms = train(dataclasses.replace(settings, teacher_mode="beside"), stream_list)
    for path, array in beside.items():
        np.testing.assert_allclose(cached[path], array, atol=1e-5)
    for name, sums in beside_terms.items():
        np.testing.assert_allclose(cached_terms[name], sums, rtol=1e-4, atol=1e-4)


def test_states_of_stacks_of_two_widths_are_kept_and_opened_again(caches, tmp_path):
    decoder = gemma("decoder", 24, vocab_size=CONFIG.vocab_size, num_layers=1, layer_kinds=("full",))
    config = T5GemmaConfig("custom", gemma("encoder", CONFIG.d_model, vocab_size=CONFIG.vocab_size), decoder)
    backbone = Backbone("tiny", config, family_weights(config), "bytes", "f" * 16)
    for _ in range(2):
        of_two_widths = Teachers(EXACT, PROMPTS, Network(config, adaptation=GIVEN), backbone, SPEC, None, tmp_path, 1)
        batch = batch_at(teach_streams(of_two_widths, streams(caches, 1)), 0, 2).micro[0]
        assert batch["teacher_encoder_BYD"].shape[2] == CONFIG.d_model and batch["teacher_decoder_BYD"].shape[2] == 24
        assert batch["teacher_encoder_BYD"].any() and batch["teacher_decoder_BYD"].any()


@pytest.mark.long
def test_a_few_tokens_and_half_precision_come_near(caches, tmp_path):
    stream_list = streams(caches, 2)
    near = dataclasses.replace(EXACT, cached_top=64, cached_dtype="float16")
    _, cached = train(near, teach_streams(teachers_of(tmp_path, near, steps=1), stream_list), steps=1)
    _, beside = train(dataclasses.replace(EXACT, teacher_mode="beside"), stream_list, steps=1)
    for name in ("hidden_encoder", "hidden_decoder"):
        np.testing.assert_allclose(cached[name], beside[name], rtol=2e-3)
    assert np.all(cached["kl"] <= beside["kl"] * (1 + 1e-5)) and np.all(cached["kl"] >= 0.2 * beside["kl"]) and cached["kl"].any()


def test_rows_of_later_steps_are_added_and_nothing_is_run_twice(caches, tmp_path, monkeypatch):
    stream_list = streams(caches, 1)
    runs, real = [], teachers._run
    monkeypatch.setattr(teachers, "_run", lambda *a: runs.append(a[3]) or real(*a))
    teach_streams(teachers_of(tmp_path, steps=1), stream_list)
    drawn = sum(map(len, runs))
    assert drawn == 8
    teach_streams(teachers_of(tmp_path, steps=1), stream_list)
    assert sum(map(len, runs)) == drawn
    taught = teach_streams(teachers_of(tmp_path, steps=3), stream_list)
    assert drawn < sum(map(len, runs)) <= 24
    for step in range(3):
        assert len(batch_at(taught, step, 2).micro) == 2


def test_teachers_that_are_told_to_end_leave_what_they_have_said(caches, tmp_path, monkeypatch):
    """After the second batch of four rows: these are on disk, and the next start computes the others alone."""
    stream_list, ran, real = streams(caches, 1), [], teachers._run
    monkeypatch.setattr(teachers, "_run", lambda *a: ran.append(a[3]) or real(*a))
    with pytest.raises(Preempted, match=r"outputs of teachers are written for 8 of \d+ rows, the same command continues"):
        teach_streams(teachers_of(tmp_path, steps=4), stream_list, lambda batch: batch == 2)
    wanted = len(ran[0])
    ran.clear()
    taught = teach_streams(teachers_of(tmp_path, steps=4), stream_list)
    assert len(ran[0]) == wanted - 8 > 0
    expected = teach_streams(teachers_of(tmp_path / "whole", steps=4), stream_list)
    for step in range(4):
        for found, whole in zip(batch_at(taught, step, 2).micro, batch_at(expected, step, 2).micro, strict=True):
            for name, array in whole.items():
                np.testing.assert_allclose(found[name], array, atol=1e-5)


def test_runs_that_share_a_teacher_share_its_outputs(caches, tmp_path):
    prompts_NPD = np.concatenate([PROMPTS[:2], PROMPTS[:2]])
    teach_streams(teachers_of(tmp_path, prompts_NPD=prompts_NPD, steps=2), streams(caches, 2))
    assert sorted(len(list(folder.iterdir())) for folder in (tmp_path / "teachers").iterdir()) == [1, 1]


def test_parts_are_opened_once(caches, tmp_path, monkeypatch):
    teach_streams(teachers_of(tmp_path, steps=1), streams(caches, 1))
    parts, real = [], teacher_cache.checked_meta
    monkeypatch.setattr(teacher_cache, "checked_meta", lambda part, files: parts.append(part) or real(part, files))
    teach_streams(teachers_of(tmp_path, steps=1), streams(caches, 1))
    assert parts and len(parts) == len(set(parts))


def test_whatever_goes_into_the_outputs_is_in_their_key(caches, tmp_path):
    changes = [
        teachers_of(tmp_path),
        teachers_of(tmp_path, prompts_NPD=PROMPTS + 1),
        teachers_of(tmp_path, backbone=tiny_backbone("0" * 16)),
        teachers_of(tmp_path, dtype="bfloat16"),
        teachers_of(tmp_path, spec=dataclasses.replace(SPEC, input_length=12)),
    ]
    for name, value in {"temperature": 1.0, "hidden": "none", "hidden_positions": "all", "cached_top": 8, "logits": False}.items():
        changes.append(teachers_of(tmp_path, dataclasses.replace(EXACT, **{name: value})))
    folders = {changed.outputs_of(cache, 0, {}).folder for changed in changes for cache in caches}
    assert len(folders) == 2 * len(changes)
    assert teachers_of(tmp_path, dataclasses.replace(EXACT, weight=0.1)).outputs_of(caches[0], 0, {}).folder in folders


def test_what_is_kept(caches):
    assert layout_of(DistillationSettings(), CONFIG, LENGTH).files()["logp"] == ((64,), "float32")
    assert layout_of(dataclasses.replace(EXACT, cached_top=10**6), CONFIG, LENGTH) == layout_of(EXACT, CONFIG, LENGTH)
    states = layout_of(dataclasses.replace(EXACT, logits=False, hidden_positions="all"), CONFIG, LENGTH)
    assert states.files().keys() == {"encoder", "decoder"} and states.prefix == LENGTH


def test_no_room_on_the_disk_is_told_before_anything_runs(caches, tmp_path, monkeypatch):
    monkeypatch.setattr(teachers.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"outputs of teachers for 16 rows take .* GB are free; name another CACHE_DIR"):
        teach_streams(teachers_of(tmp_path, steps=1), streams(caches, 2))


def test_the_teachers_of_a_program(tmp_path):
    """Its prompts, lengths and steps; the network without dropout and without remat, which keep nothing for a backward pass."""
    folder = write_run(tmp_path / "teachers", [row("a", 1, 0), row("b", 1, 1)], paths_of(new_bank(2, 1, rank=0)))
    settings = Settings(
        TrainSettings("source", train_steps=7, teacher_dir=folder), BackboneSettings(remat="layers"), PromptSettings(length=LENGTH),
        EXACT, data=DataSettings(feature_lengths={"inputs": 20, "targets": 9}),
    )  # fmt: skip
    program = assemble(settings, ("b", "a"), tiny_backbone())
    found = teachers.of_program(program, tmp_path / "cache")
    np.testing.assert_array_equal(found.prompts_NPD, program.teachers_NPD)
    assert found.network == given(CONFIG) and found.backbone is program.backbone and found.mesh is None
    assert (found.settings, found.spec, found.steps, found.folder) == (EXACT, program.spec, 7, tmp_path / "cache")
    assert found.layout == layout_of(EXACT, CONFIG, LENGTH)


def test_every_layer_cannot_be_cached():
    with pytest.raises(UserError, match="set hidden to 'last', or teacher_mode to 'beside'"):
        DistillationSettings(teacher_mode="cached", hidden="all")
