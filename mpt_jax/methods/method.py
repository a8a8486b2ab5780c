"""What a method is: its parameters, whose they are, where they start, and what they do to the embedded inputs.

B examples, N tasks (runs) in the program, G groups of tasks that share parameters.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mpt_jax import checks
from mpt_jax.config import TARGET_STAGES, OptimizerSettings, Settings
from mpt_jax.errors import UserError
from mpt_jax.model import int8
from mpt_jax.model.families import family_of
from mpt_jax.model.families.family import Adaptation, Network
from mpt_jax.model.formats.arrays import unflatten
from mpt_jax.sharding import TASK_AXES, Places

# paths of parameters that are no method's own
BACKBONE = "backbone/"
TEACHERS = "teacher/prompts"  # the teachers' prompts (N, P, D), frozen
HEAD = "head/kernel"  # (D, E), maps encoder output to sentence vectors in pretraining
FROZEN = "frozen"
KEPT = "kept"  # frozen, and in checkpoints: a run can be used without what it was made from
PARAM_GROUPS = ("prompt", "factors", "weights", KEPT, FROZEN)  # the first three have learning rates
TASK, GROUP = "task", "group"
NEVER, MAY, MUST = "never", "may", "must"  # whether a method starts from SOURCE_DIR in the target stages


class Part(NamedTuple):
    """A row: parameters whose path the pattern matches, what their first axis counts, and their parameter group.

    first_axis: TASK (N, ...), GROUP (G, ...), or None: one for the whole program. param_group: one of PARAM_GROUPS; 'prompt' trains at
    LEARNING_RATE, 'factors' at FACTOR_LEARNING_RATE, KEPT and FROZEN do not train. ``part_of`` raises UserError for another one.

    >>> Part("scale/inputs", TASK, "prompt").first_axis
    'task'
    """

    pattern: str
    first_axis: str | None
    param_group: str


class Start(NamedTuple):
    """What a method starts from. ``backbone``: the frozen weights, nested. seed_G and task_G: each group's seed and first task.

    group_N (int32): each run's group. text_ids: tokens of each text of PromptSettings.init_text. source: the trained arrays by path and
    run.json of SOURCE_DIR, in the target stages; None, too, where only shapes are wanted. source_G: the source task of each group, where
    each is given one.

    >>> def init(start):
    ...     return {"scale/inputs": np.ones((len(start.group_N), 192), np.float32)}
    >>> start = Start(None, None, {}, np.array([0, 1, 2]), (1, 1, 1), ("a", "b", "c"))
    >>> init(start)["scale/inputs"].shape  # (N, D)
    (3, 192)
    """

    settings: Settings
    network: Network
    backbone: Mapping[str, Any]
    group_N: np.ndarray
    seed_G: Sequence[int]
    task_G: Sequence[str]
    text_ids: Mapping[str, Sequence[int]] | None = None
    source: tuple[Mapping[str, np.ndarray], Mapping[str, Any]] | None = None
    source_G: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Settings of a method's own: each method that has some derives a class from this in its file."""

    def __post_init__(self):
        checks.check_types(self)


def no_prefix(settings: Settings) -> int:
    """Nothing goes in front of an input."""
    del settings
    return 0


class Method(NamedTuple):
    """A row of the table of methods.

    parts: the rows for every parameter it adds, and for the backbone's (``backbone/…``); the first that matches wins.
    init(Start) -> float32 arrays by path, without the backbone's. adaptation: None leaves the network as it is.
    settings: the dataclass of its own settings (Settings.method). learning_rate and factor_learning_rate: what LEARNING_RATE and
    FACTOR_LEARNING_RATE are where they are not given; target_factor_learning_rate: the latter in the target stages, where it differs.
    from_source: NEVER, MAY or MUST. each_source: a run is trained from each task of SOURCE_DIR, and the one that does best on the dev
    split answers. reads_init: its prompts start as PromptSettings.init says where they do not start from SOURCE_DIR.
    prefix_length(Settings) -> vectors that it puts in front of an input.
    A parameter that no row covers stops the run with a UserError before its first step.

    >>> def init(start):
    ...     return {"scale/inputs": np.ones((len(start.group_N), start.network.config.d_model), np.float32)}
    >>> def adapt(own, embedded_BLD, real_BL):  # each example's own (B, D) times its embedded input
    ...     return Adapted(None, embedded_BLD * own["scale/inputs"][:, None, :])
    >>> parts = (Part("scale/inputs", TASK, "prompt"), Part("backbone/.*", None, FROZEN))
    >>> Method("scale", parts, init, Adaptation(adapt)).trains_backbone
    False
    """

    name: str
    parts: tuple[Part, ...]
    init: Callable[[Start], dict[str, Any]]
    adaptation: Adaptation | None
    settings: type[MethodSettings] | None = None
    learning_rate: float = 0.3  # of prompts [MPT]
    factor_learning_rate: float = 0.3  # of MPT's factors in the source stage [MPT, low confidence]
    target_factor_learning_rate: float | None = None
    from_source: str = MAY
    each_source: bool = False
    reads_init: bool = True
    prefix_length: Callable[[Settings], int] = no_prefix

    @property
    def trains_backbone(self) -> bool:
        """Whether weights of the backbone train."""
        return any(re.fullmatch(part.pattern, BACKBONE) and part.param_group != FROZEN for part in self.parts)

    def rates(self, given: OptimizerSettings, stage: str) -> OptimizerSettings:
        """The settings with the method's learning rates where none are given."""
        at_target = self.target_factor_learning_rate if stage in TARGET_STAGES else None
        factors = self.factor_learning_rate if at_target is None else at_target
        own: dict[str, Any] = {"learning_rate": self.learning_rate, "factor_learning_rate": factors}
        return dataclasses.replace(given, **{name: rate for name, rate in own.items() if getattr(given, name) is None})


