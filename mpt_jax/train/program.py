"""One assembly of a training program, for training, compiling without devices, T5X's trainer and measurements.

N tasks (runs) in the program, G groups, P prompt positions, D model width, E width of a sentence vector.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import sharding
from mpt_jax.config import Settings
from mpt_jax.data.batches import BatchSpec
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.cutting import PART_COST
from mpt_jax.data.frame import Frame
from mpt_jax.errors import UserError
from mpt_jax.methods.method import HEAD, TEACHERS, Method, Start, backbone_of, part_of, places_for, split
from mpt_jax.methods.table import method_of, own_settings
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Network
from mpt_jax.train.optimizer import Optimizer, make_optimizer
from mpt_jax.train.plan import Plan, check_folders, draw_few_shot, each_source, is_distilled, plan_runs, read_source, teacher_prompts
from mpt_jax.train.step import TrainStep
from mpt_jax.train.terms import Objective

Arrays = dict[str, Any]


class Program(NamedTuple):
    """A stage, ready to train: trainable and frozen arrays by path (or their shapes), the loss, the optimiser, the form of its batches."""

    settings: Settings
    backbone: Backbone
    method: Method
    plan: Plan
    places: sharding.Places
    trainable: Arrays
    frozen: Arrays
    objective: Objective
    optimizer: Optimizer
    spec: BatchSpec
    teachers_NPD: np.ndarray | None  # each run's teacher prompt, where something is distilled

    @property
    def network(self) -> Network:
        """The network as training computes it."""
        return self.objective.network

    def step(self) -> TrainStep:
        """The train step, not compiled yet."""
        return TrainStep(self.objective, self.optimizer, self.places)


def assemble(
    settings: Settings,
    tasks: Sequence[str],
    backbone: Backbone,
    mesh: Mesh | None = None,
    caches: Mapping[str, TokenCache] | None = None,
    shapes_only: bool = False,
) -> Program:
    """The program of a stage. ``caches``: training rows of the tasks, for few-shot draws and sentence vectors.

    shapes_only: the backbone's parameters are shapes, no run folder is read, and so are the arrays of the result.
    Raises UserError for settings that contradict one another, the backbone or the folders they name.
    """
    method = method_of(settings.train)
    settings = own_settings(settings, method)
    _check_backbone(settings, method, backbone)
    check_folders(settings, method)
    source = None if shapes_only else read_source(settings, backbone, method)
    plan = plan_runs(settings, tasks)
    if method.each_source and source:
        plan = each_source(plan, source[1], settings)
    plan = plan if shapes_only else draw_few_shot(plan, caches or {}, settings.data)
    network = Network(backbone.config, settings.computation(), method.adaptation)
    teachers_NPD = None
    if not shapes_only:
        teachers_NPD = teacher_prompts(plan, settings, backbone)
    elif is_distilled(settings):
        teachers_NPD = np.zeros((len(plan.runs), settings.prompt.length, backbone.config.d_model), np.float32)
    text_ids = _text_ids(settings, backbone, shapes_only)

    def arrays(flat: Arrays) -> Arrays:
        if method.trains_backbone:
            # a copy: trained arrays are donated to the step, the backbone's own must stay usable
            flat = {path: jnp.array(array, jnp.float32, copy=True) for path, array in flat.items()}
        seeds, names = [row.seed for row in plan.first_runs], [row.task for row in plan.first_runs]
        sources = [row.source for row in plan.first_runs]
        start = Start(settings, network, backbone_of(flat), plan.group_N, seeds, names, text_ids, source, sources)
        flat = flat | {path: jnp.asarray(array) for path, array in method.init(start).items()}
        if settings.train.stage == "pretrain" and settings.train.encoder_teaching:
            flat[HEAD] = _teaching_head(backbone.config.d_model, caches or {}, settings)
        beside = teachers_NPD is not None and settings.distillation.teacher_mode == "beside"
        return flat | {TEACHERS: jnp.asarray(teachers_NPD)} if beside else flat

    parameters = jax.eval_shape(arrays, backbone.flat()) if shapes_only else arrays(backbone.flat())
    trainable, frozen = split(parameters, method.parts)
    _check_trainable(settings, plan, method, trainable)
    places = places_for(mesh, method, backbone.config)
    return Program(
        settings=settings,
        backbone=backbone,
        method=method,
        plan=plan,
        places=places,
        trainable=trainable,
        frozen=frozen if shapes_only else places.put(frozen),
        objective=_objective(settings, network, method, plan, teachers_NPD is not None),
        optimizer=make_optimizer(settings.optimizer, settings.train.train_steps, plan.num_groups, method.parts, plan.rates()),
        spec=batch_spec(settings, backbone, network, mesh, shapes_only),
        teachers_NPD=teachers_NPD,
    )


def _check_backbone(settings: Settings, method: Method, backbone: Backbone) -> None:
    """Raises UserError where int8 weights would be trained, the backbone at hand is not what run.json would say, or has no such kernel."""
    if settings.backbone.int8 != backbone.int8:
        kept = "int8" if backbone.int8 else "not int8"
        message = f"BackboneSettings.int8 (INT8) = {settings.backbone.int8}, and the weights of the backbone that was given are {kept}"
        raise UserError(f"{message}: load it by the same settings. T5X's trainer has no int8.")
    if method.trains_backbone and backbone.int8:
        raise UserError(f"INT8 keeps frozen weights as int8, and method {method.name!r} trains them: leave --int8 out.")
    stacks = family_of(backbone.config).stacks(backbone.config, 1, 1)
    if settings.backbone.attention == "fused" and stacks and not any(stack.kernel for stack in stacks):
        message = f"ATTENTION = 'fused': {backbone.name!r} has no place for a kernel, its attention is computed by products"
        raise UserError(f"{message}; set ATTENTION = 'auto'.")


def _text_ids(settings: Settings, backbone: Backbone, shapes_only: bool) -> dict[str, Sequence[int]] | None:
    """Tokens of each text that prompts start from; None where they start otherwise."""
    if settings.prompt.init != "text":
        return None
    if shapes_only:
        return dict.fromkeys(settings.prompt.init_texts, (0,))
    words = backbone.vocabulary(settings.data.cue)
    return {text: words.encode(text) for text in settings.prompt.init_texts}


def _check_trainable(settings: Settings, plan: Plan, method: Method, trainable: Arrays) -> None:
    """Raises UserError where several groups would train what there is once, or the same run again."""
    _check_rates(settings, method, trainable)
    once = next((path for path in trainable if part_of(path, method.parts).first_axis is None), None)
    if once is not None and plan.num_groups > 1:
        message = f"method {method.name!r} trains {once!r}, which the whole program has once: give one seed and one learning rate"
        raise UserError(f"{message}, not {plan.num_groups} combinations.")


def _check_rates(settings: Settings, method: Method, trainable: Arrays) -> None:
    """Raises UserError for a list of rates that nothing trains at."""
    groups = {part_of(path, method.parts).param_group for path in trainable}
    for name, at in (("learning_rate", {"prompt", "weights"}), ("factor_learning_rate", {"factors"})):
        rates = getattr(settings.optimizer, name)
        if isinstance(rates, list | tuple) and len(rates) > 1 and not groups & at:
            ranked = any(part.param_group == "factors" for part in method.parts) and name == "factor_learning_rate"
            what = f"METHOD = {method.name!r}{f' with PROMPT_RANK = {settings.prompt.rank}' if ranked else ''} trains nothing at this rate"
            message = f"{name.upper()} = {list(rates)} would train the same run {len(rates)} times: {what}"
            raise UserError(f"{message}; leave it out.")


def _objective(settings: Settings, network: Network, method: Method, plan: Plan, distilled: bool) -> Objective:
    train = settings.train
    teaching = train.encoder_teaching if train.stage == "pretrain" else 0.0
    distillation = settings.distillation if distilled else None
    return Objective(
        network, method, plan.group_N, distillation,
        prompt_length=method.prefix_length(settings), encoder_teaching=teaching, dropout_seed=train.seed_list[0],
    )  # fmt: skip


def batch_spec(settings: Settings, backbone: Backbone, network: Network, mesh: Mesh | None, shapes_only: bool) -> BatchSpec:
    """How rows become micro-batches of a backbone's training on a mesh."""
    data = settings.data
    rows = sharding.whole_rows(mesh, data.micro_batch_size, "DataSettings.micro_batch_size")
    smallest = data.smallest_micro_batch and sharding.whole_rows(mesh, data.smallest_micro_batch)
    if 0 < smallest < rows and mesh is not None and mesh.is_multi_process:
        name = f"DataSettings.smallest_micro_batch = {data.smallest_micro_batch}"
        raise UserError(f"{name} works in one process, here are {jax.process_count()}: leave it out, or set it to {rows}.")
    frame = Frame() if shapes_only else backbone.vocabulary(data.cue).frame
    decoder_only = family_of(backbone.config).decoder_only
    return BatchSpec(
        input_length=data.input_length, target_length=data.target_length, micro_batch_size=rows, smallest_micro_batch=smallest,
        part_cost=PART_COST + (settings.prompt.length if decoder_only else 0),  # whose prompts are computed once a micro-batch
        input_buckets=tuple(data.input_buckets), target_buckets=tuple(data.target_buckets),
        local_rows=sharding.local_rows(mesh, rows), by_task=decoder_only or network.changes_inside,
        input_end=frame.input_end, target_end=frame.target_end,
    )  # fmt: skip


def _teaching_head(width: int, caches: Mapping[str, TokenCache], settings: Settings):
    widths = {cache.embedding.shape[1] for cache in caches.values() if cache.embedding is not None}
    if not widths:
        message = f"TrainSettings.encoder_teaching = {settings.train.encoder_teaching} needs rows with an 'embedding', and no task has any"
        raise UserError(f"{message}; set it to 0.0 or name other tasks.")
    rng = np.random.default_rng([settings.train.seed_list[0], 0x68656164])
    return jnp.asarray(rng.normal(0.0, width**-0.5, (width, widths.pop())), jnp.float32)
