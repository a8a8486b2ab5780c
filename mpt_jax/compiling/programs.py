"""The programs of a stage from shapes alone: train step (accumulate, update) and decoding, compiled for a mesh of absent devices.

B examples, L input tokens, P prompt positions, T target tokens, D model width, N tasks of the bank, G groups, R rank, U different tasks.
"""

import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import MeshSettings, Settings
from mpt_jax.data.batches import most_slots, slots_for
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.methods.method import BACKBONE, backbone_of, own_of, take
from mpt_jax.model.backbone import Backbone, shapes_of
from mpt_jax.model.families.family import Network, Rows
from mpt_jax.model.network import prefill
from mpt_jax.train.program import Program, assemble
from mpt_jax.train.step import Sums, TrainState
from mpt_jax.train.teachers import layout_of
from mpt_jax.train.terms import terms


class Stage(NamedTuple):
    """A program whose arrays are shapes, on a mesh of absent devices, and the rows of a decoded batch."""

    program: Program
    mesh: Mesh | None
    decode_rows: int

    @property
    def settings(self) -> Settings:
        """What the stage is made from."""
        return self.program.settings

    @property
    def examples(self) -> int:
        """Examples of one update: a batch for each group."""
        return self.settings.data.batch_size * self.program.plan.num_groups

    @property
    def prompt_length(self) -> int:
        """Prompt positions in front of the input; 0 where no prompt is trained."""
        return self.program.method.prefix_length(self.settings)


def make_stage(settings: Settings, config: Any, tasks: Sequence[str], mesh: Mesh | None, decode_rows: int) -> Stage:
    """The stage as training would assemble it, from shapes; without a mesh for one device."""
    # by its table of names: drawing weights in thought traces every layer, 4 s of T5-Large
    params = shapes_of(config, settings.backbone)
    backbone = Backbone(config.name, config, params, settings.backbone.vocabulary, "")
    return Stage(assemble(settings, tasks, backbone, mesh, shapes_only=True), mesh, decode_rows)


