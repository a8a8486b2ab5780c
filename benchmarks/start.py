"""From the start of `mpt-jax train` to its first finished step: weights from a safetensors file, compiled programs kept from before.

    python -m benchmarks.start --json FILE [--size smollm2_135m] [--repeats N]

Teacher stage, 100 prompt vectors, batch 32 in micro-batches of 8, float32, token cache there. Seconds since the process began: until the
backbone is read, until it is in memory, until the first step is done. Every repeat starts twice and counts the second.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from benchmarks import alternate
from benchmarks.backbones import backbone_folder
from benchmarks.commands import train_arguments
from benchmarks.side import finish

WHEN = ("before_backbone", "backbone_read", "first_step")


def _age() -> float:
    """Seconds since this process began."""
    with open("/proc/self/stat") as file:
        began = int(file.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def side(argv: list[str]) -> None:
    """The command in this process, with a clock read at the calls of interest."""
    from mpt_jax import main as command

    when: dict[str, float] = {}
    command._prepare()
    import jax

    from mpt_jax.train import run as run_module
    from mpt_jax.train.step import TrainStep

    load, step = run_module.load_backbone, TrainStep.__call__

    def timed_load(*arguments, **keywords):
        when["before_backbone"] = _age()
        loaded = load(*arguments, **keywords)
        when["backbone_read"] = _age()
        return loaded

    def timed_step(self, *arguments):
        done = jax.block_until_ready(step(self, *arguments))
        when.setdefault("first_step", _age())
        return done

    run_module.load_backbone, TrainStep.__call__ = timed_load, timed_step
    code = command.main([argument for argument in argv if argument.startswith(("train", "--gin"))])
    if code:
        sys.exit(code)
    finish({name: round(when[name], 3) for name in WHEN})


def main() -> None:
    if "--side" in sys.argv:
        side(sys.argv[1:])
        return
    parser = alternate.parser(__doc__)
    parser.add_argument("--size", default="t5_1_1_base", help="row of the size table (default: %(default)s)")
    arguments = parser.parse_args()
    size, lengths, prompt, batch = ("tiny", "tiny", 10, 8) if arguments.small else (arguments.size, "short", 100, 32)
    folder = Path(arguments.folder)
    backbone, run = backbone_folder(folder, size), folder / "run_start"
    macros = {"TRAIN_STEPS": 1, "BATCH_SIZE": batch, "PROMPT_LENGTH": prompt}
    given = ["--side", *train_arguments(folder, backbone, run, ["made_up_0"], lengths, "teacher.gin", **macros)]
    many = []
    for _ in range(arguments.repeats):
        for _ in range(2):
            shutil.rmtree(run, ignore_errors=True)
            last = alternate.run("benchmarks.start", *given)
        many.append(last)

    def summarise(runs: dict[str, list[dict]]) -> dict:
        return {"seconds": {name: alternate.medians(runs["ours"], name) for name in WHEN}, "busy_elsewhere": alternate.worst_company(runs)}

    alternate.write(arguments, "start", "small" if arguments.small else f"{size} batch {batch}", {"ours": many}, summarise)


if __name__ == "__main__":
    main()
