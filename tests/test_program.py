"""The one assembly (train/program.py): what trains, what is frozen, where it starts, and the same from shapes alone."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import sized_cache, token_cache
from tiny_model import CONFIG, LENGTH, new_bank, tiny_backbone
from tiny_run import row, write_run

from mpt_jax.config import (
    STAGES,
    BackboneSettings,
    Computation,
    DataSettings,
    DistillationSettings,
    MeshSettings,
    OptimizerSettings,
    PromptSettings,
    Settings,
    TrainSettings,
)  # fmt: skip
from mpt_jax.errors import UserError
from mpt_jax.methods import prompt, weights
from mpt_jax.methods.bank import compose_all
from mpt_jax.methods.method import HEAD, TEACHERS
from mpt_jax.methods.table import METHODS
from mpt_jax.sharding import make_mesh
from mpt_jax.train.program import assemble
from mpt_jax.train.terms import terms

TASKS = ("a", "b")
FRESH = PromptSettings(length=LENGTH, transfer="none")
BANK = {"bank/shared", "bank/cols", "bank/rows"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A run of teachers, and its bank."""
    bank = new_bank(2, 1, rank=0)
    rows = [row("a", 1, 0), row("b", 1, 1)]
    return write_run(tmp_path_factory.mktemp("runs") / "teachers", rows, prompt.paths_of(bank)), bank


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Rows with sentence vectors of width 5."""
    folder = tmp_path_factory.mktemp("caches")
    return {task: token_cache(folder, [([5, 1], [6, 1])] * 12, task, embedding=5) for task in TASKS}


def settings(stage, prompt_settings=FRESH, **more) -> Settings:
    train = {name: more.pop(name) for name in ("teacher_dir", "source_dir", "seeds", "encoder_teaching") if name in more}
    return Settings(TrainSettings(stage, "/somewhere", **train), prompt=prompt_settings, **more)


@pytest.mark.parametrize("stage", STAGES)
def test_shapes_alone_give_the_program_that_arrays_give(stage, teachers, caches):
    """Paths, shapes and dtypes of what trains and what is frozen, the optimiser's state, the terms and the form of batches."""
    chosen = settings(stage, teacher_dir=teachers[0] if stage == "source" else "")
    real = assemble(chosen, TASKS, tiny_backbone(), caches=caches)
    shapes = assemble(chosen, TASKS, tiny_backbone(), shapes_only=True)
    for name in ("trainable", "frozen"):
        found, expected = ({path: (array.shape, array.dtype) for path, array in getattr(p, name).items()} for p in (shapes, real))
        assert found == expected
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in getattr(shapes, name).values())
    assert real.method is (weights.METHOD if stage in ("finetune", "pretrain") else prompt.METHOD)
    assert (real.trainable.keys() == BANK) == (real.method is prompt.METHOD)
    assert (TEACHERS in real.frozen) == (stage == "source")
    assert [term.name for term in terms(shapes.objective)] == [term.name for term in terms(real.objective)]
    # which tokens end a text is the vocabulary's, which is not read for shapes
    spec = dataclasses.replace(shapes.spec, input_end=real.spec.input_end, target_end=real.spec.target_end)
    assert shapes.plan == real.plan and spec == real.spec and shapes.network == real.network
    states = [jax.eval_shape(p.optimizer.init, p.trainable) for p in (shapes, real)]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), states[0]) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), states[1])


@pytest.mark.parametrize("name", ["factor_learning_rate", "learning_rate"])
def test_a_list_of_rates_that_nothing_trains_at_is_refused(monkeypatch, name):
    """It would train the same run several times."""
    plain, optimizer = dataclasses.replace(FRESH, rank=0), OptimizerSettings(**{name: [0.1, 0.3]})
    if name == "learning_rate":  # a method of one's own, without prompts
        parts = tuple(part._replace(param_group="factors") if part.param_group == "prompt" else part for part in prompt.METHOD.parts)
        monkeypatch.setitem(METHODS, "prompt", prompt.METHOD._replace(parts=parts))
    message = rf"{name.upper()} = \[0.1, 0.3\] would train the same run 2 times: METHOD = 'prompt'.* trains nothing at this rate; leave it"
    for shapes_only in (False, True):
        with pytest.raises(UserError, match=message):
            assemble(settings("teacher", plain, optimizer=optimizer), TASKS, tiny_backbone(), shapes_only=shapes_only)
    one = settings("teacher", plain, optimizer=dataclasses.replace(optimizer, **{name: [0.1]}))
    assert len(assemble(one, TASKS, tiny_backbone(), shapes_only=True).plan.runs) == 2


def test_what_the_source_stage_distils(teachers):
    folder, bank = teachers
    program = assemble(settings("source", teacher_dir=folder, seeds=[1, 2]), TASKS, tiny_backbone())
    expected = np.asarray(compose_all(bank))[[0, 1, 0, 1]]
    np.testing.assert_array_equal(program.teachers_NPD, expected)
    np.testing.assert_array_equal(program.frozen[TEACHERS], expected)
    assert program.objective.distillation == DistillationSettings() and program.objective.prompt_length == LENGTH
    cached = settings("source", teacher_dir=folder, distillation=DistillationSettings(teacher_mode="cached"))
    program = assemble(cached, TASKS, tiny_backbone())
    assert TEACHERS not in program.frozen and program.teachers_NPD.shape == (2, LENGTH, CONFIG.d_model)
    alone = assemble(settings("source", distillation=DistillationSettings(weight=0.0)), TASKS, tiny_backbone())
    assert alone.teachers_NPD is None and alone.objective.distillation is None and TEACHERS not in alone.frozen