class Compiled(NamedTuple):
    """One program: the compiler's numbers for a device. ``memory`` in bytes by kind; ``hlo`` its text, ``stablehlo`` that before.

    ``executable`` and ``arguments`` (shapes with their shardings) run it where the devices are there.
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


def memory_of(executable: Any) -> dict[str, float]:
    """Bytes that a compiled program takes on a device, by kind; 'live': all of them while it runs."""
    sizes = executable.memory_analysis()
    kinds = ("argument", "temp", "output", "alias", "generated_code")
    memory = {kind: float(getattr(sizes, f"{kind}_size_in_bytes")) for kind in kinds}
    memory["live"] = memory["argument"] + memory["temp"] + memory["output"] - memory["alias"] + memory["generated_code"]
    return memory


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
    memory = memory_of(compiled)
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    seconds = time.monotonic() - start
    return Compiled(
        name, memory, flops=float(cost.get("flops", 0.0)), bytes_accessed=float(cost.get("bytes accessed", 0.0)),
        hlo=compiled.as_text(), stablehlo=lowered.as_text(), seconds=seconds, executable=compiled, arguments=arguments,
    )  # fmt: skip


def _placed(places: sharding.Places, tree: Any) -> Any:
    def put(leaf, where):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(put, tree, places.shardings(tree))


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, len(shape)))


def _everywhere(mesh: Mesh, dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(mesh))


def micro_batch(stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """The longest micro-batch of training, of as many different tasks as one may hold."""
    program, mesh, data, objective = stage.program, stage.mesh, stage.settings.data, stage.program.objective
    B, L, T = program.spec.micro_batch_size, data.input_length, data.target_length
    batch = {"inputs_BL": _rows(mesh, jnp.int32, B, L), "targets_BT": _rows(mesh, jnp.int32, B, T)}
    batch |= {name: _rows(mesh, jnp.int32, B) for name in ("input_length_B", "target_length_B", "task_id_B")}
    if program.spec.by_task:
        U = most_slots(program.plan.group_N, data.batch_size, program.spec)
        batch |= {"task_U": _everywhere(mesh, jnp.int32, U), "slot_B": _rows(mesh, jnp.int32, B)}
    if objective.distillation and objective.distillation.teacher_mode == "cached":
        layout = layout_of(objective.distillation, program.backbone.config, stage.settings.prompt.length)
        batch |= {name: _rows(mesh, dtype, *shape) for name, (shape, dtype) in layout.shapes(B, L, T).items()}
    return batch


def train_programs(stage: Stage) -> list[Compiled]:
    """``accumulate`` for the longest micro-batch, and ``update``."""
    program, mesh = stage.program, stage.mesh
    objective, places, step_fn = program.objective, program.places, program.step()
    trainable, frozen, batch = _placed(places, program.trainable), _placed(places, program.frozen), micro_batch(stage)
    rows = terms(objective)
    sums = Sums(trainable, {term.name: _everywhere(mesh, jnp.float32, len(program.plan.runs)) for term in rows})
    totals = {term.name: _everywhere(mesh, jnp.float32, program.plan.num_groups) for term in rows if term.weight}
    scalar = _everywhere(mesh, jnp.int32)
    accumulate = compile_one("accumulate", mesh, step_fn.accumulate, trainable, frozen, sums, batch, totals, scalar, scalar)
    state = TrainState(scalar, trainable, _placed(places, jax.eval_shape(program.optimizer.init, program.trainable)))
    return [accumulate, compile_one("update", mesh, step_fn.update, state, sums)]


def decode_arguments(stage: Stage) -> tuple[Network, dict, dict, Rows]:
    """Network, weights, the method's parameters and rows of the longest batch that is decoded, as infer/requests.py gives them."""
    program, mesh = stage.program, stage.mesh
    network = Network(program.backbone.config, stage.settings.backbone.computation, program.method.adaptation)
    B = sharding.whole_rows(mesh, stage.decode_rows)
    parameters = program.trainable | program.frozen
    weights = {path: leaf for path, leaf in parameters.items() if path.startswith(BACKBONE)}
    if program.method.trains_backbone:  # in float32
        weights = {path: jax.ShapeDtypeStruct(leaf.shape, network.computation.dtype) for path, leaf in weights.items()}
    backbone = backbone_of(_placed(program.places, weights))

    def taken(own, task_id_B):
        return take(own, program.method.parts, program.plan.group_N, task_id_B)

    by_task, U = program.spec.by_task, slots_for(min(B, len(program.plan.runs)))
    own = jax.eval_shape(taken, own_of(parameters), jax.ShapeDtypeStruct((U if by_task else B,), jnp.int32))
    own = jax.tree.map(lambda leaf: (_everywhere if by_task else _rows)(mesh, leaf.dtype, *leaf.shape), own)
    slot_B = _rows(mesh, jnp.int32, B) if by_task else None
    inputs_BL = _rows(mesh, jnp.int32, B, stage.settings.data.input_length)
    return network, backbone, own, Rows(inputs_BL, _rows(mesh, jnp.int32, B), slot_B=slot_B)


def decode_programs(stage: Stage) -> list[Compiled]:
    """Greedy decoding of the longest batch as one program, and what runs once for an input alone."""
    arguments, mesh, length = decode_arguments(stage), stage.mesh, stage.settings.data.target_length
    limit_B = _rows(mesh, jnp.int32, sharding.whole_rows(mesh, stage.decode_rows))
    first = jax.jit(_prefill, static_argnums=(0, 4))
    return [
        compile_one("decode", mesh, greedy_decode, *arguments, max_length=length, ends=Vocabulary.ends, limit_B=limit_B),
        compile_one("encode", mesh, first, *arguments, length),
    ]


def _prefill(network: Network, backbone: dict, own, rows: Rows, positions: int):
    return prefill(network, backbone, rows, own, positions)


def make_mesh(settings: MeshSettings, devices: list[Any]) -> Mesh:
    """The mesh over absent devices. Raises UserError where the numbers do not divide them."""
    try:
        return sharding.make_mesh(settings, devices)
    except NotImplementedError as error:
        raise UserError(f"no mesh of {settings} over these devices: {error}") from error
