"""A step of source training beside PEFT's plain step: T5-Base, 6 tasks, 100 prompt vectors, batch 32, float32, same rows and weights.

    python -m benchmarks.train_source --json FILE [--repeats N --append]

Teachers run beside the student, or have run once before (their outputs are computed before the timed steps, compiling included;
``teachers_s`` for ``teachers_rows`` rows). PEFT has no distillation: its step, without a teacher, is the peer.
"""

from benchmarks import alternate
from benchmarks.train_target import case_of, parser, step_arguments

TASKS = 6


def main() -> None:
    arguments = parser(__doc__).parse_args()
    given = step_arguments(arguments, TASKS)
    sides = {"peft": ["benchmarks.peer_peft", *given]}
    sides |= {f"ours_teacher_{teacher}": ["benchmarks.ours", *given, "--teacher", teacher] for teacher in ("beside", "cached")}

    def summarise(runs: dict[str, list[dict]]) -> dict:
        last = runs["ours_teacher_cached"][-1]
        told = {"teachers_s": round(last["teachers_s"], 1), "teachers_rows": last["teachers_rows"], "waiting_share": last["waiting_share"]}
        return alternate.against(runs, "peft") | told

    case = "small" if arguments.small else case_of(arguments)
    alternate.compare(arguments, "train_source", case, sides, summarise)


if __name__ == "__main__":
    main()