def test_targets_start_from_the_source_group_of_their_seed(tmp_path):
    source = new_bank(2, 2)
    rows = [row(task, seed, group) for group, seed in ((0, 9), (1, 7)) for task in ("s", "t")]
    folder = write_run(tmp_path / "source", rows, prompt.paths_of(source), stage="source")
    program = assemble(settings("target", PromptSettings(length=LENGTH), seeds=[7, 9], source_dir=folder), ("a",), tiny_backbone())
    bank = prompt.bank_of(program.trainable, program.plan.group_N)
    np.testing.assert_array_equal(bank.shared_GPD, np.asarray(source.shared_GPD)[[1, 0]])
    np.testing.assert_allclose(bank.cols_NPR[0], np.asarray(source.cols_NPR)[2:].mean(0), rtol=1e-6)


def test_without_transfer_prompts_start_from_the_vocabulary():
    plain = PromptSettings(length=LENGTH, rank=0, transfer="none")
    program = assemble(settings("target", plain, seeds=[1, 2]), ("a",), tiny_backbone())
    assert program.trainable.keys() == {"bank/shared"}
    shared_GPD = np.asarray(program.trainable["bank/shared"])
    embedding = np.asarray(tiny_backbone().flat()["backbone/token_embedder/embedding"])
    for vector in shared_GPD.reshape(-1, CONFIG.d_model):
        assert np.any(np.all(embedding == vector, axis=1))
    assert not np.array_equal(shared_GPD[0], shared_GPD[1])


def test_prompts_may_start_from_a_text():
    program = assemble(settings("target", PromptSettings(length=5, transfer="none", init="text", init_text="ab")), ("a",), tiny_backbone())
    vocabulary, embedding = tiny_backbone().vocabulary(), tiny_backbone().flat()["backbone/token_embedder/embedding"]
    first, second = vocabulary.encode("ab")
    np.testing.assert_array_equal(program.trainable["bank/shared"][0], np.asarray(embedding)[[first, second] * 2 + [first]])


def test_finetuning_trains_one_set_of_weights():
    with pytest.raises(UserError, match="'weights' trains 'backbone/.*give one seed and one learning rate, not 2"):
        assemble(settings("finetune", seeds=[1, 2]), TASKS, tiny_backbone())
    assert assemble(settings("finetune"), TASKS, tiny_backbone()).plan.num_groups == 1


def test_pretraining_may_teach_the_encoder(caches):
    program = assemble(settings("pretrain", encoder_teaching=2.0), TASKS, tiny_backbone(), caches=caches)
    assert program.trainable[HEAD].shape == (CONFIG.d_model, 5)
    assert [(term.name, term.weight) for term in terms(program.objective)] == [("loss", 1.0), ("correct", 0.0), ("sentence", 2.0)]
    with pytest.raises(UserError, match="encoder_teaching = 2.0 needs rows with an 'embedding'"):
        assemble(settings("pretrain", encoder_teaching=2.0), TASKS, tiny_backbone())
    finetuning = assemble(settings("finetune", encoder_teaching=2.0), TASKS, tiny_backbone(), caches=caches)
    assert HEAD not in finetuning.trainable and not finetuning.objective.encoder_teaching


def test_the_network_is_computed_as_the_settings_say():
    backbone = BackboneSettings("tiny", dtype="bfloat16", remat="layers")
    program = assemble(settings("target", backbone=backbone), TASKS, tiny_backbone())
    assert program.network.computation == Computation("bfloat16", "layers", "auto")
    assert program.network.adaptation is prompt.METHOD.adaptation
    tuned = assemble(settings("finetune", backbone=backbone), TASKS, tiny_backbone())
    assert tuned.network.computation == Computation("bfloat16", "layers", "einsum") and tuned.network.adaptation is None
    assert all(array.dtype == np.float32 for array in tuned.trainable.values())


def test_batches_have_the_form_of_the_settings_on_the_mesh():
    data = DataSettings(micro_batch_size=7, feature_lengths={"inputs": 20, "targets": 9}, input_buckets=(8,))
    mesh = make_mesh(MeshSettings())
    spec = assemble(settings("target", data=data), TASKS, tiny_backbone(), mesh).spec
    assert (spec.input_length, spec.target_length, spec.micro_batch_size, spec.input_buckets) == (20, 9, 7, (8, 20))
    assert spec.local_rows is None


def test_few_shot_runs_know_their_rows(tmp_path):
    rows = {task: sized_cache(tmp_path, 30 + n, task) for n, task in enumerate(TASKS)}
    chosen = settings("fewshot", seeds=[1, 2], data=DataSettings(k_shot=4), optimizer=OptimizerSettings(learning_rate=[0.1, 0.2]))
    program = assemble(chosen, TASKS, tiny_backbone(), caches=rows)
    assert [len(run.few_shot) for run in program.plan.runs] == [4] * 8
