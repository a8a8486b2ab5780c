"""The programs of a stage from shapes alone: train step (accumulate, update) and decoding, compiled for a mesh of absent devices.

B examples, L input tokens, P prompt positions, T target tokens, D model width, N tasks of the bank, G groups, R rank.
"""

import dataclasses
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import MeshSettings, T5Config
from mpt_jax.errors import UserError
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.model.formats.arrays import flatten
from mpt_jax.model.prompted_t5 import encode, init_backbone
from mpt_jax.train import plan
from mpt_jax.train.groups import STAGE_TABLES, split
from mpt_jax.train.optimizer import make_optimizer
from mpt_jax.train.run import Settings
from mpt_jax.train.step import Objective, Sums, TrainState, TrainStep
from mpt_jax.train.teachers import layout_of

Shapes = dict[str, jax.ShapeDtypeStruct]


class Stage(NamedTuple):
    """A stage without its arrays: settings, shape of the network, trainable and frozen shapes by path, objective, rows of a batch."""

    settings: Settings
    config: T5Config
    trainable: Shapes
    frozen: Shapes
    objective: Objective
    runs: list[plan.Run]
    decode_rows: int

    @property
    def examples(self) -> int:
        """Examples of one update: a batch for each group."""
        return self.settings.data.batch_size * (int(self.objective.group_N.max()) + 1)

    @property
    def prompt_length(self) -> int:
        """Prompt positions in front of the input; 0 where no prompt is trained."""
        return self.settings.prompt.length if "bank/shared" in self.trainable else 0


def make_stage(settings: Settings, config: T5Config, tasks: list[str], decode_rows: int) -> Stage:
    """The stage as run_train would make it, from shapes."""
    train, prompt = settings.train, settings.prompt
    config = train.configured(config)
    weights = flatten(jax.eval_shape(lambda: init_backbone(config, 0)))
    runs = plan.plan_runs(train, prompt, settings.optimizer, tasks)
    group_N = np.array([run.group for run in runs], np.int32)
    everything = train.trains_backbone
    dtype = jnp.float32 if everything else jnp.dtype(train.dtype)
    parameters = {f"backbone/{path}": jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in weights.items()}
    distilled = train.stage == "source" and settings.distillation.weight > 0
    if everything:
        group_N = np.zeros(len(runs), np.int32)
    else:
        P, D, N = prompt.length, config.d_model, len(runs)  # noqa: N806
        bank = {"shared": (int(group_N.max()) + 1, P, D)}
        bank |= {"cols": (N, P, prompt.rank), "rows": (N, prompt.rank, D)} if prompt.rank else {}
        parameters |= {f"bank/{name}": jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in bank.items()}
    trainable, frozen = split(parameters, STAGE_TABLES[train.stage])
    if distilled and settings.distillation.teacher == "beside":
        frozen["teacher/prompts"] = jax.ShapeDtypeStruct((len(runs), prompt.length, config.d_model), jnp.float32)
    objective = Objective(config, group_N, settings.distillation if distilled else None, 0.0, train.seed_list[0])
    return Stage(settings, config, trainable, frozen, objective, runs, decode_rows)


class Compiled(NamedTuple):
    """One program: the compiler's numbers for a device. ``memory`` in bytes by kind; ``hlo`` its text, ``stablehlo`` that before.

    ``executable`` and ``arguments`` (shapes with their places) run it where the devices are there.
    """

    name: str
    memory: dict[str, float]
    flops: float
    bytes_accessed: float
    hlo: str
    stablehlo: str
    seconds: float
    executable: Any
    arguments: tuple


class DoesNotFit(Exception):
    """The compiler ran out of the device's memory; ``needed`` bytes of which ``available`` are there, where it says so."""

    def __init__(self, name: str, message: str):
        super().__init__(f"{name}: {message}")
        sizes = re.search(r"Used ([0-9.]+)([KMG]) of ([0-9.]+)([KMG])", message)
        unit = {"K": 2.0**10, "M": 2.0**20, "G": 2.0**30}
        self.needed = float(sizes[1]) * unit[sizes[2]] if sizes else None
        self.available = float(sizes[3]) * unit[sizes[4]] if sizes else None


