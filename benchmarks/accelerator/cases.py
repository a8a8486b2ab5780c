"""What is measured, in the order of worth, and the sizes that it is measured at. Imports neither JAX nor torch."""

from typing import NamedTuple

NEW_TOKENS = 16  # decoded for each row; no row ends before
TASKS = 6  # source tasks, as in MPT


class Scale(NamedTuple):
    """Sizes of all cases. rows: a row of benchmarks.rows.SETS; buckets: padded input lengths, the last is the limit; prompt: P."""

    rows: str
    buckets: tuple[int, ...]
    target_length: int
    prompt: int
    batch: int  # examples of an update, and rows decoded together
    micro: int  # rows padded together
    runs: int  # of the population
    run_batch: int  # examples of an update of each run
    run_micro: int
    product: int  # side of the square matrices
    chunk_s: float  # seconds of a timed chunk of updates
    cached_rows: int  # rows of a token cache
    tiny: bool = False  # models of a toy's shape, and no case is left out


FULL = Scale("medium", (176, 256), 8, 100, 128, 32, 24, 8, 64, 8192, 0.8, 1024)
TINY = Scale("tiny", (8, 16), 8, 4, 8, 4, 3, 2, 4, 64, 0.01, 64, True)


class Case(NamedTuple):
    """One result. side: 'jax' or 'peft'. kind: 'product', 'attention', 'dense', 'step' or 'decode'.

    size: a name of ``sizes.config_of``. teacher: 'cached', 'beside' or 'none'. runs: of the population, 0 = the source stage.
    attention: ATTENTION; 'fused' is cuDNN's kernel on a GPU and what 'auto' takes on a TPU.
    seconds: what it takes on an H100 with nothing compiled before, compiling beside other cases; what no longer fits is left out.
    """

    name: str
    side: str
    kind: str
    seconds: float
    size: str = ""
    teacher: str = "none"
    runs: int = 0
    attention: str = "auto"


# waves of the JAX process: the programs of a wave compile side by side, then each is measured alone
WAVES = (
    (
        Case("product", "jax", "product", 5),
        Case("t5_large source cached", "jax", "step", 60, "t5_large", "cached"),
        Case("t5_base source cached", "jax", "step", 40, "t5_base", "cached"),
        Case("t5_large attention", "jax", "attention", 15, "t5_large"),
        Case("t5_large dense", "jax", "dense", 8, "t5_large"),
        Case("t5_large source cached fused", "jax", "step", 60, "t5_large", "cached", attention="fused"),
    ),
    (
        Case("smollm2 source cached", "jax", "step", 40, "smollm2", "cached"),
        Case("t5_base population", "jax", "step", 35, "t5_base", runs=FULL.runs),
        Case("t5_base population of 1", "jax", "step", 35, "t5_base", runs=1),
        Case("t5_base decode", "jax", "decode", 30, "t5_base"),
        Case("smollm2 decode", "jax", "decode", 30, "smollm2"),
    ),
    (
        Case("t5_large source beside", "jax", "step", 70, "t5_large", "beside"),
        Case("t5_base source beside", "jax", "step", 50, "t5_base", "beside"),
    ),
)
PEFT = (
    Case("t5_large target peft", "peft", "step", 12, "t5_large"),
    Case("t5_base target peft", "peft", "step", 9, "t5_base"),
    Case("smollm2 target peft", "peft", "step", 9, "smollm2"),
)


def chosen(only: str) -> tuple[list[list[Case]], list[Case]]:
    """(waves of the JAX process, PEFT's cases) whose names hold one of the comma-separated parts; '' takes all."""
    parts = [part.strip() for part in only.split(",") if part.strip()]

    def wanted(cases: tuple[Case, ...]) -> list[Case]:
        return [case for case in cases if not parts or any(part in case.name for part in parts)]

    return [wave for wave in map(wanted, WAVES) if wave], wanted(PEFT)