def part_of(path: str, parts: Sequence[Part]) -> Part:
    """The row of a parameter. Raises UserError if no row covers the path, or names an unknown parameter group."""
    for part in parts:
        if re.fullmatch(part.pattern, path):
            if part.param_group not in PARAM_GROUPS:
                message = f"parameter group {part.param_group!r} of row {part.pattern!r}"
                raise UserError(f"{message} is not one of {', '.join(PARAM_GROUPS)}.")
            return part
    rows = ", ".join(repr(part.pattern) for part in parts)
    raise UserError(f"parameter {path!r} is covered by no row of the method's parts ({rows}); add one.")


def split(parameters: Mapping[str, Any], parts: Sequence[Part]) -> tuple[dict, dict]:
    """Splits parameters by path into (trainable, frozen). Raises UserError for a path that no row covers."""
    trainable: dict[str, Any] = {}
    frozen: dict[str, Any] = {}
    for path, array in parameters.items():
        (frozen if part_of(path, parts).param_group in (KEPT, FROZEN) else trainable)[path] = array
    if not trainable:
        raise UserError("the method's parts freeze every parameter; nothing would train.")
    return trainable, frozen


def take(parameters: Mapping[str, Any], parts: Sequence[Part], group_N, task_id_B) -> dict[str, jax.Array]:
    """The method's parameters of each example: (B, ...) for those of a task or group, others whole."""
    index: dict[str | None, Any] = {TASK: task_id_B, GROUP: jnp.take(jnp.asarray(group_N), task_id_B)}
    axes = {path: part_of(path, parts).first_axis for path in parameters}
    return {path: jnp.take(array, index[axes[path]], axis=0) if axes[path] else array for path, array in parameters.items()}


def backbone_of(parameters: Mapping[str, Any]) -> dict:
    """The backbone's weights, nested, of parameters by path."""
    return unflatten((path.removeprefix(BACKBONE), array) for path, array in parameters.items() if path.startswith(BACKBONE))


def kept_of(parameters: Mapping[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """What a method needs and does not train, of parameters by path."""
    return {path: array for path, array in parameters.items() if part_of(path, parts).param_group == KEPT}


def own_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The method's arrays of parameters by path."""
    return {path: array for path, array in parameters.items() if not path.startswith((BACKBONE, TEACHERS, HEAD))}


def sizes(parameters: Mapping[str, Any], parts: Sequence[Part]) -> int:
    """How many numbers train among the parameters."""
    return sum(int(np.size(array)) for path, array in parameters.items() if part_of(path, parts).param_group not in (KEPT, FROZEN))


def check_counts(own: Mapping[str, Any], parts: Sequence[Part], group_N: np.ndarray) -> None:
    """Raises UserError unless a run's arrays hold what is of the tasks and groups that its run.json names."""
    num_groups = len(set(group_N.tolist()))
    if own and (not num_groups or group_N.max() != num_groups - 1):
        raise UserError(f"the groups in run.json are {group_N.tolist()}, not 0 and on: run.json is of another run.")
    counts: dict[str | None, int] = {TASK: len(group_N), GROUP: num_groups}
    for path, array in own.items():
        there, needed = np.shape(array)[:1], counts.get(part_of(path, parts).first_axis)
        if needed is not None and there != (needed,):
            message = f"run.json names {len(group_N)} runs in {num_groups} groups"
            raise UserError(f"{message}, {path!r} of the checkpoint has shape {np.shape(array)}: run.json is of another run.")


def slots_of(path: str, parts: Sequence[Part], group: int, group_N: np.ndarray):
    """Index of the first axis that holds what belongs to a group."""
    return {TASK: group_N == group, GROUP: group, None: slice(None)}[part_of(path, parts).first_axis]


def places_for(mesh: Mesh | None, method: Method, config: Any) -> Places:
    """Where a method's parameters and those of a backbone of this shape live."""
    own = [part for part in method.parts if not part.pattern.startswith(BACKBONE)]
    rows = tuple((part.pattern, TASK_AXES if part.first_axis else ()) for part in own)
    axes = family_of(config).axes
    return Places(mesh, rows + axes + int8.scale_axes(axes))
