"""Run as a program with 8 pretend devices: what each mesh computes beside one device, as JSON. Used by test_sharding.py."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import tiny_model
from tiny_data import byte_vocabulary, sized_cache
from tiny_model import LENGTH, batch_at, make_step, new_bank, streams, sums_before_update, sums_of, tiny, tiny_backbone

from mpt_jax import sharding
from mpt_jax.config import BackboneSettings, DistillationSettings, MeshSettings, OptimizerSettings, Settings, TrainSettings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.infer.requests import Model, Requests, decode, inference_spec
from mpt_jax.methods.method import backbone_of
from mpt_jax.methods.prompt import METHOD, paths_of
from mpt_jax.train.program import assemble

SHAPES = {"8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2), "1x1x8": (1, 1, 8)}
SPEC = BatchSpec(16, 8, 8, (16,))
# heads enough for 8 tensor parts
tiny_model.CONFIG = tiny(num_heads=8, head_dim=4)


def difference(found, expected) -> float:
    """Largest difference of two trees, relative to the expected one's largest value where that is above 1."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(np.abs(np.asarray(b)).max(), 1.0)) for a, b in pairs)


def results(caches, mesh, steps: int = 3) -> dict:
    """Sums and gradients of the first batch, the bank after some steps of a distilled source stage, and decoded tokens."""
    teacher = np.random.default_rng(5).normal(size=(4, LENGTH, tiny_model.CONFIG.d_model)).astype(np.float32)
    bank = new_bank(2, 2)
    step_fn, state, frozen = make_step(bank, DistillationSettings(), teacher, mesh=mesh)
    stream_list = streams(caches, 2)
    sums = sums_before_update(step_fn, state, frozen, batch_at(stream_list, 0, 4, SPEC))
    found = {"loss": jax.device_get(sums.by_task), "grads": jax.device_get(sums.grads)}
    for step in range(steps):
        state, metrics = step_fn(state, frozen, batch_at(stream_list, step, 4, SPEC))
    found["bank"] = jax.device_get(state.trainable)
    found["moments"] = jax.device_get(state.opt_state)
    found["metrics"] = sums_of(step_fn, jax.device_get(metrics))
    found["traces"] = sorted(step_fn.traces)
    network = step_fn.objective.network
    model = Model(network, backbone_of(frozen), byte_vocabulary(), paths_of(bank), METHOD.parts, bank.group_N, mesh)
    rows = [np.arange(3, 4 + n % 9, dtype=np.int32) for n in range(11)]
    requests = Requests(rows, [n % 4 for n in range(11)], [8] * 11)
    found["tokens"] = [tokens.tolist() for tokens in decode(model, requests, inference_spec(16, 8, 4))]
    if mesh is not None:
        kernel = frozen["backbone/encoder/layers_0/mlp/wi_0/kernel"]
        found["share"] = kernel.addressable_shards[0].data.size / kernel.size
        found["bank_spec"] = [str(array.sharding.spec) for array in state.trainable.values()]
        found["moment_spec"] = sorted({str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.opt_state)})
    return found


def compare(found: dict, expected: dict) -> dict:
    """Differences by what is compared."""
    numbers = {name: difference(found[name], expected[name]) for name in ("loss", "grads", "bank", "moments", "metrics")}
    same = {name: found[name] == expected[name] for name in ("tokens", "traces")}
    return numbers | same | {name: found[name] for name in ("share", "bank_spec", "moment_spec") if name in found}


def finetuned(caches, mesh):
    """All weights after two updates, and where a kernel and its moments are."""
    settings = Settings(
        TrainSettings("finetune", train_steps=20), BackboneSettings(remat="layers"),
        optimizer=OptimizerSettings(learning_rate=1e-3, warmup_steps=0),
    )  # fmt: skip
    program = assemble(settings, ("task0", "task1"), tiny_backbone(), mesh)
    step_fn = program.step()
    state = step_fn.init(program.trainable)
    for step in range(2):
        state, _ = step_fn(state, program.frozen, batch_at(streams(caches, 1), step, 2, SPEC))
    path = "backbone/decoder/layers_0/mlp/wo/kernel"
    moments = [leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state) if path in str(keys)]
    return jax.device_get(state.trainable), [str(array.sharding.spec) for array in (state.trainable[path], *moments)] if mesh else []


def main(folder: Path) -> dict:
    """All comparisons."""
    caches = [sized_cache(folder, 40 + n, name=f"task{n}", longest=14) for n in range(2)]
    meshes = {name: sharding.make_mesh(MeshSettings(*shape)) for name, shape in SHAPES.items()}
    alone = results(caches, None)
    found = {name: compare(results(caches, mesh), alone) for name, mesh in meshes.items()}
    weights, _ = finetuned(caches, None)
    split_weights, specs = finetuned(caches, meshes["2x2x2"])
    found["finetune"] = {"weights": difference(split_weights, weights), "specs": specs}
    sharding.LARGE_BANK_BYTES = 0
    found["large bank"] = compare(results(caches, sharding.make_mesh(MeshSettings(2, 1, 4))), alone)
    return {"devices": jax.device_count(), "meshes": found, "tokens": sum(map(len, alone["tokens"]))}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
