"""The side of benchmarks/t5x_step.py that T5X's own trainer runs: its restore, partitioner, Trainer and step over the bridge's model.

Prints a JSON line like benchmarks/ours.py, of the same rows and weights.
"""

import argparse
import os
import time
from pathlib import Path

from benchmarks import rows
from benchmarks.ours import make_training
from benchmarks.side import add_side_arguments, finish, rows_of, steps_of


def t5x_checkpoint(arguments: argparse.Namespace) -> Path:
    """The backbone as a native T5X checkpoint, written where there is none."""
    from mpt_jax.convert import convert

    path = Path(f"{arguments.backbone}_t5x") / "checkpoint_0"
    if not path.exists():
        convert(arguments.backbone, "t5x", str(path))
    return path


def make_trainer(arguments: argparse.Namespace, source, batches):
    """T5X's Trainer with the weights restored, set up as t5x.train does."""
    import jax
    from mpt_jax.model.prompt_bank import bank_from
    from t5x import partitioning, trainer, utils

    from mpt_jax.t5x_bridge.model import PromptedModel, more_axis_rules
    from mpt_jax.t5x_bridge.optimizer import BankOptimizer
    from mpt_jax.t5x_bridge.restore import take_backbone

    step_fn, state, frozen, _ = make_training(arguments, source)  # bank, teachers, objective and optimiser are those of our side
    bank = bank_from({path.removeprefix("bank/"): array for path, array in state.trainable.items()}, step_fn.objective.group_N)
    names = [cache.name for cache in source.caches]
    optimizer = BankOptimizer(step_fn.optimizer)
    model = PromptedModel(step_fn.objective, bank, names, None, optimizer, frozen.get("teacher/prompts"), arguments.batch)
    del step_fn, state, frozen
    rules = partitioning.standard_logical_axis_rules(additional_rules=more_axis_rules())
    partitioner = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules)
    shapes = {name: spec.shape for name, spec in batches.element_spec.items()}
    types = {name: spec.dtype for name, spec in batches.element_spec.items()}
    initial = utils.TrainStateInitializer(model.optimizer_def, model.get_initial_variables, shapes, partitioner, types)
    restore = utils.RestoreCheckpointConfig(
        str(t5x_checkpoint(arguments)), "specific", dtype="float32", fallback_to_scratch=True, state_transformation_fns=(take_backbone,)
    )
    key = jax.random.PRNGKey(0)
    train_state = initial.from_checkpoint([restore], init_rng=key)
    learning_rate = lambda step: 0.3  # noqa: E731 (only reported: the optimiser has its own)
    return trainer.Trainer(model, train_state, partitioner, (), None, initial.train_state_axes, key, learning_rate, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_side_arguments(parser)
    parser.add_argument("--teacher", default="none", choices=("none", "beside"))
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    from mpt_jax.data.batches import BatchSpec, batch_iterator
    from mpt_jax.t5x_bridge.cached import CachedBatches

    source, longest = rows_of(arguments), rows.SETS[arguments.rows][1]
    spec = BatchSpec(longest, 8, arguments.batch, (longest,), (8,))
    steps, tasks = steps_of(arguments), len(source.caches)
    batches = CachedBatches(lambda step: batch_iterator([source], spec, tasks, steps[0] + step), spec, slice(0, arguments.batch))
    seconds = []
    with make_trainer(arguments, source, batches) as trainer:
        for step in steps:
            start = time.perf_counter()
            summary = trainer.train(batches, 1, start_step=step).result()
            seconds.append(time.perf_counter() - start)
    finish({"seconds": seconds[arguments.warmup :], "loss": float(summary["mean/loss"].value)})


if __name__ == "__main__":
    main()
