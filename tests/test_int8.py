"""Frozen matrices as int8: what is kept, what is computed with it, whole runs, many devices."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_families import LLAMA, T5GEMMAS, T5S, given, ours, real_only, rows, weights
from tiny_methods import settings_of
from tiny_model import run_forward
from tiny_world import write_world

import mpt_jax
from mpt_jax import tasks
from mpt_jax.config import BackboneSettings, EvalSettings, MeshSettings
from mpt_jax.errors import UserError
from mpt_jax.infer.commands import run_eval
from mpt_jax.methods.method import places_for
from mpt_jax.methods.prompt import METHOD
from mpt_jax.model import formats, int8
from mpt_jax.model.backbone import load_backbone, shapes_of
from mpt_jax.model.formats.arrays import flatten, unflatten
from mpt_jax.sharding import make_mesh
from mpt_jax.train.run import run_train

CONFIGS = {"t5": T5S["ul2"], "t5_tied": T5S["umt5_tied"], "causal": LLAMA, "t5gemma": T5GEMMAS["t5gemma"]}


def as_floats(flat: dict) -> dict:
    """The nested weights that int8 kernels and their scales stand for."""
    found = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items() if not path.endswith(int8.SCALE)}
    found |= {path: found[path] * np.asarray(flat[int8.scale_path(path)]) for path in found if int8.is_kernel(path)}
    return unflatten(found.items())


@pytest.fixture(scope="module", params=CONFIGS)
def loaded(request, tmp_path_factory):
    """(config, weights as read with INT8) of a family."""
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp("int8") / "backbone"
    formats.write_backbone("own", str(folder), config, weights(config))
    return config, load_backbone(BackboneSettings(str(folder), "bytes", int8=True)).params


def test_a_kernel_is_the_nearest_of_255_steps_in_each_column():
    kernel_IO = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 10.0 ** np.arange(-3, 4)
    kernel_IO[:, 3] = 0
    found_IO, scale_O = int8.quantised(kernel_IO)
    assert found_IO.dtype == np.int8 and scale_O.dtype == np.float32 and scale_O[3] == 0
    assert np.abs(found_IO).max(axis=0).tolist() == [127, 127, 127, 0, 127, 127, 127]
    assert (np.abs(found_IO * scale_O - kernel_IO) <= 0.5001 * scale_O).all()


def test_kernels_alone_are_int8_and_compiling_foresees_them(loaded):
    config, params = loaded
    flat, expected = flatten(params), flatten(shapes_of(config, BackboneSettings("x", int8=True)))
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in flat.items()} == {p: (leaf.shape, leaf.dtype) for p, leaf in expected.items()}
    kinds = {(path.rpartition("/")[2], str(leaf.dtype)) for path, leaf in flat.items()}
    assert {("kernel", "int8"), ("int8_scale", "float32"), ("embedding", "float32"), ("scale", "float32")} <= kinds
    assert ("kernel", "float32") not in kinds


def test_logits_and_gradients_are_those_of_the_numbers_that_int8_stands_for(loaded):
    """Logits within 1e-4 of 3, gradients of prompts within 1e-4 of their largest."""
    config, params = loaded
    batch, (network, own) = rows(config), given(config, True)

    def squared(prompts_BPD, backbone):
        logits_BTV = run_forward(network, backbone, batch, {"prompt": prompts_BPD}).logits_BTV
        return (logits_BTV**2).sum(), logits_BTV

    gradient = jax.grad(squared, has_aux=True)
    (found, found_BTV), (expected, expected_BTV) = (gradient(own["prompt"], backbone) for backbone in (params, as_floats(flatten(params))))
    np.testing.assert_allclose(real_only(found_BTV), real_only(expected_BTV), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert 1e-3 < np.abs(real_only(found_BTV) - ours(config, True)["logits"]).max() < 1.0  # near the float32 network's, not the same


def test_no_converted_copy_of_a_kernel_lives_from_one_pass_to_the_other(loaded):
    """What the backward pass keeps of the weights is int8."""
    config, params = loaded
    batch, (network, own) = rows(config), given(config, True)
    _, backward = jax.vjp(lambda prompts: run_forward(network, params, batch, {"prompt": prompts}).logits_BTV, own["prompt"])
    kept = [leaf for leaf in jax.tree.leaves(backward) if hasattr(leaf, "dtype")]
    kernels = {leaf.shape for path, leaf in flatten(params).items() if int8.is_kernel(path)}
    assert not {leaf.shape for leaf in kept if leaf.shape in kernels and leaf.dtype == np.float32}
    assert {leaf.shape for leaf in kept if leaf.dtype == np.int8} & kernels


def test_rematerialised_layers_give_the_same_gradient(loaded):
    config, params = loaded
    batch, (network, own) = rows(config), given(config, True)

    def squared(prompts_BPD, remat):
        changed = dataclasses.replace(network, computation=dataclasses.replace(network.computation, remat=remat))
        return (run_forward(changed, params, batch, {"prompt": prompts_BPD}).logits_BTV ** 2).sum()

    found, expected = (jax.grad(squared)(own["prompt"], remat) for remat in ("layers", "none"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", CONFIGS)
def test_scales_lie_as_the_columns_of_their_kernels(name):
    config = CONFIGS[name]
    places = places_for(make_mesh(MeshSettings(fsdp=1)), METHOD, config)
    flat = flatten(shapes_of(config, BackboneSettings("x", int8=True)))
    scales = [path for path in flat if path.endswith(int8.SCALE)]
    assert scales
    for path in scales:
        kernel = path.removesuffix(int8.SCALE) + int8.KERNEL
        assert places.axes_of(f"backbone/{path}") == places.axes_of(kernel)[-1:]
        places.sharding(path, flat[path].shape)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tasks over bytes and a backbone."""
    folder, before = tmp_path_factory.mktemp("world"), dict(tasks.TABLE)
    write_world(folder)
    tasks.import_module(str(folder / "my_tasks.py"))
    yield folder
    tasks.TABLE.clear()
    tasks.TABLE.update(before)


