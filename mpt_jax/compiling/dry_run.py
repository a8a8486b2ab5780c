"""``mpt-jax train STAGE --dry_run``: what training would do, from the real backbone and rows, without a step and without a run folder."""

import jax

from mpt_jax import sharding
from mpt_jax.compiling.chips import GIB
from mpt_jax.compiling.programs import DoesNotFit, make_stage, train_programs
from mpt_jax.config import Settings
from mpt_jax.data.cache import TokenCache
from mpt_jax.methods.method import sizes
from mpt_jax.model.int8 import SCALE
from mpt_jax.train.program import Program
from mpt_jax.train.run import check_together, prepare


def dry_run(settings: Settings, tasks: tuple[str, ...]) -> str:
    """Tasks, rows, cut rows, parameters, steps and memory of a stage, as text. Writes token caches that are missing, and nothing else.

    Raises UserError wherever training would before its first step, except for what the run folder holds already.
    """
    check_together(settings)
    program, caches = prepare(settings, tasks)
    train, rows = settings.train, _rows(settings, [*caches.train.values(), *caches.dev.values()])
    devices = jax.devices()
    scored = f"dev rows scored every {train.steps_between_scores:,} steps; " if train.score_tasks else ""
    facts = {
        "stage": f"{train.stage}, method {program.method.name}, on {len(devices)} × {devices[0].device_kind}",
        "runs": f"{len(program.plan.runs):,} (tasks, seeds and learning rates) in {program.plan.num_groups:,} groups",
        "rows of a run": f"{settings.data.k_shot} drawn (K_SHOT)" if settings.data.k_shot else "all rows of its tasks",
        "steps": f"{train.train_steps:,} of {settings.data.batch_size * program.plan.num_groups:,} examples",
        "written": f"{scored}a checkpoint every {train.steps_between_checkpoints:,} steps, in {train.model_dir}",
        "trainable parameters": f"{sizes(program.trainable, program.method.parts):,}",
        "frozen parameters": f"{sum(int(array.size) for path, array in program.frozen.items() if not path.endswith(SCALE)):,}",
        "memory per device": _memory(settings, program, tasks),
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {text}" for name, text in facts.items()]
    return "\n".join([*rows, "", *lines, "", "A dry run: nothing was trained."]) + "\n"


def _rows(settings: Settings, caches: list[TokenCache]) -> list[str]:
    """A line for each task split."""
    data = settings.data
    table = [("task", "split", "rows", f"inputs cut at {data.input_length}", f"targets cut at {data.target_length}")]
    for cache in caches:
        cut = (cache.input_lengths > data.input_length).sum(), (cache.target_lengths > data.target_length).sum()
        table.append((cache.name, cache.split, f"{cache.rows:,}", *(f"{int(number):,}" for number in cut)))
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    return ["  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]) for line in table]


def _memory(settings: Settings, program: Program, tasks: tuple[str, ...]) -> str:
    """What the compiler says of the longest micro-batch and of the update."""
    stage = make_stage(settings, program.backbone.config, tasks, sharding.make_mesh(settings.mesh), 1)
    try:
        accumulate, update = train_programs(stage)
    except DoesNotFit as error:
        return f"does not fit: {error}"
    # the optimiser's state lies there while the other program runs
    live = max(accumulate.memory["live"], update.memory["live"]) + update.memory["argument"]
    weights = accumulate.memory["argument"]
    return f"{live / GIB:.2f} GiB, {weights / GIB:.2f} of it weights and rows (the compiler's numbers for the longest rows)"