def compile_one(name: str, mesh: Mesh, function, *arguments: Any, **more: Any) -> Compiled:
    """Compiles a jitted function for the mesh. Raises DoesNotFit."""
    start = time.monotonic()
    with sharding.use(mesh):
        lowered = function.lower(*arguments, **more)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
                raise
            raise DoesNotFit(name, " ".join(str(error).split())[:400]) from error
    sizes = compiled.memory_analysis()
    kinds = ("argument", "temp", "output", "alias", "generated_code")
    memory = {kind: float(getattr(sizes, f"{kind}_size_in_bytes")) for kind in kinds}
    memory["live"] = memory["argument"] + memory["temp"] + memory["output"] - memory["alias"] + memory["generated_code"]
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    seconds = time.monotonic() - start
    counted = float(cost.get("flops", 0.0)), float(cost.get("bytes accessed", 0.0))
    return Compiled(name, memory, *counted, compiled.as_text(), lowered.as_text(), seconds, compiled, arguments)


def rows_of(stage: Stage, mesh: Mesh) -> int:
    """Examples of a micro-batch on this mesh."""
    return sharding.whole_rows(mesh, stage.settings.data.micro_batch_size)


def _placed(mesh: Mesh, tree: Any) -> Any:
    put = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(put, tree, sharding.tree_sharding(mesh, tree))


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, len(shape)))


def _everywhere(mesh: Mesh, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))


def train_programs(stage: Stage, mesh: Mesh) -> list[Compiled]:
    """``accumulate`` for the longest micro-batch, and ``update``."""
    settings, objective = stage.settings, stage.objective
    num_groups = int(objective.group_N.max()) + 1
    table = STAGE_TABLES[settings.train.stage]
    optimizer = make_optimizer(settings.optimizer, settings.train.train_steps, num_groups, table, plan.rates(stage.runs))
    step_fn = TrainStep(objective, optimizer, mesh)
    trainable, frozen = _placed(mesh, stage.trainable), _placed(mesh, stage.frozen)
    by_task = {name: _everywhere(mesh, jnp.float32, len(objective.group_N)) for name in objective.terms}
    sums = Sums(trainable, by_task)
    B, L, T = rows_of(stage, mesh), settings.data.input_length, settings.data.target_length  # noqa: N806
    batch = {"inputs_BL": _rows(mesh, jnp.int32, B, L), "targets_BT": _rows(mesh, jnp.int32, B, T)}
    batch["task_id_B"] = _rows(mesh, jnp.int32, B)
    if objective.distillation and objective.distillation.teacher == "cached":
        layout = layout_of(objective.distillation, stage.config, settings.prompt.length)
        batch |= {name: _rows(mesh, dtype, *shape) for name, (shape, dtype) in layout.shapes(B, L, T).items()}
    totals = {name: _everywhere(mesh, jnp.float32, num_groups) for name in ("target_tokens_G", "encoder_positions_G")}
    scalar = _everywhere(mesh, jnp.int32)
    accumulate = compile_one("accumulate", mesh, step_fn.accumulate, trainable, frozen, sums, batch, totals, scalar, scalar)
    state = TrainState(scalar, trainable, _placed(mesh, jax.eval_shape(optimizer.init, stage.trainable)))
    return [accumulate, compile_one("update", mesh, step_fn.update, state, sums)]


def decode_programs(stage: Stage, mesh: Mesh) -> list[Compiled]:
    """Greedy decoding of the longest batch as one program, and its encoder alone (what runs once)."""
    B = sharding.whole_rows(mesh, stage.decode_rows)  # noqa: N806
    dtype = jnp.dtype(stage.config.dtype)
    weights = {path: leaf for path, leaf in (stage.trainable | stage.frozen).items() if path.startswith("backbone/")}
    weights = {path: jax.ShapeDtypeStruct(leaf.shape, dtype) for path, leaf in weights.items()}
    backbone = _nested(_placed(mesh, weights))
    config = dataclasses.replace(stage.config, remat="none")
    prompt_BPD = None
    if stage.prompt_length:
        prompt_BPD = _rows(mesh, jnp.float32, B, stage.prompt_length, config.d_model)
    inputs_BL = _rows(mesh, jnp.int32, B, stage.settings.data.input_length)
    limit_B, length = _rows(mesh, jnp.int32, B), stage.settings.data.target_length
    encoder = jax.jit(encode, static_argnums=(0, 4))
    return [
        compile_one("decode", mesh, greedy_decode, config, backbone, prompt_BPD, inputs_BL, max_length=length, limit_B=limit_B),
        compile_one("encode", mesh, encoder, config, backbone, prompt_BPD, inputs_BL, length),
    ]


def _nested(flat: dict) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")[1:]
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = leaf
    return tree


def make_mesh(settings: MeshSettings, devices: list[Any]) -> Mesh:
    """The mesh over absent devices. Raises UserError where the numbers do not divide them."""
    try:
        return sharding.make_mesh(settings, devices)
    except NotImplementedError as error:
        raise UserError(f"no mesh of {settings} over these devices: {error}") from error
