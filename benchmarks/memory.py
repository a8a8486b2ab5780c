"""Peak of resident memory of a training process beside PEFT's: T5-Base, 100 prompt vectors, batch 32, float32, same rows and weights.

    python -m benchmarks.memory --json FILE [--rows short|long]

From the start of the process through reading the weights to the last step.
"""

from benchmarks import alternate
from benchmarks.train_target import case_of, parser, step_arguments


def main() -> None:
    arguments = parser(__doc__).parse_args()
    given = [*step_arguments(arguments), "--warmup", 0]
    sides = {"peft": ["benchmarks.peer_peft", *given], "ours": ["benchmarks.ours", *given]}
    case = "small" if arguments.small else case_of(arguments)
    alternate.compare(arguments, "memory", case, sides, lambda runs: alternate.against(runs, "peft", "peak_mb"))


if __name__ == "__main__":
    main()
