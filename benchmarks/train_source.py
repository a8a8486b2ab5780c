"""A step of source training, teachers run beside the student, beside PEFT's plain step: T5-Base, 6 tasks, 100 vectors, batch 32, float32.

    python -m benchmarks.train_source --json FILE [--repeats N --append]

PEFT has no distillation: its step, without a teacher, is the peer.
"""

from benchmarks import alternate
from benchmarks.train_target import parser, step_arguments

TASKS = 6


def main() -> None:
    arguments = parser(__doc__).parse_args()
    given = step_arguments(arguments, TASKS)
    sides = {"peft": ["benchmarks.peer_peft", *given], "ours_teacher_beside": ["benchmarks.ours", *given, "--teacher", "beside"]}
    case = "small" if arguments.small else f"{arguments.size} {arguments.rows}"
    alternate.compare(arguments, "train_source", case, sides, lambda runs: alternate.against(runs, "peft"))


if __name__ == "__main__":
    main()
