"""A step of the source stage, distillation included, under T5X's trainer and under ours: time and peak memory, same rows and weights.

    python -m benchmarks.t5x_step --json FILE [--rows short|long] [--repeats N --append]

Batch 32, 100 prompt vectors, two tasks, float32. T5X pads every row to the longest length allowed; ours cuts the batch into micro-batches
with lengths of their own, and `ours_padded` does as T5X, so that it differs in the trainer alone. T5X must be there: docs/t5x.md.
"""

from benchmarks import alternate
from benchmarks.train_target import parser, step_arguments


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(size="t5_1_1_small")
    arguments = made.parse_args()
    given = [*step_arguments(arguments, tasks=2), "--teacher", "beside"]
    sides = {
        "t5x": ["benchmarks.peer_t5x", *given],
        "ours_padded": ["benchmarks.ours", *given, "--padded"],
        "ours": ["benchmarks.ours", *given],
    }

    def summarise(runs: dict[str, list[dict]]) -> dict:
        found = alternate.against(runs, "t5x")
        return found | {"peak_mb": {name: alternate.medians(runs[name], "peak_mb") for name in found["seconds"]}}

    case = "small" if arguments.small else f"{arguments.size} {arguments.rows}"
    alternate.compare(arguments, "t5x_step", case, sides, summarise)


if __name__ == "__main__":
    main()