def settings_in(world, name: str, method: str = "prompt", stage: str = "", **backbone):
    settings = settings_of(method, stage, model_dir=str(world / name), train_steps=2, eval_steps=1, eval_rows=4)
    data = dataclasses.replace(settings.data, cache_dir=str(world / "cache"), batch_size=8)
    return settings._replace(backbone=BackboneSettings(str(world / "backbone"), **backbone), data=data)


@pytest.mark.slow
def test_a_run_trains_and_answers_with_int8_and_is_another_run_without(world):
    folder = run_train(settings_in(world, "run", "lora", int8=True), ("vowel", "long"))
    run = mpt_jax.load(folder)
    kernel = run.model.params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
    assert kernel.dtype == np.int8 and len(run.predict(["a word"], task="vowel")) == 1
    assert "vowel" in run_eval(EvalSettings(str(folder)), settings_in(world, "run").data, MeshSettings(), ["vowel"])
    with pytest.raises(UserError, match="backbone.int8: True there, False now"):
        run_train(settings_in(world, "run", "lora"), ("vowel", "long"))


def test_a_backbone_that_was_loaded_otherwise_is_refused(world):
    backbone = load_backbone(BackboneSettings(str(world / "backbone")))
    with pytest.raises(UserError, match=r"\(INT8\) = True, and the weights of the backbone that was given are not int8"):
        run_train(settings_in(world, "other", int8=True), ("vowel",), backbone=backbone)


def test_weights_that_are_trained_are_not_int8(world):
    with pytest.raises(UserError, match="INT8 keeps frozen weights as int8, and method 'weights' trains them: leave --int8 out"):
        run_train(settings_in(world, "tuned", "weights", "finetune", int8=True), ("vowel",))
